"""``python -m pxed``."""

from pxed.start import pxed

pxed()
