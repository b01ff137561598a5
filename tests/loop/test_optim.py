"""The learning rate is a function of the step: up in a line, then level or down a cosine."""

import math

import pytest
import torch
from torch import nn

from worker.loop.config import OptimizerConfig, ScheduleConfig, TrainConfig
from worker.loop.optim import learning_rate, make_optimizer


def rates(name: str, warmup: int, steps: int) -> list[float]:
    schedule = ScheduleConfig(name, warmup_steps=warmup)  # type: ignore[arg-type]
    config = TrainConfig(steps, optimizer=OptimizerConfig(learning_rate=1.0), lr_schedule=schedule)
    return [learning_rate(step, config) for step in range(1, steps + 1)]


def test_constant_is_level_after_the_warmup() -> None:
    assert rates("constant", 0, 3) == [1.0, 1.0, 1.0]
    assert rates("constant", 3, 6) == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0, 1.0])


def test_cosine_falls_from_the_peak_to_almost_nothing() -> None:
    ours = rates("cosine", 2, 10)
    theirs = [1 / 3, 2 / 3] + [0.5 * (1 + math.cos(math.pi * i / 8)) for i in range(8)]
    assert ours == pytest.approx(theirs)
    assert ours[-1] > 0  # no step is wasted


@pytest.mark.parametrize("name", ["constant", "cosine"])
def test_a_warmup_longer_than_the_training_never_reaches_the_peak(name: str) -> None:
    assert rates(name, 9, 3) == pytest.approx([0.1, 0.2, 0.3])


def test_the_optimizer_has_what_the_config_says() -> None:
    config = OptimizerConfig(learning_rate=3e-4, weight_decay=0.2, betas=(0.8, 0.95), eps=1e-6)
    group = make_optimizer([nn.Parameter(torch.ones(1))], config).param_groups[0]
    assert (group["lr"], group["weight_decay"], group["betas"], group["eps"]) == (3e-4, 0.2, (0.8, 0.95), 1e-6)
