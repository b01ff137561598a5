"""What captions say to the U-Net while text encoders are trained: dropped out, in chunks, and none at all."""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline
from torch import Tensor

from tests.loop.conftest import Models
from tests.loop.test_training import run, weights
from worker.data.batches import Batches, Example
from worker.data.encoding import TextEmbedding, tokenize_captions
from worker.loop.config import TrainConfig, TrainerConfig
from worker.loop.train import train
from worker.lora.config import LoRAConfig, TextLoRAConfig
from worker.lora.export import save_diffusers
from worker.model.from_captions import FromCaptions


@pytest.mark.parametrize("chunks", [1, 2])
@pytest.mark.parametrize("dropout", [{"dropout": 0.3}, {"rank_dropout": 0.3}])
def test_a_caption_s_dropout_is_the_same_on_whichever_gpu_it_is_trained(
    make_models: Callable[..., Models], chunks: int, dropout: dict[str, float]
) -> None:
    _, encoders, lora = make_models(trained=True, **dropout)
    token_ids = encoders.token_ids(["sea " * 150] * 4, chunks)

    def embeds(samples: slice) -> Tensor:
        with lora.dropout.at(0, 1, 0, samples=samples), torch.no_grad():
            return encoders.embed(token_ids[samples])[0]

    whole = embeds(slice(0, 4))
    parts = torch.cat([embeds(slice(0, 2)), embeds(slice(2, 4))])
    torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-5)  # FP32, other shapes of the same products
    alike = [whole[:1, 1:76], *whole[1:, None, 1:76]]  # without dropout, all these would be the same
    if chunks == 2:
        alike.append(whole[:1, 76:151])
    assert not any(torch.allclose(alike[0], other, atol=1e-3) for other in alike[1:])


@pytest.mark.parity
@pytest.mark.parametrize("chunks", [1, 2])
def test_a_caption_that_is_left_out_is_the_empty_one_as_the_encoders_are(
    make_models: Callable[..., Models],
    encoded: tuple[list[Example], TextEmbedding],
    tiny_paths: dict[str, Path],
    tmp_path: Path,
    chunks: int,
) -> None:
    """As in diffusers' train_text_to_image_sdxl.py (proportion_empty_prompts): encoded like any other, never zeros."""
    caption, empty = tokenize_captions(["rocks by the sea", ""], 75 * chunks)
    examples = [dataclasses.replace(example, captions=(caption,)) for example in encoded[0]]
    batches = Batches(examples, empty, 2, 0, caption_dropout=1.0)
    unet, encoders, lora = make_models(trained=True)
    plain = make_models()[1]

    pipeline = StableDiffusionXLPipeline.from_pretrained(tiny_paths["diffusers"], dtype=torch.float32)
    save_diffusers(lora, tmp_path / "lora.safetensors", {})
    pipeline.load_lora_weights(tmp_path / "lora.safetensors")
    with torch.no_grad():
        ours = encoders.embed(batches.at(0).text_embeds)
        before = plain.embed(batches.at(0).text_embeds)
        theirs = pipeline.encode_prompt(["", ""])
    torch.testing.assert_close(ours[1], theirs[2], rtol=1e-5, atol=1e-5)  # pooled; FP32, other orders of sums
    assert (ours[1] - before[1]).abs().max() > 1e-2
    first = slice(0, 77 if chunks == 1 else 76)  # of several chunks, only the last one's end is kept
    torch.testing.assert_close(ours[0][:, first], theirs[0][:, first], rtol=1e-5, atol=1e-5)

    begun = {name: weight.clone() for name, weight in lora.state_dict().items()}
    for _ in train(FromCaptions(unet, encoders), lora, batches, TrainConfig(1)):
        pass
    moved = {name for name, weight in lora.state_dict().items() if not torch.equal(weight, begun[name])}
    last = f"text_encoder_2.text_model.encoder.layers.{len(plain.encoder_2.text_model.encoder.layers) - 1}."
    assert any(name.startswith(last) for name in moved)  # which the pooled embedding alone goes through


@pytest.mark.parametrize("text", [None, TextLoRAConfig()], ids=["frozen", "trained"])
def test_to_leave_every_caption_out_is_to_have_none(
    make_config: Callable[..., TrainerConfig], photos: Path, tmp_path: Path, text: TextLoRAConfig | None
) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for picture in (path for path in photos.iterdir() if path.suffix in (".jpg", ".png")):
        shutil.copyfile(picture, bare / picture.name)
    plain = make_config(2, lora=LoRAConfig(text_encoders=text), batch_size=2)
    dropped = dataclasses.replace(plain.dataset, caption_dropout=1.0)
    none = dataclasses.replace(plain.dataset, folder=str(bare), missing_captions="empty")
    files = {}
    for name, dataset in (("captions", plain.dataset), ("dropped", dropped), ("none", none)):
        config = dataclasses.replace(plain, dataset=dataset, output=str(tmp_path / name))
        run(config)
        files[name] = weights(config)
    assert all(torch.equal(tensor, files["none"][key]) for key, tensor in files["dropped"].items())
    assert any(not torch.equal(tensor, files["none"][key]) for key, tensor in files["captions"].items())
