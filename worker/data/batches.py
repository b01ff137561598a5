"""What is trained in which micro-step. A function of seed and position alone, so that resume is exact.

Shapes: b batch, h and w of the latents, t and p the widths of text_embeds and pooled_text_embeds.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from worker.data.encoding import TextEmbedding
from worker.data.order import Order
from worker.seeds import generator


@dataclass(frozen=True)
class View:
    """A picture as the U-Net sees it."""

    latents: Tensor  # [4, h, w]
    time_ids: Tensor  # [6], float32
    spread: Tensor | None = None  # [4, h, w]: each sample is drawn anew, with this standard deviation about `latents`
    mask: Tensor | None = None  # [1, h, w], float32, the weight of each latent's loss; None: all are 1


@dataclass(frozen=True)
class Example:
    """One picture, encoded."""

    view: View
    captions: tuple[TextEmbedding, ...]  # the same with tags in other orders: one of them is drawn
    repeats: int = 1  # how often it comes up where others come up once
    mirrored: View | None = None  # drawn as often as the other; None means never


@dataclass(frozen=True)
class Regularisation:
    """Pictures of what the model shall not forget: prior preservation.

    Source: Ruiz et al. 2022, "DreamBooth", https://arxiv.org/abs/2208.12242, section 3.2; pictures of one's own in
    place of those that the model draws.
    """

    examples: Sequence[Example]
    weight: float = 1.0  # of their loss


@dataclass(frozen=True)
class Batch:
    latents: Tensor  # [b, 4, h, w]
    text_embeds: Tensor  # [b, 75 n + 2, t], n chunks
    pooled_text_embeds: Tensor  # [b, p]
    time_ids: Tensor  # [b, 6]
    weights: Tensor | None = None  # [b], float32, of each picture's loss; None: all are 1
    masks: Tensor | None = None  # [b, 1, h, w], float32, of each latent's loss; None: all are 1

    def to(self, device: torch.device) -> "Batch":
        """Copy to a device; to a GPU from pinned memory, so that the host does not wait."""
        if device.type != "cuda":
            return self._each(lambda tensor: tensor.to(device))
        return self._each(lambda tensor: tensor.pin_memory().to(device, non_blocking=True))

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        """The same with every tensor changed."""
        tensors = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{name: change(tensor) for name, tensor in tensors.items() if tensor is not None})

    def part(self, part: slice) -> "Batch":
        """Some of its pictures."""
        return self._each(lambda tensor: tensor[part])


class Batches:
    """Batches without end, in the order of worker.data.order.

    With regularisation pictures, batches alternate: one of pictures at even positions, one of regularisation pictures
    at odd ones, however many there are of each; both go through all of theirs equally often. If any picture has a
    mask, every batch has masks, so that all have the same shape.

    Args:
        examples: every picture once.
        empty: the embedding of the empty caption, for caption dropout.
        batch_size: b.
        seed: of the order and of all that is drawn for a sample.
        caption_dropout: chance, 0..1, of the empty caption, drawn for each picture in each batch.
        regularisation: trained in turn with the pictures; None means off.

    Raises:
        ValueError: there are no examples.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        empty: TextEmbedding,
        batch_size: int,
        seed: int,
        caption_dropout: float = 0.0,
        regularisation: Regularisation | None = None,
    ) -> None:
        if not examples or (regularisation and not regularisation.examples):
            raise ValueError("There are no examples to make batches of.")
        self.examples = (*examples, *(regularisation.examples if regularisation else ()))
        self.empty = empty
        self.batch_size = batch_size
        self.seed = seed
        self.caption_dropout = caption_dropout
        self._pictures = len(examples)
        self._masked = any(example.view.mask is not None for example in self.examples)
        self._order = _order(examples, batch_size, seed, "")
        self._regularisation = regularisation
        if regularisation:
            self._regularisation_order = _order(regularisation.examples, batch_size, seed, "regularisation ")

    def __len__(self) -> int:
        """Batches until every picture has come up `batch_size` times its repeats."""
        return len(self._order) * (2 if self._regularisation else 1)

    def indices(self, position: int) -> list[int]:
        """Which examples make up the batch at `position`, 0 and up; the regularisation's come after the pictures'."""
        if not self._regularisation:
            return self._order[position]
        if position % 2 == 0:
            return self._order[position // 2]
        return [self._pictures + i for i in self._regularisation_order[position // 2]]

    def at(self, position: int) -> Batch:
        """The batch of micro-step number `position`, counted from 0 over the whole training."""
        indices = self.indices(position)
        samples = [self._sample(self.examples[i], position * self.batch_size + n) for n, i in enumerate(indices)]
        views, captions = zip(*samples, strict=True)
        return Batch(
            torch.stack([view.latents for view in views]),
            torch.stack([caption.text_embeds for caption in captions]),
            torch.stack([caption.pooled_text_embeds for caption in captions]),
            torch.stack([view.time_ids for view in views]),
            self._weights(indices),
            torch.stack([_mask(view) for view in views]) if self._masked else None,
        )

    def _sample(self, example: Example, sample: int) -> tuple[View, TextEmbedding]:
        """What is drawn for sample number `sample`, counted from 0 over the whole training.

        Each choice has a stream of its own, so that to switch one on does not change the others.
        """

        def source(stream: str) -> torch.Generator:
            return generator(stream, self.seed, sample)

        view, caption = example.view, example.captions[0]
        if example.mirrored and torch.rand((), generator=source("flip")).item() < 0.5:
            view = example.mirrored
        if view.spread is not None:
            noise = torch.randn(view.latents.shape, generator=source("posterior"))  # [4, h, w]
            drawn = view.latents.float() + view.spread.float() * noise  # in float32: the border of the draw
            view = replace(view, latents=drawn.to(view.latents.dtype))
        if len(example.captions) > 1:
            caption = example.captions[int(torch.randint(len(example.captions), (), generator=source("tags")))]
        if torch.rand((), generator=source("caption dropout")).item() < self.caption_dropout:
            caption = self.empty
        return view, caption

    def _weights(self, indices: list[int]) -> Tensor | None:
        if not self._regularisation:
            return None
        return torch.tensor([1.0 if i < self._pictures else self._regularisation.weight for i in indices])  # [b]


def _order(examples: Sequence[Example], batch_size: int, seed: int, stream: str) -> Order:
    sizes = [tuple(example.view.latents.shape) for example in examples]
    return Order(sizes, [example.repeats for example in examples], batch_size, seed, stream)


def _mask(view: View) -> Tensor:
    return torch.ones(1, *view.latents.shape[1:]) if view.mask is None else view.mask  # [1, h, w]
