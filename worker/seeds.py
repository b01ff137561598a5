"""Random numbers that depend on counters alone: a resumed training draws what it would have drawn uninterrupted."""

import hashlib

import torch


def generator(stream: str, *counters: int, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a fresh generator for one purpose at one place in the training.

    It is of the CPU also when training runs on a GPU, so that both draw the same numbers; only what is too large to
    come from there is drawn on another device.

    Args:
        stream: what the numbers are for, as "noise"; different streams are independent.
        counters: where in the training, as (seed, step, micro_step, sample).
        device: of the generator.
    """
    digest = hashlib.sha256(f"{stream} {counters}".encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "little", signed=True))
