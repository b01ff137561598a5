"""Reads the file of an adapter, whoever wrote it: what it says of each layer, under kohya's names or PEFT's.

    kohya      <name>.lora_down.weight, .lora_up.weight, .alpha and LyCORIS' .dora_scale; scale alpha / rank
    PEFT       <name>.lora_A.weight, .lora_B.weight, .lora_magnitude_vector; scale 1, unless the header tells an alpha
    diffusers  <name>.lora.down.weight or .lora_linear_layer.down.weight, and .up: its older spelling of PEFT's

Sources: those of worker.lora.names; diffusers 0.42, src/diffusers/loaders/lora_base.py (the header's JSON
`lora_adapter_metadata`); peft 0.21, tuners/tuners_utils.py (alpha_pattern).
"""

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from worker.errors import BaseModelInvalid, LoRAInvalid
from worker.lora.names import kohya_diffusers_name, kohya_name, peft_name
from worker.model.stored_tensors import read_header

_ROLES = {  # what a key ends in, and what such a tensor is
    ".lora_down.weight": "down",
    ".lora_up.weight": "up",
    ".alpha": "alpha",
    ".dora_scale": "magnitude",
    ".lora_A.weight": "down",
    ".lora_B.weight": "up",
    ".lora_magnitude_vector": "magnitude",
    ".lora_magnitude_vector.weight": "magnitude",
    ".lora.down.weight": "down",
    ".lora.up.weight": "up",
    ".lora_linear_layer.down.weight": "down",
    ".lora_linear_layer.up.weight": "up",
}
_PEFT_HEADER = "lora_adapter_metadata"


@dataclass(frozen=True)
class StoredUpdate:
    """The update of one layer: scale * up down."""

    name: str  # of the module, in the file
    down: Tensor  # [r, in], or [r, in, k, k] of a convolution; float32
    up: Tensor  # [out, r], or [out, r, 1, 1]; float32
    alpha: float | None  # as the file tells it; None: it tells none, and the scale is 1
    scale: float
    magnitude: Tensor | None  # [out], float32, with DoRA

    @property
    def rank(self) -> int:
        return self.down.shape[0]


def read_adapter(file: Path) -> dict[str, StoredUpdate]:
    """All updates in a file, by the names that it gives their modules.

    Raises:
        LoRAInvalid: it is no whole safetensors file, holds something else than LoRA or DoRA, or a number that is not
            finite.
    """
    try:
        stored, header = read_header(file)
    except BaseModelInvalid as error:
        raise LoRAInvalid(str(error)) from error
    parts: dict[str, dict[str, str]] = {}  # module to role to key
    unknown: list[str] = []
    for key in stored:
        end = next((end for end in _ROLES if key.endswith(end)), None)
        if end is None:
            unknown.append(key)
        else:
            parts.setdefault(key.removesuffix(end), {})[_ROLES[end]] = key
    if unknown:
        raise LoRAInvalid(
            f"{file.name} holds {len(unknown)} tensors that are neither LoRA's nor DoRA's, as {min(unknown)}: LoHa, "
            f"LoKr, whole checkpoints and embeddings cannot be read as one."
        )
    if half := sorted(name for name, roles in parts.items() if not {"down", "up"} <= roles.keys()):
        raise LoRAInvalid(f"{file.name} lacks lora_down or lora_up of {len(half)} modules, as {half[0]}.")
    told = _peft_header(file.name, header)
    tensors = safetensors.torch.load_file(file)
    return {name: _update(file.name, name, roles, tensors, told) for name, roles in sorted(parts.items())}


def by_path(
    updates: Mapping[str, StoredUpdate], paths: Iterable[str]
) -> tuple[dict[str, StoredUpdate], dict[str, StoredUpdate]]:
    """Return the updates of the modules at `paths`, by path, and those of no such module, by their names.

    Raises:
        LoRAInvalid: the file holds a module twice, under two spellings.
    """
    found: dict[str, StoredUpdate] = {}
    left = dict(updates)
    for path in paths:
        names = [name for name in (kohya_name(path), kohya_diffusers_name(path), peft_name(path)) if name in left]
        if len(set(names)) > 1:
            raise LoRAInvalid(f"The file holds the same module as {names[0]} and as {names[1]}: keep one.")
        if names:
            found[path] = left.pop(names[0])
    return found, left


def _update(
    file_name: str, name: str, roles: Mapping[str, str], tensors: Mapping[str, Tensor], told: Mapping[str, Any]
) -> StoredUpdate:
    parts = {role: tensors[key].float() for role, key in roles.items()}  # the border: updates are float32
    for role, part in parts.items():
        if not part.isfinite().all():
            raise LoRAInvalid(f"{roles[role]} in {file_name} is not finite: that training went wrong.")
    down, rank = parts["down"], parts["down"].shape[0] if parts["down"].ndim else 0
    if down.ndim < 2 or parts["up"].ndim < 2 or parts["up"].shape[1] != rank:
        raise LoRAInvalid(
            f"{name} in {file_name} is lora_down {_times(down)} and lora_up {_times(parts['up'])}, which do not fit."
        )
    alpha, root = None, False
    if "alpha" in parts:
        alpha = parts["alpha"].item()
    elif told:
        alpha, root = _peft_alpha(name, told)
    scale = 1.0 if alpha is None else alpha / (math.sqrt(rank) if root else rank)
    magnitude = parts["magnitude"].flatten() if "magnitude" in parts else None
    return StoredUpdate(name, down, parts["up"], alpha, scale, magnitude)


def _peft_header(file_name: str, header: Mapping[str, str]) -> dict[str, Any]:
    """What diffusers writes of peft's configuration: `unet.lora_alpha` and so on; {} if there is none."""
    try:
        told = json.loads(header.get(_PEFT_HEADER, "{}"))
    except ValueError as error:
        raise LoRAInvalid(f"{file_name} has a header whose {_PEFT_HEADER} is not JSON: {error}.") from error
    return told if isinstance(told, dict) else {}


def _peft_alpha(name: str, told: Mapping[str, Any]) -> tuple[float | None, bool]:
    """The alpha of a module by peft's configuration, and whether it is over the root of the rank."""
    component = next((c for c in ("text_encoder_2", "text_encoder", "unet") if name.startswith(f"{c}.")), "")
    path, alpha = name.removeprefix(f"{component}."), told.get(f"{component}.lora_alpha")
    for pattern, own in (told.get(f"{component}.alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", path):
            alpha = own
            break
    return (None if alpha is None else float(alpha)), bool(told.get(f"{component}.use_rslora"))


def _times(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"
