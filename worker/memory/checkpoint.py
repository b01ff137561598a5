"""Gradient checkpointing: keep a block's inputs, and run the block again when its gradients are wanted.

Costs one more forward pass of each checkpointed block, saves all its activations. The gradients are the same to the
bit, because the same kernels run on the same inputs.

It is our own because torch.utils.checkpoint's re-entrant form loses the gradients of a block none of whose inputs needs
one (LoRA in the first transformer block), and its other form works by hooks on every saved tensor. Here a block's
trainable parameters are inputs of the autograd function, which settles the first; there is no random state to keep (the
U-Net has no dropout) and no wait for the GPU, so that a CUDA graph can capture it.

Source: Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost" (arXiv:1604.06174), section 3.
"""

from collections.abc import Callable, Collection
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from worker.model.layers import BasicTransformerBlock, ResnetBlock2D

Scope = Literal["none", "all"]


class _Recompute(torch.autograd.Function):
    """Runs `run(*inputs)` without recording it, and again, recorded, in backward."""

    @staticmethod
    def forward(ctx: Any, run: Callable[..., Tensor], input_count: int, *tensors: Tensor) -> Tensor:
        ctx.run = run
        ctx.input_count = input_count
        ctx.save_for_backward(*tensors)  # inputs and parameters: no activation in between
        return run(*tensors[:input_count])  # grad mode is off inside a Function

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        # saved_tensors also checks that nobody changed a weight in place between forward and backward.
        inputs, parameters = ctx.saved_tensors[: ctx.input_count], ctx.saved_tensors[ctx.input_count :]
        needs_grad = ctx.needs_input_grad[2 : 2 + ctx.input_count]  # after `run` and `input_count`
        inputs = [x.detach().requires_grad_(needs) for x, needs in zip(inputs, needs_grad, strict=True)]
        with torch.enable_grad():
            output = ctx.run(*inputs)
        wanted = [x for x in inputs if x.requires_grad]
        grads = torch.autograd.grad(output, [*wanted, *parameters], grad_outputs, allow_unused=True)
        input_grads = iter(grads[: len(wanted)])
        return (None, None, *(next(input_grads) if x.requires_grad else None for x in inputs), *grads[len(wanted) :])


def _checkpointed(block: nn.Module, run: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """Stand in for the block's forward. Parameters are looked up now, since LoRA may have come after checkpointing."""
    if not torch.is_grad_enabled():
        return run(*inputs)
    parameters = [parameter for parameter in block.parameters() if parameter.requires_grad]
    if not parameters and not any(x.requires_grad for x in inputs):
        return run(*inputs)  # nothing in here will ever be asked for a gradient
    result = _Recompute.apply(run, len(inputs), *inputs, *parameters)
    assert isinstance(result, Tensor)
    return result


def checkpointable_blocks(unet: nn.Module) -> dict[str, nn.Module]:
    """Return every block that can be checkpointed, by its path in `unet`, in the order of its state dict."""
    return {
        name: module
        for name, module in unet.named_modules()
        if isinstance(module, ResnetBlock2D | BasicTransformerBlock)
    }


def enable_checkpointing(unet: nn.Module, scope: Scope | Collection[str]) -> None:
    """Checkpoint all residual and transformer blocks of `unet`, none, or those named. Replaces an earlier choice.

    Args:
        unet: the U-Net, before or after LoRA was injected.
        scope: "all", "none", or paths among `checkpointable_blocks(unet)`.

    Raises:
        ValueError: a path names no block.
    """
    blocks = checkpointable_blocks(unet)
    chosen = {"none": set[str](), "all": set(blocks)}[scope] if isinstance(scope, str) else set(scope)
    if unknown := sorted(chosen - blocks.keys()):
        raise ValueError(
            f"{len(unknown)} of {len(chosen)} names are no checkpointable block: {', '.join(unknown[:5])}. "
            f"Use names from checkpointable_blocks(unet), such as {next(iter(blocks), 'none')}."
        )
    for name, block in blocks.items():
        block.__dict__.pop("forward", None)  # back to the class's own forward
        if name in chosen:
            block.forward = partial(_checkpointed, block, block.forward)
