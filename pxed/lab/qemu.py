"""A diskless QEMU machine that boots from its network card, with its serial console at hand."""

import contextlib
import itertools
import json
import os
import re
import shutil
import socket
import subprocess
import time
from pathlib import Path
from typing import Any, Literal

from pxed.errors import HostError
from pxed.lab.accel import QEMU, pick_accel
from pxed.lab.netns import Namespace

Firmware = Literal["bios", "uefi", "secure"]
"""``secure``: UEFI that starts nothing without a signature of Microsoft's."""
_OVMF = Path("/usr/share/OVMF")
# Only the firmware's own code, in system management mode, writes its variables.
_LOCKED = (
    "-global", "driver=cfi.pflash01,property=secure,value=on", "-global", "ICH9-LPC.disable_s3=1",
)  # fmt: skip
_VGA_TEXT = 0xB8000
_LONGEST_COMMAND = 900  # busybox reads no longer line from a terminal


def _may_grow(wanted: re.Pattern[str], said: str, end: int) -> bool:
    """Whether a match at the very end of what was said gets longer if a word or blank follows."""
    return end == len(said) and any(
        (more := wanted.search(said + letter)) is not None and more.end() > end
        for letter in ("a", "0", ".", " ")
    )


class Client:
    """One machine: off until ``power_on``, and off for good after ``close``; a context manager.

    ``tap`` must be in ``namespace``. ``directory`` is the machine's own: serial.log holds all that
    its console ever said, and the sockets are there. HostError if QEMU or its firmware is missing.
    """

    def __init__(
        self,
        namespace: Namespace,
        directory: Path,
        *,
        name: str,
        mac: str,
        tap: str,
        firmware: Firmware = "bios",
        memory: int = 512,
        cpus: int = 1,
        mtu: int = 1500,
        rom: Path | None = None,
        extra: tuple[str, ...] = (),
    ) -> None:
        self.name, self.mac, self.tap, self.firmware = name, mac, tap, firmware
        self.memory, self.cpus, self.mtu, self.rom, self.extra = memory, cpus, mtu, rom, extra
        self.directory = directory
        self.serial_log = directory / "serial.log"
        self.powered_at = 0.0
        self._namespace = namespace
        self._process: subprocess.Popen[Any] | None = None
        self._numbers = itertools.count(1)
        self._mark = 0  # what the console said before this offset belongs to earlier boots
        directory.mkdir(parents=True, exist_ok=True)
        self.serial_log.touch()
        typed = directory / "typed"
        with contextlib.suppress(FileExistsError):
            os.mkfifo(typed)
        # Open for both, so that neither end ever waits for the other.
        self._keyboard = os.open(typed, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)

    # Power

    def power_on(self, *, plugged: bool = True) -> None:
        """Start the machine; ``powered_at`` is then, on time.monotonic's clock.

        ``plugged``: whether its network cable is in, from its first instruction on.
        """
        if self.running:
            raise HostError(f"{self.name} is on already")
        argv = self._argv() if plugged else [*self._argv(), "-S"]
        self._mark = self.serial_log.stat().st_size
        with contextlib.suppress(BlockingIOError):  # keys that nobody read before it went off
            while os.read(self._keyboard, 1 << 16):
                pass
        with (
            self.serial_log.open("ab") as serial,
            (self.directory / "qemu.log").open("wb") as said,
        ):
            self.powered_at = time.monotonic()
            # The console goes to a file, which takes everything at once: a machine whose console
            # is a socket stops when nobody reads it.
            self._process = self._namespace.popen(
                argv, stdin=self._keyboard, stdout=serial, stderr=said
            )
        if not plugged:
            self.cable(False)
            self.monitor("cont")

    def power_off(self) -> None:
        """Pull the plug: nothing is flushed, no shutdown runs. Fine if the machine is off."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def reset(self) -> None:
        """Press the reset button."""
        # QEMU does it when it gets to it: until then the machine would go on and say more.
        self.monitor("stop")
        self._mark = self.serial_log.stat().st_size
        self.monitor("system_reset")
        while self.monitor("query-status")["status"] != "prelaunch":
            time.sleep(0.01)
        self.powered_at = time.monotonic()
        self.monitor("cont")

    def cable(self, plugged: bool) -> None:
        """Plug the network cable in or pull it out; the machine sees its carrier change."""
        self.monitor("set_link", name="nic0", up=plugged)

    @property
    def running(self) -> bool:
        """The QEMU process lives."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int | None:
        """QEMU's process id while the machine is on."""
        return self._process.pid if self._process is not None and self.running else None

    def close(self) -> None:
        """Power off; closing twice is fine."""
        self.power_off()
        if self._keyboard >= 0:
            os.close(self._keyboard)
            self._keyboard = -1

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Console

    def console(self, *, everything: bool = False) -> str:
        """What the serial console has said since power-on, or since the lab began."""
        with self.serial_log.open("rb") as log:
            log.seek(0 if everything else self._mark)
            return log.read().decode(errors="replace")

    def screen(self) -> str:
        """The text on its VGA screen, where BIOS and boot loaders write; HostError if it is off."""
        copy = self.directory / "screen"
        self.monitor("pmemsave", val=_VGA_TEXT, size=80 * 25 * 2, filename=str(copy))
        cells = copy.read_bytes()[::2].decode("cp437")
        copy.unlink()
        return "\n".join(cells[at : at + 80].rstrip() for at in range(0, len(cells), 80))

    def wait_for(self, pattern: str, timeout: float = 60) -> re.Match[str]:
        """Wait until the console of this boot matches the regular expression.

        A match that more output could lengthen is not taken before it ends: half a line is none.
        HostError if it does not in time, or if the machine goes off; it quotes the last lines.
        """
        wanted = re.compile(pattern)
        until = time.monotonic() + timeout
        while True:
            alive = self.running
            said = self.console()
            if (found := wanted.search(said)) is not None and not (
                alive and _may_grow(wanted, said, found.end())
            ):
                return found
            if not alive:
                raise HostError(f"{self.name} went off while waiting for {pattern!r}{self._why()}")
            if time.monotonic() > until:
                last = " | ".join(self.console().split("\n")[-6:])[-500:].replace("\r", "")
                raise HostError(
                    f"{self.name}: no {pattern!r} on the console in {timeout:g} s; last: {last}"
                )
            time.sleep(0.02)

    def send(self, text: str | bytes) -> None:
        """Type ``text`` on the serial console."""
        data = text.encode() if isinstance(text, str) else text
        if not self.running or os.write(self._keyboard, data) != len(data):
            raise HostError(f"{self.name} is off, or takes no more input")

    def shell(self, command: str, timeout: float = 100, *, check: bool = True) -> str:
        """Run a command in the console's shell and return what it printed, both streams.

        The machine must be at its shell (``wait_running``). HostError for a status other than 0 if
        ``check``, for no answer in time, and for a command that is too long to type.
        """
        if len(command) > _LONGEST_COMMAND:
            raise HostError(f"a console command has at most {_LONGEST_COMMAND} characters")
        token = f"{next(self._numbers)}-{time.monotonic_ns():x}"
        # The terminal echoes what is typed: '' keeps the echo from looking like the marks.
        typed = f"\x15echo pxed''{token}:; {{ {command}\n}} 2>&1; echo pxed''{token}=$?:\n"
        self.send(typed)
        done = self.wait_for(rf"(?s)pxed{token}:\r?\n(.*?)pxed{token}=(\d+):", timeout)
        output, status = done[1].replace("\r\n", "\n"), int(done[2])
        if check and status != 0:
            raise HostError(f"{self.name}: {command!r} gave {status}: {output.strip()[-300:]}")
        return output

    def wait_running(self, timeout: float = 120) -> float:
        """Wait until the system says that it runs; seconds since power-on or reset."""
        self.wait_for(r"pxed: [0-9.]+ running ", timeout)
        took = time.monotonic() - self.powered_at
        self.wait_for(r"running [^\n]*\n(?s:.*)# ", 60)
        return took

    # QEMU's monitor

    def monitor(self, execute: str, **arguments: Any) -> Any:
        """One QMP command and its result; HostError if QEMU refuses or is not there."""
        with self._connect("qmp.sock") as line, line.makefile("rw", encoding="utf-8") as talk:
            talk.readline()  # its greeting
            for word, given in (("qmp_capabilities", {}), (execute, arguments)):
                talk.write(json.dumps({"execute": word, "arguments": given}) + "\n")
                talk.flush()
                answer: dict[str, Any] = {}
                while "return" not in answer and "error" not in answer:
                    if not (said := talk.readline()):
                        raise HostError(f"{self.name} went off during {word}")
                    answer = json.loads(said)
                if "error" in answer:
                    raise HostError(f"{self.name}: {word}: {answer['error'].get('desc')}")
        return answer["return"]

    def _connect(self, name: str) -> socket.socket:
        line = socket.socket(socket.AF_UNIX)
        line.settimeout(60)
        until = time.monotonic() + 60
        while True:
            try:
                line.connect(str(self.directory / name))
                return line
            except OSError as error:
                if not self.running or time.monotonic() > until:
                    line.close()
                    raise HostError(f"{self.name} is off ({error}){self._why()}") from None
                time.sleep(0.02)

    def _why(self) -> str:
        with contextlib.suppress(OSError):
            if said := (self.directory / "qemu.log").read_text(errors="replace").strip():
                return f": {said.splitlines()[-1]}"
        return ""

    def _argv(self) -> list[str]:
        accel = pick_accel()
        folder = self.directory
        card = f"virtio-net-pci,netdev=nic0,mac={self.mac},bootindex=1"
        if self.mtu != 1500:
            card += f",host_mtu={self.mtu}"
        argv = [
            QEMU, "-name", self.name, "-no-user-config", "-nodefaults", "-display", "none",
            "-machine", "q35,smm=on" if self.firmware == "secure" else "pc",
            "-smp", str(self.cpus), "-m", str(self.memory),
            "-accel", "kvm" if accel == "kvm" else "tcg,thread=multi,tb-size=256",
            # Nehalem is x86-64-v2: what systems need today, and little for the kernel to patch.
            "-cpu", "host" if accel == "kvm" else "Nehalem",
            "-boot", "order=n,menu=off,strict=on", "-vga", "std",
            "-chardev", "stdio,id=serial,signal=off", "-serial", "chardev:serial",
            "-qmp", f"unix:{folder}/qmp.sock,server=on,wait=off",
            "-netdev", f"tap,id=nic0,ifname={self.tap},script=no,downscript=no",
        ]  # fmt: skip
        if self.firmware != "bios":
            argv += self._uefi()
            # The firmware's own driver and PXE, as on real machines, and not iPXE's EFI driver.
            card += f",romfile={self.rom or ''}"
        elif self.rom is not None:
            card += f",romfile={self.rom}"
        return [*argv, "-device", card, *self.extra]

    def _uefi(self) -> list[str]:
        secure = self.firmware == "secure"
        code = _OVMF / ("OVMF_CODE_4M.secboot.fd" if secure else "OVMF_CODE_4M.fd")
        own = self.directory / "vars.fd"
        try:
            if not own.exists():
                # The second has Microsoft's keys in it, and Secure Boot on.
                kept = "OVMF_VARS_4M.ms.fd" if secure else "OVMF_VARS_4M.fd"
                shutil.copyfile(_OVMF / kept, own)
        except FileNotFoundError:
            raise HostError(f"{_OVMF} has no UEFI firmware: apt install ovmf") from None
        return [
            "-drive", f"if=pflash,format=raw,unit=0,readonly=on,file={code}",
            "-drive", f"if=pflash,format=raw,unit=1,file={own}",
            *(_LOCKED if secure else ()),
        ]  # fmt: skip
