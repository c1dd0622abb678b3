"""An export's config string, MAC mask and reservation, for the administrator and the state file.

Clients reach the same settings over the wire (settings.pyx); both sides hold the export's lock.
"""

import os
from typing import NamedTuple

from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.string cimport memcpy

from .settings cimport settings_changed
from .store cimport (
    MAX_MACS, Backing, Export, MacList, pthread_mutex_lock, pthread_mutex_unlock,
)
from .wire cimport CONFIG_BYTES, MAC_BYTES

from .settings import changes
from .wire import AoeError

__all__ = ["Settings", "changes", "key_of", "read_settings", "take_restored", "write_settings"]


class Settings(NamedTuple):
    """config: class 1's string. allowed: class 2's list, empty for all. holders: class 3's list."""

    config: bytes = b""
    allowed: tuple = ()
    holders: tuple = ()


cdef tuple _listing(const MacList *macs):
    cdef uint32_t i
    return tuple([<bytes>(<const char *>macs.macs[i])[:MAC_BYTES] for i in range(macs.count)])


cdef void _fill(MacList *macs, bytes joined) noexcept:
    macs.count = <uint32_t>(len(joined) // MAC_BYTES)
    memcpy(macs.macs, <const char *>joined, len(joined))


def _joined(name, macs):
    """The list as bytes; AoeError for what is no list of up to MAX_MACS addresses."""
    macs = [bytes(mac) for mac in macs]
    if len(macs) > MAX_MACS:
        raise AoeError(f"{name}: {len(macs)} MACs: {MAX_MACS} at most")
    for mac in macs:
        if len(mac) != MAC_BYTES:
            raise AoeError(f"{name}: MAC {mac.hex(':')!r} has {len(mac)} bytes: give {MAC_BYTES}")
    return b"".join(macs)


def read_settings(Export export not None):
    """A consistent copy of the settings. AoeError: closed."""
    cdef Backing *backing = export.open_backing()
    pthread_mutex_lock(&backing.lock)
    try:
        return Settings(
            <bytes>(<const char *>backing.config)[:backing.config_bytes],
            _listing(&backing.allowed),
            _listing(&backing.holders),
        )
    finally:
        pthread_mutex_unlock(&backing.lock)


def write_settings(Export export not None, *, config=None, allowed=None, holders=None):
    """Set what is given, whatever clients set before; in force from the next frame on.

    b"" and () clear. AoeError: closed, a string of more than 1024 bytes, a list too long.
    """
    cdef Backing *backing = export.open_backing()
    cdef bytes text = None if config is None else bytes(config)
    cdef bytes masks = None if allowed is None else _joined("allowed", allowed)
    cdef bytes owners = None if holders is None else _joined("holders", holders)
    if text is not None and len(text) > CONFIG_BYTES:
        raise AoeError(f"config string of {len(text)} bytes: {CONFIG_BYTES} at most")
    pthread_mutex_lock(&backing.lock)
    if text is not None:
        memcpy(backing.config, <const char *>text, len(text))
        backing.config_bytes = <uint16_t>len(text)
    if masks is not None:
        _fill(&backing.allowed, masks)
    if owners is not None:
        _fill(&backing.holders, owners)
    settings_changed()
    pthread_mutex_unlock(&backing.lock)


def key_of(Export export not None):
    """The name of the export's settings in a state file: path, and where its part begins."""
    cdef Backing *backing = export.open_backing()
    path = os.path.abspath(export.path)
    return f"{path}+{backing.offset}" if backing.offset else path


def take_restored(Export export not None):
    """True once in an export's life: then its settings are to be restored."""
    cdef Backing *backing = export.open_backing()
    cdef uint8_t before = backing.restored
    backing.restored = 1
    return not before
