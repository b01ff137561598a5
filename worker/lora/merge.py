"""Merges an adapter into a base model's single file: what everything reads that reads no LoRA.

Sums are made in float32 and rounded once, to the dtype that the file has. Everything but the merged weights, the
metadata included, stays byte for byte what it was, so no tensor is held but the one at work.

Shapes: `in` and `out` are a layer's features or channels, `r` the rank.
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from worker.errors import BaseModelInvalid, LoRAInvalid
from worker.lora.adapter_file import StoredUpdate, by_path, read_adapter
from worker.model.base_model import BaseModel, open_base_model
from worker.model.edited_file import HASHES, EditedFile, Place, edited_copy, place_of
from worker.model.single_file import Part
from worker.model.stored_tensors import read_header
from worker.model.unet import UNet

MERGED_KEY = "loraq.merged"  # metadata of the outcome: JSON, what was merged in, in order
_TEXT_LAYERS = (
    *(f"self_attn.{name}_proj" for name in ("q", "k", "v", "out")),
    *(f"mlp.{name}" for name in ("fc1", "fc2")),
)


def merge(base_file: Path, lora_file: Path, out: Path, strength: float = 1.0) -> int:
    """Write `base_file` with the adapter in it to `out`, whole or not at all; return how many layers changed.

    Args:
        base_file: an SDXL checkpoint, one .safetensors file of BF16, FP16 or FP32.
        lora_file: of LoRA, LoCon or DoRA, under kohya's names or PEFT's.
        out: a file that is not there yet.
        strength: of the adapter, as programs that draw have it: weight + strength * (adapted weight - weight).

    Raises:
        BaseModelInvalid: the base is no single file of SDXL's, or of other dtypes.
        LoRAInvalid: the adapter has a module that the base has not, or a weight would not be finite.
        FileExistsError: `out` is there.
    """
    if out.exists():
        raise FileExistsError(f"{out} is there already: name another file.")
    if base_file.is_dir():
        raise BaseModelInvalid(f"{base_file.name}/ is a folder: a LoRA is merged into a single .safetensors file.")
    base = open_base_model(base_file)
    updates, left = by_path(read_adapter(lora_file), _layer_paths(base))
    if left:
        raise LoRAInvalid(
            f"{lora_file.name} adapts {len(left)} modules that {base_file.name} does not have, as {next(iter(left))}: "
            f"it belongs to another model."
        )
    places = {path: _place_of(base, path, update) for path, update in updates.items()}
    _, metadata = read_header(base_file)
    done = json.loads(metadata.get(MERGED_KEY, "[]"))
    metadata = {key: value for key, value in metadata.items() if key not in HASHES}
    metadata[MERGED_KEY] = json.dumps([*done, {"lora": lora_file.name, "strength": strength}])
    with edited_copy(base, out, metadata) as edited:
        for path, update in updates.items():
            _rewrite(edited, places[path], update, strength)
    return len(updates)


@torch.no_grad()
def merge_into(unet: UNet, lora_file: Path, strength: float = 1.0) -> int:
    """Add the adapter in `lora_file` to the weights of `unet`, in place; return how many layers changed.

    Raises:
        LoRAInvalid: it adapts other modules than the U-Net's.
    """
    layers = {path: module for path, module in unet.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)}
    updates, left = by_path(read_adapter(lora_file), layers)
    if left:
        raise LoRAInvalid(
            f"{lora_file.name} adapts {len(left)} modules that are not the U-Net's, as {next(iter(left))}."
        )
    for path, update in updates.items():
        weight = layers[path].weight
        weight.copy_(merged_weight(weight.float(), update, strength))
    return len(updates)


def merged_weight(weight: Tensor, update: StoredUpdate, strength: float) -> Tensor:
    """weight + strength * (adapted weight - weight), in the weight's shape [out, ...], float32.

    With DoRA the adapted weight is magnitude / |W + scale * B A| * (W + scale * B A), see worker.lora.dora.
    """
    delta = (update.scale * (update.up.flatten(1) @ update.down.flatten(1))).view(weight.shape)
    if update.magnitude is None:
        return weight + strength * delta
    adapted = weight + delta
    lengths = adapted.flatten(1).norm(dim=1).clamp(min=1e-12)  # [out]; a row may be 0
    adapted *= (update.magnitude / lengths).view(-1, *(1 for _ in weight.shape[1:]))
    return adapted if strength == 1 else weight + strength * (adapted - weight)


def _layer_paths(base: BaseModel) -> Iterator[str]:
    """The paths of all layers that an adapter may be on."""
    with torch.device("meta"):
        unet = UNet(base.unet_config)
    yield from (path for path, module in unet.named_modules() if isinstance(module, nn.Linear | nn.Conv2d))
    encoders: tuple[Part, Part] = ("text_encoder", "text_encoder_2")
    for encoder in encoders:
        for number in range(base.configs[encoder]["num_hidden_layers"]):
            yield from (f"{encoder}.text_model.encoder.layers.{number}.{name}" for name in _TEXT_LAYERS)


def _place_of(base: BaseModel, path: str, update: StoredUpdate) -> Place:
    part: Part = "unet"
    if path.startswith("text_encoder"):
        part = "text_encoder_2" if path.startswith("text_encoder_2.") else "text_encoder"
    name = f"{path.removeprefix(f'{part}.')}.weight"
    place = place_of(base, part, name)
    theirs = (place.shape[0], math.prod(place.shape[1:]))
    out, inn = update.up.shape[0], update.down[0].numel()
    if (out, inn) != theirs:
        raise LoRAInvalid(
            f"{update.name} is {out}x{inn}, but {base.locate(part, name).key} of {base.path.name} "
            f"{theirs[0]}x{theirs[1]}: it belongs to another model."
        )
    if update.magnitude is not None and update.magnitude.shape != (out,):
        raise LoRAInvalid(f"{update.name} has {update.magnitude.numel()} DoRA lengths for {out} outputs.")
    return place


def _rewrite(edited: EditedFile, place: Place, update: StoredUpdate, strength: float) -> None:
    """Read one weight, merge, and write it back in its place."""
    merged = merged_weight(edited.read(place).float(), update, strength)  # the border: float32 in between
    if not edited.write(place, merged):
        raise LoRAInvalid(f"{update.name} merged is not finite in {place.dtype}: lower --scale, or use a BF16 base.")
