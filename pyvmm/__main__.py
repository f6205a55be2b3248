"""The command `pyvmm`, and `python -m pyvmm`: cli.main, where Ctrl-C is no traceback while Python imports it."""

from __future__ import annotations

import signal
import sys


def main() -> int:
    """Returns the exit status. Until cli.main has SIGINT, it ends the process silently; ignored, it stays ignored."""
    handler = signal.getsignal(signal.SIGINT)
    if handler is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from pyvmm.cli import limits

    try:
        from pyvmm.cli import arguments as cli
    except (OSError, MemoryError, ImportError) as error:
        line = limits.why(error)
        if line is None:
            raise
        sys.stderr.write(f"pyvmm: {line}\n")
        return 2
    signal.signal(signal.SIGINT, handler)
    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
