"""ACPI tables, built from the machine that is actually configured."""
