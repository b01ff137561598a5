"""Killed at every step, attempt after attempt, a training ends as if it had never been: each optimizer, each feature.

Every row trains both text encoders along and has the features of its own; each feature stands in a row at least.
"""

import json
import signal
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from tests.loop.test_trainer_process import finish, trainer
from tests.loop.test_training import weights
from worker.data.config import DatasetConfig, MasksConfig, RegularisationConfig, ShuffleConfig
from worker.loop.config import (
    CheckpointsConfig,
    LossConfig,
    OptimizerConfig,
    OptimizerName,
    SamplesConfig,
    ScheduleConfig,
    TrainConfig,
    TrainerConfig,
    ValidationConfig,
)
from worker.loop.training import Training
from worker.lora.config import LoRAConfig, Override, TextLoRAConfig

STEPS = 3
LEARNING_RATES: dict[OptimizerName, float] = {"prodigy": 1.0, "adafactor": 1e-2}
VALIDATION = ValidationConfig(2, None, every_n_steps=2)
TEXT = TextLoRAConfig(learning_rate_scale=0.5)
ATTENTION = TextLoRAConfig("attention")
V_PREDICTION = LossConfig(prediction="v_prediction", zero_terminal_snr=True, min_snr_gamma=5.0)


@dataclass(frozen=True)
class Row:
    """What one optimizer is trained with, beside both text encoders."""

    lora: LoRAConfig
    train: dict[str, Any] = field(default_factory=dict)
    dataset: dict[str, Any] = field(default_factory=dict)
    more: dict[str, Any] = field(default_factory=dict)
    regularisation: bool = False
    goes_on: bool = False  # from the file of another training


ROWS: dict[OptimizerName, Row] = {
    "adamw": Row(
        LoRAConfig(dora=True, dropout=0.2, rank_dropout=0.2, text_encoders=TEXT),
        train={"ema_decay": 0.9, "gradient_accumulation": 2},
        dataset={"caption_dropout": 0.3, "caption_tokens": 150},
        more={"checkpointing": "all", "validation": VALIDATION},
    ),
    "adamw8bit": Row(
        LoRAConfig(targets="locon", overrides=(Override("*.conv?", rank=16),), text_encoders=TEXT),
        train={"ema_decay": 0.9, "ema_device": "cpu", "lr_schedule": ScheduleConfig("cosine", warmup_steps=2)},
    ),
    "adafactor": Row(
        LoRAConfig(rslora=True, overrides=(Override("*.attn2.*", rank=2),), text_encoders=ATTENTION),
        train={"lr_schedule": ScheduleConfig("cosine_with_restarts", cycles=2)},
        dataset={"masks": MasksConfig("alpha", background=0.5)},
        regularisation=True,
    ),
    "prodigy": Row(
        LoRAConfig(targets="locon", dora=True, text_encoders=TextLoRAConfig()),
        train={"max_grad_norm": None},
        more={"validation": VALIDATION},
        goes_on=True,
    ),
    "lion": Row(
        LoRAConfig(rank=8, targets="none", patterns=("*.conv1",), text_encoders=TEXT),
        train={"ema_decay": 0.9, "loss": LossConfig(kind="huber", noise_offset=0.05, debiased=True)},
        dataset={"flip": True, "latents": "drawn", "shuffle": ShuffleConfig(1, 3), "trigger": "ohwx"},
    ),
    "schedule_free_adamw": Row(
        LoRAConfig(targets="attention", dropout=0.2, text_encoders=TEXT),
        train={"ema_decay": 0.9, "lr_schedule": ScheduleConfig(warmup_steps=2), "loss": V_PREDICTION},
        dataset={"caption_dropout": 0.3},
        more={"validation": VALIDATION, "samples": SamplesConfig(("a cat",), every_n_steps=2, sampler_steps=2)},
        regularisation=True,
    ),
}


class Killed(BaseException):
    """In the place of a SIGKILL, in this process: nothing runs after it."""


def attempt(config: TrainerConfig, kill_in: int | None = None) -> None:
    """Train to the end, or until step `kill_in` is done and not yet saved."""

    def emit(fact: str, **fields: Any) -> None:
        if fact == "step" and fields["step"] == kill_in:
            raise Killed

    if kill_in is None:
        Training(config, emit, lambda: False).run()
        return
    with pytest.raises(Killed):
        Training(config, emit, lambda: False).run()


def checkpoint(config: TrainerConfig, step: int) -> str:
    return str(Path(config.output) / "checkpoints" / f"step-{step:06d}")


def assert_same(ours: TrainerConfig, theirs: TrainerConfig) -> None:
    """To the bit: weights, averages, samples, and every figure but the seconds."""
    names = [file.relative_to(theirs.output) for file in sorted(Path(theirs.output).rglob("*.safetensors"))]
    names = [str(name.with_suffix("")) for name in names if name.parts[0] != "checkpoints"]
    assert len(names) == (4 if theirs.train.ema_decay else 2)
    for name in names:
        expected = weights(theirs, name)
        actual = weights(ours, name)
        assert actual.keys() == expected.keys()
        assert any("text_encoder" in key or "lora_te2_" in key for key in actual)
        assert all(torch.equal(tensor, expected[key]) for key, tensor in actual.items()), name
    assert figures(ours) == figures(theirs)
    for sample in Path(ours.output).glob("samples/*"):
        assert sample.read_bytes() == (Path(theirs.output) / "samples" / sample.name).read_bytes()


def figures(config: TrainerConfig) -> list[dict[str, Any]]:
    lines = map(json.loads, (Path(config.output) / "metrics.jsonl").read_text().splitlines())
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


@pytest.fixture
def make_row(make_config: Callable[..., TrainerConfig], photos: Path, tmp_path: Path) -> Callable[..., TrainerConfig]:
    """The training of a row, into the folder `whole`; what it goes on from is there."""

    def make(name: OptimizerName, steps: int = STEPS) -> TrainerConfig:
        row, rate = ROWS[name], LEARNING_RATES.get(name, 2e-3)
        config = make_config(1, lora=row.lora, batch_size=2, output=str(tmp_path / "begun"))
        if row.goes_on:
            attempt(config)
            config = replace(config, lora=replace(row.lora, init_from=str(tmp_path / "begun" / "lora.safetensors")))
        again = RegularisationConfig(str(photos), weight=0.5) if row.regularisation else None
        return replace(
            config,
            train=TrainConfig(steps, seed=3, optimizer=OptimizerConfig(name, rate), **row.train),
            dataset=DatasetConfig(str(photos), regularisation=again, **row.dataset),
            checkpoints=CheckpointsConfig(every_n_steps=1, keep=steps),
            output=str(tmp_path / "whole"),
            **row.more,
        )

    return make


@pytest.mark.parametrize("name", ROWS)
def test_killed_in_every_step_it_ends_as_if_it_had_never_been(
    make_row: Callable[..., TrainerConfig], tmp_path: Path, name: OptimizerName
) -> None:
    whole = make_row(name)
    attempt(whole)
    part = replace(whole, output=str(tmp_path / "1"))
    attempt(part, kill_in=2)
    for step in range(1, STEPS):
        resume = checkpoint(part, step)
        assert not Path(checkpoint(part, step + 1)).exists()
        part = replace(whole, output=str(tmp_path / str(step + 1)), resume_from=resume)
        attempt(part, kill_in=step + 2 if step + 2 <= STEPS else None)
    assert_same(part, whole)


def test_every_optimizer_and_every_field_of_an_adapter_has_its_row() -> None:
    assert set(ROWS) == set(get_args(OptimizerName))
    plain = LoRAConfig()
    for field_ in fields(LoRAConfig):
        if field_.name not in ("init_from", "alpha"):  # the one is `goes_on`, the other a factor
            assert any(getattr(row.lora, field_.name) != getattr(plain, field_.name) for row in ROWS.values()), field_


@pytest.mark.usefixtures("one_thread")
def test_two_kills_of_the_process_in_a_row(make_row: Callable[..., TrainerConfig], tmp_path: Path) -> None:
    whole = make_row("adamw")
    attempt(whole)
    part, done = replace(whole, output=str(tmp_path / "1")), 0
    for number in (2, 3):
        with trainer(part, tmp_path) as process:
            assert process.stdout
            for line in process.stdout:
                fact = json.loads(line)
                if fact["fact"] == "step" and fact["step"] == done + 2:
                    process.kill()
            assert process.wait(60) == -signal.SIGKILL
        done = max(int(folder.name.removeprefix("step-")) for folder in Path(part.output).glob("checkpoints/step-*"))
        part = replace(whole, output=str(tmp_path / str(number)), resume_from=checkpoint(part, done))
    with trainer(part, tmp_path) as process:
        facts, stderr = finish(process)
    assert facts[-1]["fact"] == "finished", stderr
    assert_same(part, whole)
