"""Tensors that are made once: files named by the content they were made from, so that one can never be stale.

Each says in its header what the SHA-256 of its name and of all that it holds is. So one that was damaged on a disk or
in a bucket, or that lies under another's name, is told from a sound one, wherever it came from.
"""

import hashlib
import json
import logging
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from worker.atomic import whole_file

_VERSION = 3  # to be raised when the same key would give other tensors, as after a change of the resampling filter

log = logging.getLogger(__name__)


class Cache:
    """A folder of safetensors files; jobs may share it at the same time, and any file may be deleted at any time.

    A file's time is that of its last use.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.made = 0  # files that were not there, or damaged

    def path(self, kind: str, **content: object) -> Path:
        """The file for tensors of a `kind` that were made from `content`: everything that they depend on."""
        key = json.dumps([_VERSION, content], sort_keys=True)
        digest = hashlib.sha256(key.encode()).hexdigest()
        return self.folder / kind / digest[:2] / f"{digest}.safetensors"

    def load(self, path: Path, shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype) -> dict[str, Tensor] | None:
        """The tensors of a file, on the CPU, or None if there is none or it is damaged: make them anew then.

        One that holds anything but tensors of these names, shapes and dtype, all finite, counts as damaged, and so does
        one that holds other bits than were stored under its name.
        """
        try:
            raw = path.read_bytes()
            tensors = safetensors.torch.load(raw)
        except FileNotFoundError:
            return None
        except safetensors.SafetensorError as error:
            log.warning("Cached file %s is damaged (%s) and is made anew.", path, error)
            return None
        held = {name: tuple(tensor.shape) for name, tensor in tensors.items() if tensor.dtype == dtype}
        if held != dict(shapes) or not all(tensor.isfinite().all() for tensor in tensors.values()):
            log.warning("Cached file %s does not hold what it should and is made anew.", path)
            return None
        if _said(raw) != _sha256(path, tensors):
            log.warning("Cached file %s was changed since it was made, and is made anew.", path)
            return None
        with suppress(FileNotFoundError):  # another worker makes room
            os.utime(path)
        return tensors

    def store(self, path: Path, tensors: Mapping[str, Tensor]) -> None:
        whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
        with whole_file(path) as temporary:
            safetensors.torch.save_file(whole, temporary, {"sha256": _sha256(path, whole)})
        self.made += 1


def _sha256(path: Path, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(path.name.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _said(raw: bytes) -> str | None:
    """The SHA-256 in the header of a safetensors file; None if there is none."""
    length = int.from_bytes(raw[:8], "little")
    return json.loads(raw[8 : 8 + length]).get("__metadata__", {}).get("sha256")
