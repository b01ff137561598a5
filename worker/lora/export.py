"""Writes an adapter in the two formats that others read. The only place where module paths become foreign key names.

Weights are written in float32, as they were trained: at rank 4 that is 18 MB for all of SDXL's attention projections,
and a reader casts down to what it computes in anyway. bfloat16 would lose what the optimizer's last steps brought.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from worker.atomic import whole_file
from worker.lora.inject import LoRA

_LAYERS_PER_BLOCK = 2  # of SDXL's U-Net; up_blocks have one more
_ATTENTION = re.compile(r"(?:(down|up)_blocks\.(\d+)|mid_block)\.attentions\.(\d+)\.")


def save_kohya(lora: LoRA, path: Path, metadata: Mapping[str, str], dtype: torch.dtype = torch.float32) -> None:
    """Write the adapter as sd-scripts does: loads in ComfyUI, A1111, Forge and diffusers, at strength 1.0.

    Each module has `lora_unet_<sgm path>.lora_down.weight` [r, in], `.lora_up.weight` [out, r] and a 0-dim `.alpha`.
    Names and header after kohya-ss/sd-scripts v0.10.1 (commit 48d368fa), networks/lora.py and library/train_util.py.

    Args:
        lora: the adapter.
        path: of the .safetensors file; written whole or not at all.
        metadata: further header entries, as `ss_steps` and `modelspec.title`; they win over those made here.
        dtype: of lora_down and lora_up; alpha is always float32.
    """
    tensors: dict[str, Tensor] = {}
    for module_path, layer in lora.modules.items():
        name = kohya_name(module_path)
        tensors[f"{name}.lora_down.weight"] = _portable(layer.lora_A, dtype)
        tensors[f"{name}.lora_up.weight"] = _portable(layer.lora_B, dtype)
        tensors[f"{name}.alpha"] = torch.tensor(lora.config.alpha, dtype=torch.float32)
    header = _kohya_header(lora) | dict(metadata)
    _write(tensors, path, header | _addnet_hashes(tensors, header))


def save_diffusers(lora: LoRA, path: Path, dtype: torch.dtype = torch.float32) -> None:
    """Write the adapter with PEFT's names: `unet.<path>.lora_A.weight` [r, in] and `.lora_B.weight` [out, r].

    alpha / rank is folded into lora_B, and no alpha is told: readers that know of no alpha and readers that take
    alpha = rank for granted then both get the trained strength.
    """
    tensors: dict[str, Tensor] = {}
    for module_path, layer in lora.modules.items():
        tensors[f"unet.{module_path}.lora_A.weight"] = _portable(layer.lora_A, dtype)
        tensors[f"unet.{module_path}.lora_B.weight"] = _portable(layer.lora_B * layer.scale, dtype)
    _write(tensors, path, {"format": "pt"})


def kohya_name(module_path: str) -> str:
    """The SGM name of a U-Net module: `down_blocks.1.attentions.0.proj_in` is `lora_unet_input_blocks_4_1_proj_in`.

    SGM counts one flat list of blocks: input block 0 is conv_in, then each level has its two layers and a downsampler;
    output blocks come three a level. Inside a block, 0 is the residual block and 1 the transformer.
    """
    match = _ATTENTION.match(module_path)
    assert match, f"{module_path} lies in no transformer, so nothing may target it"
    side, level, layer = match[1], int(match[2] or 0), int(match[3])
    position = level * (_LAYERS_PER_BLOCK + 1) + layer
    block = {"down": f"input_blocks.{1 + position}", "up": f"output_blocks.{position}", None: "middle_block"}[side]
    return f"lora_unet_{block}.1.{module_path[match.end() :]}".replace(".", "_")


def _kohya_header(lora: LoRA) -> dict[str, str]:
    """The least that readers of kohya files look for; all values are strings."""
    return {
        "ss_v2": "False",
        "ss_base_model_version": "sdxl_base_v1-0",
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(lora.config.rank),
        "ss_network_alpha": str(lora.config.alpha),
        "ss_network_args": json.dumps({"targets": lora.config.targets}),
        # https://github.com/Stability-AI/ModelSpec; no date, so that equal weights give equal files
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": "stable-diffusion-xl-v1-base/lora",
        "modelspec.implementation": "https://github.com/Stability-AI/generative-models",
        "modelspec.prediction_type": "epsilon",
        "modelspec.title": "LoRA",
    }


def _addnet_hashes(tensors: dict[str, Tensor], header: Mapping[str, str]) -> dict[str, str]:
    """Hashes by which A1111's LoRA browser knows a file: of the tensor data, and the short one of older versions."""
    data = safetensors.torch.save(tensors, {key: value for key, value in header.items() if key.startswith("ss_")})
    header_bytes = 8 + int.from_bytes(data[:8], "little")
    return {
        "sshs_model_hash": hashlib.sha256(data[header_bytes:]).hexdigest(),
        "sshs_legacy_hash": hashlib.sha256(data[0x100000:0x110000]).hexdigest()[:8],
    }


def _portable(weight: Tensor, dtype: torch.dtype) -> Tensor:
    return weight.detach().to("cpu", dtype).contiguous()


def _write(tensors: dict[str, Tensor], path: Path, header: dict[str, str]) -> None:
    with whole_file(path) as temporary:
        safetensors.torch.save_file(tensors, temporary, header)
