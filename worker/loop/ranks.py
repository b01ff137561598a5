"""Several GPUs: one process each, called a rank, all with the same weights. What they tell each other, in one place.

torchrun starts the ranks and says by the environment who is who. In a step they exchange one thing, the mean of their
gradients: DistributedDataParallel's job (Li et al. 2020, https://arxiv.org/abs/2006.15704, section 3.2), with one
bucket, because an adapter's gradient is megabytes. It goes between GPUs by NCCL. All else is small and goes by gloo
between CPUs, so that no GPU waits for it.

Nobody waits with a time limit, for rank 0 may draw pictures for as long as it takes. A rank that dies is noticed by
torchrun, which ends the others; ranks that hang, by whoever listens to rank 0.
"""

import hashlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from worker.errors import GpusMissing, RanksDiffer

NO_LIMIT = timedelta(days=30)
LOOK_EVERY_S = 0.2

T = TypeVar("T")


class PeerLost(Exception):
    """An exchange failed, most likely because another rank has ended: it is the one that knows why."""


class Ranks:
    """All ranks of one training, as one of them sees them. Made without arguments it is alone, and exchanges nothing.

    Args:
        rank: 0..size-1. Rank 0 speaks, draws and saves for all.
        size: how many there are.
        local_rank: number on this machine, and of the GPU that it takes.
        store: torchrun's key-value store, which needs no process group; None without torchrun.
    """

    def __init__(self, rank: int = 0, size: int = 1, local_rank: int = 0, store: Store | None = None) -> None:
        self.rank = rank
        self.size = size
        self.local_rank = local_rank
        self._store = store

    @classmethod
    def of_environment(cls) -> "Ranks":
        """Those that torchrun started, or this process alone."""
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return cls()
        store, rank, size = next(rendezvous("env://", timeout=NO_LIMIT))
        return cls(rank, size, int(os.environ["LOCAL_RANK"]), PrefixStore("loraq", store))

    @property
    def first(self) -> bool:
        """Whether this is the rank that speaks, draws and saves for all."""
        return self.rank == 0

    def join(self, device: str) -> None:
        """Meet all others, take a GPU of one's own unless `device` is "cpu", and be ready for exchanges.

        Raises:
            GpusMissing: this machine has GPUs, but fewer than ranks.
        """
        if self.size == 1:
            return
        gpus = torch.cuda.device_count() if device != "cpu" else 0
        if gpus and self.local_rank >= gpus:
            raise GpusMissing(f"This machine shows {gpus} GPUs, too few for rank {self.local_rank} on it: lower gpus.")
        if gpus:
            torch.cuda.set_device(self.local_rank)
        backend = "cpu:gloo,cuda:nccl" if gpus else "gloo"
        with _peers():
            dist.init_process_group(backend, timeout=NO_LIMIT, rank=self.rank, world_size=self.size, store=self._store)

    def leave(self) -> None:
        """Undo `join`, after a training that went well; after another, just end."""
        if self.size > 1:
            dist.destroy_process_group()

    # -- who does what ------------------------------------------------------------------------------------------------

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """This rank's part of work that can be done in any order."""
        return items[self.rank :: self.size]

    def part(self, count: int) -> slice:
        """Where this rank's `count` samples stand in a batch of size * count."""
        return slice(self.rank * count, (self.rank + 1) * count)

    # -- exchanges: every rank makes the same ones in the same order --------------------------------------------------

    @torch.no_grad()
    def average(self, tensors: Sequence[Tensor]) -> None:
        """Replace each float32 tensor by its mean over all ranks, in place: one all-reduce of one flat buffer."""
        if self.size == 1:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])  # [all their elements]
        with _peers():
            dist.all_reduce(flat)
        flat /= self.size
        parts = [part.view_as(t) for part, t in zip(flat.split([t.numel() for t in tensors]), tensors, strict=True)]
        torch._foreach_copy_(list(tensors), parts)  # pyright: ignore[reportPrivateImportUsage]

    def any(self, flag: bool) -> bool:
        """Whether any rank says so: all get the same answer."""
        if self.size == 1:
            return flag
        flags = torch.tensor([flag], dtype=torch.int32)
        with _peers():
            dist.all_reduce(flags, dist.ReduceOp.MAX)
        return bool(flags.item())

    def check_same(self, tensors: Iterable[Tensor]) -> None:
        """Make sure that every rank has the same, to the bit. Raises RanksDiffer on all of them."""
        if self.size == 1:
            return
        digest = hashlib.sha256()
        for tensor in tensors:
            digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)  # host sync
        ours = torch.frombuffer(bytearray(digest.digest()), dtype=torch.uint8)  # [32]
        theirs = [torch.empty_like(ours) for _ in range(self.size)]
        with _peers():
            dist.all_gather(theirs, ours)
        strays = [rank for rank, each in enumerate(theirs) if not torch.equal(each, theirs[0])]
        if strays:
            raise RanksDiffer(f"The weights of rank {strays} are not those of rank 0: use GPUs of one kind for a job.")

    # -- without exchange: at any time, in any order ------------------------------------------------------------------

    def tally(self, name: str, amount: int = 0) -> int:
        """Add to a number that all ranks see, and return what it is now."""
        assert self._store is not None
        with _peers():
            return self._store.add(name, amount)

    def meet(self, name: str, meanwhile: Callable[[], None]) -> None:
        """Wait until all ranks are here, calling `meanwhile` now and then."""
        self.tally(name, 1)
        while self.tally(name) < self.size:
            meanwhile()
            time.sleep(LOOK_EVERY_S)

    def why(self, own: str) -> str | None:
        """What this rank is to say of a failure: what the first of all to fail said of its own, or None, nothing.

        Args:
            own: what this rank has to say, which is not empty.
        """
        if self.size == 1:
            return own
        assert self._store is not None
        with _peers():
            first = self._store.compare_set("why", "", own).decode()  # sets it if nobody has
        machine = os.environ["GROUP_RANK"]  # of one machine, one rank speaks: they share their standard output
        return first if self.tally(f"failed on machine {machine}", 1) == 1 else None


@contextmanager
def _peers() -> Iterator[None]:
    """What torch.distributed raises when a rank has gone, told as PeerLost."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:  # gloo raises it plain; NCCL's and the store's errors are subclasses
        raise PeerLost(f"The exchange with the other ranks failed: {error}") from error
