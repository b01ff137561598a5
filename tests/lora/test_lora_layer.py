"""LoRALinear is the base layer plus scale * B A, and leaves the base what it was."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from worker.lora.layer import LoRALinear


def lora_linear(base: nn.Linear, rank: int = 4, scale: float = 4.0, seed: int = 0) -> LoRALinear:
    return LoRALinear(base, rank, rank * scale, scale, torch.Generator().manual_seed(seed))


def frozen_linear(dtype: torch.dtype = torch.float32, bias: bool = True) -> nn.Linear:
    return nn.Linear(24, 16, bias=bias, dtype=dtype).requires_grad_(False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
def test_output_is_the_base_layers_before_training(dtype: torch.dtype, bias: bool) -> None:
    base, x = frozen_linear(dtype, bias), torch.randn(3, 5, 24, dtype=dtype)
    theirs = base(x)
    ours = lora_linear(base)(x)
    assert ours.dtype == dtype
    assert torch.equal(ours, theirs)  # B is zero: not a bit changes


def test_it_takes_over_the_bases_parameters_and_adds_two_of_its_own() -> None:
    base = frozen_linear()
    layer = lora_linear(base)
    assert layer.weight is base.weight
    assert layer.bias is base.bias
    assert set(layer.state_dict()) == {"weight", "bias", "lora_A", "lora_B"}
    assert (layer.lora_A.shape, layer.lora_B.shape) == ((4, 24), (16, 4))
    assert [name for name, p in layer.named_parameters() if p.requires_grad] == ["lora_A", "lora_B"]


def test_output_is_the_formula() -> None:
    base, x = frozen_linear(), torch.randn(7, 24)
    layer = lora_linear(base, scale=2.5)
    nn.init.normal_(layer.lora_B)
    theirs = base(x) + 2.5 * (x @ layer.lora_A.T) @ layer.lora_B.T
    torch.testing.assert_close(layer(x), theirs, rtol=1e-5, atol=1e-5)  # another order of the same float32 sums
    torch.testing.assert_close(F.linear(x, layer.merged_weight(), layer.bias), theirs, rtol=1e-5, atol=1e-5)


def test_a_bfloat16_base_keeps_float32_master_weights() -> None:
    layer = lora_linear(frozen_linear(torch.bfloat16))
    nn.init.normal_(layer.lora_B)
    layer(torch.randn(2, 24, dtype=torch.bfloat16)).float().sum().backward()
    for weight in (layer.lora_A, layer.lora_B):
        assert weight.dtype == torch.float32
        assert weight.grad is not None
        assert weight.grad.dtype == torch.float32
    assert layer.merged_weight().dtype == torch.bfloat16


def test_a_is_drawn_as_peft_draws_it_from_its_own_seed() -> None:
    torch.manual_seed(1)
    first = lora_linear(frozen_linear(), seed=3)
    torch.manual_seed(2)
    second = lora_linear(frozen_linear(), seed=3)
    assert torch.equal(first.lora_A, second.lora_A)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        theirs = nn.init.kaiming_uniform_(torch.empty(4, 24), a=5**0.5)
    assert torch.equal(first.lora_A, theirs)


@pytest.mark.parametrize("rank", [0, -1, 17])
def test_a_rank_outside_the_layers_limits_is_refused(rank: int) -> None:
    with pytest.raises(ValueError, match=r"rank is -?\d+, but the layer is 16x24: use 1 to 16\."):
        lora_linear(frozen_linear(), rank=rank)
