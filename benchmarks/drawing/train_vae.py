"""The drawing model's VAE: trained on the pictures, then brought to SDXL's scaling factor.

Shapes: b batch, H and W picture pixels, h and w an eighth of them. Source: Rombach et al. 2022, "High-Resolution Image
Synthesis with Latent Diffusion Models" (arXiv:2112.10752), section 3.1, without the adversarial part.
"""

import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor

from benchmarks.drawing.model import CONFIGS
from benchmarks.drawing.training import Log, Trained, train

BATCH, LEARNING_RATE = 64, 5e-4
KL_WEIGHT = 3e-4  # beside the errors: latents come out smooth, and little is lost
SQUARED_WEIGHT = (
    1.0  # of the mean squared error beside the mean absolute one: a wrong colour costs more than a soft edge
)


def train_vae(pictures: Tensor, steps: int, log: Log) -> AutoencoderKL:
    """Train on pictures [n, 3, H, W], uint8, on the device where they are. The same place, too, holds the VAE."""
    vae = AutoencoderKL.from_config(CONFIGS["vae"])
    assert isinstance(vae, AutoencoderKL)
    vae.to(pictures.device)

    def loss() -> Tensor:
        chosen = torch.randint(len(pictures), (BATCH,), device=pictures.device)
        values = as_values(pictures[chosen])  # [b, 3, H, W]
        (posterior,) = vae.encode(values, return_dict=False)
        mean, log_variance = posterior.mean.float(), posterior.logvar.float()
        latents = mean + (0.5 * log_variance).exp() * torch.randn_like(mean)  # [b, 4, h, w]
        (decoded,) = vae.decode(latents, return_dict=False)
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
        errors = F.l1_loss(decoded.float(), values) + SQUARED_WEIGHT * F.mse_loss(decoded.float(), values)
        return errors + KL_WEIGHT * divergence

    trained = train(Trained(vae, loss, pictures.device), steps, LEARNING_RATE, "VAE", log)
    vae.load_state_dict(trained)
    _bring_to_scale(vae, pictures)
    return vae.requires_grad_(False).eval()


def as_values(pictures: Tensor) -> Tensor:
    """uint8 to -1..1, FP32."""
    return pictures.float() / 127.5 - 1


@torch.no_grad()
def _bring_to_scale(vae: AutoencoderKL, pictures: Tensor) -> None:
    """Fold into the layers beside the latents what gives them mean 0 and, times the scaling factor, spread 1."""
    moments = torch.cat([vae.encode(as_values(some), return_dict=False)[0].mean for some in pictures[:4096].split(256)])
    means, spreads = moments.mean(dim=(0, 2, 3)), moments.std(dim=(0, 2, 3))  # [4]
    gain = 1 / (spreads * vae.config["scaling_factor"])  # [4]
    into, out_of = (vae.get_submodule(name) for name in ("quant_conv", "post_quant_conv"))
    weight, bias = into.get_parameter("weight"), into.get_parameter("bias")
    weight[:4] *= gain[:, None, None, None]
    bias[:4] = (bias[:4] - means) * gain
    bias[4:] += 2 * gain.log()  # the log variance grows with the scale
    weight, bias = out_of.get_parameter("weight"), out_of.get_parameter("bias")
    bias += weight[:, :, 0, 0] @ means
    weight /= gain[None, :, None, None]


@torch.no_grad()
def reconstruct(vae: AutoencoderKL, pictures: Tensor) -> Tensor:
    """Encode to the posterior's mode and decode: [n, 3, H, W] uint8 to the same, on the CPU."""
    modes = [vae.encode(as_values(some), return_dict=False)[0].mode() for some in pictures.split(256)]
    values = torch.cat([vae.decode(latents, return_dict=False)[0] for latents in modes])
    return ((values + 1) * 127.5).round().clamp(0, 255).byte().cpu()


@torch.no_grad()
def encode_all(vae: AutoencoderKL, pictures: Tensor) -> Tensor:
    """Latents of all pictures, scaled as the U-Net takes them: [n, 3, H, W] uint8 to [n, 4, h, w]."""
    modes = [vae.encode(as_values(some), return_dict=False)[0].mode() for some in pictures.split(512)]
    return torch.cat(modes) * vae.config["scaling_factor"]
