"""All weights of a U-Net as what is trained: of its own dtype, or by masters in float32."""

import pytest
import torch
from torch import Tensor, nn

from worker.fine_tuning.weights import FullWeights
from worker.loop.config import OptimizerConfig
from worker.loop.optim import evaluated, make_optimizer
from worker.model.unet import UNet, UNetConfig


def make_unet(dtype: torch.dtype) -> UNet:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return UNet(UNetConfig.tiny()).requires_grad_(False).to(dtype)


def make_masters() -> dict[str, nn.Parameter]:
    return dict(make_unet(torch.float32).named_parameters())


def inputs(dtype: torch.dtype) -> tuple[Tensor, ...]:
    source, config = torch.Generator().manual_seed(5), UNetConfig.tiny()
    return (
        torch.randn(2, 4, 8, 8, generator=source).to(dtype),
        torch.tensor([17, 804]),
        torch.randn(2, 77, config.text_embed_dim, generator=source).to(dtype),
        torch.randn(2, config.pooled_text_embed_dim, generator=source).to(dtype),
        torch.tensor([[64.0, 64, 0, 0, 64, 64], [80, 48, 4, 0, 64, 64]]),
    )


def test_every_weight_is_trained_and_has_a_gradient() -> None:
    unet = make_unet(torch.float32)
    full = FullWeights(unet)
    assert {id(weight) for weight in full.parameters()} == {id(weight) for weight in unet.parameters()}
    assert full.parameter_count() == sum(weight.numel() for weight in unet.parameters())
    unet(*inputs(torch.float32)).square().mean().backward()
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in full.parameters())


def test_masters_take_the_sum_of_gradients_in_float32_and_leave_the_model_none() -> None:
    """Three micro-steps' gradients: their sum in float32, as bfloat16 could not hold it."""
    unet, masters = make_unet(torch.bfloat16), make_masters()
    full = FullWeights(unet, masters)
    by_hand = make_unet(torch.bfloat16).requires_grad_(True)
    sums = {name: torch.zeros_like(weight, dtype=torch.float32) for name, weight in by_hand.named_parameters()}
    for factor in (1.0, 0.3, 0.01):
        for each in (unet, by_hand):
            (factor * each(*inputs(torch.bfloat16)).float().square().mean()).backward()
        for name, weight in by_hand.named_parameters():
            assert weight.grad is not None
            sums[name] += weight.grad
            weight.grad = None
    assert all(weight.grad is None for weight in unet.parameters())
    for (name, total), master in zip(sorted(sums.items()), full.parameters(), strict=True):
        assert master.dtype == torch.float32
        assert master.grad is not None
        assert torch.equal(master.grad, total), name


def test_the_model_computes_with_the_masters_rounded() -> None:
    unet, masters = make_unet(torch.bfloat16), make_masters()
    full = FullWeights(unet, masters)
    with torch.no_grad():
        for master in full.parameters():
            master += 0.125
    before = {name: weight.clone() for name, weight in unet.named_parameters()}
    full.write_back()
    for name, weight in unet.named_parameters():
        assert torch.equal(weight, masters[name].bfloat16())
        assert not torch.equal(weight, before[name])


def test_loading_reaches_the_model_and_refuses_other_weights_whole() -> None:
    unet = make_unet(torch.bfloat16)
    full = FullWeights(unet, make_masters())
    state = {name: weight + 1 for name, weight in full.state_dict().items()}
    full.load_state_dict(state)
    assert all(torch.equal(weight, state[name].bfloat16()) for name, weight in unet.named_parameters())
    name = next(iter(state))
    with pytest.raises(ValueError, match="differ in name or shape"):
        full.load_state_dict({key: weight * 0 for key, weight in state.items() if key != name})
    assert all(torch.equal(weight, state[key]) for key, weight in full.state_dict().items())


def test_a_look_at_a_schedule_free_average_shows_it_to_the_model_and_takes_it_back() -> None:
    unet, masters = make_unet(torch.bfloat16), make_masters()
    full = FullWeights(unet, masters)
    optimizer = make_optimizer(full.parameters(), OptimizerConfig("schedule_free_adamw", learning_rate=1e-2))
    for _ in range(3):
        unet(*inputs(torch.bfloat16)).float().square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        full.write_back()
    trained = {name: weight.clone() for name, weight in unet.named_parameters()}
    with evaluated(optimizer, full):
        average = {name: weight.bfloat16() for name, weight in full.state_dict().items()}
        assert all(torch.equal(weight, average[name]) for name, weight in unet.named_parameters())
        assert not all(torch.equal(weight, trained[name]) for name, weight in average.items())
    assert all(torch.equal(weight, trained[name]) for name, weight in unet.named_parameters())
