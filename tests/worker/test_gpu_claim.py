"""Workers of one machine share its GPUs by locks. A script stands in for nvidia-smi; processes and locks are real."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from worker.gpu_claim import NoGpu, claim_gpus

CLAIM = """
import logging, os, sys
from pathlib import Path
from worker.gpu_claim import claim_gpus
logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
claim_gpus(int(sys.argv[1]), Path(sys.argv[2]))
print(os.environ["CUDA_VISIBLE_DEVICES"], flush=True)
sys.stdin.read()
"""


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Gives this machine so many GPUs, as far as nvidia-smi says."""

    def give(count: int) -> None:
        smi = tmp_path / "bin" / "nvidia-smi"
        smi.parent.mkdir(exist_ok=True)
        smi.write_text("#!/bin/sh\n" + "".join(f"echo GPU-{number}\n" for number in range(count)))
        smi.chmod(0o755)
        monkeypatch.setenv("PATH", f"{smi.parent}:{os.environ['PATH']}")
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    return give


@pytest.fixture
def claim(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """A process that takes GPUs and keeps them."""
    started: list[subprocess.Popen[str]] = []

    def start(count: int) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", CLAIM, str(count), str(tmp_path / "locks")]
        started.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_each_worker_has_a_gpu_of_its_own_and_a_killed_one_s_goes_to_the_next(machine, claim) -> None:
    machine(2)
    first, second = claim(1), claim(1)
    both = {said(first), said(second)}
    gpus = {said(first), said(second)}
    third = claim(1)
    waiting = said(third)
    first.kill()

    assert both == {"This worker's GPUs: GPU-0", "This worker's GPUs: GPU-1"}
    assert gpus == {"GPU-0", "GPU-1"}
    assert "Waiting for 1 free GPUs" in waiting
    assert said(third).startswith("This worker's GPUs: ")


def test_a_worker_that_finds_too_few_holds_none_of_them(machine, claim) -> None:
    machine(2)
    one = claim(1)
    said(one)
    two = claim(2)
    assert "Waiting for 2" in said(two)

    other = claim(1)

    assert said(other) == "This worker's GPUs: GPU-1"


def test_more_than_the_machine_has_is_refused(machine, tmp_path: Path) -> None:
    machine(1)

    with pytest.raises(NoGpu, match="LORAQ_GPUS is 2, and nvidia-smi shows 1 GPUs"):
        claim_gpus(2, tmp_path)


def test_a_worker_that_is_to_use_a_gpu_and_has_none_takes_no_job(tmp_path: Path) -> None:
    env = {"PATH": str(tmp_path), "LORAQ_DEVICE": "cuda", "LORAQ_REDIS_URL": "redis://127.0.0.1:1/0"}
    ended = subprocess.run([sys.executable, "-m", "worker"], env=env, capture_output=True, text=True, timeout=60)

    assert ended.returncode == 1
    assert "LORAQ_DEVICE is cuda, and nvidia-smi shows no GPU" in ended.stderr
