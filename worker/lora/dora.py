"""DoRA: adapted layers that learn the length of each output's weights apart from their direction.

y = m / |W + scale * B A| * (W + scale * B A) x + b, with the length |.| taken over everything that leads to an output,
and m, trained too, starting as |W|: the first output is W x + b.

Source: Liu et al. 2024, "DoRA: Weight-Decomposed Low-Rank Adaptation" (arXiv:2402.09353), equations 5 and 11. As in its
section 4.3, the length counts as a constant in backward.

Shapes: `in` and `out` are the layer's features or channels (`in` times the kernel for a convolution), `r` the rank.
"""

import torch
from torch import Tensor, nn

from worker.lora.layer import LoRAConv2d, LoRALinear
from worker.lora.low_rank import LowRank


class _Magnitude(LowRank):
    """A mix-in before a LoRA layer. Float32 `lora_magnitude` [out] joins lora_A and lora_B."""

    trained: tuple[str, ...] = ("lora_A", "lora_B", "lora_magnitude")

    def _adapt(self, rank: int, alpha: float, scale: float, generator: torch.Generator) -> None:
        super()._adapt(rank, alpha, scale, generator)
        squares = self.weight.detach().float().flatten(1).square().sum(dim=1)  # [out]
        self.register_buffer("base_squares", squares, persistent=False)  # frozen as the weight is
        self.lora_magnitude = nn.Parameter(squares.sqrt())  # [out]

    @torch.no_grad()
    def lengths(self) -> Tensor:
        """|W + scale * B A| of each output: [out], float32.

        Made of three small products instead of the sum itself, which would take out * in floats in every layer and
        step: |w + s u|^2 = |w|^2 + 2 s w.u + s^2 |u|^2, with w.u = (W A^T) . B and |u|^2 = (B A A^T) . B,
        row by row.
        """
        A, B = self.lora_A.flatten(1), self.lora_B.flatten(1)  # [r, in], [out, r]  # noqa: N806, the paper's names
        products = (self.weight.flatten(1) @ A.T.to(self.weight.dtype)).float()  # [out, r]; the base's dtype
        across = (products * B).sum(dim=1)  # [out]
        own = (B @ (A @ A.T) * B).sum(dim=1)  # [out]
        squares = self.get_buffer("base_squares") + 2 * self.scale * across + self.scale**2 * own
        return squares.clamp(min=1e-24).sqrt()  # rounding may leave less than 0, and a row may be 0

    @torch.no_grad()
    def merged_weight(self) -> Tensor:
        sum_ = self.weight.float() + self.update()
        lengths = sum_.flatten(1).norm(dim=1)
        ratio = (self.lora_magnitude / lengths.clamp(min=1e-12)).view(-1, *(1 for _ in sum_.shape[1:]))
        return (ratio * sum_).to(self.weight.dtype)

    def _combine(self, output: Tensor, up: Tensor) -> Tensor:
        """output + (ratio - 1) W x + ratio * scale * up: at the start the ratio is 1, and not a bit changes."""
        broadcast = (-1,) if isinstance(self, nn.Linear) else (-1, 1, 1)
        ratio = (self.lora_magnitude / self.lengths()).view(broadcast)  # float32, so that ratio - 1 keeps its digits
        bias: Tensor | None = getattr(self, "bias")  # noqa: B009, of the class that this is mixed into
        product = output if bias is None else output - bias.view(broadcast)  # W x
        return output + (ratio - 1).to(output.dtype) * product + (ratio * self.scale).to(output.dtype) * up


class DoRALinear(_Magnitude, LoRALinear):
    """A Linear layer. Args, raises: as LoRALinear's."""


class DoRAConv2d(_Magnitude, LoRAConv2d):
    """A convolution. Args, raises: as LoRAConv2d's."""
