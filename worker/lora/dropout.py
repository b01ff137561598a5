"""Dropout of an adapter's layers, drawn anew from counters each time: exact on resume, and the same when recomputed.

A mask is not kept between forward and backward by gradient checkpointing, which runs a block twice, so it must be a
function of the place in the training and of the layer alone. Masks are drawn on the layer's device, because one as
large as an activation could not come from the CPU in time: a GPU draws others than the CPU does.

Shapes: b batch, r rank, `...` any dimensions between.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from worker.seeds import generator


class DropoutPlace:
    """Where the training is, shared by all layers of an adapter; None while there is no dropout, as when sampling."""

    def __init__(self) -> None:
        self.counters: tuple[int, ...] | None = None
        self._samples = slice(0, 1)

    @contextmanager
    def at(self, *counters: int, samples: slice) -> Iterator[None]:
        """Within the block, layers drop out as at this place in the training: (seed, step, micro_step).

        Each sample's masks are drawn apart, by its number in the whole batch, of which several GPUs train a part each.

        Args:
            samples: which of the whole batch the layers see.
        """
        self.counters = counters
        self._samples = samples
        try:
            yield
        finally:
            self.counters = None

    def numbers(self, rows: int) -> range:
        """Of the rows that a layer sees, each row's in the whole batch.

        A row is a sample; in the text encoders it is one of the chunks of a sample's caption, which follow each other.
        """
        of_a_sample = rows // (self._samples.stop - self._samples.start)
        return range(self._samples.start * of_a_sample, self._samples.stop * of_a_sample)


class Dropout:
    """Both kinds, for one layer.

    Args:
        features: chance that a feature of the layer's input is zero, for every position anew, as in PEFT's lora_dropout
            (Hu et al. 2021, section 2 of https://arxiv.org/abs/2106.09685's code); what stays is divided by 1 - chance.
        directions: chance that one of the r directions is left out for a picture, as sd-scripts' rank_dropout does;
            what stays is divided by 1 - chance.
        number: of the layer, so that each draws its own.
        place: shared by all layers.
    """

    def __init__(self, features: float, directions: float, number: int, place: DropoutPlace) -> None:
        self._features = features
        self._directions = directions
        self._number = number
        self._place = place

    def features(self, x: Tensor) -> Tensor:
        """Drop features of a layer's input, of any shape."""
        return self._drop("dropout", x, self._features, x.shape)

    def directions(self, down: Tensor, rank_dim: int) -> Tensor:
        """Drop directions of A x: [b, ..., r] or [b, r, ...], with r at `rank_dim`."""
        shape = [1] * down.ndim
        shape[0], shape[rank_dim] = down.shape[0], down.shape[rank_dim]
        return self._drop("rank dropout", down, self._directions, torch.Size(shape))

    def _drop(self, stream: str, x: Tensor, chance: float, shape: torch.Size) -> Tensor:
        if not chance or self._place.counters is None:
            return x
        numbers = self._place.numbers(shape[0])
        sources = [generator(stream, *self._place.counters, self._number, n, device=x.device) for n in numbers]
        drawn = [torch.rand(shape[1:], generator=source, device=x.device) for source in sources]
        keep = torch.stack(drawn) >= chance
        return x * keep / (1 - chance)
