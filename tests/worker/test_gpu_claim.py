"""Workers of one machine share its GPUs by locks. The GPUs are names; processes and locks are real."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from jobs.gpus import look
from worker.gpu_claim import NoGpu, claim_gpus

CLAIM = """
import logging, os, sys
from pathlib import Path
from worker.gpu_claim import claim_gpus
logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
claim_gpus(int(sys.argv[1]), ["GPU-0", "GPU-1"], Path(sys.argv[2]))
print(os.environ["CUDA_VISIBLE_DEVICES"], flush=True)
sys.stdin.read()
"""


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


def test_each_worker_has_a_gpu_of_its_own_and_a_killed_one_s_goes_to_the_next(claim) -> None:
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


def test_a_worker_that_finds_too_few_holds_none_of_them(claim) -> None:
    one = claim(1)
    said(one)
    two = claim(2)
    assert "Waiting for 2" in said(two)

    other = claim(1)

    assert said(other) == "This worker's GPUs: GPU-1"


def test_more_than_the_machine_has_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NoGpu, match="LORAQ_GPUS is 2, and the driver shows 1 GPUs"):
        claim_gpus(2, ["GPU-0"], tmp_path)


@pytest.mark.skipif(bool(look().gpus), reason="this machine has a GPU")
def test_a_worker_that_is_to_use_a_gpu_and_has_none_takes_no_job(tmp_path: Path) -> None:
    env = {"PATH": str(tmp_path), "LORAQ_DEVICE": "cuda", "LORAQ_REDIS_URL": "redis://127.0.0.1:1/0"}
    ended = subprocess.run([sys.executable, "-m", "worker"], env=env, capture_output=True, text=True, timeout=60)

    assert ended.returncode == 1
    assert "LORAQ_DEVICE is cuda, and the NVIDIA driver does not answer" in ended.stderr
