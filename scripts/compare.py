"""Does the exported LoRA do in diffusers what it did in training? Compares two predictions, ours and theirs.

python scripts/compare.py BASE.safetensors LORA.safetensors
"""

import sys
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from diffusers.loaders import StableDiffusionXLLoraLoaderMixin

from worker.lora.merge import merge_into
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
        merge_into(ours, Path(lora_path))
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


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2]))
