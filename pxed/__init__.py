"""Network-boot server for diskless labs: the control plane around ``aoe_fast``."""

__version__ = "0.1.0"
