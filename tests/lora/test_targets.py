"""Patterns name layers by path, overrides give them other ranks, and what matches nothing is told with what is near."""

import pytest
import torch

from worker.errors import LoRAInvalid
from worker.lora.config import LoRAConfig, Override
from worker.lora.inject import inject
from worker.lora.layer import LoRAConv2d
from worker.lora.targets import choose
from worker.model.unet import UNet, UNetConfig

PATHS = [
    "conv_in",
    "mid_block.attentions.0.transformer_blocks.0.attn1.to_q",
    "mid_block.attentions.0.transformer_blocks.0.attn2.to_k",
    "mid_block.attentions.0.transformer_blocks.1.attn2.to_k",
    "mid_block.resnets.0.conv1",
    "mid_block.resnets.1.conv1",
    "text_encoder.text_model.encoder.layers.0.mlp.fc1",
]


def chosen(**config: object) -> list[str]:
    return list(choose(PATHS, LoRAConfig(targets="none", **config)))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("pattern", "paths"),
    [
        ("conv_in", PATHS[:1]),
        ("*.attn2.*", PATHS[2:4]),
        ("mid_block.resnets.?.conv1", PATHS[4:6]),
        ("*.transformer_blocks.[1-9].*", PATHS[3:4]),
        (r"re:mid_block\.resnets\.\d+\.conv[12]", PATHS[4:6]),
        ("re:conv.*", PATHS[:1]),  # of whole paths: no resnet's conv1
    ],
)
def test_a_pattern_names_layers_by_their_whole_path(pattern: str, paths: list[str]) -> None:
    assert chosen(patterns=(pattern,)) == paths


def test_patterns_join_the_targets_and_each_other() -> None:
    assert list(choose(PATHS, LoRAConfig(targets="qkv", patterns=("conv_in",)))) == PATHS[:4]
    assert chosen(patterns=("conv_in", "*.conv1")) == [PATHS[0], *PATHS[4:6]]


@pytest.mark.parametrize("field", ["patterns", "overrides"])
def test_what_matches_nothing_is_an_error_that_names_what_is_near(field: str) -> None:
    mistake = "*.atn2.to_k"
    config = {"patterns": (mistake,)} if field == "patterns" else {"overrides": (Override(mistake, 8),)}
    with pytest.raises(LoRAInvalid, match=rf"lora.{field}: .*atn2.* match.* Near it are mid_block.*0.attn2.to_k, "):
        choose(PATHS, LoRAConfig(**config))  # type: ignore[arg-type]


def test_an_override_for_a_layer_without_adapter_is_an_error() -> None:
    with pytest.raises(LoRAInvalid, match=r"matches none of the 3 layers that get an adapter"):
        choose(PATHS, LoRAConfig(overrides=(Override("*.conv1", 8),)))


def test_the_first_override_that_matches_counts_and_leaves_what_it_does_not_say() -> None:
    overrides = (Override("*_blocks.1.*", rank=2), Override("*attn2*", rank=8, alpha=3.0))
    ranks = choose(PATHS, LoRAConfig(rank=4, alpha=16.0, overrides=overrides))
    assert list(ranks.values()) == [(4, 16.0), (8, 3.0), (2, 16.0)]


def test_a_rank_given_by_an_override_is_that_of_the_layer_and_limited_by_it() -> None:
    with torch.device("meta"):
        unet = UNet(UNetConfig.sdxl()).requires_grad_(False)
    overrides = (Override("*.conv1", rank=32, alpha=8.0), Override("*", rank=6))
    lora = inject(unet, LoRAConfig(targets="locon", overrides=overrides), seed=0)
    conv = lora.modules["mid_block.resnets.0.conv1"]
    assert isinstance(conv, LoRAConv2d)
    assert (conv.lora_A.shape, conv.lora_B.shape, conv.scale) == ((32, 1280, 3, 3), (1280, 32, 1, 1), 0.25)
    assert lora.modules["mid_block.attentions.0.proj_in"].lora_A.shape == (6, 1280)
    with torch.device("meta"):
        unet = UNet(UNetConfig.sdxl()).requires_grad_(False)
    with pytest.raises(LoRAInvalid, match=r"lora.rank is 321, but conv_in is 320x36: use 1 to 36\."):
        inject(unet, LoRAConfig(patterns=("conv_in",), overrides=(Override("conv_in", rank=321),)), seed=0)
