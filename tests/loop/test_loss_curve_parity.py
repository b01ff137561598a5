"""Fifty optimizer steps of ours and of diffusers with peft: the same losses, and the same adapter at the end.

Same base weights, pictures, captions, noise, timesteps and first adapter; FP32 on a CPU. What differs is whose U-Net,
LoRA, schedule, loss and clipping it is, so what is left is rounding, which training carries from step to step.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.training_utils import compute_snr
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict

from worker.fine_tuning.weights import FullWeights
from worker.loop.config import LossConfig, OptimizerConfig, ScheduleConfig, TrainConfig
from worker.loop.optim import learning_rate
from worker.loop.step import draw_noise
from worker.loop.train import train
from worker.model.base_model import open_base_model
from worker.model.weights import load_unet

pytestmark = pytest.mark.parity

CPU = torch.device("cpu")
STEPS = 50


def config_of(loss: LossConfig) -> TrainConfig:
    return TrainConfig(
        STEPS,
        seed=1,
        optimizer=OptimizerConfig(learning_rate=1e-3),
        lr_schedule=ScheduleConfig("cosine", warmup_steps=5),
        max_grad_norm=1.0,
        loss=loss,
    )


def their_unet(base: Any) -> UNet2DConditionModel:
    """diffusers' U-Net with the base's weights."""
    unet = UNet2DConditionModel.from_config(base.config.to_diffusers())
    unet.load_state_dict(
        {name.replace(".base.", "."): w for name, w in base.state_dict().items() if "lora_" not in name}
    )
    return unet


def theirs_on(base: Any, adapter: dict[str, torch.Tensor]) -> UNet2DConditionModel:
    """The same with peft's LoRA on it that starts as ours does."""
    unet = their_unet(base).requires_grad_(False)
    unet.add_adapter(LoraConfig(r=4, lora_alpha=16, target_modules=["to_q", "to_k", "to_v"]))
    state = {f"{name}.weight": weight for name, weight in adapter.items()}
    missing = set_peft_model_state_dict(unet, state)
    assert not missing.unexpected_keys
    return unet


def train_theirs(unet: UNet2DConditionModel, batches: Any, config: TrainConfig) -> list[float]:
    """As train_text_to_image_lora_sdxl.py of diffusers does it."""
    loss_config = config.loss
    prediction = loss_config.prediction or "epsilon"
    schedule = DDPMScheduler(1000, 0.00085, 0.012, "scaled_linear", prediction_type=prediction)
    weights = [weight for weight in unet.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=config.optimizer.learning_rate, weight_decay=0.01)
    losses: list[float] = []
    for step in range(1, config.steps + 1):
        batch = batches.at(step - 1)
        noise, timesteps = draw_noise(batch.latents.shape, loss_config, config.seed, step, 0, CPU)
        target = noise if prediction == "epsilon" else schedule.get_velocity(batch.latents, noise, timesteps)  # type: ignore[arg-type]
        output = unet(
            schedule.add_noise(batch.latents, noise, timesteps),  # type: ignore[arg-type]
            timesteps,
            batch.text_embeds,
            added_cond_kwargs={"text_embeds": batch.pooled_text_embeds, "time_ids": batch.time_ids},
        ).sample
        if loss_config.min_snr_gamma is None:
            loss = F.mse_loss(output.float(), target.float())
        else:
            snr = compute_snr(schedule, timesteps)
            least = torch.stack([snr, loss_config.min_snr_gamma * torch.ones_like(timesteps)], dim=1).min(dim=1)[0]
            mse_weights = least / (snr if prediction == "epsilon" else snr + 1)
            per_picture = F.mse_loss(output.float(), target.float(), reduction="none").mean(dim=[1, 2, 3])
            loss = (per_picture * mse_weights).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, config)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize(
    "loss",
    [LossConfig(), LossConfig(min_snr_gamma=5.0), LossConfig(prediction="v_prediction", min_snr_gamma=5.0)],
    ids=["epsilon", "min_snr", "v_prediction, min_snr"],
)
def test_fifty_steps_are_theirs(make_setup: Callable, loss: LossConfig) -> None:
    config = config_of(loss)
    ours = make_setup(seed=1)
    base = make_setup(seed=1).unet
    theirs = theirs_on(base, {name: weight.clone() for name, weight in ours.lora.state_dict().items()})

    our_losses = [result.loss for result in train(*ours, config)]
    their_losses = train_theirs(theirs, ours.batches, config)

    # Roundings of 2**-24 in other orders, carried through fifty updates whose directions AdamW normalises.
    torch.testing.assert_close(torch.tensor(our_losses), torch.tensor(their_losses), rtol=1e-4, atol=0)
    adapter = get_peft_model_state_dict(theirs)
    moved = max(weight.abs().max().item() for name, weight in adapter.items() if "lora_B" in name)
    assert moved > 1e-3
    for name, weight in ours.lora.state_dict().items():
        torch.testing.assert_close(weight, adapter[f"{name}.weight"], rtol=0, atol=2e-3 * moved)


def test_fifty_steps_of_full_fine_tuning_are_theirs(make_setup: Callable, tiny_base: Path) -> None:
    """All weights of the U-Net, as train_text_to_image_sdxl.py of diffusers moves them."""
    config = replace(config_of(LossConfig()), optimizer=OptimizerConfig(learning_rate=1e-4))
    unet = load_unet(open_base_model(tiny_base), CPU, torch.float32)
    theirs, full = their_unet(unet), FullWeights(unet)
    before = {name: weight.clone() for name, weight in full.state_dict().items()}
    batches = make_setup(seed=1).batches

    our_losses = [result.loss for result in train(unet, full, batches, config)]
    their_losses = train_theirs(theirs, batches, config)

    torch.testing.assert_close(torch.tensor(our_losses), torch.tensor(their_losses), rtol=1e-4, atol=0)
    after = theirs.state_dict()
    moved = max((after[name] - weight).abs().max().item() for name, weight in before.items())
    assert moved > 1e-3
    for name, weight in full.state_dict().items():
        torch.testing.assert_close(weight, after[name], rtol=0, atol=2e-2 * moved)
