"""Two machines, here two processes with a launcher each that meet on loopback, train as one does, and end as one."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from api.servers import free_port
from tests.loop.several import (
    REPOSITORY,
    Launched,
    alone,
    assert_close,
    assert_gone,
    children,
    everything,
    kill,
    launched,
)
from worker.loop.config import TrainerConfig

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="prctl and /proc are Linux's")

ENDLESS = 100_000
WAIT_S = 120


class Joining:
    """One run of `python -m worker.joining`."""

    def __init__(self, process: "subprocess.Popen[bytes]", log: Path) -> None:
        self.process = process
        self.log = log

    def launch(self) -> int:
        """Process id of its launcher, once there is one."""
        until(lambda: children(self.process.pid))
        return children(self.process.pid)[0]

    def until_said(self, words: str) -> None:
        until(lambda: re.search(words, self.log.read_text()))


def until(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.fixture
def rendezvous() -> str:
    return f"127.0.0.1:{free_port()}"


@contextmanager
def joining(rendezvous: str, folder: Path) -> Iterator[Joining]:
    log = folder / "joining.log"
    settings = {"LORAQ_RENDEZVOUS": rendezvous, "LORAQ_DEVICE": "cpu", "LORAQ_CPU_THREADS": "1"}
    with log.open("w") as said:
        process = subprocess.Popen(
            [sys.executable, "-m", "worker.joining"],
            cwd=REPOSITORY,
            env=os.environ | settings,
            stdout=said,
            stderr=said,
        )
    try:
        yield Joining(process, log)
    finally:
        process.kill()
        process.wait()


@contextmanager
def first(config: TrainerConfig, folder: Path, rendezvous: str) -> Iterator[Launched]:
    with launched(config, folder, gpus=1, more=("--machines=2", f"--rendezvous={rendezvous}")) as process:
        yield process


def test_two_machines_equal_one_of_twice_the_batch(
    tiny_base: Path, photos: Path, tmp_path: Path, rendezvous: str
) -> None:
    ours = everything(tmp_path, tiny_base, photos, "two machines", 2)
    theirs = everything(tmp_path, tiny_base, photos, "one machine", 4)
    with joining(rendezvous, tmp_path) as second:
        with first(ours, tmp_path, rendezvous) as several:
            assert several.finish() == 0, several.log.read_text()
        second.until_said("ended here with code 0")
        assert several.facts[-1]["fact"] == "finished"
        second.process.terminate()
        assert second.process.wait(WAIT_S) == 0
    alone(theirs)
    assert_close(ours, theirs)


def test_a_machine_that_is_lost_ends_the_attempt_and_the_next_one_meets_again(
    make_config: Callable[..., TrainerConfig], tmp_path: Path, rendezvous: str
) -> None:
    config = make_config(ENDLESS)
    with joining(rendezvous, tmp_path) as second, first(config, tmp_path, rendezvous) as several:
        several.until("step", step=1)
        ranks, launch = several.ranks(), second.launch()
        lost = children(launch)
        kill(second.process.pid)
        second.process.wait()
        assert_gone(launch, *lost)
        assert several.finish() == 1
        assert_gone(*ranks)
    (failed,) = [fact for fact in several.facts if fact["fact"] == "failed"]
    assert (failed["reason"], failed["message"][:39]) == ("crashed", "The trainer failed with PeerLost: The e")

    with joining(rendezvous, tmp_path) as second, first(config, tmp_path, rendezvous) as several:
        several.until("step", step=1)
        ranks, launch = several.ranks(), second.launch()
        kill(several.process.pid)  # now the first is lost
        several.process.wait()
        assert_gone(*ranks)
        second.until_said("ended here with code")
        assert_gone(launch)

        with first(config, tmp_path, rendezvous) as several:  # the same joining process serves the next
            several.until("step", step=1)
            launch = second.launch()
            second.process.send_signal(signal.SIGTERM)  # told to stop, all stop after the same step
            assert several.finish() == 0, several.log.read_text()
            assert second.process.wait(WAIT_S) == 0
            stopped = several.facts[-1]
            assert (stopped["fact"], stopped["path"]) == ("stopped", f"checkpoints/step-{stopped['step']:06d}")
            assert_gone(launch)
