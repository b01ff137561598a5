"""What is written loads elsewhere, and does there what it did in training."""

import hashlib
import json
import resource
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch

from worker.lora.config import LoRAConfig
from worker.lora.export import save_diffusers, save_kohya
from worker.lora.inject import LoRA
from worker.lora.names import kohya_name
from worker.model.unet import UNet

RANK_4_ALPHA_16 = LoRAConfig(rank=4, alpha=16.0)  # scale 4: a reader that forgets alpha is off by a factor of four


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
    save_diffusers(lora, file, {})
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
    make_unet: Callable[..., UNet], make_adapter: Callable[..., LoRA], tmp_path: Path
) -> None:
    lora, file = make_adapter(make_unet()), tmp_path / "lora.safetensors"
    save_kohya(lora, file, {})
    before = file.read_bytes()

    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, most))
    try:
        with pytest.raises(OSError, match="File too large"):
            save_kohya(lora, file, {"ss_steps": "21"})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    assert [path.name for path in tmp_path.iterdir()] == [file.name]
    assert file.read_bytes() == before
