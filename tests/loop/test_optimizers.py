"""Every optimizer learns, is resumed to the bit, and leaves the weights that it has reached."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest
import torch
from torch import nn

from worker.fine_tuning.weights import FullWeights
from worker.loop.config import OptimizerConfig, OptimizerName, TrainConfig
from worker.loop.optim import evaluated, make_optimizer
from worker.loop.state import load_state, save_state
from worker.loop.train import TrainState, train

NAMES: tuple[OptimizerName, ...] = get_args(OptimizerName)
LEARNING_RATES: dict[OptimizerName, float] = {"prodigy": 1.0, "lion": 1e-2, "adafactor": 1e-1}


def config_of(name: OptimizerName, steps: int = 6) -> TrainConfig:
    optimizer = OptimizerConfig(name, LEARNING_RATES.get(name, 1e-2), weight_decay=0.01)
    return TrainConfig(steps, seed=5, optimizer=optimizer, ema_decay=0.9)


def run(setup, config: TrainConfig, state: TrainState, until: int) -> list[float]:
    return [result.loss for result in itertools.islice(train(*setup, config, state), until - state.step)]


@pytest.mark.parametrize("name", NAMES)
def test_it_finds_the_least_of_a_quadratic(name: OptimizerName) -> None:
    torch.manual_seed(0)
    goal = torch.randn(64, 96)  # large enough for 8-bit moments
    weights = nn.Parameter(torch.zeros_like(goal))
    optimizer = make_optimizer([weights], OptimizerConfig(name, LEARNING_RATES.get(name, 1e-1), weight_decay=0.0))
    for _ in range(400):
        optimizer.zero_grad()
        (weights - goal).square().sum().backward()
        optimizer.step()
    with evaluated(optimizer, FullWeights(nn.ParameterList([weights]))):
        assert (weights - goal).square().mean() < 0.02 * goal.square().mean()


@pytest.mark.parametrize("name", NAMES)
def test_resumed_twice_in_a_row_equals_uninterrupted_to_the_bit(
    make_setup: Callable, tmp_path: Path, name: OptimizerName
) -> None:
    config = config_of(name)
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text("{}\n")
    whole = make_setup(seed=5)
    whole_losses = run(whole, config, TrainState.begin(whole.lora, config), until=6)

    losses: list[float] = []
    folder: Path | None = None
    for until in (2, 3, 6):  # each time with all objects made anew
        part = make_setup(seed=5)
        state = TrainState.begin(part.lora, config)
        if folder:
            load_state(folder, part.lora, state, {})
        losses += run(part, config, state, until)
        folder = save_state(tmp_path, part.lora, state, {}, metrics)

    assert losses == whole_losses
    weights = whole.lora.state_dict()
    assert all(torch.equal(weight, weights[key]) for key, weight in part.lora.state_dict().items())


@pytest.mark.parametrize("name", NAMES)
def test_a_look_at_what_is_reached_changes_no_bit_of_the_training(make_setup: Callable, name: OptimizerName) -> None:
    config = config_of(name, steps=5)
    plain, looked_at = make_setup(seed=5), make_setup(seed=5)
    run(plain, config, TrainState.begin(plain.lora, config), until=5)
    state = TrainState.begin(looked_at.lora, config)
    for _ in train(*looked_at, config, state):
        before = {key: weight.clone() for key, weight in looked_at.lora.state_dict().items()}
        with evaluated(state.optimizer, looked_at.lora):
            reached = looked_at.lora.state_dict()
            same = all(torch.equal(weight, before[key]) for key, weight in reached.items())
            assert same == (name != "schedule_free_adamw" or state.step == 1)

    weights = plain.lora.state_dict()
    assert all(torch.equal(weight, weights[key]) for key, weight in looked_at.lora.state_dict().items())


def test_the_8_bit_moments_are_8_bit() -> None:
    weights = nn.Parameter(torch.ones(64, 96))
    optimizer = make_optimizer([weights], OptimizerConfig("adamw8bit"))
    weights.grad = torch.ones_like(weights)
    optimizer.step()
    moments = [value for value in optimizer.state[weights].values() if getattr(value, "shape", None) == weights.shape]
    assert [moment.dtype for moment in moments] == [torch.uint8, torch.uint8]
