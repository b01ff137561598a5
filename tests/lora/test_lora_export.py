"""What is written loads elsewhere, and does there what it did in training."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from diffusers.loaders.lora_pipeline import StableDiffusionXLLoraLoaderMixin
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor

from worker.lora.config import LoRAConfig, Targets
from worker.lora.export import kohya_name, save_diffusers, save_kohya
from worker.lora.inject import LoRA, inject
from worker.model.unet import UNet, UNetConfig

RANK_4_ALPHA_16 = LoRAConfig(rank=4, alpha=16.0)  # scale 4: a reader that forgets alpha is off by a factor of four


def diffusers_prediction(base: UNet, file: Path, inputs: tuple[Tensor, ...]) -> Tensor:
    """Load a LoRA file by diffusers' own reader into diffusers' own U-Net."""
    theirs = UNet2DConditionModel.from_config(UNetConfig.tiny().to_diffusers())
    assert isinstance(theirs, UNet2DConditionModel)
    theirs.load_state_dict(base.state_dict())
    state, alphas = StableDiffusionXLLoraLoaderMixin.lora_state_dict(file, unet_config=theirs.config)
    StableDiffusionXLLoraLoaderMixin.load_lora_into_unet(state, alphas, theirs)
    noisy_latents, timesteps, text_embeds, pooled_text_embeds, time_ids = inputs
    conditions = {"text_embeds": pooled_text_embeds, "time_ids": time_ids}
    with torch.no_grad():
        return theirs(noisy_latents, timesteps, text_embeds, added_cond_kwargs=conditions).sample


@pytest.mark.parity
@pytest.mark.parametrize("targets", ["qkv", "attention", "transformer"])
@pytest.mark.parametrize("form", ["kohya", "diffusers"])
def test_diffusers_predicts_from_the_file_what_the_adapter_predicts(
    make_unet: Callable[..., UNet],
    make_adapter: Callable[..., LoRA],
    unet_inputs: tuple[Tensor, ...],
    tmp_path: Path,
    targets: Targets,
    form: str,
) -> None:
    unet, file = make_unet(), tmp_path / "lora.safetensors"
    untouched = unet(*unet_inputs)
    lora = make_adapter(unet, LoRAConfig(4, 16.0, targets))
    ours = unet(*unet_inputs).detach()
    if form == "kohya":
        save_kohya(lora, file, {})
    else:
        save_diffusers(lora, file)
    theirs = diffusers_prediction(make_unet(), file, unet_inputs)
    assert (ours - untouched).abs().max() > 0.01  # the adapter does something
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)  # float32, two implementations of 20-odd layers


@pytest.mark.parametrize(
    ("module_path", "name"),
    [
        (
            "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
            "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q",
        ),
        ("down_blocks.2.attentions.0.proj_in", "lora_unet_input_blocks_7_1_proj_in"),
        ("down_blocks.2.attentions.1.proj_out", "lora_unet_input_blocks_8_1_proj_out"),
        (
            "mid_block.attentions.0.transformer_blocks.3.attn2.to_out.0",
            "lora_unet_middle_block_1_transformer_blocks_3_attn2_to_out_0",
        ),
        (
            "up_blocks.0.attentions.2.transformer_blocks.9.ff.net.2",
            "lora_unet_output_blocks_2_1_transformer_blocks_9_ff_net_2",
        ),
        (
            "up_blocks.1.attentions.2.transformer_blocks.1.ff.net.0.proj",
            "lora_unet_output_blocks_5_1_transformer_blocks_1_ff_net_0_proj",
        ),
    ],
)
def test_kohya_names_are_those_of_sd_scripts(module_path: str, name: str) -> None:
    assert kohya_name(module_path) == name


def test_full_size_kohya_names_are_sd_scripts_722() -> None:
    with torch.device("meta"):
        unet = UNet(UNetConfig.sdxl()).requires_grad_(False)
    ours = {kohya_name(path) for path in inject(unet, LoRAConfig(targets="transformer"), seed=0).modules}
    # SDXL's transformers by SGM's numbering, and the blocks in each, written down from sgm's sd_xl_base.yaml:
    # channel_mult [1, 2, 4], num_res_blocks 2, transformer_depth [1, 2, 10], attention at 4 and 2.
    depths = {f"input_blocks_{i}": 2 for i in (4, 5)} | {f"input_blocks_{i}": 10 for i in (7, 8)}
    depths |= {"middle_block": 10}
    depths |= {f"output_blocks_{i}": 10 for i in (0, 1, 2)} | {f"output_blocks_{i}": 2 for i in (3, 4, 5)}
    attention = [f"attn{n}_{part}" for n in (1, 2) for part in ("to_q", "to_k", "to_v", "to_out_0")]
    parts = [*attention, "ff_net_0_proj", "ff_net_2"]
    theirs = {
        f"lora_unet_{block}_1_transformer_blocks_{i}_{part}"
        for block, depth in depths.items()
        for i in range(depth)
        for part in parts
    } | {f"lora_unet_{block}_1_{part}" for block in depths for part in ("proj_in", "proj_out")}
    assert len(theirs) == 722
    assert ours == theirs


def test_a_kohya_file_holds_three_tensors_a_module_and_the_header(
    make_unet: Callable[..., UNet], make_adapter: Callable[..., LoRA], tmp_path: Path
) -> None:
    lora, file = make_adapter(make_unet(), RANK_4_ALPHA_16), tmp_path / "lora.safetensors"
    save_kohya(lora, file, {"ss_steps": "20", "modelspec.title": "ginger-cat"})
    tensors = safetensors.torch.load_file(file)
    assert len(tensors) == 3 * len(lora.modules)
    for path, layer in lora.modules.items():
        name = kohya_name(path)
        assert torch.equal(tensors[f"{name}.lora_down.weight"], layer.lora_A)  # float32: nothing is lost
        assert torch.equal(tensors[f"{name}.lora_up.weight"], layer.lora_B)
        alpha = tensors[f"{name}.alpha"]
        assert (alpha.shape, alpha.dtype, alpha.item()) == ((), torch.float32, 16.0)

    content = file.read_bytes()
    header_bytes = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + header_bytes])["__metadata__"]
    minimum = {  # SS_METADATA_MINIMUM_KEYS of sd-scripts
        "ss_v2": "False",
        "ss_base_model_version": "sdxl_base_v1-0",
        "ss_network_module": "networks.lora",
        "ss_network_dim": "4",
        "ss_network_alpha": "16.0",
        "ss_network_args": '{"targets": "qkv"}',
    }
    assert minimum.items() <= header.items()
    assert (header["ss_steps"], header["modelspec.title"]) == ("20", "ginger-cat")
    assert header["modelspec.architecture"] == "stable-diffusion-xl-v1-base/lora"
    assert header["sshs_model_hash"] == hashlib.sha256(content[8 + header_bytes :]).hexdigest()  # of the data alone
    assert len(header["sshs_legacy_hash"]) == 8


def test_a_diffusers_file_holds_pefts_names_with_alpha_folded_in(
    make_unet: Callable[..., UNet], make_adapter: Callable[..., LoRA], tmp_path: Path
) -> None:
    lora, file = make_adapter(make_unet(), RANK_4_ALPHA_16), tmp_path / "lora.safetensors"
    save_diffusers(lora, file)
    tensors = safetensors.torch.load_file(file)
    assert len(tensors) == 2 * len(lora.modules)
    for path, layer in lora.modules.items():
        assert torch.equal(tensors[f"unet.{path}.lora_A.weight"], layer.lora_A)
        assert torch.equal(tensors[f"unet.{path}.lora_B.weight"], layer.lora_B * 4)


def test_a_smaller_dtype_rounds_weights_and_leaves_alpha(
    make_unet: Callable[..., UNet], make_adapter: Callable[..., LoRA], tmp_path: Path
) -> None:
    lora, file = make_adapter(make_unet()), tmp_path / "lora.safetensors"
    save_kohya(lora, file, {}, torch.bfloat16)
    dtypes = {key.rpartition(".")[2]: tensor.dtype for key, tensor in safetensors.torch.load_file(file).items()}
    assert dtypes == {"weight": torch.bfloat16, "alpha": torch.float32}


def test_a_write_that_fails_leaves_the_old_file_and_no_other(
    make_unet: Callable[..., UNet],
    make_adapter: Callable[..., LoRA],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lora, file = make_adapter(make_unet()), tmp_path / "lora.safetensors"
    save_kohya(lora, file, {})
    before = file.read_bytes()

    def full_disk(tensors: object, path: Path, metadata: object) -> None:
        path.write_bytes(b"half a fi")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save_kohya(lora, file, {"ss_steps": "21"})
    assert [path.name for path in tmp_path.iterdir()] == [file.name]
    assert file.read_bytes() == before
