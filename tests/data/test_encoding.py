"""Pictures and captions are encoded once; a cached result is used exactly when everything it rests on is the same."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from PIL import Image, ImageOps

from worker.data import encoding
from worker.data.buckets import bucket_sizes, cut_for, pixel_values
from worker.data.cache import Cache
from worker.data.config import DatasetConfig
from worker.data.dataset import read_dataset
from worker.data.encoding import Shot, encode_captions, encode_pictures
from worker.data.pictures import open_picture
from worker.errors import NanLoss
from worker.model import text_encoders
from worker.model.base_model import BaseModel
from worker.model.text_encoders import load_text_encoders
from worker.model.vae import encode, load_vae

CPU = torch.device("cpu")


def latents_of(pictures: list[Shot], folder: Path, base: BaseModel) -> list[torch.Tensor]:
    return [each.mean for each in encode_pictures(pictures, Cache(folder), base, CPU, torch.float32)]


@pytest.fixture
def pictures(photos: Path) -> list[Shot]:
    dataset = read_dataset(DatasetConfig(str(photos)))
    return [Shot(picture, cut_for(picture.size_px, bucket_sizes(64))) for picture in dataset.pictures[1:4]]


@pytest.fixture
def no_models(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From the call on, loading an encoder fails the test."""

    def forbid() -> None:
        for module, name in ((encoding, "load_vae"), (text_encoders, "load_text_encoders")):
            monkeypatch.setattr(module, name, lambda *_: pytest.fail("was not cached"))

    return forbid


def test_latents_are_the_vaes_of_the_cut_picture(pictures: list[Shot], tmp_path: Path, tiny_base: BaseModel) -> None:
    ours = latents_of(pictures, tmp_path, tiny_base)
    vae = load_vae(tiny_base, CPU, torch.float32)
    for shot, latents in zip(pictures, ours, strict=True):
        picture, cut = shot.picture, shot.cut
        width, height = cut.bucket_px
        assert latents.shape == (4, height // 8, width // 8)
        theirs = encode(vae, pixel_values(open_picture(picture.path).image, cut)[None])[0]
        assert torch.equal(latents, theirs)


def test_text_embeddings_are_the_encoders(tmp_path: Path, tiny_base: BaseModel) -> None:
    captions = ["a photo of a cat", ""]
    ours = list(encode_captions(captions, Cache(tmp_path), tiny_base, CPU, torch.float32))
    text_embeds, pooled_text_embeds = load_text_encoders(tiny_base, CPU, torch.float32).encode(captions)
    for i, embedding in enumerate(ours):
        torch.testing.assert_close(embedding.text_embeds, text_embeds[i])  # batch of one against two: float32 rounding
        torch.testing.assert_close(embedding.pooled_text_embeds, pooled_text_embeds[i])


def test_the_second_time_nothing_is_encoded(
    pictures: list[Shot], tmp_path: Path, tiny_base: BaseModel, no_models: Callable[[], None]
) -> None:
    first = latents_of(pictures, tmp_path, tiny_base)
    words = list(encode_captions(["a", "b"], Cache(tmp_path), tiny_base, CPU, torch.float32))
    no_models()
    again = latents_of(pictures, tmp_path, tiny_base)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    words_again = list(encode_captions(["b", "a"], Cache(tmp_path), tiny_base, CPU, torch.float32))
    assert torch.equal(words_again[1].text_embeds, words[0].text_embeds)
    assert torch.equal(words_again[1].pooled_text_embeds, words[0].pooled_text_embeds)


def test_a_damaged_cache_file_is_made_anew(pictures: list[Shot], tmp_path: Path, tiny_base: BaseModel) -> None:
    first = latents_of(pictures, tmp_path, tiny_base)
    files = sorted(tmp_path.rglob("*.safetensors"))
    files[0].write_bytes(files[0].read_bytes()[:-4])
    files[1].write_bytes(b"")
    again = latents_of(pictures, tmp_path, tiny_base)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_a_cache_file_of_other_bits_or_under_another_name_is_made_anew(
    pictures: list[Shot], tmp_path: Path, tiny_base: BaseModel
) -> None:
    first = latents_of(pictures, tmp_path, tiny_base)
    files = sorted(tmp_path.rglob("*.safetensors"))
    content = [bytearray(file.read_bytes()) for file in files]
    content[0][-8] ^= 1  # the lowest bits of a number: still finite
    for file, other in zip(files, (content[0], content[2], content[2]), strict=True):
        file.write_bytes(other)
    again = latents_of(pictures, tmp_path, tiny_base)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_a_cache_file_has_the_time_of_its_last_use(pictures: list[Shot], tmp_path: Path, tiny_base: BaseModel) -> None:
    latents_of(pictures[:2], tmp_path, tiny_base)
    for file in tmp_path.rglob("*.safetensors"):
        os.utime(file, (1.0, 1.0))
    latents_of(pictures[:1], tmp_path, tiny_base)
    assert sorted(file.stat().st_mtime > 1 for file in tmp_path.rglob("*.safetensors")) == [False, True]


def test_everything_that_latents_rest_on_is_in_their_key(
    pictures: list[Shot], tmp_path: Path, tiny_base: BaseModel
) -> None:
    picture, cut = pictures[0].picture, pictures[0].cut
    cache = Cache(tmp_path)
    other_cut = cut_for(picture.size_px, bucket_sizes(96))
    other_bytes = pictures[1].picture  # of the same size
    variations = [
        (Shot(picture, cut), torch.float32),
        (Shot(picture, other_cut), torch.float32),
        (Shot(other_bytes, cut), torch.float32),
        (Shot(picture, cut, mirrored=True), torch.float32),
        (Shot(picture, cut), torch.bfloat16),
    ]
    for count, (shot, dtype) in enumerate(variations, start=1):
        (latents,) = encode_pictures([shot], cache, tiny_base, CPU, dtype)
        assert latents.mean.dtype == latents.spread.dtype == dtype
        assert len(list(tmp_path.rglob("*.safetensors"))) == count


def test_a_file_of_another_shape_dtype_or_with_nan_is_made_anew(
    pictures: list[Shot], tmp_path: Path, tiny_base: BaseModel
) -> None:
    first = latents_of(pictures[:1], tmp_path, tiny_base)
    (file,) = tmp_path.rglob("*.safetensors")
    good = safetensors.torch.load_file(file)
    for spoilt in (
        {"mean": good["mean"]},
        good | {"mean": good["mean"][:, 1:]},
        good | {"mean": good["mean"].half()},
        good | {"spread": good["spread"] * torch.nan},
        good | {"more": good["mean"].clone()},
    ):
        safetensors.torch.save_file({name: tensor.contiguous() for name, tensor in spoilt.items()}, file)
        assert torch.equal(latents_of(pictures[:1], tmp_path, tiny_base)[0], first[0])
        assert safetensors.torch.load_file(file).keys() == good.keys()


def test_a_mirrored_shot_is_the_mirrored_picture(pictures: list[Shot], tmp_path: Path, tiny_base: BaseModel) -> None:
    shot = next(shot for shot in pictures if shot.cut.resized_px[0] > shot.cut.bucket_px[0])
    mirrored = Shot(shot.picture, shot.cut.mirrored(), mirrored=True)
    (ours,) = latents_of([mirrored], tmp_path, tiny_base)
    image = ImageOps.mirror(open_picture(shot.picture.path).image)
    theirs = encode(load_vae(tiny_base, CPU, torch.float32), pixel_values(image, mirrored.cut)[None])[0]
    assert torch.equal(ours, theirs)
    left, right = (each.cut.left_px for each in (shot, mirrored))
    assert left + right + shot.cut.bucket_px[0] == shot.cut.resized_px[0]


def test_long_captions_are_encoded_in_chunks_and_kept_apart(tmp_path: Path, tiny_base: BaseModel) -> None:
    cache, caption = Cache(tmp_path), "a cat, " * 60
    (short,), (long,) = (
        list(encode_captions([caption], cache, tiny_base, CPU, torch.float32, tokens)) for tokens in (75, 225)
    )
    assert (short.text_embeds.shape[0], long.text_embeds.shape[0]) == (77, 227)
    torch.testing.assert_close(short.pooled_text_embeds, long.pooled_text_embeds)  # of the first chunk; one or three


def test_a_key_is_of_kind_and_content_in_any_order(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    assert cache.path("a", x=1, y=2) == cache.path("a", y=2, x=1)
    paths = {cache.path("a", x=1, y=2), cache.path("b", x=1, y=2), cache.path("a", x=2, y=1), cache.path("a", x=1)}
    assert len(paths) == 4


def test_a_picture_whose_latents_are_not_finite_is_named_and_not_kept(
    tmp_path: Path, tiny_base: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a VAE that overflows where a picture is bright, as SDXL's does in FP16."""

    def fragile(base: BaseModel, device: torch.device, dtype: torch.dtype) -> AutoencoderKL:
        vae = load_vae(base, device, dtype)
        vae.encoder.register_forward_pre_hook(lambda _, pixels: (pixels[0].where(pixels[0] < 0.9, torch.inf),))
        return vae

    monkeypatch.setattr(encoding, "load_vae", fragile)
    folder = tmp_path / "dataset"
    folder.mkdir()
    for name, grey in (("a", 128), ("b", 255), ("c", 128)):
        Image.new("RGB", (64, 64), (grey, grey, grey)).save(folder / f"{name}.png")
    dataset = read_dataset(DatasetConfig(str(folder), missing_captions="empty"))
    shots = [Shot(picture, cut_for(picture.size_px, bucket_sizes(64))) for picture in dataset.pictures]
    with pytest.raises(NanLoss, match=r"The latents of b\.png are not finite"):
        latents_of(shots, tmp_path / "cache", tiny_base)
    assert len(list(tmp_path.rglob("*.safetensors"))) == 1  # a's
