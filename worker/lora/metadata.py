"""The header of a kohya file, by which browsers, trainers and programs that draw know what it is. All are strings.

Sources: kohya-ss/sd-scripts v0.10.1 (commit 48d368fa), train_network.py, library/train_util.py for `ss_*` and `sshs_*`,
library/sai_model_spec.py; https://github.com/Stability-AI/ModelSpec for `modelspec.*`.
"""

import hashlib
import json
from collections.abc import Mapping

import safetensors.torch
from torch import Tensor

from worker.lora.config import LoRAConfig

_LEGACY_START, _LEGACY_END = 0x100000, 0x110000  # the bytes that A1111's old hash of a checkpoint looks at


def kohya_header(config: LoRAConfig, tensors: dict[str, Tensor], entries: Mapping[str, str]) -> dict[str, str]:
    """Return the whole header of a file with `tensors`. `entries` win over what is made here of the adapter alone."""
    header = _of_adapter(config) | dict(entries)
    return header | _hashes(tensors, header)


def _of_adapter(config: LoRAConfig) -> dict[str, str]:
    """The least that readers of kohya files look for."""
    # DoRA is not sd-scripts' own: the module of that name and these arguments is LyCORIS', which writes such files.
    module, own_arguments = ("lycoris.kohya", {"algo": "lora", "dora_wd": "True"}) if config.dora else _LORA
    arguments: dict[str, object] = {"targets": config.targets, **own_arguments}
    if config.targets == "locon":
        arguments |= {"conv_dim": str(config.rank), "conv_alpha": str(config.alpha)}
    if config.patterns:
        arguments["patterns"] = list(config.patterns)
    if config.overrides:
        arguments["overrides"] = {each.match: [each.rank, each.alpha] for each in config.overrides}
    if config.rslora:
        arguments["rslora"] = "True"
    if config.rank_dropout:
        arguments["rank_dropout"] = str(config.rank_dropout)
    header = {
        "ss_v2": "False",
        "ss_base_model_version": "sdxl_base_v1-0",
        "ss_network_module": module,
        "ss_network_dim": str(config.rank),
        "ss_network_alpha": str(config.alpha),
        "ss_network_args": json.dumps(arguments),
        # No date: equal weights give equal files, unless the caller tells one.
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": "stable-diffusion-xl-v1-base/lora",
        "modelspec.implementation": "https://github.com/Stability-AI/generative-models",
        "modelspec.prediction_type": "epsilon",
        "modelspec.title": "LoRA",
    }
    return header | ({"ss_network_dropout": str(config.dropout)} if config.dropout else {})


_LORA: tuple[str, dict[str, str]] = ("networks.lora", {})


def _hashes(tensors: dict[str, Tensor], header: Mapping[str, str]) -> dict[str, str]:
    """Hashes by which browsers know a file: of the tensors' bytes, and the short one of A1111's older versions.

    sd-scripts takes the file as it is with the `ss_*` entries alone, so that a later change of other entries, as of a
    title, leaves the hashes as they are.
    """
    data = safetensors.torch.save(tensors, {key: value for key, value in header.items() if key.startswith("ss_")})
    header_bytes = 8 + int.from_bytes(data[:8], "little")
    of_tensors = hashlib.sha256(data[header_bytes:]).hexdigest()
    return {
        "sshs_model_hash": of_tensors,
        "sshs_legacy_hash": hashlib.sha256(data[_LEGACY_START:_LEGACY_END]).hexdigest()[:8],
        "modelspec.hash_sha256": f"0x{of_tensors}",
    }
