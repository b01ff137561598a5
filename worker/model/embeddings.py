"""Embeddings of the timestep and of the size conditioning.

Shapes: b batch, n numbers per picture, d embedding width, e width of the time embedding.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Wavelengths run from 2 pi to 2 pi * 10000: "Attention Is All You Need" (Vaswani et al. 2017), section 3.5.
MAX_PERIOD = 10_000.0


def sinusoidal_embedding(values: Tensor, dim: int) -> Tensor:
    """Return `dim` cosines and sines of each of `values`: [b] -> [b, dim], FP32.

    The cosines come first, and the exponent is divided by dim / 2: what diffusers calls flip_sin_to_cos=True and
    downscale_freq_shift=0. It is computed in FP32 because BF16 cannot tell timestep 997 from 998.

    Raises:
        ValueError: `dim` is odd.
    """
    if dim % 2:
        raise ValueError(f"The embedding width is {dim}, but cosines and sines share it: make it even.")
    exponents = torch.arange(dim // 2, dtype=torch.float32, device=values.device) / (dim // 2)
    frequencies = torch.exp(-math.log(MAX_PERIOD) * exponents)  # [d/2]
    angles = values.to(torch.float32)[:, None] * frequencies  # [b, d/2]; timesteps are integers until here
    return torch.cat([angles.cos(), angles.sin()], dim=-1)  # [b, d]


class TimestepEmbedding(nn.Module):
    """Two linear layers with SiLU between: [b, d] -> [b, e]."""

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(in_dim, out_dim)
        self.linear_2 = nn.Linear(out_dim, out_dim)

    def forward(self, embedding: Tensor) -> Tensor:
        return self.linear_2(F.silu(self.linear_1(embedding)))  # [b, e]
