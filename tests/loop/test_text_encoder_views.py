"""Validation and samples, while text encoders are trained, are those of the encoders as they are at that moment."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageChops

from tests.loop import several
from tests.loop.test_training import of_kind, run
from worker.data.buckets import bucket_sizes, cut_for
from worker.data.cache import Cache
from worker.data.dataset import read_dataset
from worker.data.encoding import TextEmbedding, encode_pictures
from worker.data.examples import make_held_out, shots_of, view_of
from worker.data.held_out import hold_out
from worker.loop.config import SamplesConfig, TrainerConfig, ValidationConfig
from worker.loop.loss import noise_schedule
from worker.loop.preview import sample
from worker.loop.validation import Validation
from worker.lora.config import LoRAConfig, TextLoRAConfig
from worker.lora.inject import inject
from worker.lora.start import weights_from
from worker.model.text_encoders import load_text_encoders
from worker.model.unet import UNet
from worker.model.vae import load_vae
from worker.model.weights import load_unet, open_base_model

CPU = torch.device("cpu")
TEXT_ALONE = LoRAConfig(targets="none", text_encoders=TextLoRAConfig(learning_rate_scale=5.0))


def validations(config: TrainerConfig) -> list[dict[str, Any]]:
    told = map(json.loads, (Path(config.output) / "metrics.jsonl").read_text().splitlines())
    return [line for line in told if "validation_loss" in line]


@pytest.fixture
def text_alone(make_config: Callable[..., TrainerConfig]) -> TrainerConfig:
    """A training of the text encoders alone, that holds out three photos and draws one."""
    samples = SamplesConfig(("a cat",), every_n_steps=2, sampler_steps=3, guidance=3.0)
    return make_config(4, lora=TEXT_ALONE, validation=ValidationConfig(3, None, 2), samples=samples)


def trained_models(config: TrainerConfig) -> tuple[UNet, Callable[[str], TextEmbedding]]:
    """The U-Net, which was not trained, and a way to encode captions by the encoders that the training left."""
    base = open_base_model(Path(config.base_model))
    unet, encoders = load_unet(base, CPU, torch.float32), load_text_encoders(base, CPU, torch.float32)
    lora = inject(unet, config.lora, 0, encoders.towers)
    lora.load_state_dict(weights_from(Path(config.output) / "lora.safetensors", lora))

    @torch.no_grad()
    def encode(caption: str) -> TextEmbedding:
        text_embeds, pooled = encoders.encode([caption])
        return TextEmbedding(text_embeds[0], pooled[0])

    return unet, encode


def test_the_figure_moves_with_the_encoders_alone(text_alone: TrainerConfig, tmp_path: Path) -> None:
    frozen = dataclasses.replace(text_alone, lora=LoRAConfig(), output=str(tmp_path / "frozen"))
    run(text_alone)
    run(frozen)
    before, between, after = validations(text_alone)
    begun = validations(frozen)[0]["validation_loss"]  # by embeddings that were made before the first step
    assert before["validation_loss"] == pytest.approx(begun, rel=1e-6)
    assert len({round(each["validation_loss"], 6) for each in (before, between, after)}) == 3

    unet, encode = trained_models(text_alone)
    held_out = hold_out(read_dataset(text_alone.dataset), 3, None)
    cuts = [cut_for(each.size_px, bucket_sizes(64)) for each in (*held_out.pictures, *held_out.held_out)]
    shots = shots_of(held_out, cuts, False)
    base, cache = open_base_model(Path(text_alone.base_model)), Cache(Path(text_alone.cache))
    encoded = encode_pictures(shots, cache, base, CPU, torch.float32)
    views = [view_of(shot, latents, text_alone.dataset) for shot, latents in zip(shots, encoded, strict=True)]
    captions = {each.caption: encode(each.caption) for each in held_out.held_out}
    examples = make_held_out(held_out, views, captions)
    digests = [each.sha256 for each in held_out.held_out]
    losses = Validation(examples, digests, None, text_alone.train.loss).losses(unet, CPU, lambda: False)
    assert losses is not None
    assert after["validation_loss"] == pytest.approx(losses.mean().item(), rel=1e-5)


def test_a_sample_is_drawn_by_the_encoders_as_they_are(text_alone: TrainerConfig) -> None:
    facts = run(text_alone)
    drawn = [Image.open(Path(text_alone.output) / fact["path"]) for fact in of_kind(facts, "sample")]
    assert len(drawn) == 2
    assert ImageChops.difference(*drawn).getbbox()

    unet, encode = trained_models(text_alone)
    vae = load_vae(open_base_model(Path(text_alone.base_model)), CPU, torch.float32)
    schedule = noise_schedule(text_alone.train.loss, CPU)
    theirs = sample(unet, vae, encode("a cat"), encode(""), 64, 3, 3.0, text_alone.train.seed, schedule)
    farthest = max(most for _, most in ImageChops.difference(drawn[-1], theirs).getextrema())
    assert farthest <= 1  # of 255: captions were encoded one by one here


def test_two_gpus_equal_one_of_twice_the_batch(tiny_base: Path, photos: Path, tmp_path: Path) -> None:
    """With captions in chunks, all kinds of dropout, and pictures held out, which the first rank measures."""

    def config(output: str, batch_size: int) -> TrainerConfig:
        plain = several.everything(tmp_path, tiny_base, photos, output, batch_size)
        return dataclasses.replace(
            plain,
            dataset=dataclasses.replace(plain.dataset, caption_tokens=150),
            train=dataclasses.replace(plain.train, steps=3),
            lora=LoRAConfig(dropout=0.2, rank_dropout=0.2, text_encoders=TextLoRAConfig(learning_rate_scale=0.5)),
            validation=ValidationConfig(2, None, 2),
        )

    ours, theirs = config("two", 2), config("one", 4)
    facts = [several.run(ours, tmp_path), several.alone(theirs)]
    several.assert_close(ours, theirs)
    ups = [up for name, up in several.weights(ours, "lora").items() if "lora_te2_" in name and "lora_up" in name]
    assert max(up.abs().max() for up in ups) > 1e-3  # of which 2e-6, the tolerance, is little
    told = [[(fact["step"], fact["validation_loss"]) for fact in of_kind(each, "validation")] for each in facts]
    assert [step for step, _ in told[0]] == [0, 2, 3]
    assert told[0] == [(step, pytest.approx(loss, rel=1e-5)) for step, loss in told[1]]
