"""Which pictures make up which batch: a function of seed and position alone, fair to every picture.

A batch is full and of one bucket size. Pictures of a bucket size are strung together, permutation after permutation,
and cut into batches. After `batch_size` permutations the cut comes out even for every bucket size, whatever its count:
that is a cycle. Within a cycle, batches of all bucket sizes are shuffled. With batch_size 1 it is one epoch. A batch
may hold a picture twice (with two noises) where two permutations meet.
"""

from collections.abc import Hashable, Sequence
from functools import lru_cache

import torch

from worker.seeds import generator


class Order:
    """Batches without end.

    Args:
        sizes: the bucket size of each picture; anything that can be sorted and tells sizes apart.
        repeats: how often each picture stands in a permutation, at least once.
        batch_size: pictures a batch.
        seed: of the shuffling.
        stream: sets this order apart from others of the same seed.
    """

    def __init__(
        self, sizes: Sequence[Hashable], repeats: Sequence[int], batch_size: int, seed: int, stream: str = ""
    ) -> None:
        assert len(sizes) == len(repeats) > 0
        self._batch_size = batch_size
        self._seed = seed
        self._stream = stream
        members: dict[Hashable, list[int]] = {}
        for picture, (size, times) in enumerate(zip(sizes, repeats, strict=True)):
            members.setdefault(size, []).extend([picture] * times)
        self._members = [members[size] for size in sorted(members, key=repr)]
        self._cycle = lru_cache(maxsize=1)(self._make_cycle)

    def __len__(self) -> int:
        """Batches a cycle: as many as there are pictures, repeats counted."""
        return sum(map(len, self._members))

    def __getitem__(self, position: int) -> list[int]:
        """The pictures of batch number `position`, 0 and up."""
        cycle, offset = divmod(position, len(self))
        return self._cycle(cycle)[offset]

    def _make_cycle(self, cycle: int) -> list[list[int]]:
        batches: list[list[int]] = []
        for bucket, members in enumerate(self._members):
            source = generator(f"{self._stream}order", self._seed, cycle, bucket)
            permutations = [torch.randperm(len(members), generator=source).tolist() for _ in range(self._batch_size)]
            strung = [members[i] for permutation in permutations for i in permutation]
            batches += [strung[i : i + self._batch_size] for i in range(0, len(strung), self._batch_size)]
        shuffled = torch.randperm(len(batches), generator=generator(f"{self._stream}cycle", self._seed, cycle)).tolist()
        return [batches[i] for i in shuffled]
