"""What makes one SDXL U-Net differ from another: widths, depths and heads; and its translation from and to diffusers.

The topology itself is not configurable, because a model with another one is not SDXL.
"""

from dataclasses import dataclass
from typing import Any, Self

from worker.errors import BaseModelInvalid

TIME_IDS = 6  # original size, crop and target size, two numbers each

# Settings of diffusers' UNet2DConditionModel that SDXL fixes, with the value that an absent key means there.
_FIXED: dict[str, tuple[object, object]] = {  # setting: (SDXL's value, diffusers' default)
    "act_fn": ("silu", "silu"),
    "addition_embed_type": ("text_time", None),
    "center_input_sample": (False, False),
    "class_embed_type": (None, None),
    "conv_in_kernel": (3, 3),
    "conv_out_kernel": (3, 3),
    "dual_cross_attention": (False, False),
    "flip_sin_to_cos": (True, True),
    "freq_shift": (0, 0),
    "mid_block_type": ("UNetMidBlock2DCrossAttn", "UNetMidBlock2DCrossAttn"),
    "norm_eps": (1e-5, 1e-5),
    "num_attention_heads": (None, None),
    "resnet_time_scale_shift": ("default", "default"),
    "use_linear_projection": (True, False),
}


@dataclass(frozen=True)
class UNetConfig:
    """The sizes of an SDXL U-Net. Levels are listed from the widest picture to the narrowest."""

    block_channels: tuple[int, ...] = (320, 640, 1280)  # channels of each level
    transformer_depths: tuple[int, ...] = (0, 2, 10)  # transformer blocks per attention; 0: the level has none
    attention_heads: tuple[int, ...] = (5, 10, 20)  # heads of each level; SDXL's are 64 wide
    resnets_per_level: int = 2  # on the way down; one more on the way up
    text_embed_dim: int = 2048  # both text encoders' widths together
    pooled_text_embed_dim: int = 1280  # the second text encoder's projection
    time_id_embed_dim: int = 256  # sinusoidal width of each of the six size numbers
    norm_groups: int = 32  # groups of every GroupNorm
    latent_channels: int = 4  # of the latents, in and out

    def __post_init__(self) -> None:
        levels = len(self.block_channels)
        if not len(self.transformer_depths) == len(self.attention_heads) == levels:
            raise ValueError(
                f"transformer_depths {self.transformer_depths} and attention_heads {self.attention_heads} "
                f"must have one entry for each of the {levels} levels of block_channels."
            )
        if self.transformer_depths[-1] == 0:
            raise ValueError("The last transformer depth is 0, but the middle block shares it: make it 1 or more.")
        for channels, depth, heads in zip(
            self.block_channels, self.transformer_depths, self.attention_heads, strict=True
        ):
            if channels % self.norm_groups or (depth and channels % heads):
                raise ValueError(f"{channels} channels do not divide by {self.norm_groups} groups and {heads} heads.")

    @classmethod
    def sdxl(cls) -> Self:
        """Return SDXL base 1.0: 2,567,463,684 parameters under 1,680 keys."""
        return cls()

    @classmethod
    def tiny(cls) -> Self:
        """Return the same topology at a three-thousandth of the size, for tests and for machines without a GPU."""
        return cls(
            block_channels=(16, 32, 32),
            transformer_depths=(0, 1, 2),
            attention_heads=(2, 2, 2),
            text_embed_dim=32,
            pooled_text_embed_dim=16,
            time_id_embed_dim=16,
            norm_groups=4,
        )

    @property
    def time_embed_dim(self) -> int:
        """Width of the time embedding: four times the first level, as in every latent diffusion U-Net."""
        return 4 * self.block_channels[0]

    @property
    def size_embed_dim(self) -> int:
        """Width of the pooled text embedding and the six embedded size numbers together."""
        return self.pooled_text_embed_dim + TIME_IDS * self.time_id_embed_dim

    def to_diffusers(self) -> dict[str, Any]:
        """Return the unet/config.json that diffusers' UNet2DConditionModel takes."""
        has_attention = [depth > 0 for depth in self.transformer_depths]
        return {
            "_class_name": "UNet2DConditionModel",
            **{setting: value for setting, (value, _) in _FIXED.items()},
            "in_channels": self.latent_channels,
            "out_channels": self.latent_channels,
            "sample_size": 128,
            "down_block_types": ["CrossAttnDownBlock2D" if has else "DownBlock2D" for has in has_attention],
            "up_block_types": ["CrossAttnUpBlock2D" if has else "UpBlock2D" for has in reversed(has_attention)],
            "block_out_channels": list(self.block_channels),
            "layers_per_block": self.resnets_per_level,
            "transformer_layers_per_block": [max(depth, 1) for depth in self.transformer_depths],
            "attention_head_dim": list(self.attention_heads),  # diffusers' name for the number of heads
            "cross_attention_dim": self.text_embed_dim,
            "addition_time_embed_dim": self.time_id_embed_dim,
            "projection_class_embeddings_input_dim": self.size_embed_dim,
            "norm_num_groups": self.norm_groups,
        }

    @classmethod
    def from_diffusers(cls, config: dict[str, Any]) -> Self:
        """Read a unet/config.json.

        Raises:
            BaseModelInvalid: the config is of another model family, or has a setting that SDXL does not have.
        """
        _refuse_other_families(config)
        wrong = [
            f"{setting} is {config.get(setting, default)!r} instead of {value!r}"
            for setting, (value, default) in _FIXED.items()
            if config.get(setting, default) != value
        ]
        if wrong:
            raise BaseModelInvalid(f"The U-Net's config is not SDXL's: {'; '.join(wrong)}. Use an SDXL base model.")
        try:
            channels = tuple(config["block_out_channels"])
            levels = len(channels)
            depths = _per_level(config["transformer_layers_per_block"], levels)
            time_id_embed_dim = config["addition_time_embed_dim"]
            ours = cls(
                block_channels=channels,
                transformer_depths=tuple(
                    depth if kind.startswith("CrossAttn") else 0
                    for depth, kind in zip(depths, config["down_block_types"], strict=True)
                ),
                attention_heads=_per_level(config["attention_head_dim"], levels),
                resnets_per_level=config["layers_per_block"],
                text_embed_dim=config["cross_attention_dim"],
                pooled_text_embed_dim=config["projection_class_embeddings_input_dim"] - TIME_IDS * time_id_embed_dim,
                time_id_embed_dim=time_id_embed_dim,
                norm_groups=config.get("norm_num_groups", 32),
                latent_channels=config["in_channels"],
            )
        except KeyError as error:
            raise BaseModelInvalid(f"The U-Net's config has no {error}: use a whole unet/config.json.") from None
        except (TypeError, ValueError, AttributeError) as error:
            raise BaseModelInvalid(f"The U-Net's config cannot be read: {error}") from error
        if list(config.get("up_block_types", ())) != ours.to_diffusers()["up_block_types"]:
            raise BaseModelInvalid("The U-Net's up_block_types do not mirror its down_block_types, as SDXL's do.")
        return ours


def _per_level(value: int | list[int], levels: int) -> tuple[int, ...]:
    """Spread a setting that diffusers allows to be one number for all levels."""
    return (value,) * levels if isinstance(value, int) else tuple(value)


def _refuse_other_families(config: dict[str, Any]) -> None:
    """Name the family where the config is one that people mistake for SDXL base."""
    if config.get("in_channels") == 9:
        raise BaseModelInvalid("This is an inpainting U-Net (9 input channels). Use the SDXL base model.")
    if config.get("projection_class_embeddings_input_dim") == 2560:
        raise BaseModelInvalid("This is the SDXL refiner. LoRAs are trained on the base: use the SDXL base model.")
    if config.get("cross_attention_dim") in (768, 1024) and not config.get("addition_embed_type"):
        family = "1.5" if config["cross_attention_dim"] == 768 else "2"
        raise BaseModelInvalid(
            f"This is Stable Diffusion {family}: its cross attention is {config['cross_attention_dim']} wide, SDXL's "
            f"2048. Use an SDXL base model."
        )
