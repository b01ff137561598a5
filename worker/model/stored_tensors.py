"""Reading what a safetensors file holds, and telling it from files that people mistake for one.

The layout: 8 bytes of header length (little-endian), the header in JSON, the tensors' bytes. Every byte is accounted
for, so a truncated file shows before any tensor is read.

Source: https://github.com/huggingface/safetensors#format
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from worker.errors import BaseModelInvalid

LENGTH_BYTES = 8
MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors library
HASH_CHUNK_BYTES = 1 << 24
PICKLE_PROTOCOLS = (b"\x02", b"\x03", b"\x04", b"\x05")  # the second byte of a pickle


@dataclass(frozen=True)
class StoredTensor:
    """Where one tensor lies."""

    file: Path
    key: str  # its name in the file
    dtype: str  # as safetensors spells it: "BF16", "F16", "F32"
    shape: tuple[int, ...]
    start: int  # first byte, counted from the start of the file
    end: int  # one past the last byte


def read_header(file: Path) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """Return the tensors of a safetensors file by key, and its metadata.

    Raises:
        BaseModelInvalid: the file is of another format, truncated or damaged.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        start = stream.read(LENGTH_BYTES + 1)
        _refuse_pickle(file.name, start)
        header_bytes = int.from_bytes(start[:LENGTH_BYTES], "little")
        if size < LENGTH_BYTES or header_bytes > min(size - LENGTH_BYTES, MAX_HEADER_BYTES):
            raise BaseModelInvalid(
                f"{file.name} is {size} bytes long, but its header should take {header_bytes}: it is truncated or no "
                f"safetensors file. Fetch it again."
            )
        stream.seek(LENGTH_BYTES)
        header = _parse_header(file, stream.read(header_bytes))
    metadata = header.pop("__metadata__", {})
    data_start = LENGTH_BYTES + header_bytes
    try:
        tensors = {
            key: StoredTensor(file, key, entry["dtype"], tuple(entry["shape"]), *_offsets(entry, data_start))
            for key, entry in header.items()
        }
    except (KeyError, TypeError, ValueError) as error:
        raise BaseModelInvalid(f"{file.name} has a damaged safetensors header ({error!r}). Fetch it again.") from error
    promised = max((tensor.end for tensor in tensors.values()), default=data_start)
    if promised != size:
        raise BaseModelInvalid(
            f"{file.name} is {size} bytes long, but its header promises {promised}: it is truncated or damaged. "
            f"Fetch it again."
        )
    return tensors, metadata


def header_bytes(metadata: Mapping[str, str], entries: Mapping[str, Mapping[str, object]]) -> bytes:
    """The first bytes of a file, up to its tensors' own.

    Args:
        metadata: in the order it is to have.
        entries: of each tensor: dtype, shape, and data_offsets, counted from where the header ends.
    """
    text = json.dumps({"__metadata__": metadata, **entries}, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % LENGTH_BYTES)  # the format's alignment of the data
    return len(text).to_bytes(LENGTH_BYTES, "little") + text


def content_sha256(tensors: Iterable[StoredTensor], *extra: str) -> str:
    """Return the SHA-256 over names, types, shapes and bytes of `tensors` and over `extra`, in hexadecimal.

    Reads every byte once: about a second for each 1.5 GB that the disk cache holds.
    """
    digest = hashlib.sha256()
    for text in extra:
        digest.update(text.encode() + b"\0")
    for tensor in sorted(tensors, key=lambda tensor: tensor.key):
        digest.update(f"{tensor.key} {tensor.dtype} {tensor.shape}\0".encode())
        with tensor.file.open("rb") as stream:
            stream.seek(tensor.start)
            for begin in range(tensor.start, tensor.end, HASH_CHUNK_BYTES):
                digest.update(stream.read(min(HASH_CHUNK_BYTES, tensor.end - begin)))
    return digest.hexdigest()


def _refuse_pickle(name: str, start: bytes) -> None:
    """Refuse what torch.save writes: a zip archive, or a bare pickle of protocol 2 to 5. Reading it would run code."""
    # A safetensors header of 640, 896, 1,152 or 1,408 bytes (modulo 65,536) starts like a pickle, then opens a brace.
    is_pickle = start[:1] == b"\x80" and start[1:2] in PICKLE_PROTOCOLS and start[LENGTH_BYTES:] != b"{"
    if is_pickle or start.startswith(b"PK\x03\x04"):
        raise BaseModelInvalid(
            f"{name} is a pickle, which can run code when read. Convert it to safetensors, or use the .safetensors "
            f"file that most models come with."
        )


def _parse_header(file: Path, raw: bytes) -> dict[str, Any]:
    try:
        header = json.loads(raw)
    except ValueError as error:
        raise BaseModelInvalid(f"{file.name} is no safetensors file: its header is not JSON ({error}).") from error
    if not isinstance(header, dict):
        raise BaseModelInvalid(f"{file.name} is no safetensors file: its header is not a JSON object.")
    return header


def _offsets(entry: dict[str, Any], data_start: int) -> tuple[int, int]:
    start, end = entry["data_offsets"]
    return data_start + start, data_start + end
