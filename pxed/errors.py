"""The two roots of every error that pxed raises on purpose: the user's fault, and the system's."""


class PxedError(Exception):
    """Something that pxed declares it may raise; its text is one line that says what to do."""

    exit_status = 1


class UsageError(PxedError):
    """The user's fault: an option, a configuration value, a missing image. Exit status 2."""

    exit_status = 2


class HostError(PxedError):
    """The system's fault: no privilege, a port in use, a full disk. Exit status 1."""
