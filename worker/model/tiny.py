"""A tiny SDXL base model for tests and for machines without a GPU: python -m worker.model.tiny OUT.

It has SDXL's topology and key names, the real tokenizer and small widths, and is written in both layouts that base
models come in. Its weights are random, but shaped so that training on it shows what training on SDXL shows:

- The U-Net starts as a passable denoiser: it predicts about the noisy latents themselves, which is nearly right where
  there is much noise. What is left to learn, most of all to subtract the picture where there is little, goes through
  the attention of the lower levels, where LoRA can reach it.
- The VAE's latents of pictures have a mean of 0 and a spread of 1 in every channel, at SDXL's own scaling factor.
"""

import argparse
import math
from pathlib import Path
from typing import Literal

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from worker.model import sdxl_configs
from worker.model.base_writer import Configs, State, published_states, write_folder, write_single_file
from worker.model.single_file import Part
from worker.model.unet import UNet, UNetConfig

NAME = "tiny-sdxl"
Layout = Literal["both", "single_file", "diffusers"]

_TEXT_SIZES = {"intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 2, "projection_dim": 16}
_CONFIGS: Configs = {
    "unet": UNetConfig.tiny().to_diffusers(),
    "vae": sdxl_configs.VAE | {"block_out_channels": [8, 16, 16, 16], "norm_num_groups": 4, "sample_size": 128},
    # All widths differ, so that no reader can take one for another (diffusers tells the encoders apart by theirs).
    "text_encoder": sdxl_configs.TEXT_ENCODER | _TEXT_SIZES | {"hidden_size": 8},
    "text_encoder_2": sdxl_configs.TEXT_ENCODER_2 | _TEXT_SIZES | {"hidden_size": 24},
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
        write_single_file(paths["single_file"], _CONFIGS, states)
    if layout in ("both", "diffusers"):
        paths["diffusers"] = folder / NAME
        write_folder(paths["diffusers"], _CONFIGS, states)
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
    return published_states({"unet": unet, "vae": vae, "text_encoder": encoder_1, "text_encoder_2": encoder_2})


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
