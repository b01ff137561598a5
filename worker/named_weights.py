"""Weights by name, replaced in place."""

from collections.abc import Mapping

import torch
from torch import Tensor


@torch.no_grad()
def copy_in(own: Mapping[str, Tensor], given: Mapping[str, Tensor], what: str) -> None:
    """Copy `given` into `own`, which must have the same names and shapes.

    Raises:
        ValueError: a name or a shape differs; nothing is copied then. `what` says which weights they are.
    """
    shapes = {name: tuple(weight.shape) for name, weight in own.items()}
    wrong = sorted(shapes.items() ^ {(name, tuple(tensor.shape)) for name, tensor in given.items()})
    if wrong:
        raise ValueError(f"{len(wrong)} {what} differ in name or shape, as {wrong[:5]}.")
    for name, weight in own.items():
        weight.copy_(given[name])
