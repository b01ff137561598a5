"""The headers of both files, by which browsers, trainers and programs that draw know what they are. All are strings.

Sources: kohya-ss/sd-scripts v0.10.1 (commit 48d368fa), train_network.py, library/train_util.py for `ss_*` and `sshs_*`,
library/sai_model_spec.py; https://github.com/Stability-AI/ModelSpec for `modelspec.*`.
"""

import json
from collections.abc import Mapping

from worker.lora.config import LoRAConfig
from worker.lora.serialized import Serialized
from worker.model.checkpoint_hashes import LEGACY_END, LEGACY_START, legacy_hash

_OF_KOHYA_FILE = "ss_network_"  # begins what says how a kohya file is to be scaled, and by whose code

_LORA: tuple[str, dict[str, str]] = ("networks.lora", {})


def kohya_header(config: LoRAConfig, entries: Mapping[str, str]) -> dict[str, str]:
    """The header of a file with kohya's names, but for its hashes: `entries`, which win, and what the adapter is."""
    return _of_adapter(config) | dict(entries)


def diffusers_header(config: LoRAConfig, entries: Mapping[str, str]) -> dict[str, str]:
    """The same for a file with PEFT's names.

    It has neither `ss_network_alpha` nor diffusers' own `lora_adapter_metadata`: of what the latter can say, diffusers
    infers all from the tensors, and an alpha in it would scale what is scaled already.
    """
    header = {key: value for key, value in _of_adapter(config).items() if not key.startswith(_OF_KOHYA_FILE)}
    return header | {"format": "pt", "modelspec.implementation": "diffusers"} | dict(entries)


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


def hashes(tensors: Serialized, header: Mapping[str, str]) -> dict[str, str]:
    """Hashes by which browsers know a file: of the tensors' bytes, and the short one of A1111's older versions.

    sd-scripts takes the file as it is with the `ss_*` entries alone, so that a later change of other entries, as of a
    title, leaves the hashes as they are.
    """
    of_training = {key: value for key, value in header.items() if key.startswith("ss_")}
    return {
        "sshs_model_hash": tensors.sha256,
        "sshs_legacy_hash": legacy_hash(tensors.part(of_training, LEGACY_START, LEGACY_END)),
        "modelspec.hash_sha256": f"0x{tensors.sha256}",
    }
