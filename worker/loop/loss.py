"""What a prediction's error costs: its kind, and how much each timestep weighs.

Shapes: b batch. Sources: Ho et al. 2020, https://arxiv.org/abs/2006.11239, equation 14; Khrapov et al. 2024, "Improving
Diffusion Models's Data-Corruption Resistance using Scheduled Pseudo-Huber Loss", https://arxiv.org/abs/2403.16728,
equation 3. The weights are those of worker/model/schedule.py.
"""

from dataclasses import replace

import torch
from torch import Tensor

from worker.loop.config import LossConfig
from worker.model.base_model import BaseModel
from worker.model.schedule import NoiseSchedule


def as_the_base_says(config: LossConfig, base: BaseModel) -> LossConfig:
    """The config with what it leaves to the base model filled in."""
    prediction = config.prediction or base.prediction_type
    zero = base.zero_terminal_snr if config.zero_terminal_snr is None else config.zero_terminal_snr
    return replace(config, prediction=prediction, zero_terminal_snr=zero and prediction == "v_prediction")


def noise_schedule(config: LossConfig, device: torch.device) -> NoiseSchedule:
    """The base model's noise schedule, on `device`."""
    return NoiseSchedule(device, config.prediction or "epsilon", bool(config.zero_terminal_snr))


def elementwise_loss(prediction: Tensor, target: Tensor, config: LossConfig) -> Tensor:
    """The loss of every element, in the shape of both, not averaged.

    "mse" is (p - t)^2. "huber" is the pseudo-Huber 2 c (sqrt((p - t)^2 + c^2) - c): the square near 0, and a straight
    line of slope 2 c beyond c, so that a few wrong pictures pull less.
    """
    squares = (prediction - target) ** 2
    if config.kind == "mse":
        return squares
    return 2 * config.huber_c * ((squares + config.huber_c**2) ** 0.5 - config.huber_c)


def timestep_weights(schedule: NoiseSchedule, timesteps: Tensor, config: LossConfig) -> Tensor | None:
    """How much each picture's loss counts, [b], float32; None if all alike."""
    if config.debiased:
        return schedule.debiased_weights(timesteps)
    if config.min_snr_gamma is not None:
        return schedule.min_snr_weights(timesteps, config.min_snr_gamma)
    return None
