"""The U-Net's size, names, shapes and dtypes, without any reference implementation."""

import inspect
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from worker.errors import BaseModelInvalid
from worker.model.embeddings import sinusoidal_embedding
from worker.model.layers import BasicTransformerBlock, ResnetBlock2D
from worker.model.unet import DownBlock, UNet, UNetConfig, UpBlock

CONTRACT = Path(__file__).parents[1] / "contracts" / "unet_keys.json"


def inputs(config: UNetConfig, batch: int = 2, height: int = 8, width: int = 12) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    return (
        torch.randn(batch, 4, height, width, generator=generator),
        torch.randint(0, 1000, (batch,), generator=generator),
        torch.randn(batch, 77, config.text_embed_dim, generator=generator),
        torch.randn(batch, config.pooled_text_embed_dim, generator=generator),
        torch.tensor([[768.0, 1024, 0, 0, 64, 96]]).expand(batch, -1),
    )


@pytest.fixture
def tiny_unet() -> UNet:
    torch.manual_seed(0)
    return UNet(UNetConfig.tiny())


def test_full_size_has_sdxls_parameters_keys_and_shapes():
    with torch.device("meta"):
        unet = UNet(UNetConfig.sdxl())
    assert sum(p.numel() for p in unet.parameters()) == 2_567_463_684
    ours = {name: list(tensor.shape) for name, tensor in unet.state_dict().items()}
    assert len(ours) == 1_680
    assert ours == json.loads(CONTRACT.read_text())


def test_transformer_blocks_have_the_sizes_that_memory_plans_rest_on():
    with torch.device("meta"):
        unet = UNet(UNetConfig.sdxl())
    blocks = [module for module in unet.modules() if isinstance(module, BasicTransformerBlock)]
    sizes = [sum(p.numel() for p in block.parameters()) for block in blocks]
    assert {size: sizes.count(size) for size in set(sizes)} == {10_005_120: 10, 34_755_840: 60}


def commented_shape(module: nn.Module) -> str:
    """Return the last `# [...]` in the module's forward: the shape that the reader is told comes out."""
    return re.findall(r"# \[(.+?)\]", inspect.getsource(type(module).forward))[-1]


def evaluate(shape: str, sizes: dict[str, int]) -> tuple[int, ...]:
    """Work out a shape such as `b, 4d, h/2` from the sizes of the legend."""
    numbers = []
    for factor, name, divisor in re.findall(r"(\d*)([a-z_]*)(?:/(\d+))?(?:, |$)", shape)[: shape.count(",") + 1]:
        numbers.append(int(factor or 1) * (sizes[name] if name else 1) // int(divisor or 1))
    return tuple(numbers)


def test_every_block_gives_the_shape_that_its_comment_says(tiny_unet: UNet):
    checked: set[type[nn.Module]] = set()

    def check(module: nn.Module, args: tuple[Tensor, ...], output: Tensor | tuple[Tensor, list[Tensor]]) -> None:
        if isinstance(module, DownBlock | UpBlock) and not [*module.children()][2]:
            return  # the outermost levels do not change height and width
        names = "bchw" if args[0].ndim == 4 else "bnd" if args[0].ndim == 3 else "bd"
        sizes = dict(zip(names, args[0].shape, strict=True)) | {"e": tiny_unet.config.time_embed_dim}
        if isinstance(module, ResnetBlock2D):
            sizes["c_out"] = module.conv2.out_channels
        if isinstance(module, DownBlock | UpBlock):
            sizes["c"] = module.resnets.get_submodule("0.conv2").out_channels  # c is the level's own width
        result = output if isinstance(output, Tensor) else output[0]
        assert tuple(result.shape) == evaluate(commented_shape(module), sizes), type(module).__name__
        checked.add(type(module))

    ours = [module for module in tiny_unet.modules() if type(module).__module__.startswith("worker.model")]
    for module in ours:
        module.register_forward_hook(check)
    tiny_unet(*inputs(tiny_unet.config))
    assert checked == {type(module) for module in ours}
    assert len(checked) == 13


def test_bf16_weights_take_fp32_inputs_and_answer_in_bf16(tiny_unet: UNet):
    theirs = tiny_unet(*inputs(tiny_unet.config))
    ours = tiny_unet.to(torch.bfloat16)(*inputs(tiny_unet.config))
    assert ours.dtype == torch.bfloat16
    # Rounding errors of 2**-9 add up over about a hundred layers.
    assert (ours.float() - theirs).abs().max() < 0.1 * theirs.std()


def test_timesteps_are_told_apart_in_bf16_too():
    embeddings = sinusoidal_embedding(torch.tensor([997, 998]), 320).to(torch.bfloat16)
    assert not torch.equal(embeddings[0], embeddings[1])


def test_an_odd_embedding_width_is_refused():
    with pytest.raises(ValueError, match="make it even"):
        sinusoidal_embedding(torch.tensor([1]), 5)


@pytest.mark.parametrize("config", [UNetConfig.sdxl(), UNetConfig.tiny(), replace(UNetConfig.tiny(), norm_groups=8)])
def test_config_survives_diffusers(config: UNetConfig):
    assert UNetConfig.from_diffusers(json.loads(json.dumps(config.to_diffusers()))) == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"in_channels": 9}, "inpainting U-Net"),
        ({"projection_class_embeddings_input_dim": 2560}, "SDXL refiner"),
        ({"cross_attention_dim": 768, "addition_embed_type": None}, "Stable Diffusion 1.5"),
        ({"cross_attention_dim": 1024, "addition_embed_type": None}, "Stable Diffusion 2"),
        ({"act_fn": "mish"}, "act_fn is 'mish' instead of 'silu'"),
        ({"use_linear_projection": False}, "use_linear_projection is False instead of True"),
        ({"up_block_types": ["UpBlock2D"] * 3}, "do not mirror"),
        ({"block_out_channels": None}, "cannot be read"),
        ({"transformer_layers_per_block": [1, 2]}, "cannot be read"),
    ],
)
def test_other_unets_are_refused_by_name(change: dict[str, object], message: str):
    with pytest.raises(BaseModelInvalid, match=message):
        UNetConfig.from_diffusers(UNetConfig.sdxl().to_diffusers() | change)


def test_a_config_with_a_gap_is_refused():
    config = UNetConfig.sdxl().to_diffusers()
    del config["cross_attention_dim"]
    with pytest.raises(BaseModelInvalid, match="has no 'cross_attention_dim'"):
        UNetConfig.from_diffusers(config)


def test_impossible_sizes_are_refused():
    with pytest.raises(ValueError, match="one entry for each of the 3 levels"):
        replace(UNetConfig.tiny(), attention_heads=(2, 2))
    with pytest.raises(ValueError, match="do not divide by 7 groups"):
        replace(UNetConfig.tiny(), norm_groups=7)
    with pytest.raises(ValueError, match="the middle block shares it"):
        replace(UNetConfig.tiny(), transformer_depths=(0, 1, 0))
