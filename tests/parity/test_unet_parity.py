"""Our U-Net against diffusers' UNet2DConditionModel on the same weights: names, outputs, gradients."""

from dataclasses import replace

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from worker.memory.checkpoint import enable_checkpointing
from worker.model.unet import UNet, UNetConfig

pytestmark = pytest.mark.parity

CONFIGS = {
    "tiny": UNetConfig.tiny(),
    "full depth": replace(UNetConfig.tiny(), transformer_depths=(0, 2, 10)),  # SDXL's depths at narrow widths
}
# FP32 keeps 24 bits, and a hundred layers of sums over up to 600 terms lose about seven: 2**-17 is 8e-6, relative to
# the tensor's largest value (its small ones come from large ones cancelling out). Measured: 1.4e-6.
RELATIVE_ERROR = 8e-6


def make_inputs(config: UNetConfig, height: int, width: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "noisy_latents": torch.randn(2, 4, height, width, generator=generator),
        "timesteps": torch.tensor([3, 998]),
        "text_embeds": torch.randn(2, 77, config.text_embed_dim, generator=generator),
        "pooled_text_embeds": torch.randn(2, config.pooled_text_embed_dim, generator=generator),
        "time_ids": torch.tensor([[768.0, 1024, 0, 128, 64, 96], [100, 200, 3, 0, 64, 96]]),
    }


def run_theirs(unet: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    conditions = {"text_embeds": inputs["pooled_text_embeds"], "time_ids": inputs["time_ids"]}
    return unet(
        inputs["noisy_latents"], inputs["timesteps"], inputs["text_embeds"], added_cond_kwargs=conditions
    ).sample


def grads(prediction: Tensor, inputs: dict[str, Tensor], unet: nn.Module) -> dict[str, Tensor]:
    """Return the gradients of a noise-prediction loss with respect to every floating input and every weight."""
    target = torch.randn(prediction.shape, generator=torch.Generator().manual_seed(1))
    (prediction - target).square().mean().backward()
    found = {name: x.grad for name, x in (*inputs.items(), *unet.named_parameters()) if x.grad is not None}
    return {name: grad.clone() for name, grad in found.items()}


def assert_close(ours: Tensor, theirs: Tensor, name: str) -> None:
    bound = RELATIVE_ERROR * float(theirs.abs().max())
    torch.testing.assert_close(ours, theirs, atol=bound, rtol=0, msg=lambda text: f"{name}: {text}")


def make_both(config: UNetConfig) -> tuple[UNet, UNet2DConditionModel]:
    torch.manual_seed(0)
    theirs = UNet2DConditionModel.from_config(config.to_diffusers())
    ours = UNet(config)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return ours, theirs


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("checkpointing", ["none", "all"])
def test_outputs_and_gradients_are_equal(name: str, checkpointing: str):
    config = CONFIGS[name]
    ours, theirs = make_both(config)
    enable_checkpointing(ours, checkpointing)
    results = []
    for unet, run in ((ours, lambda unet, inputs: unet(**inputs)), (theirs, run_theirs)):
        inputs = make_inputs(config, 8, 12)
        for tensor in inputs.values():
            if tensor.is_floating_point():
                tensor.requires_grad_()
        prediction = run(unet, inputs)
        results.append({"prediction": prediction.detach(), **grads(prediction, inputs, unet)})
    mine, reference = results
    assert mine.keys() == reference.keys()
    assert {"noisy_latents", "text_embeds", "pooled_text_embeds", "time_ids", "conv_in.weight"} <= mine.keys()
    assert len(mine) == 1 + 4 + len(theirs.state_dict())
    for key, tensor in mine.items():
        assert_close(tensor, reference[key], key)


def test_every_input_matters():
    """Guards the test above: an input that changed nothing could be dropped unnoticed."""
    config = CONFIGS["tiny"]
    ours, _ = make_both(config)
    with torch.no_grad():
        before = ours(**make_inputs(config, 8, 8))
        for name, tensor in make_inputs(config, 8, 8).items():
            after = ours(**make_inputs(config, 8, 8) | {name: tensor.flip(0) if tensor.ndim == 1 else tensor * 0.5})
            assert (after - before).abs().max() > 100 * RELATIVE_ERROR, name


def test_full_size_has_the_same_names_and_shapes():
    with torch.device("meta"):
        ours, theirs = (make(UNetConfig.sdxl()) for make in (UNet, lambda c: UNet2DConditionModel(**kwargs(c))))
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in theirs.state_dict().items()}


def kwargs(config: UNetConfig) -> dict[str, object]:
    return {key: value for key, value in config.to_diffusers().items() if not key.startswith("_")}


def test_bf16_is_as_far_from_fp32_as_theirs():
    config = CONFIGS["full depth"]
    ours, theirs = make_both(config)
    with torch.no_grad():
        exact = ours(**make_inputs(config, 8, 12))
        mine = ours.to(torch.bfloat16)(**make_inputs(config, 8, 12)).float()
        inputs = {
            k: v.to(torch.bfloat16) if k.endswith(("latents", "embeds")) else v
            for k, v in make_inputs(config, 8, 12).items()
        }
        reference = run_theirs(theirs.to(torch.bfloat16), inputs).float()
    our_error, their_error = (mine - exact).norm(), (reference - exact).norm()
    assert our_error < 1.1 * their_error  # the same roundings in the same places, give or take a few
