"""A running average of an adapter's weights: smoother than any single step's."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

from worker.loop.trained import Trained


class EMA:
    """Exponential moving average of the adapter; megabytes, since the base is not in it.

    Polyak averaging with a warm-up of the decay, min(decay, (1 + step) / (10 + step)), so that a short training is not
    mostly its start: as in diffusers' EMAModel and TensorFlow's ExponentialMovingAverage.

    Args:
        adapter: the one whose weights are the first average; copied.
        decay: 0..1; 0.999 averages over about the last thousand steps.
        device: "training" keeps the average beside the adapter, "cpu" in host memory: a copy of megabytes a step.
    """

    def __init__(self, adapter: Trained, decay: float, device: Literal["training", "cpu"] = "training") -> None:
        self.decay = decay
        place = None if device == "training" else torch.device("cpu")
        self.weights = {name: weight.to(place, copy=True) for name, weight in adapter.state_dict().items()}

    @torch.no_grad()
    def update(self, adapter: Trained, step: int) -> None:
        """Take in the weights that step number `step` (from 1) has left."""
        decay = min(self.decay, (1 + step) / (10 + step))
        averages = list(self.weights.values())
        weights = [
            weight.to(average.device) for weight, average in zip(adapter.state_dict().values(), averages, strict=True)
        ]
        torch._foreach_lerp_(averages, weights, 1 - decay)  # pyright: ignore[reportPrivateImportUsage]

    @contextmanager
    def applied(self, adapter: Trained) -> Iterator[None]:
        """Within the block, the adapter has the averaged weights; afterwards its own again, to the bit."""
        own = {name: weight.clone() for name, weight in adapter.state_dict().items()}
        adapter.load_state_dict(self.weights)
        try:
            yield
        finally:
            adapter.load_state_dict(own)
