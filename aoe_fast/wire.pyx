"""AoE revision 11 on the wire (the C side is in wire.pxd), and the package's one exception."""


class AoeError(Exception):
    """What the user can put right: one line that says what is wrong and what to do."""


def sectors_per_frame(mtu):
    """Sectors for each frame that a target advertises on a link of ``mtu`` bytes; 0: too small."""
    return sectors_for_mtu(<uint32_t>mtu)
