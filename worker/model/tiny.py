"""A tiny SDXL base model for tests and for machines without a GPU: python -m worker.model.tiny OUT.

It has SDXL's topology and key names, the real tokenizer and small widths, and is written in both layouts that base
models come in. Its weights are random, but shaped so that training on it shows what training on SDXL shows:

- The U-Net starts as a passable denoiser: it predicts about the noisy latents themselves, which is nearly right where
  there is much noise. What is left to learn, most of all to subtract the picture where there is little, goes through
  the attention of the lower levels, where LoRA can reach it.
- The VAE's latents of pictures have a mean of 0 and a spread of 1 in every channel, at SDXL's own scaling factor.
"""

import argparse
import json
import math
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from worker.model import sdxl_configs, single_file
from worker.model.base_model import CONFIG_KEY
from worker.model.schedule import BETA_END, BETA_START, SAMPLE_STEPS_OFFSET, TRAIN_TIMESTEPS
from worker.model.single_file import Part
from worker.model.tokenizer import END, tokenizer_files
from worker.model.unet import UNet, UNetConfig

NAME = "tiny-sdxl"
Layout = Literal["both", "single_file", "diffusers"]
State = dict[str, Tensor]

_TEXT_SIZES = {"intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 2, "projection_dim": 16}
_CONFIGS: dict[Part, dict[str, Any]] = {
    "unet": UNetConfig.tiny().to_diffusers(),
    "vae": sdxl_configs.VAE | {"block_out_channels": [8, 16, 16, 16], "norm_num_groups": 4, "sample_size": 128},
    # All widths differ, so that no reader can take one for another (diffusers tells the encoders apart by theirs).
    "text_encoder": sdxl_configs.TEXT_ENCODER | _TEXT_SIZES | {"hidden_size": 8},
    "text_encoder_2": sdxl_configs.TEXT_ENCODER_2 | _TEXT_SIZES | {"hidden_size": 24},
}
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


def write_tiny_base(folder: Path, seed: int = 0, layout: Layout = "both") -> dict[str, Path]:
    """Write the tiny base model into `folder`, and return the path of each layout by its name.

    The same seed gives the same bytes. `single_file` is folder/tiny-sdxl.safetensors, `diffusers` is folder/tiny-sdxl/.
    """
    folder.mkdir(parents=True, exist_ok=True)
    states = _make_weights(seed)
    paths = {}
    if layout in ("both", "single_file"):
        paths["single_file"] = folder / f"{NAME}.safetensors"
        _write_single_file(paths["single_file"], states)
    if layout in ("both", "diffusers"):
        paths["diffusers"] = folder / NAME
        _write_folder(paths["diffusers"], states)
    return paths


def _make_weights(seed: int) -> dict[Part, State]:
    """Return the weights of all four parts in BF16, under the names that diffusers' files have."""
    generator = torch.Generator().manual_seed(seed)
    unet = UNet(UNetConfig.tiny())
    vae = AutoencoderKL.from_config(_CONFIGS["vae"])
    assert isinstance(vae, AutoencoderKL)
    encoder_1 = CLIPTextModel(CLIPTextConfig.from_dict(_CONFIGS["text_encoder"]))
    encoder_2 = CLIPTextModelWithProjection(CLIPTextConfig.from_dict(_CONFIGS["text_encoder_2"]))
    for module in (unet, vae, encoder_1, encoder_2):
        _randomize(module, generator)
    _shape_unet(unet)
    _shape_vae(vae, generator)
    return {
        "unet": _published(unet),
        "vae": _published(vae),
        "text_encoder": _published(encoder_1, prefix="text_model."),
        "text_encoder_2": _published(encoder_2),
    }


def _published(module: nn.Module, prefix: str = "") -> State:
    """Return the state dict as it is saved: BF16, and with `prefix` where transformers leaves it out."""
    return {
        name if name.startswith(prefix) else prefix + name: tensor.to(torch.bfloat16)
        for name, tensor in module.state_dict().items()
    }


@torch.no_grad()
def _randomize(module: nn.Module, generator: torch.Generator) -> None:
    """Draw every weight so that a unit input gives about a unit output; norms start as the identity, biases at 0."""
    for name, parameter in sorted(module.named_parameters()):
        if "_embedding." in name and "embeddings." in name:  # CLIP's tables of tokens and positions
            parameter.normal_(generator=generator)
        elif parameter.ndim > 1:
            parameter.normal_(generator=generator).mul_(1 / math.sqrt(parameter[0].numel()))
        else:
            parameter.fill_(0.0 if name.endswith("bias") else 1.0)


@torch.no_grad()
def _shape_unet(unet: UNet) -> None:
    """Lead the noisy latents through the outermost skip to the output, and turn the random rest down.

    Each latent channel travels as a pair (x, -x): silu(x) - silu(-x) = x brings it unbent through the last SiLU.
    """
    rest = 0.3  # keeps the output's random share small beside the latents
    last_resnet = unet.up_blocks.get_submodule("2.resnets.2")
    shortcut, width = last_resnet.get_parameter("conv_shortcut.weight"), unet.config.block_channels[0]
    pairs = 2 * unet.config.latent_channels
    unet.conv_in.weight[:pairs] = 0
    unet.conv_out.weight *= rest
    shortcut[:pairs] *= rest
    for channel in range(unet.config.latent_channels):
        for row, sign in ((2 * channel, 1.0), (2 * channel + 1, -1.0)):
            unet.conv_in.weight[row, channel, 1, 1] = sign  # the middle of the 3x3 kernel
            shortcut[row, width + row] = 1.0  # the skip's channels follow the hidden state's
            unet.conv_out.weight[channel, row, 1, 1] += sign


@torch.no_grad()
def _shape_vae(vae: AutoencoderKL, generator: torch.Generator) -> None:
    """Fold into the last layer of the encoder what brings latents of pictures to mean 0 and spread 1.

    Measured on coloured noise with the spectrum of photographs, in FP64 and rounded, so that the bytes do not depend on
    the number of threads.
    """
    size_px, count = 128, 8
    frequency_y, frequency_x = torch.fft.fftfreq(size_px)[:, None], torch.fft.rfftfreq(size_px)[None]
    # Amplitudes fall as one over the frequency: Field 1987, "Relations between the statistics of natural images".
    amplitude = 1 / (frequency_y.square() + frequency_x.square()).sqrt().clamp(min=1 / size_px)  # [H, W/2 + 1]
    noise = torch.randn(count, 3, size_px, size_px, generator=generator, dtype=torch.float64)
    pictures = torch.fft.irfft2(torch.fft.rfft2(noise) * amplitude)  # [8, 3, H, W]
    pictures = (pictures / pictures.std() / 2).clamp(-1, 1)

    posterior = vae.double().encode(pictures, return_dict=False)[0]
    latents = posterior.mode()  # [8, 4, h, w]
    means = (latents.mean(dim=(0, 2, 3)) * 256).round() / 256  # [4]
    spreads = (latents.std(dim=(0, 2, 3)) * 256).round() / 256  # [4]
    weight, bias = vae.float().get_parameter("quant_conv.weight"), vae.get_parameter("quant_conv.bias")
    gain = 1 / (spreads * _CONFIGS["vae"]["scaling_factor"])  # [4]
    weight[:4] *= gain.float()[:, None, None, None]
    bias[:4] = (-means * gain).float()
    weight[4:] = 0
    bias[4:] = -10.0  # log variance: a tight posterior, like SDXL's


def _write_folder(folder: Path, states: dict[Part, State]) -> None:
    """Write the diffusers layout."""
    files: dict[str, str] = {
        "model_index.json": json.dumps(_MODEL_INDEX, indent=2),
        "scheduler/scheduler_config.json": json.dumps(_SCHEDULER, indent=2),
        **{f"{part}/config.json": json.dumps(config, indent=2) for part, config in _CONFIGS.items()},
        **{f"tokenizer/{name}": text for name, text in tokenizer_files(END).items()},
        **{f"tokenizer_2/{name}": text for name, text in tokenizer_files("!").items()},
    }
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    for part, state in states.items():
        stem = "model" if part.startswith("text_encoder") else "diffusion_pytorch_model"
        _save(folder / part / f"{stem}.safetensors", state, {"format": "pt"})


def _write_single_file(file: Path, states: dict[Part, State]) -> None:
    """Write Stability AI's layout, with all four configs in the metadata."""
    merged: State = {}
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
    _save(file, merged, {CONFIG_KEY: json.dumps(_CONFIGS, sort_keys=True)})


def _save(file: Path, state: State, metadata: dict[str, str]) -> None:
    """Write beside and rename, since a reader may have the old file mapped. One metadata key, as many have no order."""
    partial = file.with_name(file.name + ".partial")
    save_file(state, partial, metadata=metadata)
    partial.replace(file)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a tiny SDXL base model.")
    parser.add_argument("out", type=Path, help="folder to write into")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same bytes (default: 0)")
    parser.add_argument("--layout", choices=["both", "single_file", "diffusers"], default="both")
    arguments = parser.parse_args()
    for layout, path in write_tiny_base(arguments.out, arguments.seed, arguments.layout).items():
        print(f"{layout}: {path}")


if __name__ == "__main__":
    main()
