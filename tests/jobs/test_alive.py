"""What a health check sees of a process without a port."""

import os
import subprocess
import sys
import time
from pathlib import Path

from jobs.alive import STALE_AFTER_S, Pulse


def check(file: Path) -> int:
    return subprocess.run([sys.executable, "-m", "jobs.alive", str(file)], capture_output=True).returncode


def test_only_a_process_that_has_begun_is_well(tmp_path: Path) -> None:
    pulse = Pulse(tmp_path / "alive")
    pulse.beat()
    before = check(tmp_path / "alive")
    pulse.begin()

    assert (before, check(tmp_path / "alive")) == (1, 0)


def test_silence_is_noticed_and_a_beat_ends_it(tmp_path: Path) -> None:
    file = tmp_path / "alive"
    pulse = Pulse(file)
    pulse.begin()
    long_ago = time.time() - STALE_AFTER_S - 1
    os.utime(file, (long_ago, long_ago))
    silent = check(file)
    pulse.beat()

    assert (silent, check(file)) == (1, 0)


def test_what_a_process_before_left_says_nothing(tmp_path: Path) -> None:
    (tmp_path / "alive").touch()
    Pulse(tmp_path / "alive")

    assert check(tmp_path / "alive") == 1
