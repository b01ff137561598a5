"""Pictures to latents and captions to embeddings, once, before training; both encoders then leave the device.

Shapes: h and w are an eighth of the bucket size, t and p the widths of text_embeds and pooled_text_embeds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from worker.data.buckets import Cut, pixel_values
from worker.data.cache import Cache
from worker.data.dataset import Picture
from worker.data.pictures import open_picture
from worker.errors import BaseModelInvalid, NanLoss
from worker.model.vae import encode, load_vae
from worker.model.weights import BaseModel

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    from worker.model.text_encoders import TextEncoders


@dataclass(frozen=True)
class TextEmbedding:
    """One caption as the U-Net sees it."""

    text_embeds: Tensor  # [77, t]
    pooled_text_embeds: Tensor  # [p]


def encode_pictures(
    pictures: Iterable[tuple[Picture, Cut]], cache: Cache, base: BaseModel, device: torch.device, dtype: torch.dtype
) -> Iterator[Tensor]:
    """Yield the latents [4, h, w] of each picture, in `dtype` on the CPU.

    The VAE is loaded when the first picture is not in the cache. Pictures go through it one by one, so that latents do
    not depend on which others are in the dataset.

    Raises:
        NanLoss: latents are not finite; the message names the picture.
    """
    vae: AutoencoderKL | None = None
    for picture, cut in pictures:
        crop = (cut.resized_px, cut.left_px, cut.top_px, cut.bucket_px)
        path = cache.path("latents", picture=picture.sha256, crop=crop, vae=base.vae_sha256, dtype=str(dtype))
        cached = cache.load(path)
        if cached is None:
            vae = vae or load_vae(base, device, dtype)
            pixels = pixel_values(open_picture(picture.path).image, cut)  # [3, H, W]
            cached = {"latents": encode(vae, pixels[None])[0].cpu()}  # [4, h, w], host sync
            if not cached["latents"].isfinite().all():
                raise NanLoss(
                    f"The latents of {picture.name} are not finite. If every picture's are, the base model's VAE is "
                    f"damaged; else remove this one."
                )
            cache.store(path, cached)
        yield cached["latents"]


def encode_captions(
    captions: Iterable[str], cache: Cache, base: BaseModel, device: torch.device, dtype: torch.dtype
) -> Iterator[TextEmbedding]:
    """Yield the embedding of each caption, in `dtype` on the CPU; the encoders are loaded when the first is not cached.

    Raises:
        BaseModelInvalid: an embedding is not finite, which no caption can cause with sound weights.
    """
    encoders: TextEncoders | None = None
    for caption in captions:
        path = cache.path("captions", caption=caption, encoders=base.text_encoders_sha256, dtype=str(dtype))
        cached = cache.load(path)
        if cached is None:
            if encoders is None:
                from worker.model.text_encoders import load_text_encoders  # imports transformers: needed only here

                encoders = load_text_encoders(base, device, dtype)
            text_embeds, pooled_text_embeds = encoders.encode([caption])
            cached = {"text_embeds": text_embeds[0].cpu(), "pooled_text_embeds": pooled_text_embeds[0].cpu()}
            if not all(tensor.isfinite().all() for tensor in cached.values()):
                raise BaseModelInvalid(f"The text encoders give embeddings that are not finite, as for {caption!r}.")
            cache.store(path, cached)
        yield TextEmbedding(cached["text_embeds"], cached["pooled_text_embeds"])
