"""What a base model on disk is: its layout, its configs, and where each of its tensors lies.

Only headers and configs are read here, so a wrong file is refused in milliseconds. Weights are read in
worker.model.weights.
"""

import json
import logging
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

from worker.errors import BaseModelInvalid
from worker.model import sdxl_configs, single_file
from worker.model.schedule import Prediction
from worker.model.single_file import PREFIXES, Location, Part, is_ignored
from worker.model.stored_tensors import StoredTensor, content_sha256, read_header
from worker.model.unet_config import UNetConfig

log = logging.getLogger(__name__)

CONFIG_KEY = "loraq.config"  # metadata of a single file of other widths than SDXL's: JSON, one config for each part
_STEMS: dict[Part, str] = {
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
    "text_encoder_2": "model",
}
# How diffusers before 0.16 spelt the VAE's attention, and files still do.
_OLD_VAE_NAMES = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
# What single files hold beside the four parts: tables of the schedule, and marks for other programs.
_BESIDE_PARTS = (
    "alphas_cumprod",
    "betas",
    "denoiser.",
    "log_one_minus",
    "model_ema.",
    "posterior",
    "sqrt_",
    "v_pred",
    "ztsnr",
)


@dataclass(frozen=True)
class BaseModel:
    """An SDXL base model on disk."""

    path: Path
    layout: Literal["diffusers", "single_file"]
    unet_config: UNetConfig
    prediction_type: Prediction  # what the U-Net predicts
    zero_terminal_snr: bool  # whether its schedule leaves nothing of the picture at the last timestep
    configs: dict[Part, dict[str, Any]]  # of the VAE and both text encoders, as diffusers and transformers take them
    tensors: dict[Part, dict[str, StoredTensor]]  # by their names in the files

    def locate(self, part: Part, name: str) -> Location:
        """Return where tensor `name` (as diffusers spells it) of `part` lies. It may not be there."""
        if self.layout == "single_file":
            return single_file.locate(part, name)
        stored = self.tensors[part]
        if name not in stored and part == "vae":
            for new, old in _OLD_VAE_NAMES.items():
                if (old_name := name.replace(new, old)) in stored:
                    return Location(old_name)
        if name not in stored and (short := name.removeprefix("text_model.")) in stored:
            return Location(short)  # as transformers 5 saves a CLIPTextModel
        return Location(name)

    @cached_property
    def vae_sha256(self) -> str:
        """Name of the VAE's weights and config, for caches. The two layouts of one model have different names."""
        return content_sha256(self.tensors["vae"].values(), json.dumps(self.configs["vae"], sort_keys=True))

    @cached_property
    def text_encoders_sha256(self) -> str:
        """Name of both text encoders' weights and configs, for caches."""
        parts: tuple[Part, Part] = ("text_encoder", "text_encoder_2")
        configs = [json.dumps(self.configs[part], sort_keys=True) for part in parts]
        return content_sha256([tensor for part in parts for tensor in self.tensors[part].values()], *configs)


def published_name(part: Part, name: str) -> str:
    """Undo what transformers 5 does to the names of a CLIPTextModel, whose published files all have `text_model.`, and
    what diffusers before 0.16 did to those of a VAE.
    """
    if part == "vae":
        for new, old in _OLD_VAE_NAMES.items():
            name = name.replace(old, new)
    has_prefix = name.startswith(("text_model.", "text_projection."))
    return f"text_model.{name}" if part.startswith("text_encoder") and not has_prefix else name


def open_base_model(path: Path) -> BaseModel:
    """Open a diffusers folder, or a single .safetensors file in Stability AI's layout.

    Raises:
        BaseModelInvalid: there is no such file, or it is not an SDXL base model. The message says what it is instead.
    """
    if path.is_dir():
        return _open_folder(path)
    if path.is_file():
        return _open_single_file(path)
    raise BaseModelInvalid(f"There is no base model at {path}.")


def _open_folder(path: Path) -> BaseModel:
    if not (path / "model_index.json").is_file():
        raise BaseModelInvalid(
            f"{path.name}/ holds no model_index.json: give the folder of a whole diffusers pipeline, or a single "
            f".safetensors file."
        )
    unet_config = UNetConfig.from_diffusers(_read_json(path / "unet" / "config.json"))
    scheduler = path / "scheduler" / "scheduler_config.json"
    told = _read_json(scheduler) if scheduler.is_file() else {}
    prediction_type = told.get("prediction_type", "epsilon")
    if prediction_type not in get_args(Prediction):
        raise BaseModelInvalid(
            f"{path.name}/scheduler says prediction_type {prediction_type}; known: {', '.join(get_args(Prediction))}."
        )
    return BaseModel(
        path=path,
        layout="diffusers",
        unet_config=unet_config,
        prediction_type=prediction_type,
        zero_terminal_snr=prediction_type == "v_prediction" and bool(told.get("rescale_betas_zero_snr")),
        configs={part: _read_json(path / part / "config.json") for part in _STEMS if part != "unet"},
        tensors={part: _read_part(path / part, stem) for part, stem in _STEMS.items()},
    )


def _read_part(folder: Path, stem: str) -> dict[str, StoredTensor]:
    """Return the tensors of one part: one file or several, whole or in a half-precision variant."""
    for name in (f"{stem}.safetensors", f"{stem}.fp16.safetensors"):
        if (folder / name).is_file():
            return read_header(folder / name)[0]
    for name in (f"{stem}.safetensors.index.json", f"{stem}.safetensors.index.fp16.json"):
        if (folder / name).is_file():
            return _read_shards(folder / name)
    pickles = [file.name for file in folder.glob("*.bin")]
    raise BaseModelInvalid(
        f"{folder.name}/ holds no {stem}.safetensors"
        + (f", only {pickles[0]}, a pickle, which can run code when read" if pickles else "")
        + ". Use a model with safetensors weights for every part."
    )


def _read_shards(index: Path) -> dict[str, StoredTensor]:
    """Return the tensors of all files that an index names."""
    weight_map: dict[str, str] = _read_json(index).get("weight_map", {})
    tensors: dict[str, StoredTensor] = {}
    for name in sorted(set(weight_map.values())):
        if Path(name).name != name or not (index.parent / name).is_file():
            raise BaseModelInvalid(f"{index.parent.name}/{index.name} names {name}, which is not there: fetch it too.")
        tensors |= read_header(index.parent / name)[0]
    return tensors


def _read_json(file: Path) -> dict[str, Any]:
    where = f"{file.parent.name}/{file.name}"
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BaseModelInvalid(f"The base model has no {where}: it is not a whole diffusers pipeline.") from None
    except ValueError as error:
        raise BaseModelInvalid(f"{where} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise BaseModelInvalid(f"{where} is not a JSON object.")
    return content


def _open_single_file(path: Path) -> BaseModel:
    stored, metadata = read_header(path)
    _refuse_other_contents(path.name, stored, metadata)
    tensors: dict[Part, dict[str, StoredTensor]] = {
        part: {key: tensor for key, tensor in stored.items() if key.startswith(prefix)}
        for part, prefix in PREFIXES.items()
    }
    if absent := [PREFIXES[part] + "*" for part, found in tensors.items() if not found]:
        raise BaseModelInvalid(
            f"{path.name} holds no tensor {', '.join(absent)}: use a whole SDXL checkpoint, with U-Net, VAE and both "
            f"text encoders."
        )
    read = {key for found in tensors.values() for key in found}
    if unread := sorted(key for key in stored.keys() - read if not (key.startswith(_BESIDE_PARTS) or is_ignored(key))):
        log.warning(
            "Left %d tensors of %s unread, since no part of SDXL holds them: %s",
            len(unread),
            path.name,
            ", ".join(unread[:5]),
        )
    configs = _single_file_configs(path.name, metadata)
    # Marks that fine-tunes carry and that ComfyUI and Forge read: an empty tensor of that name, or modelspec.
    predicts_v = "v_pred" in stored or metadata.get("modelspec.prediction_type") == "v"
    return BaseModel(
        path=path,
        layout="single_file",
        unet_config=UNetConfig.from_diffusers(configs.pop("unet")),
        prediction_type="v_prediction" if predicts_v else "epsilon",
        zero_terminal_snr=predicts_v and "ztsnr" in stored,
        configs=configs,
        tensors=tensors,
    )


def _single_file_configs(name: str, metadata: dict[str, str]) -> dict[Part, dict[str, Any]]:
    """Return all four configs: those the file brings, else SDXL's own."""
    if CONFIG_KEY not in metadata:
        return {
            "unet": UNetConfig.sdxl().to_diffusers(),
            "vae": sdxl_configs.VAE,
            "text_encoder": sdxl_configs.TEXT_ENCODER,
            "text_encoder_2": sdxl_configs.TEXT_ENCODER_2,
        }
    try:
        configs = json.loads(metadata[CONFIG_KEY])
        return {part: dict(configs[part]) for part in PREFIXES}
    except (ValueError, KeyError, TypeError) as error:
        raise BaseModelInvalid(
            f"The metadata {CONFIG_KEY} of {name} is damaged ({error!r}). Make the file again."
        ) from error


def _refuse_other_contents(name: str, stored: dict[str, StoredTensor], metadata: dict[str, str]) -> None:
    """Name what the file is where it is one of those that people mistake for an SDXL base model."""
    if any(".lora_" in key or ".lora." in key or key.startswith("lora_") for key in stored):
        raise BaseModelInvalid(f"{name} is a LoRA. base_model must be the SDXL checkpoint that the LoRA is put on.")
    if any(key.startswith(("down_blocks.", "encoder.down_blocks.", "text_model.")) for key in stored):
        raise BaseModelInvalid(
            f"{name} is one part of a diffusers pipeline. Give the folder that holds model_index.json instead."
        )
    if any(key.startswith("cond_stage_model.") for key in stored):
        family = "2" if any(key.startswith("cond_stage_model.model.") for key in stored) else "1.5"
        raise BaseModelInvalid(f"{name} is Stable Diffusion {family}. Use an SDXL base model.")
    conv_in = stored.get("model.diffusion_model.input_blocks.0.0.weight")
    if conv_in is not None and conv_in.shape[1:2] == (9,):
        raise BaseModelInvalid(f"{name} is an inpainting model (9 input channels). Use the SDXL base model.")
    if any(key.startswith("conditioner.embedders.0.model.") for key in stored):
        raise BaseModelInvalid(f"{name} is the SDXL refiner. LoRAs are trained on the base: use the SDXL base model.")
