"""An adapter on both text encoders: what it trains, that resume is exact, and that others read what is left."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor

from tests.loop.conftest import Models
from tests.loop.test_training import of_kind, run, weights
from tests.lora.test_lora_readers import merge_as_comfyui
from worker.data.batches import Batches, Example
from worker.data.encoding import TextEmbedding, tokenize_captions
from worker.errors import TrainerError
from worker.loop.config import OptimizerConfig, SamplesConfig, TrainConfig, TrainerConfig
from worker.loop.step import draw_noise
from worker.loop.train import TrainState, train
from worker.lora.config import LoRAConfig, Override, TextLoRAConfig
from worker.lora.export import save_diffusers, save_kohya
from worker.lora.inject import inject
from worker.lora.names import kohya_name
from worker.lora.start import weights_from
from worker.model import sdxl_configs
from worker.model.base_model import BaseModel
from worker.model.from_captions import FromCaptions
from worker.model.text_encoders import TextEncoders, load_text_encoders, skeleton_text_encoders
from worker.model.unet import UNet, UNetConfig
from worker.model.weights import load_unet

pytestmark = pytest.mark.parity

CPU = torch.device("cpu")
CAPTIONS = ["a photo of a cat", "rocks by the sea", ""]


@pytest.fixture
def batches(encoded: tuple[list[Example], TextEmbedding]) -> Batches:
    """The photos, each with the token ids of a caption in place of its embedding."""
    *tokens, empty = tokenize_captions([*(f"photo number {n}" for n in range(8)), ""])
    pairs = zip(encoded[0], tokens, strict=True)
    return Batches([Example(example.view, (ids,)) for example, ids in pairs], empty, 2, 0, caption_dropout=0.2)


def is_text(path: str) -> bool:
    return path.startswith(("text_encoder.", "text_encoder_2."))


def test_nothing_changes_before_training_and_the_gradient_reaches_both_encoders(
    base: BaseModel, make_models: Callable[..., Models], batches: Batches
) -> None:
    _, encoders, lora = make_models()
    plain = load_text_encoders(base, CPU, torch.float32).encode(CAPTIONS)
    ours = encoders.embed(encoders.token_ids(CAPTIONS))
    assert all(torch.equal(a, b) for a, b in zip(ours, plain, strict=True))  # lora_B is zero: not a bit
    assert all(a.requires_grad for a in ours)
    (ours[0].square().mean() + ours[1].square().mean()).backward()
    reached = {path for path, layer in lora.modules.items() if layer.lora_B.grad is not None}
    text = {path for path in lora.modules if is_text(path)}
    last = base.configs["text_encoder"]["num_hidden_layers"] - 1
    # SDXL reads the penultimate output of the first encoder: its last layer says nothing. The second's is pooled.
    assert reached == {path for path in text if f"text_encoder.text_model.encoder.layers.{last}." not in path}
    assert any(path.startswith("text_encoder_2.") and f".layers.{last}." in path for path in reached)


def test_each_encoder_learns_at_its_own_rate_and_no_base_weight_moves(
    make_models: Callable[..., Models], batches: Batches
) -> None:
    unet, encoders, lora = make_models(text_encoders=TextLoRAConfig(learning_rate_scale=0.1))
    modules = [unet, *encoders.towers.values()]
    frozen = [{n: w.clone() for n, w in module.state_dict().items() if "lora_" not in n} for module in modules]
    optimizer = OptimizerConfig(learning_rate=1e-3, weight_decay=0.0)
    for _ in train(FromCaptions(unet, encoders), lora, batches, TrainConfig(1, optimizer=optimizer)):
        pass
    moved: dict[bool, set[float]] = {False: set(), True: set()}
    for path, layer in lora.modules.items():
        moved[is_text(path)] |= {round(layer.lora_B.abs().max().item(), 6)}
    assert max(moved[False]) == pytest.approx(1e-3, rel=1e-2)  # AdamW's first step is the rate itself
    assert max(moved[True]) == pytest.approx(1e-4, rel=1e-2)
    for module, before in zip(modules, frozen, strict=True):
        assert all(torch.equal(weight, before[n]) for n, weight in module.state_dict().items() if "lora_" not in n)


def test_a_sampler_sees_the_encoders_as_they_are(make_models: Callable[..., Models], batches: Batches) -> None:
    unet, encoders, lora = make_models()
    model, batch = FromCaptions(unet, encoders), batches.at(0)
    inputs = (batch.latents, torch.tensor([5, 500]), batch.text_embeds, batch.pooled_text_embeds, batch.time_ids)
    with torch.no_grad():
        before = model(*inputs)
        for path, layer in lora.modules.items():
            if is_text(path):
                layer.lora_B.normal_(std=0.2, generator=torch.Generator().manual_seed(1))
        assert (model(*inputs) - before).abs().max() > 1e-3


OVERRIDES = (
    Override("text_encoder.*", rank=2, alpha=3.0),
    Override("text_encoder_2.*mlp*", rank=6),
    Override("*attn1*", alpha=1.0),
)
KINDS: dict[str, dict[str, Any]] = {
    "lora": {},
    "attention, rslora": {"text_encoders": TextLoRAConfig("attention"), "rslora": True},
    "locon, patterns": {"targets": "locon", "patterns": ("conv_in", "time_embedding.*")},
    "overrides": {"overrides": OVERRIDES},
    "rslora, overrides": {"overrides": OVERRIDES, "rslora": True},
    "dora": {"dora": True},
    "dora, rslora, overrides": {"dora": True, "rslora": True, "overrides": OVERRIDES},
    "text alone": {"targets": "none"},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", ["kohya", "diffusers"])
def test_diffusers_encodes_and_predicts_from_the_file_what_the_adapter_does(
    base: BaseModel,
    make_models: Callable[..., Models],
    tiny_paths: dict[str, Path],
    tmp_path: Path,
    form: str,
    kind: str,
) -> None:
    config = KINDS[kind]
    unet, encoders, lora = make_models(trained=True, **config)
    file = tmp_path / "lora.safetensors"
    if form == "kohya":
        save_kohya(lora, file, {})
    else:
        save_diffusers(lora, file, {})
    again = make_models(**config)[2]
    again.load_state_dict(weights_from(file, again))  # and so does our own reader
    for name, weight in again.state_dict().items():
        torch.testing.assert_close(weight, lora.state_dict()[name], rtol=2**-22, atol=0)
    if form == "kohya":
        assert_merged_encoders_are(encoders, file, load_text_encoders(base, CPU, torch.float32))
    if form == "kohya" and lora.config.dora:  # of these, diffusers 0.42 leaves dora_scale out, and says so
        return
    pipeline = StableDiffusionXLPipeline.from_pretrained(tiny_paths["diffusers"], dtype=torch.float32)
    pipeline.load_lora_weights(file)
    with torch.no_grad():
        ours = encoders.encode(CAPTIONS)
        theirs = pipeline.encode_prompt(CAPTIONS[:2])
        for mine, their in zip(ours, (theirs[0], theirs[2]), strict=True):
            torch.testing.assert_close(mine[:2], their, rtol=1e-5, atol=1e-5)  # FP32, other orders of sums
        noisy_latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(2))
        timesteps, time_ids = torch.tensor([17, 804]), torch.tensor([[64.0, 64, 0, 0, 64, 64]] * 2)
        token_ids = encoders.token_ids(CAPTIONS[:2])
        mine = FromCaptions(unet, encoders)(noisy_latents, timesteps, token_ids, torch.empty(2, 0), time_ids)
        conditions = {"text_embeds": theirs[2], "time_ids": time_ids}
        their = pipeline.unet(noisy_latents, timesteps, theirs[0], added_cond_kwargs=conditions).sample
    torch.testing.assert_close(mine, their, rtol=1e-4, atol=1e-5)


def assert_merged_encoders_are(encoders: TextEncoders, file: Path, plain: TextEncoders) -> None:
    """Read a kohya file by the reader that tests/lora has from the format alone, and compare what is encoded."""
    tensors = safetensors.torch.load_file(file)
    for (start, tower), theirs in zip(plain.towers.items(), encoders.towers.values(), strict=True):
        prefix = kohya_name(f"{start}.")
        own = {key: tensor for key, tensor in tensors.items() if key.startswith(prefix)}
        read = merge_as_comfyui(tower, own, lambda path, prefix=prefix: prefix + path.replace(".", "_"))
        assert read == sum(hasattr(module, "lora_A") for module in theirs.modules())
    for ours, theirs in zip(plain.encode(CAPTIONS), encoders.encode(CAPTIONS), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_kohya_names_are_sd_scripts_for_the_full_size_encoders(base: BaseModel) -> None:
    configs = {"text_encoder": sdxl_configs.TEXT_ENCODER, "text_encoder_2": sdxl_configs.TEXT_ENCODER_2}
    full = dataclasses.replace(base, configs=base.configs | configs, unet_config=UNetConfig.sdxl())
    with torch.device("meta"):
        unet = UNet(UNetConfig.sdxl()).requires_grad_(False)
        lora = inject(
            unet,
            LoRAConfig(targets="none", text_encoders=TextLoRAConfig()),
            0,
            skeleton_text_encoders(full).towers,
        )
    names = json.loads((Path(__file__).parents[1] / "contracts" / "kohya_names.json").read_text(encoding="utf-8"))
    ours = {kohya_name(path): list(layer.weight.shape) for path, layer in lora.modules.items()}
    assert ours == {name: shape for name, shape in names.items() if name.startswith(("lora_te1_", "lora_te2_"))}
    assert len(ours) == 72 + 192
    assert sum(layer.weight.shape[0] + layer.weight.shape[1] for layer in lora.modules.values()) == 903_168


@pytest.mark.parametrize("kind", ["lora, chunks", "dora, dropout"])
def test_resumed_twice_equals_uninterrupted_to_the_bit(
    make_config: Callable[..., TrainerConfig], tmp_path: Path, kind: str
) -> None:
    text = TextLoRAConfig("transformer", 0.25)
    lora = LoRAConfig(text_encoders=text)
    if kind == "dora, dropout":
        lora = LoRAConfig(dora=True, dropout=0.2, rank_dropout=0.2, text_encoders=text)
    config = make_config(5, train={"ema_decay": 0.9, "gradient_accumulation": 2}, lora=lora)
    tokens = 150 if kind == "lora, chunks" else 75
    dataset = dataclasses.replace(config.dataset, caption_dropout=0.3, caption_tokens=tokens)
    samples = SamplesConfig(("a cat",), every_n_steps=2, sampler_steps=2)
    cache = tmp_path / "cache"
    whole = dataclasses.replace(
        config, dataset=dataset, samples=samples, cache=str(cache), batch_size=2, output=str(tmp_path / "whole")
    )
    facts = run(whole)
    assert sorted(path.name for path in cache.iterdir()) == ["latents"]  # no embedding is kept
    assert len(of_kind(facts, "sample")) == 3
    folder = None
    for name, stop_after, at in (("first", 1, 1), ("second", 2, 3), ("third", None, 5)):
        part = dataclasses.replace(whole, output=str(tmp_path / name), resume_from=folder)
        run(part, stop_after)
        folder = str(tmp_path / name / "checkpoints" / f"step-{at:06d}")
    for name in ("lora", "lora_ema"):
        theirs = weights(whole, name)
        assert any(key.startswith("lora_te2_") for key in theirs)
        assert all(torch.equal(tensor, theirs[key]) for key, tensor in weights(part, name).items())
    for number in (4, 5):
        picture = f"samples/step-{number:06d}-0.png"
        assert (tmp_path / "third" / picture).read_bytes() == (tmp_path / "whole" / picture).read_bytes()
    other = dataclasses.replace(part, resume_from=str(tmp_path / "second/checkpoints/step-000003"))
    with pytest.raises(TrainerError, match="another training: lora was"):
        run(dataclasses.replace(other, lora=dataclasses.replace(lora, text_encoders=None)))


def test_ten_steps_are_those_of_diffusers_and_peft(
    base: BaseModel, make_models: Callable[..., Models], batches: Batches
) -> None:
    steps, rate, scale = 10, 1e-3, 0.5
    config = TrainConfig(steps, seed=1, optimizer=OptimizerConfig(learning_rate=rate), max_grad_norm=1.0)
    unet, encoders, lora = make_models(text_encoders=TextLoRAConfig(learning_rate_scale=scale))
    begun = {name: weight.clone() for name, weight in lora.state_dict().items()}
    our_losses = [r.loss for r in train(FromCaptions(unet, encoders), lora, batches, config)]

    theirs = UNet2DConditionModel.from_config(base.unet_config.to_diffusers())
    assert isinstance(theirs, UNet2DConditionModel)
    theirs.load_state_dict(load_unet(base, CPU, torch.float32).state_dict())
    plain = load_text_encoders(base, CPU, torch.float32)
    text_targets = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]
    roots = {"": theirs, "text_encoder.text_model.": plain.encoder_1, "text_encoder_2.": plain.encoder_2}
    by_name: dict[str, torch.nn.Parameter] = {}
    for start, root in roots.items():
        root.requires_grad_(False)
        targets = text_targets if start else ["to_q", "to_k", "to_v"]
        inject_adapter_in_model(LoraConfig(r=4, lora_alpha=8, target_modules=targets), root)  # type: ignore[arg-type]
        for name, weight in root.named_parameters():
            if "lora_" in name:
                by_name[start + name.replace(".default.weight", "")] = weight.requires_grad_()
    assert by_name.keys() == begun.keys()
    with torch.no_grad():
        for name, weight in by_name.items():
            weight.copy_(begun[name])
    groups = [
        {"params": [w for n, w in by_name.items() if is_text(n) == text], "lr": rate * (scale if text else 1)}
        for text in (False, True)
    ]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.01)
    schedule = DDPMScheduler(1000, 0.00085, 0.012, "scaled_linear")
    their_losses: list[float] = []
    for step in range(1, steps + 1):
        batch = batches.at(step - 1)
        noise, timesteps = draw_noise(batch.latents.shape, config.loss, 1, step, 0, CPU)
        output_1 = plain.encoder_1(batch.text_embeds[:, 0], output_hidden_states=True)
        output_2 = plain.encoder_2(batch.text_embeds[:, 1], output_hidden_states=True)
        embeds = torch.cat([output_1.hidden_states[-2], output_2.hidden_states[-2]], dim=-1)
        prediction = theirs(
            schedule.add_noise(batch.latents, noise, timesteps),  # type: ignore[arg-type]
            timesteps,
            embeds,
            added_cond_kwargs={"text_embeds": output_2.text_embeds, "time_ids": batch.time_ids},
        ).sample
        loss = F.mse_loss(prediction, noise)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(by_name.values(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        their_losses.append(loss.item())
    torch.testing.assert_close(torch.tensor(our_losses), torch.tensor(their_losses), rtol=1e-5, atol=0)
    for name, weight in lora.state_dict().items():
        # AdamW turns a gradient of rounding alone into whole steps of the rate: where it is all but zero, they differ.
        assert_mostly_close(weight, by_name[name].detach(), atol=1e-2 * rate)


def assert_mostly_close(ours: Tensor, theirs: Tensor, atol: float) -> None:
    assert ((ours - theirs).abs() <= atol).float().mean() > 0.98


def test_prodigy_and_every_other_optimizer_take_both_groups(
    make_models: Callable[..., Models], batches: Batches
) -> None:
    for name in ("adafactor", "prodigy", "lion", "schedule_free_adamw"):
        scale = 1.0 if name == "prodigy" else 0.5
        unet, encoders, lora = make_models(text_encoders=TextLoRAConfig(learning_rate_scale=scale))
        config = TrainConfig(2, optimizer=OptimizerConfig(name, 1e-3))  # type: ignore[arg-type]
        state = TrainState.begin(lora, config)
        for _ in train(FromCaptions(unet, encoders), lora, batches, config, state):
            pass
        assert any(layer.lora_B.abs().max() > 0 for path, layer in lora.modules.items() if is_text(path)), name
