"""The training loop. It yields facts; someone else reports them."""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from worker.data.batches import Batches
from worker.errors import NanLoss
from worker.loop.config import TrainConfig
from worker.loop.ema import EMA
from worker.loop.loss import noise_schedule
from worker.loop.optim import learning_rate, optimizer_of
from worker.loop.ranks import Ranks
from worker.loop.step import diffusion_loss, draw_noise
from worker.loop.trained import Trained


@dataclass(frozen=True)
class StepResult:
    step: int  # from 1
    loss: float  # mean over the step's micro-steps
    lr: float
    seconds: float  # of the step alone, whatever the caller does between steps
    peak_bytes: int | None  # most GPU memory allocated since the process began or reset it; None on a CPU


@dataclass
class TrainState:
    """All that changes from step to step, beside the trained weights. There is no random state: see worker.seeds."""

    step: int  # the last one done; 0 before the first
    optimizer: torch.optim.Optimizer
    ema: EMA | None

    @classmethod
    def begin(cls, trained: Trained, config: TrainConfig) -> "TrainState":
        """The state before the first step."""
        ema = None if config.ema_decay is None else EMA(trained, config.ema_decay, config.ema_device)
        return cls(0, optimizer_of(trained, config), ema)


def train(
    unet: nn.Module,
    trained: Trained,
    batches: Batches,
    config: TrainConfig,
    state: TrainState | None = None,
    ranks: Ranks | None = None,
) -> Iterator[StepResult]:
    """Train from state.step to config.steps, in place.

    Between two results the weights and `state` are those after the step reported, ready to be saved. The same state and
    config give the same steps, to the bit on a CPU with the same number of threads.

    Args:
        unet: what predicts; all but `trained` in it is frozen.
        trained: the adapter on it, or its own weights.
        batches: micro-step m of step s (from 0 and 1) takes the batch at (s - 1) * gradient_accumulation + m, and each
            rank its part of that.
        config: see TrainConfig.
        state: to go on from, changed in place; None begins anew.
        ranks: who trains along, and where this process stands among them; None is alone. All get the same results.

    Raises:
        NanLoss: the loss or the gradient is not finite. The weights are spoilt then: nothing of them should be kept.
    """
    state = state or TrainState.begin(trained, config)
    ranks = ranks or Ranks()
    part = ranks.part(batches.batch_size // ranks.size)
    device = trained.parameters()[0].device
    schedule = noise_schedule(config.loss, device)
    while state.step < config.steps:
        started = time.perf_counter()
        step = state.step + 1
        lr = learning_rate(step, config)

        # Accumulate the gradient.
        loss = torch.zeros((), device=device)
        for micro_step in range(config.gradient_accumulation):
            batch = batches.at((step - 1) * config.gradient_accumulation + micro_step).part(part).to(device)
            shape = batch.latents.shape
            noise, timesteps = draw_noise(shape, config.loss, config.seed, step, micro_step, device, part.start)
            with trained.dropout.at(config.seed, step, micro_step, samples=part):
                micro_loss = diffusion_loss(unet, schedule, batch, noise, timesteps, config.loss)
                (micro_loss / config.gradient_accumulation).backward()  # checkpointing runs blocks again: same masks
            loss += micro_loss.detach() / config.gradient_accumulation
        ranks.average([loss, *(weight.grad for weight in trained.parameters() if weight.grad is not None)])

        # Update the weights.
        max_norm = math.inf if config.max_grad_norm is None else config.max_grad_norm
        grad_norm = nn.utils.clip_grad_norm_(trained.parameters(), max_norm)
        for group in state.optimizer.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)
        state.optimizer.step()
        trained.write_back()
        state.optimizer.zero_grad(set_to_none=True)
        if state.ema:
            state.ema.update(trained, step)
        state.step = step

        # Report.
        loss_value = _finite(loss, grad_norm, step)
        peak_bytes = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
        yield StepResult(step, loss_value, lr, time.perf_counter() - started, peak_bytes)


def _finite(loss: Tensor, grad_norm: Tensor, step: int) -> float:
    loss_value, norm_value = torch.stack([loss, grad_norm]).tolist()  # host sync, the only one of a step
    if not math.isfinite(loss_value):
        what = f"The loss is {loss_value}"
    elif not math.isfinite(norm_value):
        what = f"The gradient's norm is {norm_value}"
    else:
        return loss_value
    raise NanLoss(f"{what} in step {step}: lower the learning rate, or check the base model.")
