"""Writes a base model in either layout that base models come in: one single file, or a diffusers folder."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from worker.model import single_file
from worker.model.base_model import CONFIG_KEY
from worker.model.schedule import BETA_END, BETA_START, SAMPLE_STEPS_OFFSET, TRAIN_TIMESTEPS
from worker.model.single_file import Part
from worker.model.tokenizer import END, tokenizer_files

State = dict[str, Tensor]
Configs = dict[Part, dict[str, Any]]

_SCHEDULER = {
    "_class_name": "EulerDiscreteScheduler",
    "beta_end": BETA_END,
    "beta_schedule": "scaled_linear",
    "beta_start": BETA_START,
    "num_train_timesteps": TRAIN_TIMESTEPS,
    "prediction_type": "epsilon",
    "steps_offset": SAMPLE_STEPS_OFFSET,
    "timestep_spacing": "leading",
}
_MODEL_INDEX = {
    "_class_name": "StableDiffusionXLPipeline",
    "force_zeros_for_empty_prompt": True,
    "scheduler": ["diffusers", "EulerDiscreteScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "tokenizer_2": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}


def published_states(modules: dict[Part, nn.Module]) -> dict[Part, State]:
    """Return the weights of all four parts in BF16, under the names that diffusers' files have."""
    # transformers 5 leaves this prefix out of a CLIPTextModel's names; published files all have it.
    prefixes: dict[Part, str] = {"text_encoder": "text_model."}
    return {part: _published(module, prefixes.get(part, "")) for part, module in modules.items()}


def _published(module: nn.Module, prefix: str) -> State:
    return {
        name if name.startswith(prefix) else prefix + name: tensor.to("cpu", torch.bfloat16)
        for name, tensor in module.state_dict().items()
    }


def write_folder(folder: Path, configs: Configs, states: dict[Part, State]) -> None:
    """Write the diffusers layout, tokenizers and scheduler included."""
    files: dict[str, str] = {
        "model_index.json": json.dumps(_MODEL_INDEX, indent=2),
        "scheduler/scheduler_config.json": json.dumps(_SCHEDULER, indent=2),
        **{f"{part}/config.json": json.dumps(config, indent=2) for part, config in configs.items()},
        **{f"tokenizer/{name}": text for name, text in tokenizer_files(END).items()},
        **{f"tokenizer_2/{name}": text for name, text in tokenizer_files("!").items()},
    }
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    for part, state in states.items():
        stem = "model" if part.startswith("text_encoder") else "diffusion_pytorch_model"
        _save(folder / part / f"{stem}.safetensors", state, {"format": "pt"})


def write_single_file(
    file: Path,
    configs: Configs,
    states: dict[Part, State],
    metadata: Mapping[str, str] | None = None,
    marks: Iterable[str] = (),
) -> None:
    """Write Stability AI's layout, with all four configs in the metadata beside what is given.

    `marks` are names of empty tensors, by which fine-tunes say what they predict: `v_pred`, `ztsnr`.
    """
    merged: State = {mark: torch.empty(0) for mark in marks}
    thirds: dict[str, dict[int, Tensor]] = {}
    for part, state in states.items():
        for name, tensor in state.items():
            location = single_file.locate(part, name)
            if location.third is not None:
                thirds.setdefault(location.key, {})[location.third] = tensor
            elif location.form == "transposed":
                merged[location.key] = tensor.T.contiguous()
            else:
                merged[location.key] = tensor[..., None, None] if location.form == "convolution" else tensor
    merged |= {key: torch.cat([parts[i] for i in range(3)]) for key, parts in thirds.items()}
    _save(file, merged, {CONFIG_KEY: json.dumps(configs, sort_keys=True), **(metadata or {})})


def _save(file: Path, state: State, metadata: dict[str, str]) -> None:
    """Write beside and rename, since a reader may have the old file mapped. Several metadata keys come in any order."""
    partial = file.with_name(file.name + ".partial")
    save_file({key: tensor.contiguous() for key, tensor in state.items()}, partial, metadata=metadata)
    partial.replace(file)
