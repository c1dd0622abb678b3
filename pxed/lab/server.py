"""``pxed serve`` in a lab's server namespace: started, watched, stopped, killed."""

import contextlib
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from pxed.control import ControlClient
from pxed.errors import HostError
from pxed.lab.lab import Lab
from pxed.lab.qemu import Client
from pxed.seat import State

START_LIMIT = 60.0  # seconds to answer on the control socket; a busy machine needs some
STOP_LIMIT = 60.0
REPORT_LIMIT = 60.0  # from what a console says to the server's knowing it


class LabServer:
    """Our server in ``lab``, with its state in ``state``; ``more`` is added to its configuration.

    ``log`` is the file with all that it said, ``command`` what is run.
    """

    def __init__(self, lab: Lab, state: Path, more: str = "") -> None:
        self._lab = lab
        self.config = lab.directory / "pxed.toml"
        if "[aoe]" not in more:
            # Clients share this machine's cores: a worker that spins takes them from QEMU.
            more = f"[aoe]\nspin_us = 0\n{more}"
        self.config.write_text(f'interface = "eth0"\nstate_dir = "{state}"\n{more}')
        self.command = [sys.executable, "-m", "pxed", "serve", "-c", str(self.config)]
        self.log = lab.directory / "server.log"
        self.control = ControlClient(state / "control.sock")
        self.process: subprocess.Popen[Any] | None = None

    def start(self) -> None:
        """Start and wait until it answers; HostError with its own last words if it ends instead."""
        with self.log.open("ab") as log:
            self.process = self._lab.server.popen(self.command, stdout=log, stderr=log)
        until = time.monotonic() + START_LIMIT
        while True:
            if self.process.poll() is not None:
                raise HostError(f"the server did not start: {self.last_words()}")
            with contextlib.suppress(HostError):
                self.control.get("/v1/status")
                return
            if time.monotonic() > until:
                raise HostError(f"the server does not answer: {self.last_words()}")
            time.sleep(0.02)

    def stop(self, how: signal.Signals = signal.SIGTERM) -> int | None:
        """End it with a signal; its exit status, None if it is off already or does not end."""
        if self.process is None:
            return None
        process, self.process = self.process, None
        process.send_signal(how)
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(STOP_LIMIT)
        return None

    def wait_running(self, client: Client, timeout: float = 120) -> float:
        """Wait until the console says that it runs, and the server too; seconds since power-on.

        HostError if either does not in time. A client reports to the server after it has told its
        console, and the server looks at reports a few times a second.
        """
        # The console first: it is this boot's, whose DISCOVER has then been answered, and with
        # that the server has begun a new timeline. What it shows now is not the last boot's.
        took = client.wait_running(timeout)
        until = time.monotonic() + REPORT_LIMIT
        while (shown := self.client(client.mac))["state"] != State.RUNNING:
            if time.monotonic() > until:
                raise HostError(f"{client.name} runs, and to the server it is {shown['state']}")
            time.sleep(0.05)
        return took

    def stages(self, mac: str) -> list[str]:
        """The stages of a client's last boot, in their order."""
        return [step["stage"] for step in self.client(mac)["timeline"]]

    def client(self, mac: str) -> dict[str, Any]:
        """What the server knows of one client, timeline included."""
        shown: dict[str, Any] = self.control.get(f"/v1/clients/{mac}")
        return shown

    def last_words(self) -> str:
        """The last line of its log."""
        lines = self.log.read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it said nothing"
