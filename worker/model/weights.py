"""Reading a base model's weights: strictly, and straight to the device.

A module is built without memory, each tensor goes from the file to the device and is cast there, and is then the
module's own: the host never holds a second copy.
"""

from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from worker.errors import BaseModelInvalid
from worker.model.base_model import BaseModel, open_base_model, published_name
from worker.model.single_file import Location, Part, is_ignored
from worker.model.stored_tensors import StoredTensor
from worker.model.unet import UNet

__all__ = ["BaseModel", "load_part", "load_unet", "open_base_model"]


def load_unet(base: BaseModel, device: torch.device | str, dtype: torch.dtype = torch.bfloat16) -> UNet:
    """Return the base model's U-Net on `device`, frozen.

    Raises:
        BaseModelInvalid: a tensor is missing, unexpected or of another shape.
    """
    with torch.device("meta"):
        unet = UNet(base.unet_config)
    load_part(unet, base, "unet", device, dtype)
    return unet


def load_part(module: nn.Module, base: BaseModel, part: Part, device: torch.device | str, dtype: torch.dtype) -> None:
    """Give `module`, built on the meta device, the weights of `part`, and freeze it.

    Raises:
        BaseModelInvalid: a tensor is missing, unexpected or of another shape.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    locations = {name: base.locate(part, published_name(part, name)) for name in shapes}
    stored = base.tensors[part]
    _check(part, shapes, locations, stored)
    with ExitStack() as files:
        opened = {
            file: files.enter_context(safe_open(file, framework="pt", device=str(device)))
            for file in {stored[location.key].file for location in locations.values()}
        }
        state = {
            name: _read(opened[stored[location.key].file], location, shapes[name]).to(dtype)  # the device's border
            for name, location in locations.items()
        }
    module.load_state_dict(state, strict=True, assign=True)
    module.requires_grad_(False).eval()


def _read(file: Any, location: Location, shape: tuple[int, ...]) -> Tensor:
    """Read one tensor in the form that our module has it in."""
    if location.third is not None:
        rows = shape[0]
        return file.get_slice(location.key)[location.third * rows : (location.third + 1) * rows]
    tensor = file.get_tensor(location.key)
    return tensor.T.contiguous() if location.form == "transposed" else tensor.reshape(shape)


def _stored_shape(location: Location, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape that the file must have for a tensor that is `shape` in our module."""
    if location.third is not None:
        return (3 * shape[0], *shape[1:])
    if location.form == "transposed":
        return shape[::-1]
    return (*shape, 1, 1) if location.form == "convolution" else shape


def _check(
    part: Part,
    shapes: dict[str, tuple[int, ...]],
    locations: dict[str, Location],
    stored: dict[str, StoredTensor],
) -> None:
    """Compare what the module needs with what the files hold, by the files' own names."""
    needed = {location.key: _stored_shape(location, shapes[name]) for name, location in locations.items()}
    missing = needed.keys() - stored.keys()
    unexpected = {key for key in stored.keys() - needed.keys() if not is_ignored(key)}
    misshaped = [
        f"{key} ({_times(stored[key].shape)} instead of {_times(shape)})"
        for key, shape in needed.items()
        if key in stored and stored[key].shape != shape
    ]
    findings = [
        f"{len(keys)} tensors are {what}: {_first_five(keys)}"
        for what, keys in (("missing", missing), ("unexpected", unexpected), ("of another shape", misshaped))
        if keys
    ]
    if findings:
        raise BaseModelInvalid(f"The {part} is not SDXL's. {' '.join(findings)} Use an unmodified SDXL base model.")


def _first_five(keys: Iterable[str]) -> str:
    keys = sorted(keys)
    return ", ".join(keys[:5]) + (", …" if len(keys) > 5 else ".")


def _times(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "scalar"
