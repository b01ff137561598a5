"""`python -m worker.trainer` keeps its contract: facts alone on standard output, and how it ends."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from worker.data.config import DatasetConfig
from worker.errors import DatasetInvalid, NanLoss
from worker.loop.config import TrainerConfig
from worker.loop.config_json import write_config
from worker.loop.training import Training
from worker.trainer import explain

REPOSITORY = Path(__file__).parents[2]
END_S = 120


@contextmanager
def trainer(config: TrainerConfig, folder: Path) -> Iterator[subprocess.Popen[str]]:
    """The process, with pipes; killed if the test leaves it running."""
    path = folder / f"config-{len(list(folder.glob('config-*.json')))}.json"
    write_config(config, path)
    process = subprocess.Popen(
        [sys.executable, "-m", "worker.trainer", str(path), "--parent", str(os.getpid())],
        cwd=REPOSITORY,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def finish(process: subprocess.Popen[str]) -> tuple[list[dict[str, Any]], str]:
    stdout, stderr = process.communicate(timeout=END_S)
    return [json.loads(line) for line in stdout.splitlines()], stderr


@pytest.mark.usefixtures("one_thread")
def test_a_stopped_and_a_second_process_equal_one_training_that_was_never_stopped(
    make_config: Callable[..., TrainerConfig], tmp_path: Path
) -> None:
    with trainer(make_config(100_000), tmp_path) as process:
        assert process.stdout
        for line in process.stdout:
            if json.loads(line).get("step") == 2:
                process.send_signal(signal.SIGTERM)
                break
        facts, stderr = finish(process)
    assert process.returncode == 0, stderr
    stopped = facts[-1]
    assert (stopped["fact"], stopped["path"]) == ("stopped", f"checkpoints/step-{stopped['step']:06d}")

    checkpoint = tmp_path / "output" / stopped["path"]
    steps = stopped["step"] + 2
    second = dataclasses.replace(make_config(steps), output=str(tmp_path / "second"), resume_from=str(checkpoint))
    with trainer(second, tmp_path) as process:
        facts, stderr = finish(process)
    assert process.returncode == 0, stderr
    assert (facts[-1]["fact"], facts[-1]["steps"]) == ("finished", steps)

    whole = dataclasses.replace(make_config(steps), output=str(tmp_path / "whole"))
    Training(whole, lambda fact, **fields: None, lambda: False).run()
    ours, theirs = (safetensors.torch.load_file(Path(c.output) / "lora.safetensors") for c in (second, whole))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def test_it_heeds_a_sigterm_before_torch_is_there(make_config: Callable[..., TrainerConfig], tmp_path: Path) -> None:
    with trainer(make_config(100_000), tmp_path) as process:
        deadline = time.monotonic() + END_S
        while not _listens_for(signal.SIGTERM, process.pid):
            assert time.monotonic() < deadline
        process.send_signal(signal.SIGTERM)
        facts, stderr = finish(process)

    assert (facts, process.returncode) == ([{"fact": "stopped", "step": None, "path": None}], 0), stderr


def test_an_orphan_does_not_wait_for_torch(make_config: Callable[..., TrainerConfig], tmp_path: Path) -> None:
    write_config(make_config(3), tmp_path / "config.json")
    arguments = [str(tmp_path / "config.json"), "--parent", "1"]  # which it is not

    told = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "worker.trainer", *arguments],
        cwd=REPOSITORY, capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert told.returncode == 1
    assert "The parent process 1 has ended" in told.stderr
    imported = {line.rpartition("|")[2].strip() for line in told.stderr.splitlines() if "|" in line}
    assert "worker.lifeline" in imported
    assert "torch" not in imported


def _listens_for(number: signal.Signals, pid: int) -> bool:
    """Whether the process has a handler for a signal: /proc/PID/status, SigCgt."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    caught = next(line.split()[1] for line in status.splitlines() if line.startswith("SigCgt"))
    return bool(int(caught, 16) >> (number - 1) & 1)


def test_a_bad_dataset_is_told_in_one_fact(
    make_config: Callable[..., TrainerConfig], photos: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("chelsea", "coffee", "rocket"):
        (folder / f"{name}.jpg").write_bytes((photos / f"{name}.jpg").read_bytes())
        (folder / f"{name}.txt").write_bytes((photos / f"{name}.txt").read_bytes())
    (folder / "coffee.jpg").write_bytes((photos / "coffee.jpg").read_bytes()[:5000])
    (folder / "rocket.txt").unlink()
    with trainer(make_config(dataset=DatasetConfig(str(folder))), tmp_path) as process:
        facts, stderr = finish(process)
    assert process.returncode == 1
    assert [fact["fact"] for fact in facts] == ["phase", "failed"]
    assert facts[-1]["reason"] == "dataset_invalid"
    assert "coffee.jpg cannot be decoded" in facts[-1]["message"]
    assert "rocket.jpg has no caption" in facts[-1]["message"]
    assert "Traceback" in stderr


@pytest.mark.parametrize(
    ("error", "reason", "words"),
    [
        (DatasetInvalid("cat.png has no caption"), "dataset_invalid", "cat.png has no caption"),
        (NanLoss("The loss is nan in step 3"), "nan_loss", "step 3"),
        (torch.OutOfMemoryError("CUDA out of memory."), "out_of_memory_gpu", "lower resolution"),
        (MemoryError(), "out_of_memory_host", "memory ran out"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "out_of_memory_host", "memory"),
        (KeyError("x"), "crashed", "KeyError: 'x'"),
        (RuntimeError("one\ntwo"), "crashed", "The trainer failed with RuntimeError: one"),
    ],
)
def test_failures_are_told_apart(error: Exception, reason: str, words: str) -> None:
    told, message = explain(error)
    assert told == reason
    assert words in message
    assert "\n" not in message


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is there")
def test_a_worker_whose_gpu_torch_does_not_find_does_not_train_on_its_cpu(
    make_config: Callable[..., TrainerConfig], tmp_path: Path
) -> None:
    with trainer(make_config(device="cuda"), tmp_path) as process:
        facts, _ = finish(process)

    assert facts[-1]["reason"] == "gpu_missing"
    assert "finds no CUDA device" in facts[-1]["message"]
