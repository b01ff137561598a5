"""A base model's single file with some weights changed: everything else stays byte for byte what it was.

The file is copied and the weights are written over in their places, so that no tensor is held but the one at work.
"""

import math
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from worker.atomic import whole_file
from worker.errors import BaseModelInvalid
from worker.model.base_model import BaseModel
from worker.model.single_file import Part
from worker.model.stored_tensors import LENGTH_BYTES, header_bytes, read_header

HASHES = ("modelspec.hash_sha256", "sshs_model_hash", "sshs_legacy_hash")  # metadata that is not true of a changed file
_DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
_COPY_BYTES = 1 << 24


@dataclass(frozen=True)
class Place:
    """Where one weight lies among a file's data, and in what form."""

    start: int  # first byte, counted from the first of the data
    shape: tuple[int, ...]  # in the file: a linear layer may be stored as a 1x1 kernel
    dtype: str  # as safetensors spells it


class EditedFile:
    """The copy while it is worked at."""

    def __init__(self, stream: BinaryIO, data_start: int) -> None:
        self._stream = stream
        self._data_start = data_start

    def read(self, place: Place) -> Tensor:
        """The weight there, in its shape and dtype."""
        dtype = _DTYPES[place.dtype]
        self._stream.seek(self._data_start + place.start)
        raw = bytearray(self._stream.read(math.prod(place.shape) * dtype.itemsize))
        return torch.frombuffer(raw, dtype=dtype).view(place.shape)

    def write(self, place: Place, weight: Tensor) -> bool:
        """Round `weight`, of as many elements, to the dtype there and write it; False if it is not finite then."""
        rounded = weight.detach().to("cpu", _DTYPES[place.dtype]).contiguous()  # the file's border
        if not rounded.isfinite().all():
            return False
        self._stream.seek(self._data_start + place.start)
        self._stream.write(rounded.view(torch.uint8).numpy().tobytes())
        return True


def place_of(base: BaseModel, part: Part, name: str) -> Place:
    """Where the tensor that diffusers calls `name` lies in the file of `base`.

    Raises:
        BaseModelInvalid: the file has it not, or in another dtype than BF16, FP16 or FP32.
    """
    location, stored = base.locate(part, name), base.tensors[part]
    if location.key not in stored:
        raise BaseModelInvalid(f"{base.path.name} holds no {location.key}: use a whole SDXL checkpoint.")
    tensor = stored[location.key]
    if tensor.dtype not in _DTYPES:
        raise BaseModelInvalid(
            f"{location.key} in {base.path.name} is {tensor.dtype}: use a base of {', '.join(_DTYPES)}."
        )
    start, shape = tensor.start - _data_start(base.path), tensor.shape
    if location.third is not None:  # rows of query, key and value lie in one tensor
        shape = (shape[0] // 3, *shape[1:])
        start += location.third * math.prod(shape) * _DTYPES[tensor.dtype].itemsize
    return Place(start, shape, tensor.dtype)


@contextmanager
def edited_copy(
    base: BaseModel, out: Path, metadata: Mapping[str, str], marks: Iterable[str] = ()
) -> Iterator[EditedFile]:
    """Write the file of `base` to `out` with other metadata, and with what the block changes: whole or not at all.

    Args:
        base: a single file.
        out: the file to write.
        metadata: all there is to be.
        marks: names of empty tensors that it is to have besides, as `v_pred`.
    """
    with whole_file(out) as temporary:
        data_start = _copy(base.path, temporary, metadata, marks)
        with temporary.open("r+b") as stream:
            yield EditedFile(stream, data_start)


def _copy(source: Path, target: Path, metadata: Mapping[str, str], marks: Iterable[str]) -> int:
    """Write a safetensors file with the data of `source` and another header; return where its data begins."""
    stored, _ = read_header(source)
    begin = _data_start(source)
    entries: dict[str, dict[str, object]] = {}
    for key, tensor in stored.items():
        offsets = [tensor.start - begin, tensor.end - begin]
        entries[key] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": offsets}
    end = max(tensor.end for tensor in stored.values()) - begin
    for mark in marks:
        entries.setdefault(mark, {"dtype": "F32", "shape": [0], "data_offsets": [end, end]})
    header = header_bytes(metadata, entries)
    with source.open("rb") as reader, target.open("wb") as writer:
        writer.write(header)
        reader.seek(begin)
        shutil.copyfileobj(reader, writer, _COPY_BYTES)
    return len(header)


def _data_start(file: Path) -> int:
    with file.open("rb") as stream:
        return LENGTH_BYTES + int.from_bytes(stream.read(LENGTH_BYTES), "little")
