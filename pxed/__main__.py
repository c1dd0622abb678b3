"""``python -m pxed``."""

from pxed.cli import main

main()
