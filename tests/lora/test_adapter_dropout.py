"""Where dropout stands in an adapted layer: before A and before B, never in the base; each layer draws its own."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.lora.test_lora_kinds import KINDS, adapted, frozen_base, inputs
from worker.lora.dora import DoRAConv2d, DoRALinear
from worker.lora.dropout import Dropout, DropoutPlace
from worker.lora.low_rank import LowRank


def apply(weight: Tensor, x: Tensor) -> Tensor:
    """What a layer of this weight, as `frozen_base` makes it, does without its bias."""
    if weight.ndim == 2:
        return F.linear(x, weight)
    return F.conv2d(x, weight, stride=2, padding=1) if weight.shape[-1] == 3 else F.conv2d(x, weight)


@pytest.mark.parametrize("kind", KINDS)
def test_the_adapter_alone_drops_out_by_the_formula(kind: type[LowRank]) -> None:
    """y = ratio (W x + scale B drop(A drop(x))) + b, with a ratio of 1 but for DoRA."""
    layer, x, place = adapted(kind), inputs(kind), DropoutPlace()
    layer.dropout = dropout = Dropout(0.4, 0.3, 7, place)
    linear = isinstance(layer, nn.Linear)
    with place.at(0, 3, 1, samples=slice(0, 3)):
        ours = layer(x)
        down = dropout.directions(apply(layer.lora_A, dropout.features(x)), rank_dim=-1 if linear else 1)
    assert 0.1 < (down == 0).float().mean() < 0.6
    theirs = apply(layer.weight, x) + layer.scale * apply(layer.lora_B, down)
    along = (-1,) if linear else (-1, 1, 1)
    if isinstance(layer, DoRALinear | DoRAConv2d):
        theirs = theirs * (layer.lora_magnitude / layer.lengths()).view(along)
    bias = frozen_base(kind).get_parameter("bias")
    torch.testing.assert_close(ours, theirs + bias.view(along), rtol=1e-5, atol=1e-5)  # float32, other orders of sums


def test_each_layer_and_each_kind_draws_its_own() -> None:
    place, ones = DropoutPlace(), torch.ones(8, 32)
    first, second = (Dropout(0.5, 0.5, number, place) for number in range(2))
    with place.at(0, 1, 0, samples=slice(0, 8)):
        drawn = [first.features(ones), second.features(ones), first.directions(ones, 1), second.directions(ones, 1)]
    for number, mask in enumerate(drawn):
        for other in drawn[:number]:
            assert 0.3 < (mask == other).float().mean() < 0.7  # 5 sigma of 256 draws: 0.16
