"""Checkpointing changes memory and nothing else."""

from collections.abc import Callable, Iterable

import pytest
import torch
from torch import Tensor, nn

from worker.memory.checkpoint import checkpointable_blocks, enable_checkpointing
from worker.model.unet import UNet, UNetConfig

FIRST_BLOCK = "down_blocks.1.attentions.0.transformer_blocks.0"
INPUTS = (torch.ones(1, 4, 8, 8), torch.tensor([7]), torch.ones(1, 77, 32), torch.ones(1, 16), torch.ones(1, 6))


class Adapted(nn.Module):
    """A linear layer with an update of rank 2 beside it, as LoRA injection leaves it."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.lora_a = nn.Parameter(torch.randn(2, base.in_features))
        self.lora_b = nn.Parameter(torch.randn(base.out_features, 2))

    def forward(self, hidden: Tensor) -> Tensor:
        return self.base(hidden) + hidden @ self.lora_a.T @ self.lora_b.T


@pytest.fixture
def make_unet() -> Callable[[], UNet]:
    def make() -> UNet:
        torch.manual_seed(0)
        return UNet(UNetConfig.tiny()).requires_grad_(False)

    return make


def adapt(unet: UNet, targets: Iterable[str]) -> None:
    torch.manual_seed(1)
    for target in targets:
        parent, _, child = target.rpartition(".")
        setattr(unet.get_submodule(parent), child, Adapted(unet.get_submodule(target)))


def all_queries(unet: UNet) -> list[str]:
    return [name for name, _ in unet.named_modules() if name.endswith("to_q")]


def loss_and_grads(unet: UNet, *, input_grad: bool = False) -> dict[str, Tensor]:
    """Return the loss and every gradient of a training step, by name."""
    generator = torch.Generator().manual_seed(2)
    noisy_latents = torch.randn(2, 4, 16, 16, generator=generator).requires_grad_(input_grad)
    text_embeds = torch.randn(2, 77, 32, generator=generator)
    pooled_text_embeds = torch.randn(2, 16, generator=generator)
    time_ids = torch.tensor([[128.0, 128, 0, 0, 128, 128]]).expand(2, -1)
    prediction = unet(noisy_latents, torch.tensor([3, 900]), text_embeds, pooled_text_embeds, time_ids)
    loss = prediction.square().mean()
    loss.backward()
    grads = {name: p.grad for name, p in unet.named_parameters() if p.grad is not None}
    if noisy_latents.grad is not None:
        grads["noisy_latents"] = noisy_latents.grad
    return {"loss": loss.detach(), **grads}


def assert_same_bits(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    different = [name for name in ours if not torch.equal(ours[name], theirs[name])]
    assert not different, f"bitwise, since it is FP32 on a CPU: {different[:5]}"


def test_gradients_are_identical_with_and_without(make_unet):
    ours, theirs = make_unet(), make_unet()
    for unet in (ours, theirs):
        adapt(unet, all_queries(unet))
    enable_checkpointing(ours, "all")
    expected = loss_and_grads(theirs)
    assert len(expected) == 1 + 2 * len(all_queries(theirs))
    assert_same_bits(loss_and_grads(ours), expected)


def test_a_block_is_trained_although_none_of_its_inputs_needs_a_gradient(make_unet):
    ours, theirs = make_unet(), make_unet()
    for unet in (ours, theirs):
        adapt(unet, [f"{FIRST_BLOCK}.attn1.to_q"])
    enable_checkpointing(ours, "all")
    expected = loss_and_grads(theirs)
    assert len(expected) == 3, "the loss and both halves of the only adapter"
    assert_same_bits(loss_and_grads(ours), expected)


def test_adapters_put_in_afterwards_are_trained(make_unet):
    ours, theirs = make_unet(), make_unet()
    enable_checkpointing(ours, "all")
    for unet in (ours, theirs):
        adapt(unet, all_queries(unet))
    assert_same_bits(loss_and_grads(ours), loss_and_grads(theirs))


def test_gradients_of_inputs_and_of_every_weight_are_identical(make_unet):
    ours, theirs = make_unet().requires_grad_(True), make_unet().requires_grad_(True)
    enable_checkpointing(ours, "all")
    assert_same_bits(loss_and_grads(ours, input_grad=True), loss_and_grads(theirs, input_grad=True))


def test_gradients_of_two_micro_steps_add_up(make_unet):
    ours, theirs = make_unet(), make_unet()
    for unet in (ours, theirs):
        adapt(unet, all_queries(unet))
    enable_checkpointing(ours, "all")
    for unet in (ours, theirs):
        loss_and_grads(unet)
    assert_same_bits(loss_and_grads(ours), loss_and_grads(theirs))


def test_activations_inside_blocks_are_not_kept(make_unet):
    def saved_bytes(unet: UNet) -> int:
        storages: dict[int, int] = {}  # by address, since one storage may be saved more than once

        def count(tensor: Tensor) -> Tensor:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        weights = {p.untyped_storage().data_ptr() for p in unet.parameters()}
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            prediction = unet(*INPUTS)
        assert prediction.requires_grad
        return sum(size for address, size in storages.items() if address not in weights)

    ours, theirs = make_unet(), make_unet()
    for unet in (ours, theirs):
        adapt(unet, all_queries(unet))
    enable_checkpointing(ours, "all")
    assert saved_bytes(ours) < saved_bytes(theirs) / 4


def test_every_block_can_be_chosen_and_given_up(make_unet):
    unet = make_unet()
    blocks = checkpointable_blocks(unet)
    # 5 transformers of depth 1 in the middle level, 6 of depth 2 in the lowest, and 17 residual blocks.
    assert len(blocks) == 5 * 1 + 6 * 2 + 17
    for scope, count in (("all", len(blocks)), ({FIRST_BLOCK}, 1), ("none", 0)):
        enable_checkpointing(unet, scope)
        assert sum("forward" in block.__dict__ for block in blocks.values()) == count


def test_enabling_twice_recomputes_once(make_unet):
    unet = make_unet()
    adapt(unet, [f"{FIRST_BLOCK}.attn1.to_q"])
    enable_checkpointing(unet, "all")
    enable_checkpointing(unet, "all")
    calls = []
    unet.get_submodule(f"{FIRST_BLOCK}.norm1").register_forward_hook(lambda *_: calls.append(None))
    loss_and_grads(unet)
    assert len(calls) == 2, "once forward, once more in backward"


def test_nothing_is_recomputed_without_gradients(make_unet):
    unet = make_unet()
    enable_checkpointing(unet, "all")
    adapt(unet, [f"{FIRST_BLOCK}.attn1.to_q"])
    calls = []
    unet.get_submodule(f"{FIRST_BLOCK}.norm1").register_forward_hook(lambda *_: calls.append(None))
    with torch.no_grad():
        assert not unet(*INPUTS).requires_grad
    assert len(calls) == 1


def test_a_weight_changed_between_forward_and_backward_is_noticed(make_unet):
    unet = make_unet()
    adapt(unet, [f"{FIRST_BLOCK}.attn1.to_q"])
    enable_checkpointing(unet, "all")
    loss = unet(*INPUTS).sum()
    with torch.no_grad():
        unet.get_parameter(f"{FIRST_BLOCK}.attn1.to_q.lora_a").mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_an_unknown_block_is_named(make_unet):
    with pytest.raises(ValueError, match=r"1 of 2 names are no checkpointable block: down_blocks\.9"):
        enable_checkpointing(make_unet(), {FIRST_BLOCK, "down_blocks.9"})
