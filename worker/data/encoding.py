"""Pictures to latents and captions to embeddings, once, before training; both encoders then leave the device.

Shapes: h and w are an eighth of the bucket size, t and p the widths of text_embeds and pooled_text_embeds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from PIL import Image, ImageOps
from torch import Tensor

from worker.data.buckets import Cut, pixel_values
from worker.data.cache import Cache
from worker.data.dataset import Picture
from worker.data.pictures import open_picture
from worker.errors import BaseModelInvalid, NanLoss
from worker.model.token_chunks import CHUNK
from worker.model.tokenizer import END, load_tokenizer
from worker.model.vae import load_vae, posterior
from worker.model.weights import BaseModel

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    from worker.model.text_encoders import TextEncoders


@dataclass(frozen=True)
class TextEmbedding:
    """One caption as the U-Net sees it; or, for worker.model.from_captions, as the text encoders see it."""

    text_embeds: Tensor  # [75 n + 2, t], n chunks, 77 of one; or token ids [2, 75 n + 2]
    pooled_text_embeds: Tensor  # [p]; or nothing, [0]


@dataclass(frozen=True)
class Shot:
    """One way in which a picture is trained."""

    picture: Picture
    cut: Cut  # of the picture as it is trained
    mirrored: bool = False  # left and right are swapped


@dataclass(frozen=True)
class Latents:
    """What the VAE makes of a shot: a normal distribution."""

    mean: Tensor  # [4, h, w]
    spread: Tensor  # [4, h, w], its standard deviation


def encode_pictures(
    shots: Iterable[Shot], cache: Cache, base: BaseModel, device: torch.device, dtype: torch.dtype
) -> Iterator[Latents]:
    """Yield the latents of each shot, in `dtype` on the CPU.

    The VAE is loaded when the first is not in the cache. Pictures go through it one by one, so that latents do not
    depend on which others are in the dataset.

    Raises:
        NanLoss: latents are not finite; the message names the picture.
    """
    vae: AutoencoderKL | None = None
    for shot in shots:
        path = latents_path(shot, cache, base, dtype)
        width, height = shot.cut.bucket_px
        cached = cache.load(path, {"mean": (4, height // 8, width // 8), "spread": (4, height // 8, width // 8)}, dtype)
        if cached is None:
            vae = vae or load_vae(base, device, dtype)
            pixels = pixel_values(_image(shot), shot.cut)  # [3, H, W]
            encoded = posterior(vae, pixels[None])
            cached = {"mean": encoded.mean[0].cpu(), "spread": encoded.spread[0].cpu()}  # [4, h, w], host sync
            if not _finite(cached):
                raise NanLoss(
                    f"The latents of {shot.picture.name} are not finite. If every picture's are, the base model's VAE "
                    f"is damaged; else remove this one."
                )
            cache.store(path, cached)
        yield Latents(**cached)


def latents_path(shot: Shot, cache: Cache, base: BaseModel, dtype: torch.dtype) -> Path:
    """Where the cache has the latents of a shot: named by all that they depend on."""
    cut = shot.cut
    return cache.path(
        "latents",
        picture=shot.picture.sha256,
        crop=(cut.resized_px, cut.left_px, cut.top_px, cut.bucket_px),
        mirrored=shot.mirrored,
        vae=base.vae_sha256,
        dtype=str(dtype),
    )


def encode_captions(
    captions: Iterable[str],
    cache: Cache,
    base: BaseModel,
    device: torch.device,
    dtype: torch.dtype,
    tokens: int = CHUNK,
) -> Iterator[TextEmbedding]:
    """Yield the embedding of each caption, in `dtype` on the CPU; the encoders are loaded when the first is not cached.

    `tokens`, a multiple of 75, is how many of a caption are encoded; what lies beyond is cut off.

    Raises:
        BaseModelInvalid: an embedding is not finite, which no caption can cause with sound weights.
    """
    encoders: TextEncoders | None = None
    config = base.unet_config
    shapes = {
        "text_embeds": (tokens + 2, config.text_embed_dim),
        "pooled_text_embeds": (config.pooled_text_embed_dim,),
    }
    for caption in captions:
        path = caption_path(caption, cache, base, dtype, tokens)
        cached = cache.load(path, shapes, dtype)
        if cached is None:
            if encoders is None:
                from worker.model.text_encoders import load_text_encoders  # imports transformers: needed only here

                encoders = load_text_encoders(base, device, dtype)
            text_embeds, pooled_text_embeds = encoders.encode([caption], tokens // CHUNK)
            cached = {"text_embeds": text_embeds[0].cpu(), "pooled_text_embeds": pooled_text_embeds[0].cpu()}
            if not _finite(cached):
                raise BaseModelInvalid(f"The text encoders give embeddings that are not finite, as for {caption!r}.")
            cache.store(path, cached)
        yield TextEmbedding(**cached)


def tokenize_captions(captions: Iterable[str], tokens: int = CHUNK) -> Iterator[TextEmbedding]:
    """Yield the token ids of each caption, for encoders that are trained: what they say of it changes in every step."""
    from worker.model.text_encoders import tokenized  # imports transformers: needed only here

    tokenizers = load_tokenizer(END), load_tokenizer("!")
    for caption in captions:
        ids = tokenized([caption], tokens // CHUNK, *tokenizers)[0]  # [2, 75 n + 2]
        yield TextEmbedding(ids, torch.empty(0))


def caption_path(caption: str, cache: Cache, base: BaseModel, dtype: torch.dtype, tokens: int) -> Path:
    """Where the cache has the embedding of a caption: named by all that it depends on."""
    encoders = base.text_encoders_sha256
    return cache.path("captions", caption=caption, tokens=tokens, encoders=encoders, dtype=str(dtype))


def _image(shot: Shot) -> Image.Image:
    image = open_picture(shot.picture.path).image
    return ImageOps.mirror(image) if shot.mirrored else image


def _finite(tensors: Mapping[str, Tensor]) -> bool:
    return all(bool(tensor.isfinite().all()) for tensor in tensors.values())
