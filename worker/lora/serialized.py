"""An adapter's tensors as a safetensors file holds them, and the header before them.

The library lays the tensors out, and loraq writes the header: the library puts its metadata in another order in every
process, and equal weights should give equal files.

Source: https://github.com/huggingface/safetensors#format
"""

import hashlib
import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

import safetensors.torch
from torch import Tensor

from worker.atomic import whole_file
from worker.model.stored_tensors import LENGTH_BYTES, header_bytes


class Serialized:
    """What follows the header of a file with `tensors`; held in memory once."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        raw = safetensors.torch.save(tensors)
        begin = LENGTH_BYTES + int.from_bytes(raw[:LENGTH_BYTES], "little")
        self._entries = json.loads(raw[LENGTH_BYTES:begin])
        self._data = memoryview(raw)[begin:]

    @cached_property
    def sha256(self) -> str:
        """Of the tensors' bytes, without any header, in hexadecimal."""
        return hashlib.sha256(self._data).hexdigest()

    def part(self, metadata: Mapping[str, str], start: int, end: int) -> bytes:
        """Bytes start to end, or as many as there are, of a file with `metadata`."""
        header = self._header(metadata)
        rest = self._data[max(0, start - len(header)) : max(0, end - len(header))]
        return header[start:end] + bytes(rest)

    def write(self, path: Path, metadata: Mapping[str, str]) -> None:
        """Write the file, whole or not at all."""
        with whole_file(path) as temporary, temporary.open("wb") as stream:
            stream.write(self._header(metadata))
            stream.write(self._data)

    def _header(self, metadata: Mapping[str, str]) -> bytes:
        return header_bytes(dict(sorted(metadata.items())), self._entries)
