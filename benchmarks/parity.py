"""The full-size SDXL U-Net, ours and diffusers', on the same random weights: how far are their predictions apart?

    python -m benchmarks.parity [--resolution 1024]     needs a CUDA device and diffusers

Both in FP32 (without TF32) and in BF16, each held against diffusers in FP32. Nets that agree within BF16's rounding are
as far from each other as either is from the FP32 one. Prints one JSON line a comparison.
"""

import argparse
import json
from collections.abc import Callable

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from worker.model.unet import UNet, UNetConfig

TIMESTEPS = (20, 500, 980)


def predictions(
    make: Callable[[], torch.nn.Module], state: dict[str, Tensor], inputs: dict[str, Tensor]
) -> list[Tensor]:
    """Predict at each of TIMESTEPS with weights of the inputs' dtype: [1, 4, h, w] each, as FP32."""
    dtype = inputs["noisy_latents"].dtype
    with torch.device("meta"):
        unet = make()
    unet.load_state_dict({name: tensor.to(dtype) for name, tensor in state.items()}, assign=True)
    added = {"text_embeds": inputs["pooled_text_embeds"], "time_ids": inputs["time_ids"]}
    text_embeds, results = inputs["text_embeds"], []
    for timestep in TIMESTEPS:
        timesteps = torch.tensor([timestep], device="cuda")
        if isinstance(unet, UNet):
            result = unet(inputs["noisy_latents"], timesteps, text_embeds, added["text_embeds"], added["time_ids"])
        else:
            result = unet(inputs["noisy_latents"], timesteps, text_embeds, added_cond_kwargs=added, return_dict=False)[
                0
            ]
        results.append(result.float())
    return results


def apart(ours: list[Tensor], theirs: list[Tensor]) -> dict[str, float]:
    """Greatest and root-mean-square difference, over the root-mean-square of `theirs`."""
    difference, scale = torch.cat(ours) - torch.cat(theirs), torch.cat(theirs).square().mean().sqrt()
    return {
        "greatest": (difference.abs().max() / scale).item(),
        "rms": (difference.square().mean().sqrt() / scale).item(),
    }


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description="Compare the full-size U-Net with diffusers'.")
    parser.add_argument("--resolution", type=int, default=1024)
    resolution = parser.parse_args().resolution
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.manual_seed(0)
    config = UNetConfig.sdxl()
    with torch.device("cuda"):
        state = UNet(config).state_dict()
        inputs = {
            "noisy_latents": torch.randn(1, 4, resolution // 8, resolution // 8),
            "text_embeds": torch.randn(1, 77, config.text_embed_dim),
            "pooled_text_embeds": torch.randn(1, config.pooled_text_embed_dim),
            "time_ids": torch.tensor([[float(resolution), resolution, 0, 0, resolution, resolution]]),
        }
    halves = {name: tensor.bfloat16() for name, tensor in inputs.items()}
    makes = {
        "ours": lambda: UNet(config),
        "diffusers": lambda: UNet2DConditionModel.from_config(config.to_diffusers()),
    }
    found = {
        (whose, dtype): predictions(make, state, given)
        for whose, make in makes.items()
        for dtype, given in (("FP32", inputs), ("BF16", halves))
    }
    versions = {"torch": torch.__version__, "device": torch.cuda.get_device_name(), "resolution": resolution}
    pairs = [(("ours", "FP32"), ("diffusers", "FP32")), (("ours", "BF16"), ("diffusers", "BF16"))]
    pairs += [((whose, "BF16"), ("diffusers", "FP32")) for whose in makes]
    for one, other in pairs:
        print(json.dumps({"of": " ".join(one), "from": " ".join(other)} | apart(found[one], found[other]) | versions))


if __name__ == "__main__":
    main()
