"""Least privilege: the capabilities that a server keeps, its user, and no way back to more.

Linux keeps capabilities for each thread, so ``reduce`` comes before the first thread is started;
every thread then inherits what is left. capabilities(7), prctl(2), capset(2).
"""

import contextlib
import ctypes
import grp
import os
import pwd
import stat
from collections.abc import Collection, Iterator
from enum import IntEnum
from pathlib import Path

from aoe_fast.wire import AoeError

_libc = ctypes.CDLL(None, use_errno=True)

_PR_SET_DUMPABLE, _PR_SET_KEEPCAPS = 4, 8
_PR_CAPBSET_READ, _PR_CAPBSET_DROP = 23, 24
_PR_SET_NO_NEW_PRIVS = 38
_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 47, 4
_VERSION_3 = 0x20080522


class Capability(IntEnum):
    """Those that a server may need; <linux/capability.h>."""

    DAC_OVERRIDE = 1
    NET_BIND_SERVICE = 10
    NET_ADMIN = 12
    NET_RAW = 13


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Sets(ctypes.Structure):
    """Two of these: bits 0-31, then 32-63."""

    _fields_ = (
        ("effective", ctypes.c_uint32),
        ("permitted", ctypes.c_uint32),
        ("inheritable", ctypes.c_uint32),
    )


def _check(code: int, what: str) -> int:
    if code < 0:
        raise AoeError(f"{what}: {os.strerror(ctypes.get_errno())}")
    return code


def held() -> frozenset[int]:
    """The numbers of the capabilities that this thread may use now."""
    sets = (_Sets * 2)()
    header = _Header(_VERSION_3, 0)
    _check(_libc.capget(ctypes.byref(header), sets), "capget")
    bits = sets[0].effective | sets[1].effective << 32
    return frozenset(number for number in range(64) if bits >> number & 1)


def _set(keep: Collection[int]) -> None:
    bits = sum(1 << number for number in keep)
    half = _Sets(bits & 0xFFFFFFFF, bits & 0xFFFFFFFF, 0)
    rest = _Sets(bits >> 32, bits >> 32, 0)
    header = _Header(_VERSION_3, 0)
    _check(_libc.capset(ctypes.byref(header), (_Sets * 2)(half, rest)), "capset")


def reduce(keep: Collection[int], user: "pwd.struct_passwd | None" = None,
           groups: Collection[int] = ()) -> frozenset[int]:  # fmt: skip
    """Become ``user`` (None: stay who we are) with at most ``keep``, for ever; what is left.

    ``groups`` are further groups beside the user's own. No program that this process starts can
    have more either: the bounding set is cut and no_new_privs is set. AoeError: not permitted.
    """
    left = frozenset(keep) & held()
    _check(_libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0), "ambient set")
    for number in range(64):
        if number in left or _libc.prctl(_PR_CAPBSET_READ, number, 0, 0, 0) != 1:
            continue
        # Without CAP_SETPCAP (a unit's own user) the set stays; no_new_privs makes it harmless.
        if _libc.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0) != 0 and os.geteuid() == 0:
            break
    if user is not None:
        _check(_libc.prctl(_PR_SET_KEEPCAPS, 1, 0, 0, 0), "keepcaps")
        try:
            os.setgroups([*os.getgrouplist(user.pw_name, user.pw_gid), *groups])
            os.setresgid(user.pw_gid, user.pw_gid, user.pw_gid)
            os.setresuid(user.pw_uid, user.pw_uid, user.pw_uid)
        except OSError as error:
            raise AoeError(
                f"cannot become user {user.pw_name} ({error.strerror}): start as root"
            ) from None
    elif groups:
        with contextlib.suppress(PermissionError):
            os.setgroups([*os.getgroups(), *groups])
    _set(left)
    _check(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
    # A changed user hides /proc/self from our own children, which mkfs.ext4 needs.
    _libc.prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0)
    return left


def find_user(name: str) -> pwd.struct_passwd:
    """The account called ``name``; AoeError if there is none, or it is root."""
    try:
        user = pwd.getpwnam(name)
    except KeyError:
        raise AoeError(
            f"there is no user {name!r}: make one (useradd --system {name}), or name another"
        ) from None
    if user.pw_uid == 0:
        raise AoeError(f"user {name!r} is root: name one with fewer rights")
    return user


def find_group(name: str) -> int:
    """The number of the group called ``name``; AoeError if there is none."""
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise AoeError(f"there is no group {name!r}") from None


@contextlib.contextmanager
def _as(user: pwd.struct_passwd) -> Iterator[None]:
    """For a moment, and one thread only: ``user``'s view of the file system."""
    groups, gid, uid = os.getgroups(), os.getegid(), os.geteuid()
    os.setgroups(os.getgrouplist(user.pw_name, user.pw_gid))
    os.setegid(user.pw_gid)
    os.seteuid(user.pw_uid)
    try:
        yield
    finally:
        os.seteuid(uid)
        os.setegid(gid)
        os.setgroups(groups)


def unreachable(user: pwd.struct_passwd, paths: Collection[Path]) -> Path | None:
    """The first of these directories that ``user`` cannot enter, or None; only root can ask."""
    with _as(user):
        for path in paths:
            if not os.access(path, os.X_OK, effective_ids=True):
                return path
    return None


def give_like(tree: Path, like: Path) -> None:
    """What root has just made below ``tree`` belongs to the owner of ``like``; for others: nothing.

    A file with a second name is left alone: it may be somebody else's.
    """
    owner = os.lstat(like)
    if os.geteuid() != 0 or owner.st_uid == 0:
        return
    for _, folders, files, fd in os.fwalk(tree, topdown=False, follow_symlinks=False):
        for name in (*folders, *files):
            about = os.stat(name, dir_fd=fd, follow_symlinks=False)
            if stat.S_ISDIR(about.st_mode) or about.st_nlink == 1:
                os.chown(name, owner.st_uid, owner.st_gid, dir_fd=fd, follow_symlinks=False)
    os.chown(tree, owner.st_uid, owner.st_gid, follow_symlinks=False)


def take_over(directory: Path, user: pwd.struct_passwd) -> int:
    """Give a tree that root made to ``user``, once; how many entries changed hands.

    Only while ``directory`` itself is not the user's: afterwards the user could have put a hard
    link to somebody else's file there. Symbolic links are changed, never followed.
    """
    if os.lstat(directory).st_uid == user.pw_uid:
        return 0
    changed = 0
    for _, folders, files, fd in os.fwalk(directory, topdown=False, follow_symlinks=False):
        for name in (*folders, *files):
            os.chown(name, user.pw_uid, user.pw_gid, dir_fd=fd, follow_symlinks=False)
            changed += 1
    os.chown(directory, user.pw_uid, user.pw_gid, follow_symlinks=False)
    return changed + 1
