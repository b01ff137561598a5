"""The layers that SDXL's U-Net is made of, from the smallest up.

Attribute names are those of diffusers' UNet2DConditionModel, because they become the state-dict keys. No branch is here
that SDXL never takes: no dropout, no attention mask, no scale-shift norm.

Shapes: b batch, c channels, h and w latent rows and columns, n = h * w tokens, m text tokens, t text embedding width,
d heads * head width, e width of the time embedding.

Sources: Podell et al. 2023, "SDXL" (arXiv:2307.01952), section 2.1; Rombach et al. 2022, "High-Resolution Image
Synthesis with Latent Diffusion Models" (arXiv:2112.10752), section 3.3; Shazeer 2020, "GLU Variants Improve
Transformer" (arXiv:2002.05202).
"""

import torch.nn.functional as F
from torch import Tensor, nn

RESNET_NORM_EPS = 1e-5  # `norm_eps` of SDXL's unet/config.json
TRANSFORMER_NORM_EPS = 1e-6  # the GroupNorm before each transformer, as in latent diffusion's attention.py


class ResnetBlock2D(nn.Module):
    """Two convolutions with the time embedding added between them, and a residual connection."""

    def __init__(self, in_channels: int, out_channels: int, time_embed_dim: int, norm_groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(norm_groups, in_channels, eps=RESNET_NORM_EPS)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.time_emb_proj = nn.Linear(time_embed_dim, out_channels)
        self.norm2 = nn.GroupNorm(norm_groups, out_channels, eps=RESNET_NORM_EPS)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        # None, and no key in the state dict, where the residual needs no change of width.
        self.conv_shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else None

    def forward(self, hidden: Tensor, time_embed: Tensor) -> Tensor:
        # A view costs nothing, and makes the block sum its input's gradient before that of a skip is added: addition is
        # not associative, and checkpointing (which sums so of necessity) shall give the same bits.
        hidden = hidden.view_as(hidden)
        residual = hidden if self.conv_shortcut is None else self.conv_shortcut(hidden)  # [b, c_out, h, w]
        hidden = self.conv1(F.silu(self.norm1(hidden)))  # [b, c_out, h, w]
        hidden = hidden + self.time_emb_proj(F.silu(time_embed))[:, :, None, None]
        hidden = self.conv2(F.silu(self.norm2(hidden)))
        return residual + hidden  # [b, c_out, h, w]


class Attention(nn.Module):
    """Multi-head attention from `hidden` to `context`; self-attention where both are the same."""

    def __init__(self, dim: int, context_dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(dim, dim, bias=False)
        self.to_k = nn.Linear(context_dim, dim, bias=False)
        self.to_v = nn.Linear(context_dim, dim, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(dim, dim)])  # a list of one: the key is `to_out.0`

    def forward(self, hidden: Tensor, context: Tensor) -> Tensor:
        query = self._split_heads(self.to_q(hidden))  # [b, heads, n, d/heads]
        key = self._split_heads(self.to_k(context))  # [b, heads, m, d/heads]
        value = self._split_heads(self.to_v(context))  # [b, heads, m, d/heads]
        attended = F.scaled_dot_product_attention(query, key, value)  # [b, heads, n, d/heads]
        return self.to_out[0](attended.transpose(1, 2).flatten(2))  # [b, n, d]

    def _split_heads(self, tokens: Tensor) -> Tensor:
        return tokens.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # [b, heads, n, d/heads]


class GEGLU(nn.Module):
    """A linear layer whose second half gates the first through GELU (Shazeer 2020, equation 5)."""

    def __init__(self, dim: int, inner_dim: int) -> None:
        super().__init__()
        self.proj = nn.Linear(dim, inner_dim * 2)

    def forward(self, hidden: Tensor) -> Tensor:
        hidden, gate = self.proj(hidden).chunk(2, dim=-1)  # [b, n, 4d] each
        return hidden * F.gelu(gate)  # [b, n, 4d]


class FeedForward(nn.Module):
    """GEGLU to four times the width and back."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        # The identity stands where the reference has a dropout of 0, so that the last key is `net.2`.
        self.net = nn.ModuleList([GEGLU(dim, 4 * dim), nn.Identity(), nn.Linear(4 * dim, dim)])

    def forward(self, hidden: Tensor) -> Tensor:
        return self.net[2](self.net[0](hidden))  # [b, n, d]


class BasicTransformerBlock(nn.Module):
    """Self-attention, attention to the text and a feed-forward, each after a LayerNorm and each residual."""

    def __init__(self, dim: int, text_embed_dim: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn1 = Attention(dim, dim, heads)
        self.norm2 = nn.LayerNorm(dim)
        self.attn2 = Attention(dim, text_embed_dim, heads)
        self.norm3 = nn.LayerNorm(dim)
        self.ff = FeedForward(dim)

    def forward(self, hidden: Tensor, text_embeds: Tensor) -> Tensor:
        normed = self.norm1(hidden)
        hidden = hidden + self.attn1(normed, normed)  # [b, n, d]
        hidden = hidden + self.attn2(self.norm2(hidden), text_embeds)  # [b, n, d]
        return hidden + self.ff(self.norm3(hidden))  # [b, n, d]


class Transformer2DModel(nn.Module):
    """A stack of transformer blocks over the pixels of a feature map, between two linear projections."""

    def __init__(self, channels: int, text_embed_dim: int, heads: int, depth: int, norm_groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(norm_groups, channels, eps=TRANSFORMER_NORM_EPS)
        self.proj_in = nn.Linear(channels, channels)
        self.transformer_blocks = nn.ModuleList(
            BasicTransformerBlock(channels, text_embed_dim, heads) for _ in range(depth)
        )
        self.proj_out = nn.Linear(channels, channels)

    def forward(self, hidden: Tensor, text_embeds: Tensor) -> Tensor:
        height = hidden.shape[2]
        tokens = self.proj_in(self.norm(hidden).flatten(2).transpose(1, 2))  # [b, n, c]
        for block in self.transformer_blocks:
            tokens = block(tokens, text_embeds)  # [b, n, c]
        pixels = self.proj_out(tokens).transpose(1, 2).unflatten(2, (height, -1))  # [b, c, h, w]
        return hidden + pixels


class Downsample2D(nn.Module):
    """Half the height and width by a convolution of stride 2."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.conv(hidden)  # [b, c, h/2, w/2]


class Upsample2D(nn.Module):
    """Twice the height and width: each pixel repeated, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.conv(F.interpolate(hidden, scale_factor=2.0, mode="nearest"))  # [b, c, 2h, 2w]
