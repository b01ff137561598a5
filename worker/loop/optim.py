"""The optimizers, each from a library that its field keeps, and the learning rate as a pure function of the step.

| name | library | source |
|---|---|---|
| adamw | torch | Loshchilov and Hutter 2017, https://arxiv.org/abs/1711.05101 |
| adamw8bit | bitsandbytes | Dettmers et al. 2021, https://arxiv.org/abs/2110.02861 |
| adafactor | torch | Shazeer and Stern 2018, https://arxiv.org/abs/1804.04235 |
| prodigy | prodigyopt | Mishchenko and Defazio 2023, https://arxiv.org/abs/2306.06101 |
| lion | lion-pytorch | Chen et al. 2023, https://arxiv.org/abs/2302.06675 |
| schedule_free_adamw | schedulefree | Defazio et al. 2024, https://arxiv.org/abs/2405.15682 |
"""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from worker.fine_tuning.rounding import StochasticRounding
from worker.loop.config import OptimizerConfig, TrainConfig
from worker.loop.trained import Trained

LARGE = 1 << 28
"""Trainable weights, 1 GiB in float32: an adapter has fewer, a U-Net more."""

LION_BETAS = (0.9, 0.99)
"""Those of the paper, section 4.1: AdamW's own second one makes Lion's memory ten times longer."""


def optimizer_of(trained: Trained, config: TrainConfig) -> torch.optim.Optimizer:
    """The optimizer of a training: of bfloat16 weights one that rounds stochastically, see StochasticRounding."""
    if any(weight.dtype == torch.bfloat16 for weight in trained.parameters()):
        return StochasticRounding(
            trained.parameter_groups(), lambda weights: make_optimizer(weights, config.optimizer), config.seed
        )
    return make_optimizer(trained.parameter_groups(), config.optimizer, sparing=trained.parameter_count() > LARGE)


def make_optimizer(
    parameters: Iterable[nn.Parameter] | Iterable[dict[str, Any]], config: OptimizerConfig, *, sparing: bool = False
) -> torch.optim.Optimizer:
    """The optimizer that `config` names. Libraries other than torch are imported only when they are asked for.

    Args:
        parameters: float32, or groups of them.
        config: name and numbers.
        sparing: go from weight to weight: slower where they are many and small, but what is in between of all weights
            at once would take as much memory as they do.
    """
    lr, decay, betas, eps = config.learning_rate, config.weight_decay, config.betas, config.eps
    foreach = False if sparing else None  # None: as torch sees fit
    match config.name:
        case "adamw":
            return torch.optim.AdamW(parameters, lr=lr, betas=betas, eps=eps, weight_decay=decay, foreach=foreach)
        case "adamw8bit":
            from bitsandbytes.optim.adamw import AdamW8bit

            return AdamW8bit(parameters, lr=lr, betas=betas, eps=eps, weight_decay=decay)
        case "adafactor":
            return torch.optim.Adafactor(parameters, lr=lr, weight_decay=decay, foreach=foreach)
        case "prodigy":
            from prodigyopt import Prodigy

            # safeguard_warmup: without it the steps of a warm-up spoil the estimate of the step size (its README).
            return Prodigy(parameters, lr, betas, eps=eps, weight_decay=decay, safeguard_warmup=True)  # type: ignore[arg-type]
        case "lion":
            from lion_pytorch import Lion

            return Lion(parameters, lr=lr, betas=LION_BETAS, weight_decay=decay)
        case "schedule_free_adamw":
            from schedulefree import AdamWScheduleFree

            optimizer = AdamWScheduleFree(
                parameters, lr=lr, betas=betas, eps=eps, weight_decay=decay, foreach=not sparing
            )
            optimizer.train()
            return optimizer


@contextmanager
def evaluated(optimizer: torch.optim.Optimizer, trained: Trained) -> Iterator[None]:
    """Within the block the weights are those that the training has reached: to draw with, to measure, to export.

    A schedule-free optimizer trains at another point than its average, which is what it has reached; for every other
    one nothing happens. Afterwards the training goes on as if nothing had been, which a test holds to the bit.
    """
    if not hasattr(optimizer, "eval"):
        yield
        return
    own = [parameter.detach().clone() for group in optimizer.param_groups for parameter in group["params"]]
    optimizer.eval()  # pyright: ignore[reportAttributeAccessIssue]
    trained.write_back()
    try:
        yield
    finally:
        optimizer.train()  # pyright: ignore[reportAttributeAccessIssue]
        with torch.no_grad():  # there and back again is a rounding off; a resumed training would not have made the trip
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            for parameter, before in zip(parameters, own, strict=True):
                parameter.copy_(before)
        trained.write_back()


def learning_rate(step: int, config: TrainConfig) -> float:
    """The learning rate of step 1..config.steps.

    In the warm-up it rises in a straight line, never from 0, or the first step would be wasted. The step after it has
    the peak. "linear" then falls in a straight line and "cosine" as 0.5 (1 + cos) does (SGDR, Loshchilov and Hutter
    2016, https://arxiv.org/abs/1608.03983, equation 5), to reach 0 where a further step would be;
    "cosine_with_restarts" does so in each of `cycles` equal parts.
    """
    schedule, peak = config.lr_schedule, config.optimizer.learning_rate
    if step <= schedule.warmup_steps:
        return peak * step / (schedule.warmup_steps + 1)
    progress = (step - schedule.warmup_steps - 1) / (config.steps - schedule.warmup_steps)  # 0 <= progress < 1
    match schedule.name:
        case "constant":
            return peak
        case "linear":
            return peak * (1 - progress)
        case "cosine":
            return peak * 0.5 * (1 + math.cos(math.pi * progress))
        case "cosine_with_restarts":
            return peak * 0.5 * (1 + math.cos(math.pi * (progress * schedule.cycles % 1.0)))
