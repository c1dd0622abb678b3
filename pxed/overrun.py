"""Packets that the kernel dropped at our ports, as words for an admin. Pure."""

AGAIN = 60.0  # seconds between two words about one port


class Overruns:
    """Looks at counters that only grow, one for each port."""

    def __init__(self) -> None:
        self._told: dict[str, tuple[int, float]] = {}

    def look(self, port: str, dropped: int, now: float) -> str | None:
        """What to say of ``port``, where ``dropped`` packets have been lost so far; None: nothing.

        Nothing also for a minute after something was said; what is lost meanwhile comes then.
        """
        before, at = self._told.get(port, (0, now - AGAIN))
        if dropped < before:
            before = 0  # its socket was opened anew
        if dropped == before or now - at < AGAIN:
            return None
        self._told[port] = (dropped, now)
        return (
            f"port {port}: {dropped - before} packets were dropped, as more came than can be "
            "answered: a flood, a loop in the network, or a room beyond this machine. Who asked in "
            "vain asks again after some seconds; look which port of the switch they come from"
        )
