"""The command `windlass`, in the process of a Python interpreter."""

from __future__ import annotations

import signal
import sys

from . import _windlass


def main() -> None:
    """Run the command line and exit with its status."""
    # The command answers signals itself; Python's handlers would wait for it to return.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    sys.exit(_windlass.cli(sys.argv[1:]))
