"""What a training's files say of it is true, in the shape in which other programs read it."""

import base64
import dataclasses
import hashlib
import io
import json
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
from PIL import Image

from tests.loop.test_training import run
from worker.data.config import DatasetConfig, RegularisationConfig, ShuffleConfig
from worker.loop import thumbnail
from worker.loop.config import HeaderConfig, LossConfig, SamplesConfig, TrainerConfig, ValidationConfig
from worker.loop.thumbnail import thumbnail_of
from worker.lora.config import LoRAConfig, TextLoRAConfig
from worker.model.tiny import write_tiny_base

MakeConfig = Callable[..., TrainerConfig]
NAMED = HeaderConfig("ginger-cat", "Ginger cat", "base.safetensors", "cats", 1.5, (("modelspec.author", "Jo"),))


def header_of(config: TrainerConfig, name: str = "lora") -> dict[str, str]:
    with safetensors.safe_open(Path(config.output) / f"{name}.safetensors", "pt") as file:
        return file.metadata()


def as_automatic1111_reads(file: Path) -> dict[str, Any]:
    """The header by A1111's and Forge's modules/sd_models.py: from the file's first bytes, objects in JSON read."""
    content = file.read_bytes()
    assert content[8:10] == b'{"'
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
    assert all(isinstance(value, str) for value in header.values())
    return {key: json.loads(value) if value[:1] == "{" else value for key, value in header.items()}


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_a_card_of_automatic1111_shows_it(make_config: MakeConfig) -> None:
    """Every field that the card of extra networks reads, by extensions-builtin/Lora/ui_edit_user_metadata.py and
    network.py there, as it reads them."""
    config = make_config(2, header=NAMED, samples=SamplesConfig(("a cat",), sampler_steps=2))
    run(config)
    told = as_automatic1111_reads(Path(config.output) / "lora.safetensors")
    assert told["ss_output_name"] == "ginger-cat"  # <lora:ginger-cat:1>
    assert told["ss_sd_model_name"] == "base.safetensors"
    assert told["ss_network_module"] == "networks.lora"
    assert told["ss_clip_skip"] == "None"
    assert told["ss_base_model_version"].startswith("sdxl_")
    assert told["modelspec.architecture"] == "stable-diffusion-xl-v1-base/lora"
    assert datetime.fromtimestamp(float(told["ss_training_started_at"]), UTC).year == 1970
    tags: dict[str, int] = {}
    for of_folder in told["ss_tag_frequency"].values():
        for tag, count in of_folder.items():
            tags[tag] = tags.get(tag, 0) + int(count)
    assert sum(tags.values()) >= 8
    sizes = {tuple(bucket["resolution"]): bucket["count"] for bucket in told["ss_bucket_info"]["buckets"].values()}
    assert sum(sizes.values()) == 8
    assert all(width % 32 == height % 32 == 0 for width, height in sizes)
    assert sum(int(each["img_count"]) for each in told["ss_dataset_dirs"].values()) == 8
    (cover,) = json.loads(told["ssmd_cover_images"])
    assert Image.open(io.BytesIO(base64.b64decode(cover))).format == "JPEG"


def test_all_that_it_was_told_stands_there(make_config: MakeConfig, photos: Path, tiny_base: Path) -> None:
    dataset = DatasetConfig(
        str(photos),
        trigger="ohwx",
        caption_dropout=0.25,
        shuffle=ShuffleConfig(2, 2),
        caption_tokens=150,
        flip=True,
        regularisation=RegularisationConfig(str(photos), weight=0.5),
    )
    loss = LossConfig(
        kind="huber", huber_c=0.2, min_snr_gamma=5.0, noise_offset=0.05, min_timestep=100, max_timestep=900
    )
    config = make_config(
        7,
        train={"loss": loss, "gradient_accumulation": 2, "max_grad_norm": None, "seed": 3},
        dataset=dataset,
        batch_size=3,
        validation=ValidationConfig(1, None, 5),
        formats=("kohya",),
        header=NAMED,
    )
    run(config)
    header = header_of(config)
    told = {
        "ss_output_name": "ginger-cat",
        "ss_steps": "7",
        "ss_max_train_steps": "7",
        "ss_seed": "3",
        "ss_learning_rate": "0.002",
        "ss_unet_lr": "0.002",
        "ss_text_encoder_lr": "None",
        "ss_optimizer": "adamw",
        "ss_max_grad_norm": "0.0",
        "ss_loss_type": "huber",
        "ss_huber_schedule": "constant",
        "ss_huber_c": "0.2",
        "ss_min_snr_gamma": "5.0",
        "ss_noise_offset": "0.05",
        "ss_debiased_estimation": "False",
        "ss_prior_loss_weight": "0.5",
        "ss_caption_dropout_rate": "0.25",
        "ss_shuffle_caption": "True",
        "ss_keep_tokens": "2",
        "ss_flip_aug": "True",
        "ss_max_token_length": "150",
        "ss_resolution": "(64, 64)",
        "ss_min_bucket_reso": "32",
        "ss_max_bucket_reso": "128",
        "ss_batch_size_per_device": "3",
        "ss_total_batch_size": "6",
        "ss_num_train_images": "7",
        "ss_num_reg_images": "7",  # what is held out is held out there too
        "ss_num_validation_images": "1",
        "ss_num_batches_per_epoch": "6",  # three of pictures, three of regularisation
        "ss_num_epochs": "3",  # 14 batches
        "ss_epoch": "3",
        "modelspec.title": "Ginger cat",
        "modelspec.author": "Jo",
        "modelspec.trigger_phrase": "ohwx",
        "modelspec.usage_hint": "Write in the prompt: ohwx",
        "modelspec.timestep_range": "100,900",
        "modelspec.prediction_type": "epsilon",
        "modelspec.resolution": "64x64",
        "modelspec.description": "LoRA for SDXL, trained by loraq on base.safetensors: 7 pictures, 7 steps, 64 px.",
        "loraq_weights": "last",
    }
    assert {key: header.get(key) for key in told} == told
    assert header["ss_new_sd_model_hash"] == sha256(tiny_base.read_bytes())
    assert header["ss_sd_model_hash"] == sha256(tiny_base.read_bytes()[0x100000:0x110000])[:8]
    absent = {
        "modelspec.thumbnail",
        "ssmd_cover_images",
        "modelspec.license",
        "modelspec.tags",
        "modelspec.merged_from",
    }
    assert not absent & header.keys(), "nothing that nobody has said, and no picture where none was drawn"


def test_a_training_that_was_told_little_says_little(make_config: MakeConfig) -> None:
    config = make_config(1)
    run(config)
    header = header_of(config)
    unsaid = ("modelspec.timestep_range", "modelspec.trigger_phrase", "modelspec.usage_hint", "modelspec.date")
    assert not {*unsaid, "ss_training_started_at", "ss_huber_c", "ss_prior_loss_weight"} & header.keys()
    assert (header["ss_loss_type"], header["ss_noise_offset"]) == ("l2", "None")


def test_equal_trainings_give_equal_files_unless_times_are_told(make_config: MakeConfig, tmp_path: Path) -> None:
    def files(name: str, **changes: Any) -> dict[str, bytes]:
        config = make_config(2, train={"ema_decay": 0.5}, output=str(tmp_path / name), **changes)
        run(config)
        return {file.name: file.read_bytes() for file in Path(config.output).glob("*.safetensors")}

    one, other = files("one"), files("other")
    assert len(one) == 4
    assert one == other

    began_s, before_s = 1.75e9, time.time()
    config = make_config(2, header=HeaderConfig(started_at_s=began_s))
    run(config)
    header = header_of(config)
    assert header["ss_training_started_at"] == str(began_s)
    assert before_s <= float(header["ss_training_finished_at"]) <= time.time()
    date = datetime.fromisoformat(header["modelspec.date"])
    assert before_s - 1 <= date.timestamp() <= time.time()
    assert date.utcoffset() is not None


def test_averaged_weights_have_a_name_of_their_own_and_both_formats_the_same_story(make_config: MakeConfig) -> None:
    config = make_config(2, train={"ema_decay": 0.5}, header=NAMED)
    run(config)
    last, ema, diffusers = (header_of(config, name) for name in ("lora", "lora_ema", "lora_diffusers"))
    assert (ema["ss_output_name"], ema["modelspec.title"]) == ("ginger-cat_ema", "Ginger cat (EMA)")
    assert ema["modelspec.description"].endswith(", averaged weights.")
    assert (last["loraq_weights"], ema["loraq_weights"]) == ("last", "ema")
    assert last["sshs_model_hash"] != ema["sshs_model_hash"]
    of_file = {"modelspec.implementation", "modelspec.hash_sha256", "sshs_model_hash", "format"}
    scaling = {key for key in last if key.startswith("ss_network_")}
    assert {key for key in last.keys() | diffusers.keys() if last.get(key) != diffusers.get(key)} == of_file | scaling


def test_text_encoders_that_are_trained_have_their_learning_rate(make_config: MakeConfig) -> None:
    lora = LoRAConfig(rank=2, text_encoders=TextLoRAConfig("attention", 0.25))
    config = make_config(1, lora=lora)
    run(config)
    header = header_of(config)
    assert (header["ss_unet_lr"], header["ss_text_encoder_lr"]) == ("0.002", "0.0005")


def test_a_base_model_in_a_folder_has_no_hash_of_a_file(make_config: MakeConfig, tmp_path: Path) -> None:
    folder = write_tiny_base(tmp_path, layout="diffusers")["diffusers"]
    config = make_config(1, base_model=str(folder))
    run(config)
    header = header_of(config)
    assert header["ss_sd_model_name"] == folder.name
    assert not {"ss_sd_model_hash", "ss_new_sd_model_hash"} & header.keys()


def test_the_thumbnail_is_the_last_sample_of_the_first_prompt(make_config: MakeConfig) -> None:
    samples = SamplesConfig(("a cat", "a dog"), every_n_steps=1, sampler_steps=2)
    config = make_config(2, samples=samples, resolution=320)
    config = dataclasses.replace(config, batch_size=1)
    run(config)
    start, _, data = header_of(config)["modelspec.thumbnail"].partition(",")
    assert start == "data:image/jpeg;base64"
    jpeg = base64.b64decode(data, validate=True)
    assert len(jpeg) <= thumbnail.MAX_BYTES
    shown = Image.open(io.BytesIO(jpeg))
    assert (shown.format, shown.size) == ("JPEG", (256, 256))

    def distance(name: str) -> float:
        drawn = Image.open(Path(config.output) / "samples" / name).resize((256, 256), Image.Resampling.LANCZOS)
        return float(np.abs(np.asarray(drawn, np.float32) - np.asarray(shown, np.float32)).mean())

    names = [f"step-00000{step}-{number}.png" for step in (1, 2) for number in (0, 1)]
    assert min(names, key=distance) == "step-000002-0.png"


def test_a_thumbnail_is_small_or_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (512, 300, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")  # no picture gives a larger JPEG
    jpeg = thumbnail_of(tmp_path / "noise.png")
    assert jpeg is not None
    assert len(base64.b64decode(jpeg)) <= thumbnail.MAX_BYTES
    assert Image.open(io.BytesIO(base64.b64decode(jpeg))).size == (150, 256)
    Image.new("RGB", (64, 48), "red").save(tmp_path / "small.png")
    small = thumbnail_of(tmp_path / "small.png")
    assert small is not None
    assert Image.open(io.BytesIO(base64.b64decode(small))).size == (64, 48)  # never enlarged
    monkeypatch.setattr(thumbnail, "MAX_BYTES", 100)
    assert thumbnail_of(tmp_path / "noise.png") is None
