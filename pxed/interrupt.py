"""What Ctrl-C does while Python still loads a command: Python itself would print where it was."""

import signal


def quiet() -> None:
    """SIGINT ends this process, unless whoever started it has it ignored."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def heard() -> None:
    """After ``quiet``: SIGINT is a KeyboardInterrupt again."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
