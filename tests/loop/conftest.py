"""Trainings of the tiny base model on the real photos, with everything that is the same made once."""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from worker.data.batches import Batches, Example, View
from worker.data.buckets import bucket_sizes, cut_for
from worker.data.cache import Cache
from worker.data.config import DatasetConfig
from worker.data.dataset import read_dataset
from worker.data.encoding import Shot, TextEmbedding, encode_captions, encode_pictures
from worker.loop.config import OptimizerConfig, TrainConfig, TrainerConfig
from worker.lora.config import LoRAConfig, Targets, TextLoRAConfig
from worker.lora.inject import LoRA, inject
from worker.model.base_model import BaseModel
from worker.model.text_encoders import TextEncoders, load_text_encoders
from worker.model.tiny import write_tiny_base
from worker.model.unet import UNet
from worker.model.weights import load_unet, open_base_model

CPU = torch.device("cpu")
Models = tuple[UNet, TextEncoders, LoRA]


class Setup(NamedTuple):
    """What the loop is handed."""

    unet: UNet
    lora: LoRA
    batches: Batches


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny base model's single file. Read only."""
    return write_tiny_base(tmp_path_factory.mktemp("tiny"), layout="single_file")["single_file"]


@pytest.fixture(scope="session")
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def encoded(photos: Path, tiny_base: Path, cache_folder: Path) -> tuple[list[Example], TextEmbedding]:
    """The eight photos at 64 px in float32, and the empty caption."""
    base, cache = open_base_model(tiny_base), Cache(cache_folder)
    pictures = read_dataset(DatasetConfig(str(photos))).pictures
    cuts = [cut_for(picture.size_px, bucket_sizes(64)) for picture in pictures]
    shots = [Shot(picture, cut) for picture, cut in zip(pictures, cuts, strict=True)]
    latents = list(encode_pictures(shots, cache, base, CPU, torch.float32))
    texts = ["", *(picture.caption for picture in pictures)]
    empty, *captions = encode_captions(texts, cache, base, CPU, torch.float32)
    views = [View(each.mean, cut.time_ids()) for each, cut in zip(latents, cuts, strict=True)]
    return [Example(view, (caption,)) for view, caption in zip(views, captions, strict=True)], empty


@pytest.fixture
def make_setup(encoded: tuple[list[Example], TextEmbedding], tiny_base: Path) -> Callable[..., Setup]:
    """A fresh U-Net with a fresh adapter, as before the first step. All other objects are new too."""

    def make(
        seed: int = 0, batch_size: int = 2, caption_dropout: float = 0.0, targets: Targets = "qkv", **lora: Any
    ) -> Setup:
        unet = load_unet(open_base_model(tiny_base), CPU, torch.float32)
        adapter = inject(unet, LoRAConfig(rank=4, alpha=16.0, targets=targets, **lora), seed)
        return Setup(unet, adapter, Batches(*encoded, batch_size, seed, caption_dropout))

    return make


@pytest.fixture
def make_config(tiny_base: Path, cache_folder: Path, photos: Path, tmp_path: Path) -> Callable[..., TrainerConfig]:
    """A small training in tmp_path/output; keywords change single fields."""

    def make(steps: int = 4, train: dict[str, Any] | None = None, **changes: Any) -> TrainerConfig:
        config = TrainerConfig(
            base_model=str(tiny_base),
            output=str(tmp_path / "output"),
            cache=str(cache_folder),
            dataset=DatasetConfig(str(photos)),
            train=TrainConfig(steps, optimizer=OptimizerConfig(learning_rate=2e-3), **(train or {})),
            resolution=64,
            checkpointing="none",
            device="cpu",
            dtype="float32",
        )
        return dataclasses.replace(config, **changes)

    return make


@pytest.fixture(scope="session")
def base(tiny_base: Path) -> BaseModel:
    return open_base_model(tiny_base)


@pytest.fixture
def make_models(base: BaseModel) -> Callable[..., Models]:
    """U-Net and encoders with one adapter; with `trained`, its lora_B is no longer zero."""

    def make(trained: bool = False, **lora: Any) -> Models:
        unet = load_unet(base, CPU, torch.float32)
        encoders = load_text_encoders(base, CPU, torch.float32)
        config = LoRAConfig(**{"rank": 4, "alpha": 8.0, "text_encoders": TextLoRAConfig()} | lora)
        adapter = inject(unet, config, 3, encoders.towers)
        if trained:
            generator = torch.Generator().manual_seed(1)
            with torch.no_grad():
                for layer in adapter.modules.values():
                    layer.lora_B.normal_(std=0.1, generator=generator)
                    if config.dora:
                        magnitude = layer.get_parameter("lora_magnitude")
                        magnitude.mul_(torch.rand(magnitude.shape, generator=generator) + 0.5)
        return unet, encoders, adapter

    return make


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As the processes have: sums are the same to the bit only with the same number of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
