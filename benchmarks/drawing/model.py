"""The drawing model's sizes, and its text encoders.

SDXL's topology in 7.4 million parameters, a third of which is the tables of CLIP's 49,408 tokens. The text encoders are
random and stay so: they tell words and their places apart, and what a word means is learnt by the U-Net's attention to
it. So a word that the model was never shown is as good as any other to teach it.
"""

import math

import torch
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from worker.model import sdxl_configs
from worker.model.base_writer import Configs
from worker.model.text_encoders import TextEncoders
from worker.model.unet import UNetConfig

NAME = "drawing-sdxl"
TEXT_WIDTHS = (16, 32)
POOLED_WIDTH = 32

UNET = UNetConfig(
    block_channels=(32, 64, 96),
    transformer_depths=(0, 1, 1),
    attention_heads=(2, 2, 3),
    text_embed_dim=sum(TEXT_WIDTHS),
    pooled_text_embed_dim=POOLED_WIDTH,
    time_id_embed_dim=16,
    norm_groups=8,
)
_TEXT_SIZES = {"num_hidden_layers": 2, "projection_dim": POOLED_WIDTH}
CONFIGS: Configs = {
    "unet": UNET.to_diffusers(),
    "vae": sdxl_configs.VAE
    | {"block_out_channels": [16, 32, 64, 64], "layers_per_block": 1, "norm_num_groups": 8, "sample_size": 128},
    "text_encoder": sdxl_configs.TEXT_ENCODER
    | _TEXT_SIZES
    | {"hidden_size": TEXT_WIDTHS[0], "intermediate_size": 4 * TEXT_WIDTHS[0], "num_attention_heads": 2},
    "text_encoder_2": sdxl_configs.TEXT_ENCODER_2
    | _TEXT_SIZES
    | {"hidden_size": TEXT_WIDTHS[1], "intermediate_size": 4 * TEXT_WIDTHS[1], "num_attention_heads": 4},
}

_MIXING = 0.5  # of what attention and feed-forward add: a word stays what it is, tinged by those before it
_PLACE = 0.3  # of the position table: small beside the words, as CLIP's is


def random_text_encoders(seed: int) -> TextEncoders:
    """Return both text encoders with random weights; the same seed gives the same weights."""
    generator = torch.Generator().manual_seed(seed)
    encoder_1 = CLIPTextModel(CLIPTextConfig.from_dict(CONFIGS["text_encoder"]))
    encoder_2 = CLIPTextModelWithProjection(CLIPTextConfig.from_dict(CONFIGS["text_encoder_2"]))
    for encoder in (encoder_1, encoder_2):
        _randomize(encoder, generator)
        encoder.requires_grad_(False).eval()
    return TextEncoders(encoder_1, encoder_2)


@torch.no_grad()
def _randomize(encoder: nn.Module, generator: torch.Generator) -> None:
    """Draw weights that keep a unit input a unit output, rounded to BF16 as they will be saved."""
    for name, parameter in sorted(encoder.named_parameters()):
        if "token_embedding" in name:
            parameter.normal_(generator=generator)
        elif "position_embedding" in name:
            parameter.normal_(generator=generator).mul_(_PLACE)
        elif parameter.ndim > 1:
            gain = _MIXING if name.endswith(("out_proj.weight", "fc2.weight")) else 1.0
            parameter.normal_(generator=generator).mul_(gain / math.sqrt(parameter.shape[1]))
        else:
            parameter.fill_(0.0 if name.endswith("bias") else 1.0)
        parameter.copy_(parameter.bfloat16())
