"""Each kind of adapted layer is its formula, starts as the base layer, and trains all its weights."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from worker.lora.config import LoRAConfig
from worker.lora.dora import DoRAConv2d, DoRALinear
from worker.lora.dropout import Dropout, DropoutPlace
from worker.lora.inject import LoRA, inject
from worker.lora.layer import LoRAConv2d, LoRALinear
from worker.lora.low_rank import LowRank
from worker.memory.checkpoint import enable_checkpointing
from worker.model.unet import UNet

KINDS: list[type[LowRank]] = [LoRALinear, LoRAConv2d, DoRALinear, DoRAConv2d]


def frozen_base(kind: type[LowRank], dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    if issubclass(kind, nn.Linear):
        return nn.Linear(12, 16, dtype=dtype).requires_grad_(False)
    return nn.Conv2d(12, 16, 3, stride=2, padding=1, dtype=dtype).requires_grad_(False)


def adapted(kind: type[LowRank], trained: bool = True, dtype: torch.dtype = torch.float32) -> LowRank:
    layer = kind(frozen_base(kind, dtype), 4, 10.0, 2.5, torch.Generator().manual_seed(0))  # type: ignore[call-arg]
    if trained:
        with torch.no_grad():
            layer.lora_B.normal_(std=0.3)
            if isinstance(layer, DoRALinear | DoRAConv2d):
                layer.lora_magnitude.mul_(torch.rand(16) + 0.5)
    return layer


def inputs(kind: type[LowRank], dtype: torch.dtype = torch.float32) -> Tensor:
    shape = (3, 5, 12) if issubclass(kind, nn.Linear) else (3, 12, 8, 6)
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_output_is_the_base_layers_before_training(kind: type[LowRank], dtype: torch.dtype) -> None:
    x = inputs(kind, dtype)
    theirs = frozen_base(kind, dtype)(x)
    ours = adapted(kind, trained=False, dtype=dtype)(x)
    assert ours.dtype == dtype
    assert torch.equal(ours, theirs)  # B is zero, and a length over itself is 1: not a bit changes


@pytest.mark.parametrize("kind", KINDS)
def test_output_is_peft_s(kind: type[LowRank]) -> None:
    layer, x = adapted(kind), inputs(kind)
    dora = isinstance(layer, DoRALinear | DoRAConv2d)
    config = LoraConfig(r=4, lora_alpha=10, target_modules=["0"], use_dora=dora)
    peft = get_peft_model(nn.Sequential(frozen_base(kind)), config)  # type: ignore[arg-type]
    state = {"lora_A.default.weight": layer.lora_A, "lora_B.default.weight": layer.lora_B}
    if isinstance(layer, DoRALinear | DoRAConv2d):
        shape = (16,) if isinstance(layer, nn.Linear) else (1, 16, 1, 1)
        state["lora_magnitude_vector.default.weight"] = layer.lora_magnitude.view(shape)
    loaded = peft.load_state_dict({f"base_model.model.0.{key}": weight for key, weight in state.items()}, strict=False)
    assert loaded.unexpected_keys == []
    ours, theirs = layer(x), peft(x)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)  # another order of the same float32 sums

    ours.square().mean().backward()
    theirs.square().mean().backward()
    theirs_by_name = dict(peft.named_parameters())
    for name, weight in state.items():
        grad = theirs_by_name[f"base_model.model.0.{name}"].grad
        own = {"lora_A": layer.lora_A, "lora_B": layer.lora_B}.get(name.partition(".")[0])
        own = layer.get_parameter("lora_magnitude") if own is None else own
        assert own.grad is not None
        assert grad is not None
        torch.testing.assert_close(own.grad, grad.view(own.shape), rtol=1e-4, atol=1e-6)
        assert weight.shape == grad.shape


@pytest.mark.parametrize("kind", KINDS)
def test_the_merged_weight_does_what_the_layer_does(kind: type[LowRank]) -> None:
    layer, x = adapted(kind), inputs(kind)
    plain = frozen_base(kind)
    assert isinstance(plain.weight, nn.Parameter)
    plain.weight.copy_(layer.merged_weight())
    torch.testing.assert_close(layer(x), plain(x), rtol=1e-5, atol=1e-5)  # float32 rounding


def test_dora_s_lengths_are_those_of_the_sum() -> None:
    for kind in (DoRALinear, DoRAConv2d):
        layer = adapted(kind)
        assert isinstance(layer, DoRALinear | DoRAConv2d)
        theirs = (layer.weight + layer.update()).flatten(1).norm(dim=1)
        torch.testing.assert_close(layer.lengths(), theirs, rtol=1e-5, atol=1e-6)


def test_rslora_scales_by_the_root_of_the_rank(make_unet: Callable[..., UNet]) -> None:
    lora = inject(make_unet(), LoRAConfig(rank=9, alpha=6.0, rslora=True), seed=0)
    assert {layer.scale for layer in lora.modules.values()} == {2.0}
    x = torch.randn(2, 32)
    layer = next(layer for layer in lora.modules.values() if layer.weight.shape[1] == 32)
    nn.init.normal_(layer.lora_B)
    theirs = F.linear(x, layer.weight) + 6 / 3 * x @ layer.lora_A.T @ layer.lora_B.T
    torch.testing.assert_close(layer(x), theirs, rtol=1e-5, atol=1e-5)


DROPOUTS = [{"dropout": 0.5}, {"rank_dropout": 0.5}]


@pytest.mark.parametrize("dropout", DROPOUTS)
def test_dropout_is_drawn_from_the_place_in_the_training_alone(
    make_unet: Callable[..., UNet],
    make_adapter: Callable[..., LoRA],
    unet_inputs: tuple[Tensor, ...],
    dropout: dict[str, float],
) -> None:
    unet = make_unet()
    lora = make_adapter(unet, LoRAConfig(targets="locon", **dropout))  # type: ignore[arg-type]

    def predict(*counters: int) -> Tensor:
        with lora.dropout.at(*counters, samples=slice(0, 2)):
            return unet(*unet_inputs)

    without = unet(*unet_inputs)
    torch.manual_seed(1)
    first = predict(0, 5, 0)
    torch.manual_seed(2)
    assert torch.equal(predict(0, 5, 0), first)
    others = [without, *(predict(*place) for place in ((1, 5, 0), (0, 6, 0), (0, 5, 1)))]
    assert not any(torch.equal(first, other) for other in others)
    assert torch.equal(unet(*unet_inputs), without)  # off outside a step, as when sampling


@pytest.mark.parametrize("dropout", DROPOUTS)
def test_checkpointing_recomputes_with_the_same_dropout(
    make_unet: Callable[..., UNet],
    make_adapter: Callable[..., LoRA],
    unet_inputs: tuple[Tensor, ...],
    dropout: dict[str, float],
) -> None:
    def grads(scope: str) -> list[Tensor]:
        unet = make_unet()
        lora = make_adapter(unet, LoRAConfig(targets="locon", dora=True, **dropout))  # type: ignore[arg-type]
        enable_checkpointing(unet, scope)  # type: ignore[arg-type]
        with lora.dropout.at(0, 1, 0, samples=slice(0, 2)):
            unet(*unet_inputs).square().mean().backward()
        return [weight.grad for weight in lora.parameters() if weight.grad is not None]

    ours, theirs = grads("all"), grads("none")
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))  # bitwise: FP32 on CPU


def test_dropout_keeps_the_mean_and_drops_as_many_as_it_says() -> None:
    place = DropoutPlace()
    dropout = Dropout(0.25, 0.5, 0, place)
    with place.at(0, 1, 0, samples=slice(0, 100)):
        features = dropout.features(torch.ones(100, 100, 10))
    with place.at(0, 1, 0, samples=slice(0, 500)):
        directions = dropout.directions(torch.ones(500, 7, 20), rank_dim=-1)
        channels = dropout.directions(torch.ones(500, 20, 3, 3), rank_dim=1)
    assert (features == 0).float().mean().item() == pytest.approx(0.25, abs=0.01)  # 5 sigma of 100,000 draws: 0.007
    assert features.mean().item() == pytest.approx(1, abs=0.01)
    assert (directions == 0).float().mean().item() == pytest.approx(0.5, abs=0.03)  # 5 sigma of 10,000 draws: 0.025
    assert (directions == directions[:, :1]).all()  # a direction is left out for the whole picture
    assert (channels == channels[:, :, :1, :1]).all()
    assert features.unique().tolist() == [0, pytest.approx(4 / 3)]
