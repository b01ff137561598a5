"""The VAE: scale, dtype and what is refused."""

from dataclasses import replace

import pytest
import torch

from worker.errors import BaseModelInvalid
from worker.model.base_model import BaseModel
from worker.model.vae import decode, encode, load_vae


@pytest.fixture
def tiny_base(tiny_bases: dict[str, BaseModel]) -> BaseModel:
    return tiny_bases["single_file"]


def test_a_picture_becomes_latents_an_eighth_its_size_and_a_picture_again(tiny_base: BaseModel):
    vae = load_vae(tiny_base, "cpu", torch.float32)
    pixel_values = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0)) * 2 - 1
    latents = encode(vae, pixel_values)
    assert latents.shape == (2, 4, 8, 12)
    assert not latents.requires_grad
    assert torch.equal(latents, encode(vae, pixel_values)), "not drawn by chance: caches rest on it"
    assert decode(vae, latents).shape == pixel_values.shape


def test_bf16_takes_fp32_pictures(tiny_base: BaseModel):
    vae = load_vae(tiny_base, "cpu", torch.bfloat16)
    latents = encode(vae, torch.zeros(1, 3, 16, 16))
    assert latents.dtype == decode(vae, latents.float()).dtype == torch.bfloat16


def test_fp16_is_refused(tiny_base: BaseModel):
    with pytest.raises(ValueError, match="overflows in FP16"):
        load_vae(tiny_base, "cpu", torch.float16)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scaling_factor": None}, "has no scaling_factor"),
        ({"latents_mean": [0.0] * 4}, "has latents_mean"),
        ({"latent_channels": 16}, "do not have as many channels"),
    ],
)
def test_other_vaes_are_refused(tiny_base: BaseModel, change: dict[str, object], message: str):
    config = {key: value for key, value in (tiny_base.configs["vae"] | change).items() if value is not None}
    with pytest.raises(BaseModelInvalid, match=message):
        load_vae(replace(tiny_base, configs={**tiny_base.configs, "vae": config}), "cpu", torch.float32)
