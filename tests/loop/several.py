"""Runs trainings by several ranks in real processes, on this machine's CPU."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from worker.data.config import DatasetConfig
from worker.loop.config import (
    CheckpointsConfig,
    LossConfig,
    OptimizerConfig,
    SamplesConfig,
    ScheduleConfig,
    TrainConfig,
    TrainerConfig,
)
from worker.loop.config_json import write_config
from worker.loop.training import Training
from worker.lora.config import LoRAConfig

REPOSITORY = Path(__file__).parents[2]
END_S = 240

Facts = list[dict[str, Any]]

STEPS = 6
NAMES = ("lora", "lora_ema", "lora_diffusers")
EVERYTHING = TrainConfig(
    STEPS,
    seed=3,
    gradient_accumulation=2,
    optimizer=OptimizerConfig(learning_rate=1e-2, eps=1e-3),  # see assert_close
    lr_schedule=ScheduleConfig("cosine", warmup_steps=2),
    loss=LossConfig(min_snr_gamma=5.0, noise_offset=0.05),
    ema_decay=0.9,
)

INTERFERE = """
import os, sys
import torch
from worker import trainer
from worker.loop import training
if os.environ["RANK"] == "1":
    load = training.load
    def interfere(*told):
        unet, lora = load(*told)
        {interference}
        return unet, lora
    training.load = interfere
sys.exit(trainer.main(sys.argv[1:]))
"""
"""In the trainer's place: rank 1 does something else than the others once its base model is loaded."""


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
def launched(
    config: TrainerConfig, folder: Path, gpus: int = 2, program: str | None = None, more: Sequence[str] = ()
) -> Iterator[Launched]:
    """Several ranks at work on a training; killed if the test leaves them running.

    Args:
        program: a Python script in the place of `python -m worker.trainer`.
        more: options of worker.launch.
    """
    number = len(list(folder.glob("config-*.json")))
    path, log = folder / f"config-{number}.json", folder / f"log-{number}"
    write_config(config, path)
    command = ["-m", "worker.launch", str(path), "--gpus", str(gpus), "--parent", str(os.getpid()), *more]
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
    """Of the steps, without what was measured between them."""
    lines = map(json.loads, (Path(config.output) / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if "loss" in line]


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


def everything(
    folder: Path, tiny_base: Path, photos: Path, output: str, batch_size: int, resume_from: Path | None = None
) -> TrainerConfig:
    """A training of six steps with all there is, in folders below `folder`."""
    return TrainerConfig(
        base_model=str(tiny_base),
        output=str(folder / output),
        cache=str(folder / "cache"),
        dataset=DatasetConfig(str(photos), caption_dropout=0.3),
        train=EVERYTHING,
        lora=LoRAConfig(rank=4, alpha=16.0, targets="attention"),
        resolution=96,  # two bucket sizes
        batch_size=batch_size,
        device="cpu",
        dtype="float32",
        checkpoints=CheckpointsConfig(every_n_steps=1, keep=STEPS),
        samples=SamplesConfig(("a cat",), every_n_steps=3, sampler_steps=2),
        resume_from=resume_from and str(resume_from),
    )


def alone(config: TrainerConfig) -> Facts:
    """Train in this process; the facts."""
    facts: Facts = []
    Training(config, lambda fact, **fields: facts.append({"fact": fact, **fields}), lambda: False).run()
    return facts


def assert_close(ours: TrainerConfig, theirs: TrainerConfig) -> None:
    """Whole tensors, to 2e-6: 2e-4 of the learning rate, and ten times what was measured.

    Sums are taken in another order, which moves a gradient by 1e-9, a millionth of the largest. Adam moves a weight by
    learning_rate * gradient / (|gradient| + eps), so it makes of that learning_rate * 1e-9 / eps a step. With its usual
    eps of 1e-8 this is a tenth of the learning rate for gradients that are almost nothing: two weights of 34,816 came
    out 8e-5 apart. Hence an eps here that is of a gradient's own size, and a bound that is tight for every weight.
    """
    for name in NAMES:
        expected = weights(theirs, name)
        for key, tensor in weights(ours, name).items():
            torch.testing.assert_close(tensor, expected[key], rtol=0, atol=2e-6)
    assert losses(ours) == pytest.approx(losses(theirs), rel=1e-6)
