"""Boot protocols: what a boot loader would do, so that no firmware is needed."""
