"""What adapter to train. Imports no torch, so that the worker's light processes can build one."""

import math
from dataclasses import dataclass
from typing import Literal

Targets = Literal["none", "qkv", "attention", "transformer", "locon"]
TextTargets = Literal["attention", "transformer"]


@dataclass(frozen=True)
class Override:
    """Another rank or alpha for some of the adapted layers."""

    match: str
    """A pattern of module paths, see `worker.lora.targets`. The first override that matches a layer counts."""

    rank: int | None = None
    """None leaves it at the adapter's."""

    alpha: float | None = None
    """None leaves it at the adapter's."""


@dataclass(frozen=True)
class TextLoRAConfig:
    """An adapter on both text encoders too. Their outputs then change in every step and cannot be cached."""

    targets: TextTargets = "transformer"
    """attention: q_proj, k_proj, v_proj, out_proj; transformer: these and both feed-forward layers (72 and 192
    modules in SDXL, sd-scripts' set)."""

    learning_rate_scale: float = 1.0
    """Their learning rate over that of the U-Net's adapter; the schedule is the same."""


@dataclass(frozen=True)
class LoRAConfig:
    rank: int = 4
    """Rank r of the update, 1..min(in, out) of every target. Costs r * (in + out) * 4 bytes a layer."""

    alpha: float = 16.0
    """The update is scaled by alpha / rank, so that a change of rank needs no new learning rate."""

    targets: Targets = "qkv"
    """Which layers of the U-Net are adapted. For SDXL, modules and parameters at rank 4:

    none         none but those that `patterns` name
    qkv          to_q, to_k, to_v of both attentions                         420     4,474,880
    attention    the same and to_out.0                                       560     5,806,080
    transformer  the same, both feed-forward layers, proj_in and proj_out    722    10,639,360
    locon        the same, and every layer of the residual blocks, down- and
                 upsamplers, 3x3 convolutions among them: sd-scripts' conv   788    12,296,960
    """

    patterns: tuple[str, ...] = ()
    """Further layers, by patterns of their module paths, see `worker.lora.targets`."""

    overrides: tuple[Override, ...] = ()

    dropout: float = 0.0
    """Chance, 0..1, that a feature of the input is zero for the adapter in a step; the rest is scaled up."""

    rank_dropout: float = 0.0
    """Chance, 0..1, that one of the r directions of a layer is left out for a picture in a step."""

    rslora: bool = False
    """Scale by alpha / sqrt(rank): Kalajdzievski 2023, https://arxiv.org/abs/2312.03732, so that high ranks learn."""

    dora: bool = False
    """Train the length of every output's weights apart from their direction: Liu et al. 2024, arXiv:2402.09353."""

    text_encoders: TextLoRAConfig | None = None

    init_from: str | None = None
    """Path of a LoRA file, kohya's or PEFT's names, to begin with instead of an update of zero."""

    def scale_of(self, rank: int, alpha: float) -> float:
        """What B(Ax) is multiplied by."""
        return alpha / math.sqrt(rank) if self.rslora else alpha / rank

    @property
    def scale(self) -> float:
        """The same for a layer without override."""
        return self.scale_of(self.rank, self.alpha)
