"""The optimizer, and the learning rate as a pure function of the step."""

import math
from collections.abc import Iterable

import torch
from torch import nn

from worker.loop.config import OptimizerConfig, TrainConfig


def make_optimizer(parameters: Iterable[nn.Parameter], config: OptimizerConfig) -> torch.optim.Optimizer:
    """AdamW: Decoupled Weight Decay Regularization, Loshchilov and Hutter 2017, https://arxiv.org/abs/1711.05101."""
    assert config.name == "adamw"  # the only one so far
    return torch.optim.AdamW(
        parameters, lr=config.learning_rate, betas=config.betas, eps=config.eps, weight_decay=config.weight_decay
    )


def learning_rate(step: int, config: TrainConfig) -> float:
    """The learning rate of step 1..config.steps.

    In the warm-up it rises in a straight line, never from 0, or the first step would be wasted. The step after it has
    the peak. "cosine" then falls as 0.5 (1 + cos) does (SGDR, Loshchilov and Hutter 2016,
    https://arxiv.org/abs/1608.03983, equation 5), to reach 0 where a further step would be.
    """
    schedule, peak = config.lr_schedule, config.optimizer.learning_rate
    if step <= schedule.warmup_steps:
        return peak * step / (schedule.warmup_steps + 1)
    if schedule.name == "constant":
        return peak
    progress = (step - schedule.warmup_steps - 1) / (config.steps - schedule.warmup_steps)  # 0 <= progress < 1
    return peak * 0.5 * (1 + math.cos(math.pi * progress))
