"""A Linear layer that has learnt a low-rank update.

Shapes: `in` and `out` are the layer's features, `r` the rank, `...` any leading dimensions.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LoRALinear(nn.Linear):
    """y = W x + b + scale * B (A x), with W and b frozen and only A and B trained.

    LoRA: Low-Rank Adaptation of Large Language Models, Hu et al. 2021, https://arxiv.org/abs/2106.09685, equation 3.
    A is drawn from kaiming_uniform(a=sqrt(5)) and B is zero, as in the paper's code, so the first output is W x + b.

    It takes over the very Parameters of the layer that it replaces, so state-dict keys of the base do not change:
    `weight` [out, in] and `bias` [out] in the base's dtype; float32 `lora_A` [r, in] and `lora_B` [out, r] join them.

    Args:
        base: the layer to take over; it should not be used any more.
        rank: r, 1..min(in, out).
        scale: alpha / rank.
        generator: of the CPU, draws A, so that the weights depend neither on the device nor on the global seed.

    Raises:
        ValueError: rank is outside 1..min(in, out).
    """

    def __init__(self, base: nn.Linear, rank: int, scale: float, generator: torch.Generator) -> None:
        nn.Module.__init__(self)  # not Linear's own, which would allocate a second weight
        self.in_features, self.out_features = base.in_features, base.out_features
        limit = min(self.in_features, self.out_features)
        if not 1 <= rank <= limit:
            shape = f"{self.out_features}x{self.in_features}"
            raise ValueError(f"rank is {rank}, but the layer is {shape}: use 1 to {limit}.")
        self.weight, self.bias = base.weight, base.bias
        self.scale = scale
        lora_A = torch.empty(rank, self.in_features)  # noqa: N806, the field's own name
        nn.init.kaiming_uniform_(lora_A, a=math.sqrt(5), generator=generator)
        device = base.weight.device
        self.lora_A = nn.Parameter(lora_A.to(device))  # [r, in]
        self.lora_B = nn.Parameter(torch.zeros(self.out_features, rank, device=device))  # [out, r]

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002, nn.Linear's own name
        """input [..., in] to [..., out], both in the base's dtype; the float32 weights are cast down to it here."""
        down = F.linear(input, self.lora_A.to(input.dtype))  # [..., r]
        up = F.linear(down, self.lora_B.to(input.dtype))  # [..., out]
        return torch.add(F.linear(input, self.weight, self.bias), up, alpha=self.scale)

    @torch.no_grad()
    def merged_weight(self) -> Tensor:
        """W + scale * B A [out, in], computed in float32 and given in the base's dtype."""
        update = self.scale * (self.lora_B @ self.lora_A)  # [out, in]
        return (self.weight.float() + update).to(self.weight.dtype)
