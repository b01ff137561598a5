"""What is due after a step. All ranks agree on it, and rank 0 does it."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from worker.loop.config import TrainerConfig
from worker.loop.ranks import Ranks
from worker.loop.train import StepResult, TrainState
from worker.loop.trained import Trained


@dataclass(frozen=True)
class Due:
    sample: bool
    checkpoint: bool
    stop: bool  # after the checkpoint


def due_after(
    result: StepResult,
    config: TrainerConfig,
    ranks: Ranks,
    stop_requested: Callable[[], bool],
    trained: Trained,
    state: TrainState,
) -> Due:
    """The same for every rank: a stop that one is asked for is a stop of all.

    Raises:
        RanksDiffer: a checkpoint is due, and would be of one rank's weights only.
    """
    last = result.step == config.train.steps
    stop = ranks.any(stop_requested()) and not last
    checkpoint = stop or _every(config.checkpoints.every_n_steps, result.step)
    if checkpoint:
        check_same(ranks, trained, state)
    samples = config.samples
    sample = bool(samples.prompts) and (last or _every(samples.every_n_steps, result.step)) and not stop
    return Due(sample, checkpoint, stop)


def check_same(ranks: Ranks, trained: Trained, state: TrainState) -> None:
    """Make sure that every rank is at the same step, with the same weights. Raises RanksDiffer."""
    averages = state.ema.weights if state.ema else {}
    ranks.check_same([torch.tensor([state.step]), *trained.state_dict().values(), *averages.values()])


def _every(every_n_steps: int | None, step: int) -> bool:
    return every_n_steps is not None and step % every_n_steps == 0
