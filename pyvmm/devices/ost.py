"""What an OS tells of hot-plug by _OST: an event, which is a Notify's value or what it has begun by itself, and how
that went. ACPI 6.5, section 6.3.5."""

from __future__ import annotations

from typing import Final

OST_DEVICE_CHECK: Final = 0x001
OST_EJECT_REQUEST: Final = 0x003
OST_EJECTION_PROCESSING: Final = 0x103
OST_INSERTION_PROCESSING: Final = 0x200
OST_INSERTION: Final = (OST_DEVICE_CHECK, OST_INSERTION_PROCESSING)
OST_EJECTION: Final = (OST_EJECT_REQUEST, OST_EJECTION_PROCESSING)
"""The events."""
OST_SUCCESS: Final = 0x00
OST_INSERTION_IN_PROGRESS: Final = 0x80
OST_EJECTION_IN_PROGRESS: Final = 0x84
"""Statuses; others are refusals."""
