"""Names of SDXL's tensors in a single file, which keeps the layout of Stability AI's own code.

Everything else in loraq uses the names of diffusers and transformers; this is the only place that knows the others.

Sources, for the names: https://github.com/Stability-AI/generative-models (U-Net, VAE) and
https://github.com/mlfoundations/open_clip (second text encoder).
"""

import re
from dataclasses import dataclass
from typing import Literal

Part = Literal["unet", "vae", "text_encoder", "text_encoder_2"]

PREFIXES: dict[Part, str] = {
    "unet": "model.diffusion_model.",
    "vae": "first_stage_model.",
    "text_encoder": "conditioner.embedders.0.transformer.",
    "text_encoder_2": "conditioner.embedders.1.model.",
}

# CLIP's, but not SDXL's: a buffer that old versions saved, CLIP's temperature, and the first encoder's projection.
_IGNORED_ENDS = ("position_ids", "logit_scale", "embedders.0.transformer.text_projection.weight")


def is_ignored(key: str) -> bool:
    """Say whether a tensor of a text encoder may lie in a file without SDXL using it."""
    return key.endswith(_IGNORED_ENDS)


@dataclass(frozen=True)
class Location:
    """Where one of our tensors lies in a file, and in what form."""

    key: str  # name in the file
    third: int | None = None  # which third of the rows, where query, key and value are stored as one
    form: Literal["same", "transposed", "convolution"] = "same"  # convolution: a linear layer stored as 1x1 kernel


_UNET_ENDS = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_UNET_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_UNET_BLOCK = re.compile(r"(down_blocks|up_blocks)\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)")
_UNET_MIDDLE = re.compile(r"mid_block\.(resnets|attentions)\.(\d+)\.(.+)")


def unet_name(name: str) -> str:
    """Translate a key, or the path of a module, of SDXL's U-Net from diffusers' spelling to Stability AI's.

    Stability AI counts all blocks of the way down, and of the way up, in one row: three a level.

    Raises:
        ValueError: SDXL's U-Net has no such name.
    """
    if match := _UNET_BLOCK.fullmatch(name):
        side, level, kind, index, rest = match.groups()
        down = side == "down_blocks"
        first = 3 * int(level) + (1 if down else 0)  # block 0 of the way down is conv_in
        row = f"{'input' if down else 'output'}_blocks."
        if kind == "downsamplers":
            return f"{row}{first + 2}.0.{rest.replace('conv', 'op', 1)}"
        if kind == "upsamplers":
            return f"{row}{first + 2}.2.{rest}"  # after the residual block and the transformer
        if kind == "attentions":
            return f"{row}{first + int(index)}.1.{rest}"
        return f"{row}{first + int(index)}.0.{_rename(rest, _UNET_RESNET)}"
    if match := _UNET_MIDDLE.fullmatch(name):
        kind, index, rest = match.groups()
        if kind == "attentions":
            return f"middle_block.1.{rest}"
        return f"middle_block.{2 * int(index)}.{_rename(rest, _UNET_RESNET)}"
    return _rename(name, _UNET_ENDS)


_VAE_RESNET = {"conv_shortcut": "nin_shortcut"}
_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
_VAE_BLOCK = re.compile(r"(encoder|decoder)\.(?:down|up)_blocks\.(\d+)\.(resnets|downsamplers|upsamplers)\.(\d+)\.(.+)")
_VAE_MIDDLE = re.compile(r"(encoder|decoder)\.mid_block\.(resnets|attentions)\.(\d+)\.(.+)")
_VAE_LEVELS = 4  # SDXL's VAE halves the picture three times


def _vae(name: str) -> Location:
    if match := _VAE_BLOCK.fullmatch(name):
        side, level, kind, index, rest = match.groups()
        # The decoder's levels, too, are counted from the picture inwards.
        level_name = f"down.{level}" if side == "encoder" else f"up.{_VAE_LEVELS - 1 - int(level)}"
        if kind == "resnets":
            return Location(f"{side}.{level_name}.block.{index}.{_rename(rest, _VAE_RESNET, strict=False)}")
        return Location(f"{side}.{level_name}.{kind.removesuffix('rs')}.{rest}")
    if match := _VAE_MIDDLE.fullmatch(name):
        side, kind, index, rest = match.groups()
        if kind == "resnets":
            return Location(f"{side}.mid.block_{int(index) + 1}.{_rename(rest, _VAE_RESNET, strict=False)}")
        kernel = rest.endswith(".weight") and not rest.startswith("group_norm")
        return Location(f"{side}.mid.attn_1.{_rename(rest, _VAE_ATTENTION)}", form="convolution" if kernel else "same")
    return Location(name.replace("conv_norm_out", "norm_out"))


_OPEN_CLIP_ENDS = {
    "text_model.embeddings.token_embedding": "token_embedding",
    "text_model.final_layer_norm": "ln_final",
}
_OPEN_CLIP_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "self_attn.out_proj": "attn.out_proj",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
_TRANSFORMERS_LAYER = re.compile(r"text_model\.encoder\.layers\.(\d+)\.(.+)")
_PROJECTION = re.compile(r"self_attn\.([qkv])_proj\.(weight|bias)")


def _open_clip(name: str) -> Location:
    if name == "text_projection.weight":
        return Location("text_projection", form="transposed")  # open_clip multiplies from the right
    if name == "text_model.embeddings.position_embedding.weight":
        return Location("positional_embedding")
    if match := _TRANSFORMERS_LAYER.fullmatch(name):
        layer, rest = match.groups()
        if projection := _PROJECTION.fullmatch(rest):
            which, kind = projection.groups()
            return Location(f"transformer.resblocks.{layer}.attn.in_proj_{kind}", third="qkv".index(which))
        return Location(f"transformer.resblocks.{layer}.{_rename(rest, _OPEN_CLIP_LAYER)}")
    return Location(_rename(name, _OPEN_CLIP_ENDS))


def locate(part: Part, name: str) -> Location:
    """Return where tensor `name` of `part` lies in a single file.

    Raises:
        ValueError: SDXL has no tensor of that name.
    """
    if part == "unet":
        location = Location(unet_name(name))
    elif part == "vae":
        location = _vae(name)
    elif part == "text_encoder_2":
        location = _open_clip(name)
    else:
        location = Location(name)
    return Location(PREFIXES[part] + location.key, location.third, location.form)


def _rename(name: str, table: dict[str, str], *, strict: bool = True) -> str:
    """Replace the start of `name` by what `table` has for it."""
    for ours, theirs in table.items():
        if name == ours or name.startswith(ours + "."):
            return theirs + name.removeprefix(ours)
    if strict:
        raise ValueError(f"SDXL has no tensor or module called {name!r} here.")
    return name
