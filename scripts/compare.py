"""Does the exported LoRA do in diffusers what it did in training? Compares two predictions, ours and theirs.

python scripts/compare.py BASE.safetensors LORA.safetensors
"""

import sys
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from diffusers.loaders import StableDiffusionXLLoraLoaderMixin
from safetensors import safe_open
from safetensors.torch import load_file

from worker.lora.config import LoRAConfig
from worker.lora.inject import inject
from worker.lora.names import kohya_name
from worker.model.unet import UNet
from worker.model.weights import load_unet, open_base_model


def main(base_path: str, lora_path: str) -> int:
    """Print how far the two predictions and the untouched base's are apart. 0 if ours and theirs agree."""
    base = open_base_model(Path(base_path))
    ours = load_unet(base, torch.device("cpu"), torch.float32)
    theirs = UNet2DConditionModel.from_config(base.unet_config.to_diffusers())
    theirs.load_state_dict(ours.state_dict())
    generator = torch.Generator().manual_seed(0)
    config = base.unet_config
    inputs = {
        "noisy_latents": torch.randn(1, config.latent_channels, 16, 16, generator=generator),
        "timesteps": torch.tensor([500]),
        "text_embeds": torch.randn(1, 77, config.text_embed_dim, generator=generator),
        "pooled_text_embeds": torch.randn(1, config.pooled_text_embed_dim, generator=generator),
        "time_ids": torch.tensor([[128.0, 128, 0, 0, 128, 128]]),
    }
    with torch.no_grad():
        untouched = ours(**inputs)
        put_on(ours, lora_path)
        trained = ours(**inputs)
        state, alphas = StableDiffusionXLLoraLoaderMixin.lora_state_dict(lora_path, unet_config=theirs.config)
        StableDiffusionXLLoraLoaderMixin.load_lora_into_unet(state, network_alphas=alphas, unet=theirs)
        added = {"text_embeds": inputs["pooled_text_embeds"], "time_ids": inputs["time_ids"]}
        read = theirs(
            inputs["noisy_latents"], inputs["timesteps"], inputs["text_embeds"], added_cond_kwargs=added
        ).sample
    effect, difference = (trained - untouched).abs().max().item(), (trained - read).abs().max().item()
    print(
        f"The LoRA moves the prediction by up to {effect:.3f}; loraq and diffusers differ by at most {difference:.1e}."
    )
    return 0 if difference < 1e-4 < effect else 1


def put_on(unet: UNet, lora_path: str) -> None:
    """Give our U-Net the adapter of a kohya file that loraq wrote."""
    with safe_open(lora_path, "pt") as file:
        header = file.metadata()
    tensors = load_file(lora_path)
    attention_names = {name.partition(".")[0].rpartition("_to_")[2] for name in tensors if "_to_" in name}
    has_feed_forward = any("_ff_net_" in name for name in tensors)
    targets = "transformer" if has_feed_forward else "attention" if "out_0" in attention_names else "qkv"
    lora = inject(unet, LoRAConfig(int(header["ss_network_dim"]), float(header["ss_network_alpha"]), targets), seed=0)
    for path, layer in lora.modules.items():
        layer.lora_A.copy_(tensors[f"{kohya_name(path)}.lora_down.weight"])
        layer.lora_B.copy_(tensors[f"{kohya_name(path)}.lora_up.weight"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2]))
