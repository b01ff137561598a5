"""Where an adapter begins that goes on from a file instead of an update of zero."""

import math
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from worker.errors import LoRAInvalid
from worker.lora.adapter_file import StoredUpdate, by_path, read_adapter
from worker.lora.config import LoRAConfig
from worker.lora.inject import LoRA
from worker.lora.low_rank import LowRank


def weights_from(file: Path, lora: LoRA) -> dict[str, Tensor]:
    """The weights in `file`, for `lora.load_state_dict`: with them the adapter does what the file's does, exactly.

    The file must hold the very layers that the adapter has, at their ranks. Where it was written with the scale that
    the layer has, its matrices are taken as they are. Where it tells no alpha (its scale is folded into its lora_B) or
    is ours and tells one alpha for all layers, lora_B is divided by what is folded in: exact for powers of two, and
    rounded once for others.

    Raises:
        LoRAInvalid: it does not fit; all that differs is told at once.
    """
    try:
        updates, left = by_path(read_adapter(file), lora.modules)
    except LoRAInvalid as error:
        raise LoRAInvalid(f"lora.init_from: {error}") from error
    if not updates:
        raise LoRAInvalid(
            f"lora.init_from: {file.name} adapts {len(left)} modules, as {next(iter(left), 'none')}, and none of the "
            f"{len(lora.modules)} that this adapter has: it belongs to another model, or to other lora.targets."
        )
    faults: dict[str, list[str]] = {}  # kind to its cases
    for path, layer in lora.modules.items():
        if path not in updates:
            faults.setdefault("modules are not in it", []).append(path)
        else:
            for kind, case in _misfits(path, layer, updates[path], lora.config).items():
                faults.setdefault(kind, []).append(case)
    if left:
        faults["modules are in it, but not in lora.targets and lora.patterns"] = list(left)
    if faults:
        told = "; ".join(f"{len(cases)} {kind}, as {cases[0]}" for kind, cases in faults.items())
        raise LoRAInvalid(f"lora.init_from: {file.name} does not fit this adapter: {told}.")
    weights: dict[str, Tensor] = {}
    for path, layer in lora.modules.items():
        update = updates[path]
        weights[f"{path}.lora_A"] = update.down.reshape(layer.lora_A.shape)
        folded = update.up if update.scale == layer.scale else update.up * (update.scale / layer.scale)
        weights[f"{path}.lora_B"] = folded.reshape(layer.lora_B.shape)
        if update.magnitude is not None:
            weights[f"{path}.lora_magnitude"] = update.magnitude
    return weights


def _misfits(path: str, layer: LowRank, update: StoredUpdate, config: LoRAConfig) -> Mapping[str, str]:
    """What keeps an update from a layer: kind to case, in words that go on after a count."""
    out, *inner = layer.weight.shape
    shape = update.up.shape[0], update.down[0].numel()
    if shape != (out, math.prod(inner)):
        return {
            "modules are of another model": f"{path}, {shape[0]}x{shape[1]} in it instead of {out}x{math.prod(inner)}"
        }
    if update.rank != layer.rank:
        return {"modules have another rank": f"{path}, {update.rank} in it and {layer.rank} in lora.rank or overrides"}
    misfits: dict[str, str] = {}
    as_exported = config.alpha * (math.sqrt(config.rank) if config.rslora else 1)  # see worker.lora.export
    if update.alpha is not None and update.scale != layer.scale and update.alpha != as_exported:
        alpha = update.scale * (math.sqrt(layer.rank) if config.rslora else layer.rank)
        misfits["modules have another alpha"] = f"{path}, {alpha:g} in it and {layer.alpha:g} in lora.alpha"
    if config.dora and update.magnitude is None:
        misfits["modules have no DoRA lengths there, and lora.dora is true"] = path
    if not config.dora and update.magnitude is not None:
        misfits["modules have DoRA lengths there, and lora.dora is false"] = path
    if update.magnitude is not None and update.magnitude.shape != (out,):
        misfits["modules have a length for each input instead of each output"] = path
    return misfits
