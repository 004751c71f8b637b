"""`python -m windlass` is the command `windlass`."""

from ._cli import main

main()
