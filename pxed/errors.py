"""The two roots of every error that pxed raises on purpose: the user's fault, and the system's."""


class PxedError(Exception):
    """Something that pxed declares it may raise; its text is one line that says what to do."""

    exit_status = 1


class UsageError(PxedError):
    """The user's fault: an option, a configuration value, a missing image. Exit status 2."""

    exit_status = 2


class HostError(PxedError):
    """The system's fault: no privilege, a port in use, a full disk. Exit status 1."""


READ_ONLY = (
    "Read-only file system: after an error the kernel lets nobody write to a disk (see dmesg):"
    " check it (fsck), and mount it again"
)
"""What is wrong with a disk that can only be read, and what to do."""


class ReadOnlyDisk(HostError):
    """The disk below the state directory takes nothing any more; what is there can be read."""

    def __init__(self, path: object) -> None:
        super().__init__(f"{path}: {READ_ONLY}")
