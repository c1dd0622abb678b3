"""ATA-over-Ethernet block server on raw AF_PACKET sockets, usable without pxed."""
