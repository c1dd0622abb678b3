"""Ctrl-C while a command is still being loaded ends it without a traceback."""

import signal
import subprocess
import sys

import pytest

SCRIPT = """
import os, signal, sys
{before}
class Interrupts:
    def find_spec(self, name, *_):
        if name == {name!r}:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupts())
sys.argv = ["x", "--version"]
from pxed.start import {command}
{command}()
"""


def run(command: str, name: str, before: str = "") -> "subprocess.CompletedProcess[str]":
    """The command, to which SIGINT is sent when it imports the module ``name``."""
    script = SCRIPT.format(command=command, name=name, before=before)
    return subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    ("command", "name"),
    [("pxed", "click"), ("pxed", "pxed.config"), ("aoe_fast", "numpy"), ("aoe_fast", "click")],
)
def test_it_is_gone_without_a_word(command: str, name: str) -> None:
    done = run(command, name)
    # What a shell calls 130.
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")


@pytest.mark.parametrize("command", ["pxed", "aoe_fast"])
def test_where_it_is_ignored_it_stays_so(command: str) -> None:
    done = run(command, "click", "signal.signal(signal.SIGINT, signal.SIG_IGN)")
    assert (done.returncode, done.stderr) == (0, "")


def test_a_command_says_that_it_was_interrupted() -> None:
    script = """
import os, signal
from pxed import cli_base, interrupt
interrupt.quiet()
@cli_base.said
def command():
    os.kill(os.getpid(), signal.SIGINT)
    signal.pause()
command()
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (130, "pxed: interrupted\n")
