"""The tiny base model and all that reads it, against diffusers' own loaders, pipeline and VAE."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from diffusers.image_processor import VaeImageProcessor
from PIL import Image

from worker.model.base_model import BaseModel
from worker.model.conditioning import time_ids
from worker.model.text_encoders import load_text_encoders
from worker.model.vae import decode, encode, load_vae, posterior
from worker.model.weights import load_unet

pytestmark = [
    pytest.mark.parity,
    # diffusers hands torch tensors to NumPy 2 in the old way.
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]

CAPTIONS = ["a photo of a cat", "", "Ünïcode & 'quotes', 3 rockets!", "word " * 100, "naïve\ncafé  \t 猫 🚀"]


@pytest.fixture(scope="module")
def pipeline(tiny_paths: dict[str, Path]) -> StableDiffusionXLPipeline:
    loaded = StableDiffusionXLPipeline.from_pretrained(tiny_paths["diffusers"], local_files_only=True)
    return loaded.to(torch.float32)  # from BF16 nothing is lost


def test_the_diffusers_layout_is_a_whole_pipeline(pipeline: StableDiffusionXLPipeline):
    with torch.no_grad():
        image = pipeline("a photo of a cat", height=64, width=64, num_inference_steps=2, output_type="np").images
    assert image.shape == (1, 64, 64, 3)
    assert np.isfinite(image).all()


@pytest.mark.parametrize("layout", ["single_file", "diffusers"])
def test_text_embeddings_are_the_pipelines(
    pipeline: StableDiffusionXLPipeline, tiny_bases: dict[str, BaseModel], layout: str
):
    encoders = load_text_encoders(tiny_bases[layout], "cpu", torch.float32)
    for caption in CAPTIONS:
        ours = encoders.encode([caption])
        theirs = pipeline.encode_prompt(caption, do_classifier_free_guidance=False)
        assert torch.equal(ours[0], theirs[0]), caption  # bitwise: the same modules on the same tokens
        assert torch.equal(ours[1], theirs[2]), caption


def test_truncation_is_reported_where_the_pipeline_warns(
    pipeline: StableDiffusionXLPipeline, tiny_bases: dict[str, BaseModel]
):
    encoders = load_text_encoders(tiny_bases["single_file"], "cpu", torch.float32)
    whole = {caption: len(pipeline.tokenizer_2(caption, verbose=False).input_ids) for caption in CAPTIONS}
    assert encoders.truncated(CAPTIONS) == {caption: length for caption, length in whole.items() if length > 77}
    assert encoders.truncated(CAPTIONS).keys() == {CAPTIONS[3]}


def test_time_ids_are_the_pipelines(pipeline: StableDiffusionXLPipeline):
    theirs = pipeline._get_add_time_ids(
        (768, 1024), (5, 7), (512, 640), dtype=torch.float32, text_encoder_projection_dim=16
    )
    assert torch.equal(time_ids([(768, 1024)], [(5, 7)], [(512, 640)]), theirs)


@pytest.mark.parametrize("layout", ["single_file", "diffusers"])
def test_latents_and_pictures_are_the_vaes(
    pipeline: StableDiffusionXLPipeline, tiny_bases: dict[str, BaseModel], layout: str
):
    pixels = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    pixel_values = VaeImageProcessor(vae_scale_factor=8).preprocess(Image.fromarray(pixels))  # [1, 3, 64, 96], -1..1
    vae = load_vae(tiny_bases[layout], "cpu", torch.float32)
    latents = encode(vae, pixel_values)
    scaling_factor = pipeline.vae.config.scaling_factor
    with torch.no_grad():
        theirs = pipeline.vae.encode(pixel_values).latent_dist.mode() * scaling_factor
        assert torch.equal(latents, theirs)
        assert torch.equal(decode(vae, latents), pipeline.vae.decode(theirs / scaling_factor).sample)


def test_draws_from_the_posterior_are_the_vaes(pipeline: StableDiffusionXLPipeline, tiny_bases: dict[str, BaseModel]):
    pixel_values = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(0)) * 2 - 1
    vae = load_vae(tiny_bases["single_file"], "cpu", torch.float32)
    ours = posterior(vae, pixel_values)
    noise = torch.randn(ours.mean.shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        distribution = pipeline.vae.encode(pixel_values).latent_dist
        theirs = distribution.sample(torch.Generator().manual_seed(1)) * pipeline.vae.config.scaling_factor
    torch.testing.assert_close(ours.mean + ours.spread * noise, theirs)  # scaled before the sum: float32 rounding


def test_diffusers_reads_our_single_file_as_we_do(tiny_paths: dict[str, Path], tiny_bases: dict[str, BaseModel]):
    """diffusers has its own tables of Stability AI's and OpenCLIP's names: both must lead to the same tensors."""
    theirs = StableDiffusionXLPipeline.from_single_file(
        str(tiny_paths["single_file"]), config=str(tiny_paths["diffusers"]), local_files_only=True
    )
    base = tiny_bases["single_file"]
    encoders = load_text_encoders(base, "cpu", torch.float32)
    for ours, part in (
        (load_unet(base, "cpu", torch.float32), theirs.unet),
        (load_vae(base, "cpu", torch.float32), theirs.vae),
        (encoders.encoder_1, theirs.text_encoder),
        (encoders.encoder_2, theirs.text_encoder_2),
    ):
        mine, reference = ours.state_dict(), part.state_dict()
        assert mine.keys() == reference.keys()
        assert [key for key in mine if not torch.equal(mine[key], reference[key].float())] == []
