"""Where a training runs."""

import torch

from worker.errors import GpusMissing
from worker.loop.config import TrainerConfig


def device_of(config: TrainerConfig) -> torch.device:
    """The GPU of this process, or its CPU.

    Raises:
        GpusMissing: the training was told to use a GPU, and torch finds none.
    """
    if config.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if config.device == "cuda" and not torch.cuda.is_available():  # to train without would take weeks
        raise GpusMissing(
            f"This worker has a GPU, but torch {torch.__version__} finds no CUDA device: install a torch with CUDA "
            "and a driver that fits it, or set LORAQ_DEVICE=cpu on the worker."
        )
    return torch.device(config.device)
