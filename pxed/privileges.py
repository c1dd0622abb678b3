"""What ``pxed serve`` gives up before it listens: root, and each capability it has no use for.

It keeps CAP_NET_RAW (AoE, answers to machines without an address) and CAP_NET_BIND_SERVICE (ports
67, 69, 80). As root without a user of its own it keeps CAP_DAC_OVERRIDE only where the state
directory or the program belongs to somebody else. A unit with ``User=`` has done most of it before.
"""

import contextlib
import logging
import os
import pwd
import stat
import sys
from pathlib import Path

from aoe_fast import AoeError, privileges
from aoe_fast.buffers import start_helper
from aoe_fast.privileges import Capability
from pxed import ipxe
from pxed.config import Config
from pxed.errors import HostError, UsageError

log = logging.getLogger("pxed")

USER = "pxed"
"""Whom the server becomes where this account exists and nobody else is named."""

NICE = -10
"""What the server takes for itself where it may: about nine shares of a CPU for one of others."""

BEHIND = -8
"""And what its event loop takes once it serves: a flood that keeps it busy holds up no read."""

NEEDED = frozenset({Capability.NET_RAW, Capability.NET_BIND_SERVICE})


def settle(config: Config, devices: frozenset[Path] = frozenset()) -> None:
    """Give up what is not needed, for ever; before the first thread, and once.

    ``devices`` are block devices that images serve in place: their groups are kept. UsageError: the
    configured user does not exist; HostError: it cannot enter the state directory.
    """
    try:
        user = _user(config)
        groups = {os.stat(path).st_gid for path in devices if path.is_block_device()}
        if config.control.group is not None and os.geteuid() == 0:
            groups.add(privileges.find_group(config.control.group))
        _go_first()
        keep: set[int] = set(NEEDED)
        if os.geteuid() == 0 and user is None and _foreign(config):
            keep.add(Capability.DAC_OVERRIDE)
        start_helper(user)
        privileges.reduce(keep, user, groups)
    except AoeError as error:
        raise UsageError(str(error)) from None


def _go_first() -> None:
    """A better nice value, unless somebody chose one: few threads serve a whole room.

    Linux shares CPUs among sessions first (sched_autogroup), and then nice values count within one
    only; so the session's is set too, where it is the server's own. A unit says it itself.
    """
    if os.getpriority(os.PRIO_PROCESS, 0) != 0:
        return
    with contextlib.suppress(OSError):  # not root; or a kernel without
        os.setpriority(os.PRIO_PROCESS, 0, NICE)
        if os.getsid(0) == os.getpid():
            Path("/proc/self/autogroup").write_text(f"{NICE}")


def step_back() -> None:
    """This thread, and those that it starts from now on, come after the ones that move data."""
    if os.getpriority(os.PRIO_PROCESS, 0) == NICE:  # on Linux: this thread's
        os.setpriority(os.PRIO_PROCESS, 0, BEHIND)


def describe() -> str:
    """Who this process is and what it may, for the log."""
    left = privileges.held()
    known = [each.name for each in Capability if each in left]
    known += [str(number) for number in sorted(left - set(Capability))]
    try:
        who = pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        who = str(os.geteuid())
    return f"user={who} capabilities={','.join(known) if len(left) < 32 else 'all'}"


def ready() -> bool:
    """Whether this process may serve a network."""
    return privileges.held() >= NEEDED


def _user(config: Config) -> pwd.struct_passwd | None:
    """Whom to become; None: stay who we are."""
    wanted = config.security.user
    if os.geteuid() != 0:
        return None
    if wanted is None:
        try:
            user = privileges.find_user(USER)
        except AoeError:
            return None
    else:
        user = privileges.find_user(wanted)
    if not privileges.held() >= NEEDED:  # root in name only: it will be told so
        return None
    closed = privileges.unreachable(user, [config.state_dir.parent, *_program(config)])
    if closed is not None:
        if wanted is not None:
            raise HostError(f"{closed}: user {wanted} cannot enter it: change its rights")
        log.warning("%s: user %s cannot enter it: serving as root, with two capabilities",
                    closed, USER)  # fmt: skip
        return None
    try:
        config.state_dir.mkdir(parents=True, exist_ok=True)
        changed = privileges.take_over(config.state_dir, user)
    except OSError as error:
        text = f"{config.state_dir}: {error.strerror}: choose another state_dir"
        raise HostError(text) from error
    if changed:
        log.info("%s was given to user %s", config.state_dir, user.pw_name)
    return user


def _program(config: Config) -> list[Path]:
    """What the server reads of its own program after it has changed its user."""
    return [ipxe.directory(config), Path(sys.prefix), Path(__file__).parent]


def _foreign(config: Config) -> bool:
    """Whether root without CAP_DAC_OVERRIDE would be a stranger in what it has to use."""
    for path in (config.state_dir, *_program(config)):
        for each in (path, *path.parents):
            try:
                about = each.stat()
            except OSError:
                continue
            if about.st_uid == 0:
                continue
            closed = not about.st_mode & stat.S_IXOTH
            if closed or each == config.state_dir:
                return True
    return False
