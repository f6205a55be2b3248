"""See pyvmm/tap.py."""

from pyvmm.tap import Handle as Handle
from pyvmm.tap import Tap as Tap
