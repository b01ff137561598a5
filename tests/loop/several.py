"""Runs trainings by several ranks in real processes, on this machine's CPU."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from worker.loop.config import TrainerConfig
from worker.loop.config_json import write_config

REPOSITORY = Path(__file__).parents[2]
END_S = 240

Facts = list[dict[str, Any]]


class Launched:
    """One run of `python -m worker.launch`."""

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self.process = process
        self.log = log
        self.facts: Facts = []

    def until(self, fact: str, **fields: object) -> dict[str, Any]:
        """Read facts up to the first of a kind with these fields."""
        assert self.process.stdout
        for line in self.process.stdout:
            self.facts.append(json.loads(line))
            if self.facts[-1].items() >= {"fact": fact, **fields}.items():
                return self.facts[-1]
        raise AssertionError(f"it never came to {fact} {fields}: {self.log.read_text()}")

    def finish(self) -> int:
        """Read the facts that are left, and return the exit code."""
        assert self.process.stdout
        self.facts += [json.loads(line) for line in self.process.stdout]
        return self.process.wait(END_S)

    def ranks(self) -> list[int]:
        """Process ids of the ranks, in order."""
        return children(self.process.pid)


@contextmanager
def launched(config: TrainerConfig, folder: Path, gpus: int = 2, program: str | None = None) -> Iterator[Launched]:
    """Several ranks at work on a training; killed if the test leaves them running.

    Args:
        program: a Python script in the place of `python -m worker.trainer`.
    """
    number = len(list(folder.glob("config-*.json")))
    path, log = folder / f"config-{number}.json", folder / f"log-{number}"
    write_config(config, path)
    command = ["-m", "worker.launch", str(path), "--gpus", str(gpus), "--parent", str(os.getpid())]
    if program:
        script = folder / f"program-{number}.py"
        script.write_text(program)
        command = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={gpus}", str(script), str(path)]
    with (
        log.open("w") as stderr,
        subprocess.Popen(
            [sys.executable, *command],
            cwd=REPOSITORY,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)},
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        ) as process,
    ):
        try:
            yield Launched(process, log)
        finally:
            process.kill()


def run(config: TrainerConfig, folder: Path, gpus: int = 2) -> Facts:
    """Train to the end; the facts."""
    with launched(config, folder, gpus) as several:
        assert several.finish() == 0, several.log.read_text()
    assert several.facts[-1]["fact"] == "finished"
    return several.facts


def weights(config: TrainerConfig, name: str) -> dict[str, Tensor]:
    return safetensors.torch.load_file(Path(config.output) / f"{name}.safetensors")


def losses(config: TrainerConfig) -> list[float]:
    lines = (Path(config.output) / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


def children(pid: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def assert_gone(*pids: int) -> None:
    """The processes end within half a minute: one that still imports torch asks for its parent only then."""
    deadline = time.monotonic() + 30
    for pid in pids:
        while (status := Path(f"/proc/{pid}/status")).exists() and "State:\tZ" not in status.read_text():
            assert time.monotonic() < deadline, f"process {pid} lives on"
            time.sleep(0.1)


def kill(*pids: int) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
