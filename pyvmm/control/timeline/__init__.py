"""The timeline: what a machine did and when, as a Perfetto trace and in words."""
