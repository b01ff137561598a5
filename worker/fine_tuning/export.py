"""Writes a base model with a trained U-Net in it: one single file, which all that draws reads."""

from collections.abc import Mapping
from pathlib import Path

from safetensors import safe_open
from torch import Tensor

from worker.atomic import whole_file
from worker.errors import NanLoss
from worker.model.base_model import BaseModel, published_name
from worker.model.base_writer import Configs, State, write_single_file
from worker.model.edited_file import HASHES, edited_copy, place_of
from worker.model.single_file import Part, is_ignored
from worker.model.stored_tensors import read_header

# What its maker said of the base, and nobody of what came of it. Its licence stays, as do terms that hold for both.
_OF_BASE_ALONE = ("modelspec.author", "modelspec.date", "modelspec.thumbnail", "ssmd_cover_images")


def save_checkpoint(
    base: BaseModel, weights: Mapping[str, Tensor], file: Path, metadata: Mapping[str, str], marks: tuple[str, ...] = ()
) -> None:
    """Write `base` with other weights of its U-Net, each rounded to the dtype that the base has it in.

    Text encoders and VAE are the base's, to the bit.

    Args:
        base: of either layout.
        weights: all of the U-Net's, under diffusers' names.
        file: to write, whole or not at all.
        metadata: header entries; they win over those that the base has.
        marks: names of empty tensors, by which fine-tunes say what they predict: `v_pred`, `ztsnr`.

    Raises:
        NanLoss: a weight is not finite in that dtype.
    """
    if base.layout == "diffusers":
        _convert(base, weights, file, dict(metadata), marks)
        return
    _, told = read_header(base.path)
    told = {key: value for key, value in told.items() if key not in (*HASHES, *_OF_BASE_ALONE)} | dict(metadata)
    with edited_copy(base, file, told, marks) as edited:
        for name, weight in weights.items():
            place = place_of(base, "unet", name)
            if not edited.write(place, weight):
                raise _not_finite(name, place.dtype)


def _convert(
    base: BaseModel, weights: Mapping[str, Tensor], file: Path, metadata: dict[str, str], marks: tuple[str, ...]
) -> None:
    """From a folder: all of it is held in memory, as it lies there."""
    states: dict[Part, State] = {part: _stored(base, part) for part in base.tensors}
    unet = states["unet"]
    for name, weight in weights.items():
        unet[name] = weight.detach().to("cpu", unet[name].dtype)  # the file's border
        if not unet[name].isfinite().all():
            raise _not_finite(name, str(unet[name].dtype))
    configs: Configs = {"unet": base.unet_config.to_diffusers(), **base.configs}
    with whole_file(file) as temporary:
        write_single_file(temporary, configs, states, metadata, marks)


def _stored(base: BaseModel, part: Part) -> State:
    state: State = {}
    for key, tensor in base.tensors[part].items():
        if not is_ignored(key):
            with safe_open(tensor.file, framework="pt") as opened:
                state[published_name(part, key)] = opened.get_tensor(key)
    return state


def _not_finite(name: str, dtype: str) -> NanLoss:
    return NanLoss(f"{name} is not finite in {dtype}, the base's dtype: lower the learning rate, or use a BF16 base.")
