"""inject puts an adapter exactly where the targets say, and training moves that adapter and nothing else."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from worker.errors import LoRAInvalid
from worker.lora.config import LoRAConfig, Targets
from worker.lora.inject import LoRA, inject
from worker.lora.layer import LoRALinear
from worker.model.unet import UNet, UNetConfig

ALL_TARGETS: tuple[Targets, ...] = ("qkv", "attention", "transformer", "locon")


@pytest.mark.parametrize(
    ("targets", "modules", "parameters"),
    [
        ("qkv", 420, 4_474_880),
        ("attention", 560, 5_806_080),
        ("transformer", 722, 10_639_360),
        ("locon", 788, 12_296_960),
    ],
)
def test_full_size_sdxl_has_the_known_number_of_parameters(targets: Targets, modules: int, parameters: int) -> None:
    with torch.device("meta"):
        unet = UNet(UNetConfig.sdxl()).requires_grad_(False)
    lora = inject(unet, LoRAConfig(4, 16, targets), seed=0)
    assert len(lora.modules) == modules
    assert lora.parameter_count() == parameters
    assert all(parameter.is_meta for parameter in lora.parameters())  # on the base's device


@pytest.mark.parametrize("targets", ALL_TARGETS)
def test_the_prediction_does_not_change_before_training(
    make_unet: Callable[..., UNet], unet_inputs: tuple[Tensor, ...], targets: Targets
) -> None:
    unet = make_unet()
    theirs = unet(*unet_inputs)
    inject(unet, LoRAConfig(targets=targets), seed=0)
    assert torch.equal(unet(*unet_inputs), theirs)  # bitwise: B is zero


@pytest.mark.parametrize("dora", [False, True])
def test_base_keys_do_not_change(make_unet: Callable[..., UNet], dora: bool) -> None:
    unet = make_unet()
    before = dict(unet.state_dict())
    inject(unet, LoRAConfig(targets="locon", dora=dora), seed=0)
    after = {key: tensor for key, tensor in unet.state_dict().items() if ".lora_" not in key}
    assert list(after) == list(before)
    assert all(after[key].data_ptr() == before[key].data_ptr() for key in before)


@pytest.mark.parametrize("targets", ALL_TARGETS)
@pytest.mark.parametrize("dora", [False, True])
def test_training_moves_every_adapter_weight_and_no_base_weight(
    make_unet: Callable[..., UNet], unet_inputs: tuple[Tensor, ...], targets: Targets, dora: bool
) -> None:
    unet = make_unet()
    base = {name: parameter.clone() for name, parameter in unet.named_parameters()}
    lora = inject(unet, LoRAConfig(targets=targets, dora=dora), seed=0)
    start = copy.deepcopy(lora.state_dict())
    trainable = {id(parameter) for parameter in unet.parameters() if parameter.requires_grad}
    assert trainable == {id(parameter) for parameter in lora.parameters()}

    optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-2)  # given everything: frozen means frozen
    for _ in range(2):  # A has no gradient in the first step, because B is zero
        unet(*unet_inputs).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    after = dict(unet.named_parameters())
    assert all(torch.equal(after[name], weight) for name, weight in base.items())
    unmoved = [name for name, weight in lora.state_dict().items() if torch.equal(weight, start[name])]
    assert unmoved == []


def test_merged_weights_predict_as_the_adapter_does(
    make_unet: Callable[..., UNet], make_adapter: Callable[..., LoRA], unet_inputs: tuple[Tensor, ...]
) -> None:
    unet = make_unet()
    untouched = unet(*unet_inputs)
    lora = make_adapter(unet, LoRAConfig(targets="locon", dora=True))
    ours = unet(*unet_inputs)
    merged = make_unet()
    merged.load_state_dict(merged.state_dict() | lora.merged_weights())
    assert (ours - untouched).abs().max() > 0.01  # the adapter does something
    torch.testing.assert_close(merged(*unet_inputs), ours, rtol=1e-4, atol=1e-5)  # float32, through 20-odd layers


def test_the_seed_alone_decides_the_first_weights(make_unet: Callable[..., UNet]) -> None:
    torch.manual_seed(1)
    first = inject(make_unet(), LoRAConfig(), seed=7).state_dict()
    torch.manual_seed(2)
    second = inject(make_unet(), LoRAConfig(), seed=7).state_dict()
    other = inject(make_unet(), LoRAConfig(), seed=8).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)
    drawn = [weight for name, weight in first.items() if name.endswith("lora_A")]
    assert not any(torch.equal(drawn[0], weight) for weight in drawn[1:])  # one stream, not one draw for all


def test_state_goes_from_one_adapter_into_another(
    make_unet: Callable[..., UNet], make_adapter: Callable[..., LoRA], unet_inputs: tuple[Tensor, ...]
) -> None:
    first, second = make_unet(), make_unet()
    lora = make_adapter(first)
    inject(second, LoRAConfig(), seed=9).load_state_dict(lora.state_dict())
    assert torch.equal(second(*unet_inputs), first(*unet_inputs))


def test_a_state_that_does_not_fit_is_refused_whole(make_unet: Callable[..., UNet]) -> None:
    lora = inject(make_unet(), LoRAConfig(rank=4), seed=0)
    other = inject(make_unet(), LoRAConfig(rank=2), seed=0).state_dict()
    before = copy.deepcopy(lora.state_dict())
    with pytest.raises(ValueError, match="differ in name or shape"):
        lora.load_state_dict(other)
    with pytest.raises(ValueError, match="differ in name or shape"):
        lora.load_state_dict({})
    assert all(torch.equal(before[name], weight) for name, weight in lora.state_dict().items())


def test_a_target_that_matches_nothing_is_an_error() -> None:
    with pytest.raises(LoRAInvalid, match=r'lora.targets is "qkv", but no module'):
        inject(nn.Sequential(nn.Linear(4, 4)).requires_grad_(False), LoRAConfig(), seed=0)


def test_a_rank_too_large_for_any_target_names_that_target(make_unet: Callable[..., UNet]) -> None:
    with pytest.raises(LoRAInvalid, match=r"lora.rank is 500, but [\w.]+ is \d+x\d+: use 1 to \d+\."):
        inject(make_unet(), LoRAConfig(rank=500), seed=0)
    with pytest.raises(LoRAInvalid, match=r"lora.rank is 0"):
        inject(make_unet(), LoRAConfig(rank=0), seed=0)


def test_nothing_is_replaced_when_the_rank_is_refused(make_unet: Callable[..., UNet]) -> None:
    unet = make_unet()
    with pytest.raises(LoRAInvalid):
        inject(unet, LoRAConfig(rank=65), seed=0)
    assert not any(isinstance(module, LoRALinear) for module in unet.modules())


def test_a_base_that_is_not_frozen_is_refused(make_unet: Callable[..., UNet]) -> None:
    with pytest.raises(ValueError, match="freeze the U-Net first"):
        inject(make_unet().requires_grad_(True), LoRAConfig(), seed=0)


def test_a_second_adapter_is_refused(make_unet: Callable[..., UNet]) -> None:
    unet = make_unet()
    for parameter in inject(unet, LoRAConfig(), seed=0).parameters():
        parameter.requires_grad_(False)
    with pytest.raises(LoRAInvalid, match="carries an adapter already"):
        inject(unet, LoRAConfig(), seed=0)
