"""An adapter that goes on from a file begins as what the file does, exactly; a file that does not fit is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from diffusers.loaders.lora_pipeline import StableDiffusionXLLoraLoaderMixin
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.training_utils import _collate_lora_metadata
from diffusers.utils.state_dict_utils import convert_state_dict_to_diffusers, convert_state_dict_to_kohya
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from torch import Tensor

from tests.lora.conftest import save
from tests.lora.test_lora_readers import CONFIGS
from worker.errors import LoRAInvalid
from worker.lora.adapter_file import by_path, read_adapter
from worker.lora.config import LoRAConfig, Override
from worker.lora.export import save_kohya
from worker.lora.inject import LoRA, inject
from worker.lora.start import weights_from
from worker.model.unet import UNet, UNetConfig

pytestmark = pytest.mark.parity


def started(unet: UNet, config: LoRAConfig, file: Path) -> LoRA:
    lora = inject(unet, config, seed=99)  # another A than the file's
    lora.load_state_dict(weights_from(file, lora))
    return lora


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("form", ["kohya", "diffusers"])
def test_a_file_of_ours_read_back_starts_at_its_weights(
    make_unet: Callable[..., UNet],
    make_adapter: Callable[..., LoRA],
    unet_inputs: tuple[Tensor, ...],
    tmp_path: Path,
    kind: str,
    form: str,
) -> None:
    config, unet, file = CONFIGS[kind], make_unet(), tmp_path / "lora.safetensors"
    trained = make_adapter(unet, config)
    theirs = unet(*unet_inputs).detach()
    save(trained, file, form)
    again = make_unet()
    lora = started(again, config, file)
    weights = trained.state_dict()
    as_they_are = form == "kohya" and not config.overrides
    power_of_two = config.scale in (0.5, 1, 2, 4) and not config.overrides
    for name, weight in lora.state_dict().items():
        if as_they_are or power_of_two or not name.endswith("lora_B"):
            assert torch.equal(weight, weights[name])
        else:  # a scale was folded in and out again: two roundings of 2**-24
            torch.testing.assert_close(weight, weights[name], rtol=2**-22, atol=0)
    ours = again(*unet_inputs).detach()
    if as_they_are or power_of_two:
        assert torch.equal(ours, theirs)
    else:
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def peft_unet(base: UNet, **config: Any) -> UNet2DConditionModel:
    """diffusers' U-Net with a trained-looking LoRA of peft's."""
    theirs = UNet2DConditionModel.from_config(UNetConfig.tiny().to_diffusers())
    assert isinstance(theirs, UNet2DConditionModel)
    theirs.load_state_dict(base.state_dict())
    theirs.requires_grad_(False)
    theirs.add_adapter(LoraConfig(target_modules=["to_q", "to_k", "to_v"], **config))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, weight in theirs.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.05, generator=generator)
            if "magnitude" in name:
                weight.mul_(torch.rand(weight.shape, generator=generator) + 0.5)
    return theirs


def predict(theirs: UNet2DConditionModel, inputs: tuple[Tensor, ...]) -> Tensor:
    noisy_latents, timesteps, text_embeds, pooled_text_embeds, time_ids = inputs
    conditions = {"text_embeds": pooled_text_embeds, "time_ids": time_ids}
    with torch.no_grad():
        return theirs(noisy_latents, timesteps, text_embeds, added_cond_kwargs=conditions).sample


@pytest.mark.parametrize(
    ("form", "peft", "ours"),
    [
        ("diffusers, with its header", {"r": 4, "lora_alpha": 16}, LoRAConfig(4, 16.0)),
        ("diffusers, with its header", {"r": 4, "lora_alpha": 6, "use_rslora": True}, LoRAConfig(4, 6.0, rslora=True)),
        (
            "diffusers, with its header",
            {"r": 4, "lora_alpha": 16, "rank_pattern": {"attn2.to_k": 2}, "alpha_pattern": {"attn2.to_k": 3}},
            LoRAConfig(4, 16.0, overrides=(Override("*.attn2.to_k", 2, 3.0),)),
        ),
        ("diffusers, without", {"r": 4, "lora_alpha": 4}, LoRAConfig(4, 4.0)),
        ("diffusers, without", {"r": 4, "lora_alpha": 4, "use_dora": True}, LoRAConfig(4, 4.0, dora=True)),
        ("the older names", {"r": 4, "lora_alpha": 4}, LoRAConfig(4, 4.0)),
        ("kohya, as diffusers converts it", {"r": 4, "lora_alpha": 4}, LoRAConfig(4, 4.0)),
    ],
)
def test_a_file_of_peft_s_starts_at_its_weights(
    make_unet: Callable[..., UNet],
    unet_inputs: tuple[Tensor, ...],
    tmp_path: Path,
    form: str,
    peft: dict[str, Any],
    ours: LoRAConfig,
) -> None:
    theirs = peft_unet(make_unet(), **peft)
    state = get_peft_model_state_dict(theirs)
    file = tmp_path / "pytorch_lora_weights.safetensors"
    if form == "diffusers, with its header":
        metadata = _collate_lora_metadata({"unet": theirs})["unet_lora_adapter_metadata"]
        StableDiffusionXLLoraLoaderMixin.save_lora_weights(tmp_path, state, unet_lora_adapter_metadata=metadata)
    elif form == "diffusers, without":
        StableDiffusionXLLoraLoaderMixin.save_lora_weights(tmp_path, state)
    elif form == "the older names":
        StableDiffusionXLLoraLoaderMixin.save_lora_weights(tmp_path, convert_state_dict_to_diffusers(state))
    else:
        kohya = convert_state_dict_to_kohya({f"unet.{name}": weight for name, weight in state.items()})
        safetensors.torch.save_file(kohya, file)
    unet = make_unet()
    lora = started(unet, ours, file)
    for path, layer in lora.modules.items():
        assert torch.equal(layer.lora_A, state[f"{path}.lora_A.weight"])
        assert torch.equal(layer.lora_B, state[f"{path}.lora_B.weight"])
    torch.testing.assert_close(unet(*unet_inputs), predict(theirs, unet_inputs), rtol=1e-4, atol=1e-5)


SAVED = LoRAConfig(4, 16.0, "attention")


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (LoRAConfig(8, 16.0, "attention"), r"another rank, as .*attn1\.to_k, 4 in it and 8 in lora\.rank"),
        (LoRAConfig(4, 8.0, "attention"), r"another alpha, as .*attn1\.to_k, 16 in it and 8 in lora\.alpha"),
        (LoRAConfig(4, 16.0, "transformer"), r"modules are not in it, as down_blocks.*(ff|proj)"),
        (LoRAConfig(4, 16.0, "qkv"), r"modules are in it, but not in lora\.targets .*, as lora_unet_.*to_out_0"),
        (LoRAConfig(4, 16.0, "attention", dora=True), r"no DoRA lengths there, and lora\.dora is true"),
        (LoRAConfig(targets="none", patterns=("conv_in",)), r"none of the 1 that this adapter has"),
    ],
)
def test_a_file_of_another_adapter_is_refused_by_what_and_where(
    make_unet: Callable[..., UNet], make_adapter: Callable[..., LoRA], tmp_path: Path, config: LoRAConfig, says: str
) -> None:
    save_kohya(make_adapter(make_unet(), SAVED), tmp_path / "lora.safetensors", {})
    with pytest.raises(LoRAInvalid, match=rf"^lora\.init_from: lora\.safetensors .*{says}"):
        weights_from(tmp_path / "lora.safetensors", inject(make_unet(), config, seed=0))


def test_all_faults_are_told_at_once(
    make_unet: Callable[..., UNet], make_adapter: Callable[..., LoRA], tmp_path: Path
) -> None:
    save_kohya(make_adapter(make_unet(), SAVED), tmp_path / "lora.safetensors", {})
    lora = inject(make_unet(), LoRAConfig(8, 16.0, "none", patterns=("*.attn1.to_[qkv]", "conv_in")), seed=0)
    with pytest.raises(LoRAInvalid, match="another rank") as refusal:
        weights_from(tmp_path / "lora.safetensors", lora)
    assert all(text in str(refusal.value) for text in ("1 modules are not in it, as conv_in", "modules are in it, but"))


@pytest.fixture
def change(make_unet: Callable[..., UNet], make_adapter: Callable[..., LoRA], tmp_path: Path) -> Callable[..., Path]:
    """Writes a kohya file of ours whose tensors were changed."""

    def write(edit: Callable[[dict[str, Tensor]], Any]) -> Path:
        file = tmp_path / "lora.safetensors"
        save_kohya(make_adapter(make_unet(), LoRAConfig()), file, {})
        tensors = safetensors.torch.load_file(file)
        edit(tensors)
        safetensors.torch.save_file(tensors, file)
        return file

    return write


NAME = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k"


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (
            lambda tensors: tensors.update({f"{NAME}.lora_down.weight": torch.zeros(4, 768)}),
            r"1 modules are of another model, as down_blocks\.1\..*attn2\.to_k, \d+x768 in it instead of \d+x32",
        ),
        (lambda tensors: tensors.pop(f"{NAME}.lora_up.weight"), rf"lacks lora_down or lora_up of 1 modules, as {NAME}"),
        (
            lambda tensors: tensors.update({f"{NAME}.hada_w1_a": torch.zeros(4, 4)}),
            rf"1 tensors that are neither LoRA's nor DoRA's, as {NAME}\.hada_w1_a",
        ),
        (
            lambda tensors: tensors[f"{NAME}.lora_up.weight"].fill_(torch.nan),
            rf"{NAME}\.lora_up\.weight in lora\.safetensors is not finite",
        ),
        (
            lambda tensors: tensors.update({f"{NAME}.lora_down.weight": torch.zeros(3, 32)}),
            rf"{NAME} in lora\.safetensors is lora_down 3x32 and lora_up \d+x4, which do not fit",
        ),
        (
            lambda tensors: tensors.update(
                {key.replace("lora_unet_", "lora_te_"): tensors.pop(key) for key in list(tensors)}
            ),
            r"adapts \d+ modules, as lora_te_.*: it belongs to another model",
        ),
    ],
    ids=["another width", "half a module", "LoHa", "NaN", "ranks differ", "SD 1.5"],
)
def test_a_file_that_is_not_whole_or_not_sdxl_s_is_refused(
    make_unet: Callable[..., UNet], change: Callable[..., Path], edit: Callable[[dict[str, Tensor]], Any], says: str
) -> None:
    lora = inject(make_unet(), LoRAConfig(), seed=0)
    weights_from(change(lambda tensors: None), lora)
    with pytest.raises(LoRAInvalid, match=says):
        weights_from(change(edit), lora)


@pytest.mark.parametrize("content", [b"\x80\x02a pickle" * 9, b"PK\x03\x04a zip of torch.save" * 9, b"", b"\xff" * 64])
def test_what_is_no_safetensors_file_is_refused_before_it_is_read(
    make_unet: Callable[..., UNet], tmp_path: Path, content: bytes
) -> None:
    file = tmp_path / "lora.safetensors"
    file.write_bytes(content)
    with pytest.raises(LoRAInvalid, match=r"^lora\.init_from: lora\.safetensors is"):
        weights_from(file, inject(make_unet(), LoRAConfig(), seed=0))


def test_a_module_under_two_spellings_is_refused(change: Callable[..., Path], make_unet: Callable[..., UNet]) -> None:
    path = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"

    def double(tensors: dict[str, Tensor]) -> None:
        for end, peft in ((".lora_down.weight", ".lora_A.weight"), (".lora_up.weight", ".lora_B.weight")):
            tensors[f"unet.{path}{peft}"] = tensors[f"{NAME}{end}"].clone()

    with pytest.raises(LoRAInvalid, match=f"the same module as {NAME} and as unet.{path}"):
        by_path(read_adapter(change(double)), [path])
