"""Checkpoints: the whole state of a training in a folder `step-NNNNNN`, exact to the bit.

    lora.safetensors         the adapter, float32; of a fine-tuning unet.safetensors, all weights of the U-Net
    ema.safetensors          its running average, if there is one
    optimizer.safetensors    the optimizer's tensors, named <parameter number>.<name>
    metrics.jsonl            every step so far
    state.json               the step, the optimizer's numbers, what the training was told, size and sha256 of the files

No pickle: a checkpoint may come from a bucket.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from worker.errors import CheckpointInvalid, ResumeRefused
from worker.loop.train import TrainState
from worker.loop.trained import Trained

_INDEX = "state.json"
_PREFIX = "step-"


def save_state(parent: Path, trained: Trained, state: TrainState, identity: Mapping[str, Any], metrics: Path) -> Path:
    """Write `parent/step-NNNNNN`, under another name first, so that it is there whole or not at all.

    Args:
        parent: folder of all checkpoints.
        trained: the weights after step `state.step`.
        state: the rest.
        identity: what must be the same for a training that goes on from here, as JSON; by what the person calls it.
        metrics: file of the steps so far; copied.
    """
    target = parent / f"{_PREFIX}{state.step:06d}"
    folder = parent / f".{target.name}.tmp"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    _save_tensors(folder / trained.checkpoint_file, trained.state_dict())
    _save_tensors(folder / "optimizer.safetensors", _optimizer_tensors(state.optimizer))
    if state.ema:
        _save_tensors(folder / "ema.safetensors", state.ema.weights)
    shutil.copyfile(metrics, folder / metrics.name)
    files = {path.name: _fingerprint(path) for path in sorted(folder.iterdir())}
    numbers = _optimizer_numbers(state.optimizer)
    index = {"version": 1, "step": state.step, "optimizer": numbers, "identity": identity, "files": files}
    (folder / _INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    shutil.rmtree(target, ignore_errors=True)
    folder.replace(target)
    return target


def load_state(folder: Path, trained: Trained, state: TrainState, identity: Mapping[str, Any]) -> None:
    """Bring the weights and `state` (from TrainState.begin) to where a checkpoint left them.

    Raises:
        CheckpointInvalid: the checkpoint is incomplete or damaged.
        ResumeRefused: it belongs to another training. In both cases nothing is changed.
    """
    index = _read_index(folder)
    wanted = json.loads(json.dumps(identity))  # as it reads after a round trip: lists for tuples
    keys = sorted(wanted.keys() | index["identity"].keys())
    changed = [key for key in keys if wanted.get(key) != index["identity"].get(key)]
    if changed:
        changes = "; ".join(f"{key} was {index['identity'].get(key)} and is {wanted.get(key)}" for key in changed)
        raise ResumeRefused(f"{folder.name} belongs to another training: {changes}. Start anew, or undo the change.")
    trained.load_state_dict(safetensors.torch.load_file(folder / trained.checkpoint_file))
    if state.ema:
        for name, weight in safetensors.torch.load_file(folder / "ema.safetensors").items():
            state.ema.weights[name].copy_(weight)
    _load_optimizer(state.optimizer, safetensors.torch.load_file(folder / "optimizer.safetensors"), index["optimizer"])
    state.step = index["step"]


def prune(parent: Path, keep: int) -> None:
    """Delete all checkpoints but the newest `keep`, and what interrupted saves have left."""
    for unfinished in parent.glob(f".{_PREFIX}*.tmp"):
        shutil.rmtree(unfinished)
    for old in sorted(parent.glob(f"{_PREFIX}*"))[:-keep]:
        shutil.rmtree(old)


def _read_index(folder: Path) -> dict[str, Any]:
    try:
        index = json.loads((folder / _INDEX).read_text(encoding="utf-8"))
        damaged = [name for name, stored in index["files"].items() if _fingerprint(folder / name) != stored]
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointInvalid(f"{folder} is no whole checkpoint ({error}): go on from an older one.") from error
    if damaged:
        raise CheckpointInvalid(f"{folder} is damaged ({', '.join(damaged)}): go on from an older one.")
    return index


def _fingerprint(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors, each by itself: on a CPU all 8-bit moments share two maps of 256 values, which no file can."""
    apart: dict[str, Tensor] = {}
    addresses: set[int] = set()
    for name, tensor in tensors.items():
        saved = tensor.detach().cpu().contiguous()
        apart[name] = saved.clone() if saved.data_ptr() in addresses else saved
        addresses.add(saved.data_ptr())
    safetensors.torch.save_file(apart, path)


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    return {key: value for key, value in _optimizer_values(optimizer).items() if isinstance(value, Tensor)}


def _optimizer_numbers(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """What is no tensor: counters and estimates, of parameters and of groups. JSON keeps every float to the bit."""
    values = {key: value for key, value in _optimizer_values(optimizer).items() if not isinstance(value, Tensor)}
    groups = [
        {
            name: value.item() if isinstance(value, Tensor) else value
            for name, value in group.items()
            if name != "params"
        }
        for group in optimizer.param_groups
    ]
    return {"values": values, "groups": groups}


def _optimizer_values(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """`<parameter number>.<name>` to value, whatever form the optimizer's own state_dict gives it."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return {
        f"{number}.{name}": value
        for number, parameter in enumerate(parameters)
        for name, value in optimizer.state.get(parameter, {}).items()
    }


def _load_optimizer(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]
) -> None:
    states: dict[int, dict[str, Any]] = {}
    for key, value in (*tensors.items(), *numbers["values"].items()):
        number, _, name = key.partition(".")
        states.setdefault(int(number), {})[name] = value
    fresh = torch.optim.Optimizer.state_dict(optimizer)["param_groups"]
    groups = [
        group | {name: _as_it_was(value, group.get(name)) for name, value in saved.items()}
        for group, saved in zip(fresh, numbers["groups"], strict=True)
    ]
    optimizer.load_state_dict({"state": states, "param_groups": groups})


def _as_it_was(saved: Any, fresh: Any) -> Any:
    """Before JSON made lists of tuples, and before tensors became numbers."""
    if isinstance(fresh, Tensor):
        return torch.tensor(saved, dtype=fresh.dtype, device=fresh.device)
    return tuple(saved) if isinstance(fresh, tuple) else saved
