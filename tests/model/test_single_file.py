"""Names of a single file: each of ours has exactly one place there."""

import json
from pathlib import Path

import pytest

from worker.model.single_file import Location, Part, locate, unet_name

KEYS = json.loads((Path(__file__).parents[1] / "contracts" / "unet_keys.json").read_text())


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("conv_in.weight", "input_blocks.0.0.weight"),
        ("time_embedding.linear_2.bias", "time_embed.2.bias"),
        ("add_embedding.linear_1.weight", "label_emb.0.0.weight"),
        ("down_blocks.0.resnets.1.conv2.weight", "input_blocks.2.0.out_layers.3.weight"),
        ("down_blocks.0.downsamplers.0.conv.weight", "input_blocks.3.0.op.weight"),
        ("down_blocks.2.resnets.0.conv_shortcut.bias", "input_blocks.7.0.skip_connection.bias"),
        (
            "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q.weight",
            "input_blocks.4.1.transformer_blocks.0.attn1.to_q.weight",
        ),
        ("mid_block.resnets.1.time_emb_proj.bias", "middle_block.2.emb_layers.1.bias"),
        ("mid_block.attentions.0.proj_in.weight", "middle_block.1.proj_in.weight"),
        ("up_blocks.0.attentions.2.proj_out.weight", "output_blocks.2.1.proj_out.weight"),
        ("up_blocks.0.upsamplers.0.conv.weight", "output_blocks.2.2.conv.weight"),
        ("up_blocks.1.upsamplers.0.conv.bias", "output_blocks.5.2.conv.bias"),
        ("up_blocks.2.resnets.2.norm1.weight", "output_blocks.8.0.in_layers.0.weight"),
        ("conv_norm_out.weight", "out.0.weight"),
    ],
)
def test_unet_names(ours: str, theirs: str):
    assert unet_name(ours) == theirs


def test_paths_of_modules_are_translated_too():
    path = "up_blocks.1.attentions.1.transformer_blocks.1.attn2.to_out.0"
    assert unet_name(path) == "output_blocks.4.1.transformer_blocks.1.attn2.to_out.0"


def test_all_names_of_the_full_unet_are_different():
    assert len({unet_name(key) for key in KEYS}) == len(KEYS) == 1_680


@pytest.mark.parametrize(
    ("part", "ours", "theirs"),
    [
        ("vae", "quant_conv.bias", Location("first_stage_model.quant_conv.bias")),
        ("vae", "decoder.conv_norm_out.bias", Location("first_stage_model.decoder.norm_out.bias")),
        (
            "vae",
            "encoder.down_blocks.1.resnets.0.conv_shortcut.weight",
            Location("first_stage_model.encoder.down.1.block.0.nin_shortcut.weight"),
        ),
        (
            "vae",
            "decoder.up_blocks.0.upsamplers.0.conv.weight",
            Location("first_stage_model.decoder.up.3.upsample.conv.weight"),
        ),
        (
            "vae",
            "encoder.mid_block.attentions.0.to_out.0.weight",
            Location("first_stage_model.encoder.mid.attn_1.proj_out.weight", form="convolution"),
        ),
        (
            "vae",
            "encoder.mid_block.attentions.0.group_norm.weight",
            Location("first_stage_model.encoder.mid.attn_1.norm.weight"),
        ),
        (
            "text_encoder",
            "text_model.final_layer_norm.bias",
            Location("conditioner.embedders.0.transformer.text_model.final_layer_norm.bias"),
        ),
        (
            "text_encoder_2",
            "text_model.encoder.layers.3.self_attn.v_proj.weight",
            Location("conditioner.embedders.1.model.transformer.resblocks.3.attn.in_proj_weight", third=2),
        ),
        (
            "text_encoder_2",
            "text_projection.weight",
            Location("conditioner.embedders.1.model.text_projection", form="transposed"),
        ),
    ],
)
def test_names_of_the_other_parts(part: Part, ours: str, theirs: Location):
    assert locate(part, ours) == theirs


@pytest.mark.parametrize("name", ["control.weight", "mid_block.resnets.0.conv3.weight", "conv_input.weight"])
def test_a_name_that_sdxl_does_not_have_is_an_error(name: str):
    with pytest.raises(ValueError, match="SDXL has no tensor or module called"):
        unet_name(name)
