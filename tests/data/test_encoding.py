"""Pictures and captions are encoded once; a cached result is used exactly when everything it rests on is the same."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from worker.data import encoding
from worker.data.buckets import Cut, bucket_sizes, cut_for, pixel_values
from worker.data.cache import Cache
from worker.data.config import DatasetConfig
from worker.data.dataset import Picture, read_dataset
from worker.data.encoding import encode_captions, encode_pictures
from worker.data.pictures import open_picture
from worker.errors import NanLoss
from worker.model import text_encoders
from worker.model.base_model import BaseModel
from worker.model.text_encoders import load_text_encoders
from worker.model.vae import encode, load_vae

CPU = torch.device("cpu")


def latents_of(pictures: list[tuple[Picture, Cut]], folder: Path, base: BaseModel) -> list[torch.Tensor]:
    return list(encode_pictures(pictures, Cache(folder), base, CPU, torch.float32))


@pytest.fixture
def pictures(photos: Path) -> list[tuple[Picture, Cut]]:
    dataset = read_dataset(DatasetConfig(str(photos)))
    return [(picture, cut_for(picture.size_px, bucket_sizes(64))) for picture in dataset.pictures[1:4]]


@pytest.fixture
def no_models(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From the call on, loading an encoder fails the test."""

    def forbid() -> None:
        for module, name in ((encoding, "load_vae"), (text_encoders, "load_text_encoders")):
            monkeypatch.setattr(module, name, lambda *_: pytest.fail("was not cached"))

    return forbid


def test_latents_are_the_vaes_of_the_cut_picture(
    pictures: list[tuple[Picture, Cut]], tmp_path: Path, tiny_base: BaseModel
) -> None:
    ours = latents_of(pictures, tmp_path, tiny_base)
    vae = load_vae(tiny_base, CPU, torch.float32)
    for (picture, cut), latents in zip(pictures, ours, strict=True):
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
    pictures: list[tuple[Picture, Cut]], tmp_path: Path, tiny_base: BaseModel, no_models: Callable[[], None]
) -> None:
    first = latents_of(pictures, tmp_path, tiny_base)
    words = list(encode_captions(["a", "b"], Cache(tmp_path), tiny_base, CPU, torch.float32))
    no_models()
    again = latents_of(pictures, tmp_path, tiny_base)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    words_again = list(encode_captions(["b", "a"], Cache(tmp_path), tiny_base, CPU, torch.float32))
    assert torch.equal(words_again[1].text_embeds, words[0].text_embeds)
    assert torch.equal(words_again[1].pooled_text_embeds, words[0].pooled_text_embeds)


def test_a_damaged_cache_file_is_made_anew(
    pictures: list[tuple[Picture, Cut]], tmp_path: Path, tiny_base: BaseModel
) -> None:
    first = latents_of(pictures, tmp_path, tiny_base)
    files = sorted(tmp_path.rglob("*.safetensors"))
    files[0].write_bytes(files[0].read_bytes()[:-4])
    files[1].write_bytes(b"")
    again = latents_of(pictures, tmp_path, tiny_base)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_everything_that_latents_rest_on_is_in_their_key(
    pictures: list[tuple[Picture, Cut]], tmp_path: Path, tiny_base: BaseModel
) -> None:
    (picture, cut), *_ = pictures
    cache = Cache(tmp_path)
    other_cut = cut_for(picture.size_px, bucket_sizes(96))
    other_bytes = pictures[1][0]  # of the same size
    variations = [
        ((picture, cut), torch.float32),
        ((picture, other_cut), torch.float32),
        ((other_bytes, cut), torch.float32),
        ((picture, cut), torch.bfloat16),
    ]
    for count, (pair, dtype) in enumerate(variations, start=1):
        (latents,) = encode_pictures([pair], cache, tiny_base, CPU, dtype)
        assert latents.dtype == dtype
        assert len(list(tmp_path.rglob("*.safetensors"))) == count


def test_a_key_is_of_kind_and_content_in_any_order(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    assert cache.path("a", x=1, y=2) == cache.path("a", y=2, x=1)
    paths = {cache.path("a", x=1, y=2), cache.path("b", x=1, y=2), cache.path("a", x=2, y=1), cache.path("a", x=1)}
    assert len(paths) == 4


def test_latents_that_are_not_finite_name_their_picture_and_are_not_kept(
    pictures: list[tuple[Picture, Cut]], tmp_path: Path, tiny_base: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def overflowing(vae: object, pixels: torch.Tensor) -> torch.Tensor:
        return torch.full((1, 4, 8, 8), torch.inf)

    monkeypatch.setattr(encoding, "encode", overflowing)
    with pytest.raises(NanLoss, match=r"The latents of brick\.jpg are not finite"):
        latents_of(pictures, tmp_path, tiny_base)
    assert list(tmp_path.rglob("*.safetensors")) == []
