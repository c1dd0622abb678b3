"""Config strings, MAC masks and reservations across restarts: one small JSON file.

Off the data path: a client's change is answered at once and is in the file within a second (the
server's caretaker saves) or when the server stops. Exports that are not there at the moment keep
their entries.
"""

import contextlib
import errno
import json
import logging
import os
import pwd
import stat
import threading
from collections.abc import Callable, Iterable
from typing import Any

from aoe_fast.admin import Settings, changes, key_of, read_settings, take_restored, write_settings
from aoe_fast.store import Export
from aoe_fast.wire import AoeError

_log = logging.getLogger("aoe_fast")
_VERSION = 1


class StateFile:
    """The file at ``path``, read now; it is made by the first save that has something to say.

    AoeError: it is there and cannot be read, or is damaged: a lost reservation could be two
    writers on one disk, so nobody guesses.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        self._lock = threading.Lock()
        self._entries: dict[str, Settings] = {}
        self._seen = -1
        """The change that ``_entries`` has taken in."""
        self._broken = False
        try:
            with open(self.path, encoding="utf-8") as file:
                self._entries = _parse(json.load(file))
        except FileNotFoundError:
            folder = os.path.dirname(os.path.abspath(self.path))
            if not os.access(folder, os.W_OK):
                reason = "no such folder" if not os.path.isdir(folder) else "no permission"
                raise AoeError(f"{self.path}: cannot be made ({reason}): check the path") from None
        except OSError as error:
            raise AoeError(f"{self.path}: cannot be read ({error.strerror})") from None
        except (ValueError, TypeError, KeyError, AttributeError):
            raise AoeError(
                f"{self.path}: is damaged: restore it, or move it away to start without"
                " config strings, masks and reservations"
            ) from None
        self._saved = self._entries

    def restore(self, exports: Iterable[Export]) -> None:
        """Give each export that is new here what the file says of it."""
        for export in exports:
            if take_restored(export) and (known := self._entries.get(key_of(export))):
                write_settings(
                    export, config=known.config, allowed=known.allowed, holders=known.holders
                )

    def save(self, exports: Callable[[], Iterable[Export]]) -> str | None:
        """Write the file if a setting of an open export changed; why it cannot be, or None.

        A full disk is logged, once. What is not in the file yet is kept here, after its export was
        closed too, and is tried again by each call. ``exports`` tells which are open, if that
        matters: mostly nothing has changed.
        """
        with self._lock:
            now = changes()
            if now != self._seen:
                entries = dict(self._entries)
                for export in exports():
                    with contextlib.suppress(AoeError):  # closed meanwhile
                        settings = read_settings(export)
                        if settings == Settings():
                            entries.pop(key_of(export), None)
                        else:
                            entries[key_of(export)] = settings
                self._entries = entries
                self._seen = now
            if self._entries != self._saved:
                try:
                    _write(self.path, _format(self._entries))
                except OSError as error:
                    text = f"{self.path}: cannot be saved ({error.strerror})"
                    if not self._broken:
                        _log.warning("%s", text)
                    self._broken = True
                    return text
                self._saved = self._entries
            self._broken = False
            return None


def check_writable(path: str | os.PathLike[str]) -> None:
    """AoeError unless a save at ``path`` would work for who this process is now."""
    where = os.fspath(path)
    folder = os.path.dirname(os.path.abspath(where))
    try:
        with open(f"{where}.new", "wb"):
            pass
        os.unlink(f"{where}.new")
        above = os.stat(folder)
        if above.st_mode & stat.S_ISVTX and os.geteuid() not in (0, above.st_uid):
            # There only its owner may replace a file.
            with contextlib.suppress(FileNotFoundError):
                if os.stat(where).st_uid != os.geteuid():
                    raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
    except OSError as error:
        raise AoeError(
            f"{where}: user {_name()} cannot save it ({error.strerror}): give {folder} to that user"
        ) from None


def _name() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


def _parse(document: Any) -> dict[str, Settings]:
    if document["version"] != _VERSION:
        raise ValueError
    return {
        str(name): Settings(
            bytes.fromhex(entry["config"]),
            tuple(bytes.fromhex(mac.replace(":", "")) for mac in entry["allowed"]),
            tuple(bytes.fromhex(mac.replace(":", "")) for mac in entry["holders"]),
        )
        for name, entry in document["exports"].items()
    }


def _format(entries: dict[str, Settings]) -> bytes:
    exports = {
        name: {
            "config": entry.config.hex(),
            "allowed": [mac.hex(":") for mac in entry.allowed],
            "holders": [mac.hex(":") for mac in entry.holders],
        }
        for name, entry in sorted(entries.items())
    }
    return json.dumps({"version": _VERSION, "exports": exports}, indent=1).encode() + b"\n"


def _write(path: str, data: bytes) -> None:
    """Replace ``path`` as a whole: after a power cut it is the old file or the new one."""
    new = f"{path}.new"
    try:
        with open(new, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(new)
        raise
    folder = os.open(os.path.dirname(os.path.abspath(path)), os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
