"""Which pictures are trained in which micro-step. A function of seed and position alone, so that resume is exact.

Shapes: b batch, h and w of the latents, t and p the widths of text_embeds and pooled_text_embeds.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import lru_cache

import torch
from torch import Tensor

from worker.data.encoding import TextEmbedding
from worker.seeds import generator


@dataclass(frozen=True)
class Example:
    """One picture, encoded."""

    latents: Tensor  # [4, h, w]
    caption: TextEmbedding
    time_ids: Tensor  # [6], float32


@dataclass(frozen=True)
class Batch:
    latents: Tensor  # [b, 4, h, w]
    text_embeds: Tensor  # [b, 77, t]
    pooled_text_embeds: Tensor  # [b, p]
    time_ids: Tensor  # [b, 6]

    def to(self, device: torch.device) -> "Batch":
        """Copy to a device; to a GPU from pinned memory, so that the host does not wait."""
        if device.type != "cuda":
            return Batch(*(getattr(self, field.name).to(device) for field in fields(self)))
        return Batch(*(getattr(self, field.name).pin_memory().to(device, non_blocking=True) for field in fields(self)))


class Batches:
    """Batches without end. Every batch is full and of one bucket size; every picture comes up equally often.

    Pictures of a bucket size are strung together, permutation after permutation, and cut into batches. After
    `batch_size` permutations the cut comes out even for every bucket size, whatever its count: that is a cycle, as
    many batches as there are pictures. Within a cycle, batches of all bucket sizes are shuffled. With batch_size 1 it
    is one epoch. A batch may hold a picture twice (with two noises) where two permutations meet.

    Args:
        examples: every picture once.
        empty: the embedding of the empty caption, for caption dropout.
        batch_size: b.
        seed: of the order and of the dropout.
        caption_dropout: chance, 0..1, of the empty caption, drawn for each picture in each batch.

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
    ) -> None:
        if not examples:
            raise ValueError("There are no examples to make batches of.")
        self.examples = examples
        self.empty = empty
        self.batch_size = batch_size
        self.seed = seed
        self.caption_dropout = caption_dropout
        sizes = sorted({tuple(example.latents.shape) for example in examples})
        self._members = [[i for i, e in enumerate(examples) if tuple(e.latents.shape) == size] for size in sizes]
        self._cycle = lru_cache(maxsize=1)(self._make_cycle)

    def __len__(self) -> int:
        """Batches a cycle."""
        return len(self.examples)

    def indices(self, position: int) -> list[int]:
        """Which examples make up the batch at `position`, 0 and up."""
        cycle, offset = divmod(position, len(self))
        return self._cycle(cycle)[offset]

    def at(self, position: int) -> Batch:
        """The batch of micro-step number `position`, counted from 0 over the whole training."""
        chosen = [self.examples[i] for i in self.indices(position)]
        drawn = torch.rand(len(chosen), generator=generator("caption dropout", self.seed, position))
        captions = [self.empty if u < self.caption_dropout else e.caption for e, u in zip(chosen, drawn, strict=True)]
        return Batch(
            torch.stack([example.latents for example in chosen]),
            torch.stack([caption.text_embeds for caption in captions]),
            torch.stack([caption.pooled_text_embeds for caption in captions]),
            torch.stack([example.time_ids for example in chosen]),
        )

    def _make_cycle(self, cycle: int) -> list[list[int]]:
        batches: list[list[int]] = []
        for bucket, members in enumerate(self._members):
            source = generator("order", self.seed, cycle, bucket)
            permutations = [torch.randperm(len(members), generator=source).tolist() for _ in range(self.batch_size)]
            strung = [members[i] for permutation in permutations for i in permutation]
            batches += [strung[i : i + self.batch_size] for i in range(0, len(strung), self.batch_size)]
        shuffled = torch.randperm(len(batches), generator=generator("cycle", self.seed, cycle)).tolist()
        return [batches[i] for i in shuffled]
