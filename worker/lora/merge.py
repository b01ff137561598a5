"""Merges an adapter into a base model's single file: what everything reads that reads no LoRA.

Sums are made in float32 and rounded once, to the dtype that the file has. Everything but the merged weights, the
metadata included, stays byte for byte what it was, so no tensor is held but the one at work.

Shapes: `in` and `out` are a layer's features or channels, `r` the rank.
"""

import json
import math
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor, nn

from worker.atomic import whole_file
from worker.errors import BaseModelInvalid, LoRAInvalid
from worker.lora.adapter_file import StoredUpdate, by_path, read_adapter
from worker.model.base_model import BaseModel, open_base_model
from worker.model.single_file import Part
from worker.model.stored_tensors import StoredTensor, header_bytes, read_header
from worker.model.unet import UNet

MERGED_KEY = "loraq.merged"  # metadata of the outcome: JSON, what was merged in, in order
_DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
_HASHES = ("modelspec.hash_sha256", "sshs_model_hash", "sshs_legacy_hash")  # of what the file was
_TEXT_LAYERS = (
    *(f"self_attn.{name}_proj" for name in ("q", "k", "v", "out")),
    *(f"mlp.{name}" for name in ("fc1", "fc2")),
)
_COPY_BYTES = 1 << 24


@dataclass(frozen=True)
class _Place:
    """Where one layer's weight lies among the file's data, and in what form."""

    start: int  # first byte, counted from the first of the data
    shape: tuple[int, ...]
    dtype: str


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
    stored, metadata = read_header(base_file)
    places = {path: _place_of(base, path, update, stored) for path, update in updates.items()}
    done = json.loads(metadata.get(MERGED_KEY, "[]"))
    metadata = {key: value for key, value in metadata.items() if key not in _HASHES}
    metadata[MERGED_KEY] = json.dumps([*done, {"lora": lora_file.name, "strength": strength}])
    with whole_file(out) as temporary:
        data_start = _copy(base_file, temporary, stored, metadata)
        with temporary.open("r+b") as stream:
            for path, update in updates.items():
                _rewrite(stream, data_start, places[path], update, strength)
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


def _place_of(base: BaseModel, path: str, update: StoredUpdate, stored: Mapping[str, StoredTensor]) -> _Place:
    part: Part = "unet"
    if path.startswith("text_encoder"):
        part = "text_encoder_2" if path.startswith("text_encoder_2.") else "text_encoder"
    location = base.locate(part, f"{path.removeprefix(f'{part}.')}.weight")
    if location.key not in stored:
        raise BaseModelInvalid(f"{base.path.name} holds no {location.key}: use a whole SDXL checkpoint.")
    tensor = stored[location.key]
    if tensor.dtype not in _DTYPES:
        raise BaseModelInvalid(
            f"{location.key} in {base.path.name} is {tensor.dtype}: use a base of {', '.join(_DTYPES)}."
        )
    start, shape = tensor.start - _data_start(stored), tensor.shape
    if location.third is not None:  # rows of query, key and value lie in one tensor
        shape = (shape[0] // 3, *shape[1:])
        start += location.third * math.prod(shape) * _DTYPES[tensor.dtype].itemsize
    out, inn = update.up.shape[0], update.down[0].numel()
    if (out, inn) != (shape[0], math.prod(shape[1:])):
        raise LoRAInvalid(
            f"{update.name} is {out}x{inn}, but {location.key} of {base.path.name} {shape[0]}x{math.prod(shape[1:])}: "
            f"it belongs to another model."
        )
    if update.magnitude is not None and update.magnitude.shape != (out,):
        raise LoRAInvalid(f"{update.name} has {update.magnitude.numel()} DoRA lengths for {out} outputs.")
    return _Place(start, shape, tensor.dtype)


def _rewrite(stream: BinaryIO, data_start: int, place: _Place, update: StoredUpdate, strength: float) -> None:
    """Read one weight, merge, and write it back in its place."""
    dtype = _DTYPES[place.dtype]
    stream.seek(data_start + place.start)
    raw = bytearray(stream.read(math.prod(place.shape) * dtype.itemsize))
    weight = torch.frombuffer(raw, dtype=dtype).view(place.shape)
    merged = merged_weight(weight.float(), update, strength).to(dtype)  # the border: float32 in between
    if not merged.isfinite().all():
        raise LoRAInvalid(f"{update.name} merged is not finite in {place.dtype}: lower --scale, or use a BF16 base.")
    stream.seek(data_start + place.start)
    stream.write(merged.contiguous().view(torch.uint8).numpy().tobytes())


def _copy(source: Path, target: Path, stored: Mapping[str, StoredTensor], metadata: Mapping[str, str]) -> int:
    """Write a safetensors file with the data of `source` and another header; return where its data begins."""
    begin = _data_start(stored)
    entries: dict[str, dict[str, object]] = {}
    for key, tensor in stored.items():
        offsets = [tensor.start - begin, tensor.end - begin]
        entries[key] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": offsets}
    header = header_bytes(metadata, entries)
    with source.open("rb") as reader, target.open("wb") as writer:
        writer.write(header)
        reader.seek(begin)
        shutil.copyfileobj(reader, writer, _COPY_BYTES)
    return len(header)


def _data_start(stored: Mapping[str, StoredTensor]) -> int:
    return min(tensor.start for tensor in stored.values())  # the format leaves no room before the first
