"""What holds for all tests."""

from __future__ import annotations

import signal

# A background job or nohup leaves these ignored, every child inherits that, and pyvmm then rightly does not end by them.
for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
