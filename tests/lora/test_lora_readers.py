"""Every file is loaded by others and does there what the adapter did: by diffusers, and, where diffusers cannot, by a
reader written here from the format alone, as ComfyUI documents it (comfy/weight_adapter/lora.py and base.py)."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import safetensors.torch
import torch
from diffusers.loaders.lora_pipeline import StableDiffusionXLLoraLoaderMixin
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn

from tests.lora.conftest import save
from worker.lora.config import LoRAConfig, Override
from worker.lora.export import save_diffusers
from worker.lora.inject import LoRA, inject
from worker.lora.names import kohya_name
from worker.model.unet import UNet, UNetConfig

pytestmark = pytest.mark.parity

NAMES: dict[str, list[int]] = json.loads(
    (Path(__file__).parents[1] / "contracts" / "kohya_names.json").read_text(encoding="utf-8")
)

OVERRIDES = (Override("*attn2*", rank=2, alpha=3.0), Override("*resnets*", rank=6), Override("*proj_in", alpha=1.0))
CONFIGS = {
    **{targets: LoRAConfig(4, 16.0, targets) for targets in ("qkv", "attention", "transformer", "locon")},
    "outside the blocks": LoRAConfig(targets="none", patterns=("conv_*", "time_embedding.*", "add_embedding.*")),
    "rslora": LoRAConfig(rank=4, alpha=3.0, rslora=True),
    "overrides": LoRAConfig(targets="locon", overrides=OVERRIDES),
    "rslora, overrides": LoRAConfig(targets="locon", rslora=True, overrides=OVERRIDES),
    "dora": LoRAConfig(targets="transformer", dora=True),
    "dora, rslora": LoRAConfig(alpha=3.0, rslora=True, dora=True),
    "dora locon": LoRAConfig(targets="locon", dora=True, overrides=OVERRIDES),
}


def diffusers_prediction(base: UNet, file: Path, inputs: tuple[Tensor, ...]) -> Tensor:
    """Load a LoRA file by diffusers' own reader into diffusers' own U-Net."""
    theirs = UNet2DConditionModel.from_config(UNetConfig.tiny().to_diffusers())
    assert isinstance(theirs, UNet2DConditionModel)
    theirs.load_state_dict(base.state_dict())
    state, alphas, metadata = StableDiffusionXLLoraLoaderMixin.lora_state_dict(
        file, unet_config=theirs.config, return_lora_metadata=True
    )
    StableDiffusionXLLoraLoaderMixin.load_lora_into_unet(state, alphas, theirs, metadata=metadata)
    noisy_latents, timesteps, text_embeds, pooled_text_embeds, time_ids = inputs
    conditions = {"text_embeds": pooled_text_embeds, "time_ids": time_ids}
    with torch.no_grad():
        return theirs(noisy_latents, timesteps, text_embeds, added_cond_kwargs=conditions).sample


def merge_as_comfyui(model: nn.Module, tensors: Mapping[str, Tensor], name_of: Callable[[str], str]) -> int:
    """Merge a kohya file into `model` from the format alone; return how many modules took part.

    W' = W + alpha / rank * up down; with dora_scale [out, 1, …], W' times dora_scale over the lengths of its rows.
    """
    used: set[str] = set()
    for path, module in model.named_modules():
        if not isinstance(module, nn.Linear | nn.Conv2d) or f"{(name := name_of(path))}.lora_up.weight" not in tensors:
            continue
        parts = {key.removeprefix(f"{name}."): tensors[key] for key in tensors if key.startswith(f"{name}.")}
        used |= {f"{name}.{part}" for part in parts}
        down, up = parts["lora_down.weight"], parts["lora_up.weight"]
        weight = module.weight.data
        weight += parts["alpha"].item() / down.shape[0] * (up.flatten(1) @ down.flatten(1)).view(weight.shape)
        if "dora_scale" in parts:
            assert parts["dora_scale"].shape == (weight.shape[0], *(1 for _ in weight.shape[1:]))
            lengths = weight.flatten(1).norm(dim=1).view(parts["dora_scale"].shape)
            weight *= parts["dora_scale"] / lengths
    assert used == set(tensors), "the reader knows every tensor of the file"
    return len({key.partition(".")[0] for key in used})


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("form", ["kohya", "diffusers"])
def test_a_reader_predicts_from_the_file_what_the_adapter_predicts(
    make_unet: Callable[..., UNet],
    make_adapter: Callable[..., LoRA],
    unet_inputs: tuple[Tensor, ...],
    tmp_path: Path,
    kind: str,
    form: str,
) -> None:
    config, unet, file = CONFIGS[kind], make_unet(), tmp_path / "lora.safetensors"
    untouched = unet(*unet_inputs)
    lora = make_adapter(unet, config)
    ours = unet(*unet_inputs).detach()
    assert (ours - untouched).abs().max() > 0.01  # the adapter does something
    save(lora, file, form)
    if form == "diffusers" or not config.dora:  # of kohya's files, diffusers 0.42 leaves dora_scale out, and says so
        theirs = diffusers_prediction(make_unet(), file, unet_inputs)
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)  # float32, two implementations of 20-odd layers
    if form == "kohya":
        merged = make_unet()
        assert merge_as_comfyui(merged, safetensors.torch.load_file(file), kohya_name) == len(lora.modules)
        torch.testing.assert_close(merged(*unet_inputs), ours, rtol=1e-4, atol=1e-5)


def test_diffusers_takes_the_scale_from_the_tensors_and_an_alpha_in_the_header_would_spoil_it(
    make_unet: Callable[..., UNet], make_adapter: Callable[..., LoRA], unet_inputs: tuple[Tensor, ...], tmp_path: Path
) -> None:
    unet, plain, spoilt = make_unet(), tmp_path / "plain.safetensors", tmp_path / "spoilt.safetensors"
    lora = make_adapter(unet, LoRAConfig(rank=4, alpha=16.0))
    ours = unet(*unet_inputs).detach()
    told = {"ss_steps": "20", "modelspec.title": "cat", "loraq_spec": '{"lora": {"rank": 4, "alpha": 16.0}}'}
    save_diffusers(lora, plain, told)
    with safetensors.safe_open(plain, "pt") as file:
        header = file.metadata()
    assert told.items() <= header.items()
    assert (header["format"], header["modelspec.implementation"]) == ("pt", "diffusers")
    assert not any("alpha" in key or key.startswith(("ss_network", "lora_")) for key in header)
    torch.testing.assert_close(diffusers_prediction(make_unet(), plain, unet_inputs), ours, rtol=1e-4, atol=1e-5)

    config = {"unet.r": 4, "unet.lora_alpha": 16.0, "unet.target_modules": sorted(lora.modules)}
    save_diffusers(lora, spoilt, {"lora_adapter_metadata": json.dumps(config)})
    theirs = diffusers_prediction(make_unet(), spoilt, unet_inputs)
    assert (theirs - ours).abs().max() > 0.01, "a scale of 4 twice"


def test_kohya_names_and_shapes_are_those_that_sd_scripts_gives_the_full_size_unet() -> None:
    """The contract was written by sd-scripts' own LoRANetwork on the meta device, with conv_dim set."""
    with torch.device("meta"):
        unet = UNet(UNetConfig.sdxl()).requires_grad_(False)
    lora = inject(unet, LoRAConfig(targets="locon"), seed=0)
    ours = {kohya_name(path): list(layer.weight.shape) for path, layer in lora.modules.items()}
    theirs = {name: shape for name, shape in NAMES.items() if name.startswith("lora_unet_")}
    assert len(theirs) == 788
    assert ours == theirs


def test_transformer_targets_are_sd_scripts_without_conv_dim() -> None:
    with torch.device("meta"):
        unet = UNet(UNetConfig.sdxl()).requires_grad_(False)
    ours = {kohya_name(path) for path in inject(unet, LoRAConfig(targets="transformer"), seed=0).modules}
    transformers = ("_1_transformer_blocks_", "_1_proj_")
    assert ours == {
        name for name in NAMES if name.startswith("lora_unet_") and any(part in name for part in transformers)
    }
    assert len(ours) == 722
