"""AdamW with a warm-up, a cosine and a running mean of the weights, for the VAE and the U-Net alike.

On a GPU nets compute in BF16 under autocast, on FP32 weights.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks.drawing.captured import captured

Log = Callable[[str], None]
State = dict[str, Tensor]

WARM_UP_STEPS = 100
EMA_DECAY = 0.999
COMPUTE_DTYPE = torch.bfloat16  # of what autocast casts on a GPU
_LOGGED = 10  # lines a training


@dataclass(frozen=True)
class Trained:
    """What is to be trained."""

    module: nn.Module
    loss: Callable[[], Tensor]  # of a fresh batch
    device: torch.device


def train(what: Trained, steps: int, learning_rate: float, name: str, log: Log) -> State:
    """Train in place, and return the running mean of the weights, which is better than the last ones."""
    parameters, device = list(what.module.parameters()), what.device.type
    mean = {key: torch.zeros_like(tensor) for key, tensor in what.module.state_dict().items()}
    rate = torch.tensor(learning_rate, device=what.device)
    optimizer = torch.optim.AdamW(
        parameters, lr=rate, betas=(0.9, 0.99), weight_decay=0.01, fused=True, capturable=device == "cuda"
    )
    total = torch.zeros((), device=what.device)

    def step() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        # no cache of cast weights: a graph would replay the first step's
        with torch.autocast(device, COMPUTE_DTYPE, enabled=device == "cuda", cache_enabled=False):
            loss = what.loss()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        weights = [tensor.detach() for tensor in what.module.state_dict().values()]
        torch._foreach_lerp_(list(mean.values()), weights, 1 - EMA_DECAY)  # pyright: ignore[reportPrivateImportUsage]
        total.add_(loss.detach())
        return loss

    run = captured(step, what.device)
    torch._foreach_zero_([total, *mean.values()])  # capturing has trained a little
    started, every = time.perf_counter(), max(1, steps // _LOGGED)
    for number in range(1, steps + 1):
        rate.fill_(learning_rate * _share(number, steps))
        run()
        if number % every == 0:
            average = (total / every).item()  # host sync
            total.zero_()
            log(f"{name} step {number}: loss {average:.4f}, {time.perf_counter() - started:.0f} s")
    seen = 1 - EMA_DECAY**steps  # the rest of the mean is the zeros that it began with
    return {key: tensor / seen for key, tensor in mean.items()}


def _share(step: int, steps: int) -> float:
    """Of the peak learning rate: up in a straight line, then down a cosine."""
    warm_up = min(WARM_UP_STEPS, steps // 10 + 1)
    if step < warm_up:
        return step / warm_up
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))
