"""SDXL's U-Net: three levels down, a middle, three levels up.

Every state-dict key is exactly that of diffusers' UNet2DConditionModel, so both read each other's weights.

Shapes: b batch, c channels of a level, h and w latent rows and columns (an eighth of the picture's), m text tokens,
t text embedding width, p pooled text embedding width, e width of the time embedding.

Source: Podell et al. 2023, "SDXL" (arXiv:2307.01952), section 2 and table 1.
"""

import torch
from torch import Tensor, nn

from worker.model.embeddings import TimestepEmbedding, sinusoidal_embedding
from worker.model.layers import RESNET_NORM_EPS, Downsample2D, ResnetBlock2D, Transformer2DModel, Upsample2D
from worker.model.unet_config import UNetConfig

__all__ = ["UNet", "UNetConfig"]


def _attentions(config: UNetConfig, level: int, count: int) -> nn.ModuleList:
    """Return `count` transformers of a level, or none where the level has no attention."""
    depth = config.transformer_depths[level]
    return nn.ModuleList(
        Transformer2DModel(
            config.block_channels[level],
            config.text_embed_dim,
            config.attention_heads[level],
            depth,
            config.norm_groups,
        )
        for _ in range(count if depth else 0)
    )


class DownBlock(nn.Module):
    """One level of the way down. Returns what the way up will take as skips, outermost first."""

    def __init__(self, config: UNetConfig, level: int) -> None:
        super().__init__()
        channels = config.block_channels[level]
        in_channels = config.block_channels[max(level - 1, 0)]
        self.resnets = nn.ModuleList(
            ResnetBlock2D(in_channels if i == 0 else channels, channels, config.time_embed_dim, config.norm_groups)
            for i in range(config.resnets_per_level)
        )
        self.attentions = _attentions(config, level, config.resnets_per_level)
        is_last = level == len(config.block_channels) - 1
        self.downsamplers = nn.ModuleList() if is_last else nn.ModuleList([Downsample2D(channels)])

    def forward(self, hidden: Tensor, time_embed: Tensor, text_embeds: Tensor) -> tuple[Tensor, list[Tensor]]:
        skips = []
        for i, resnet in enumerate(self.resnets):
            hidden = resnet(hidden, time_embed)  # [b, c, h, w]
            if self.attentions:
                hidden = self.attentions[i](hidden, text_embeds)  # [b, c, h, w]
            skips.append(hidden)
        for downsampler in self.downsamplers:
            hidden = downsampler(hidden)  # [b, c, h/2, w/2]
            skips.append(hidden)
        return hidden, skips


class MidBlock(nn.Module):
    """The narrowest place: a residual block, a transformer, a residual block."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        channels = config.block_channels[-1]
        self.resnets = nn.ModuleList(
            ResnetBlock2D(channels, channels, config.time_embed_dim, config.norm_groups) for _ in range(2)
        )
        self.attentions = _attentions(config, len(config.block_channels) - 1, 1)

    def forward(self, hidden: Tensor, time_embed: Tensor, text_embeds: Tensor) -> Tensor:
        hidden = self.resnets[0](hidden, time_embed)
        hidden = self.attentions[0](hidden, text_embeds)
        return self.resnets[1](hidden, time_embed)  # [b, c, h, w]


class UpBlock(nn.Module):
    """One level of the way up. Each residual block takes one skip beside the hidden state."""

    def __init__(self, config: UNetConfig, level: int) -> None:
        super().__init__()
        channels = config.block_channels[level]
        below = config.block_channels[min(level + 1, len(config.block_channels) - 1)]
        above = config.block_channels[max(level - 1, 0)]
        resnets = config.resnets_per_level + 1
        self.resnets = nn.ModuleList(
            ResnetBlock2D(
                # The hidden state comes from the level below at first; the last skip comes from the level above.
                (below if i == 0 else channels) + (above if i == resnets - 1 else channels),
                channels,
                config.time_embed_dim,
                config.norm_groups,
            )
            for i in range(resnets)
        )
        self.attentions = _attentions(config, level, resnets)
        self.upsamplers = nn.ModuleList() if level == 0 else nn.ModuleList([Upsample2D(channels)])

    def forward(self, hidden: Tensor, skips: list[Tensor], time_embed: Tensor, text_embeds: Tensor) -> Tensor:
        for i, resnet in enumerate(self.resnets):
            hidden = resnet(torch.cat([hidden, skips.pop()], dim=1), time_embed)  # [b, c, h, w]
            if self.attentions:
                hidden = self.attentions[i](hidden, text_embeds)  # [b, c, h, w]
        for upsampler in self.upsamplers:
            hidden = upsampler(hidden)  # [b, c, 2h, 2w]
        return hidden


class UNet(nn.Module):
    """Predicts the noise in noisy latents, given the timestep, the caption and the picture's size."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        first, levels = config.block_channels[0], range(len(config.block_channels))
        self.conv_in = nn.Conv2d(config.latent_channels, first, 3, padding=1)
        self.time_embedding = TimestepEmbedding(first, config.time_embed_dim)
        self.add_embedding = TimestepEmbedding(config.size_embed_dim, config.time_embed_dim)
        self.down_blocks = nn.ModuleList(DownBlock(config, level) for level in levels)
        self.mid_block = MidBlock(config)
        self.up_blocks = nn.ModuleList(UpBlock(config, level) for level in reversed(levels))
        self.conv_norm_out = nn.GroupNorm(config.norm_groups, first, eps=RESNET_NORM_EPS)
        self.conv_out = nn.Conv2d(first, config.latent_channels, 3, padding=1)

    @property
    def dtype(self) -> torch.dtype:
        """dtype that the U-Net computes in: that of its frozen weights, whatever trainable parts keep."""
        return self.conv_in.weight.dtype

    def forward(
        self,
        noisy_latents: Tensor,
        timesteps: Tensor,
        text_embeds: Tensor,
        pooled_text_embeds: Tensor,
        time_ids: Tensor,
    ) -> Tensor:
        """Return the predicted noise, in the U-Net's dtype.

        Args:
            noisy_latents: [b, 4, h, w]; h and w divisible by 4, because two levels halve them.
            timesteps: [b], 0..999.
            text_embeds: [b, m, t], the penultimate hidden states of both text encoders.
            pooled_text_embeds: [b, p], of the second text encoder.
            time_ids: [b, 6], see worker.model.conditioning.

        Returns:
            [b, 4, h, w].
        """
        # The U-Net's border: callers may hold FP32, inside there is one dtype.
        noisy_latents, text_embeds = noisy_latents.to(self.dtype), text_embeds.to(self.dtype)
        time_embed = self._embed_time(timesteps) + self._embed_size(pooled_text_embeds, time_ids)  # [b, e]

        hidden = self.conv_in(noisy_latents)  # [b, c, h, w]
        skips = [hidden]
        for block in self.down_blocks:
            hidden, level_skips = block(hidden, time_embed, text_embeds)
            skips += level_skips
        hidden = self.mid_block(hidden, time_embed, text_embeds)  # [b, c, h/4, w/4]
        for block in self.up_blocks:
            hidden = block(hidden, skips, time_embed, text_embeds)
        return self.conv_out(nn.functional.silu(self.conv_norm_out(hidden)))  # [b, 4, h, w]

    def _embed_time(self, timesteps: Tensor) -> Tensor:
        embedding = sinusoidal_embedding(timesteps, self.config.block_channels[0])  # [b, c], FP32
        return self.time_embedding(embedding.to(self.dtype))  # [b, e]

    def _embed_size(self, pooled_text_embeds: Tensor, time_ids: Tensor) -> Tensor:
        sizes = sinusoidal_embedding(time_ids.flatten(), self.config.time_id_embed_dim)  # [b * 6, d], FP32
        sizes = sizes.view(time_ids.shape[0], -1)  # [b, 6 * d]
        pooled_and_sizes = torch.cat(
            [pooled_text_embeds.to(self.dtype), sizes.to(self.dtype)], dim=-1
        )  # [b, p + 6 * d]
        return self.add_embedding(pooled_and_sizes)  # [b, e]
