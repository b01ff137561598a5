"""Tensors that are made once: files named by the content they were made from, so that one can never be stale."""

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from worker.atomic import whole_file

_VERSION = 2  # to be raised when the same key would give other tensors, as after a change of the resampling filter

log = logging.getLogger(__name__)


class Cache:
    """A folder of safetensors files; jobs may share it at the same time, and any file may be deleted at any time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, kind: str, **content: object) -> Path:
        """The file for tensors of a `kind` that were made from `content`: everything that they depend on."""
        key = json.dumps([_VERSION, content], sort_keys=True)
        digest = hashlib.sha256(key.encode()).hexdigest()
        return self.folder / kind / digest[:2] / f"{digest}.safetensors"

    def load(self, path: Path, shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype) -> dict[str, Tensor] | None:
        """The tensors of a file, on the CPU, or None if there is none or it is damaged: make them anew then.

        One that holds anything but tensors of these names, shapes and dtype, all finite, counts as damaged.
        """
        try:
            tensors = safetensors.torch.load(path.read_bytes())
        except FileNotFoundError:
            return None
        except safetensors.SafetensorError as error:
            log.warning("Cached file %s is damaged (%s) and is made anew.", path, error)
            return None
        held = {name: tuple(tensor.shape) for name, tensor in tensors.items() if tensor.dtype == dtype}
        if held != dict(shapes) or not all(tensor.isfinite().all() for tensor in tensors.values()):
            log.warning("Cached file %s does not hold what it should and is made anew.", path)
            return None
        return tensors

    def store(self, path: Path, tensors: Mapping[str, Tensor]) -> None:
        with whole_file(path) as temporary:
            safetensors.torch.save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary)
