"""Encoding by all ranks into one cache: each takes its share, and nobody waits for another in an exchange."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from worker.data.cache import Cache
from worker.data.encoding import Shot, encode_captions, encode_pictures
from worker.loop.ranks import Ranks
from worker.model.base_model import BaseModel


@dataclass(frozen=True)
class Work:
    """What all ranks have to encode, with what, and where."""

    cache: Cache
    base: BaseModel
    texts: Sequence[str]
    tokens: int  # of each text
    shots: Sequence[Shot]
    device: torch.device
    dtype: torch.dtype


def fill_cache(work: Work, ranks: Ranks, tell: Callable[[int], None], stop_requested: Callable[[], bool]) -> bool:
    """Encode what the cache lacks; afterwards every rank reads all of it from there.

    A rank on a machine with a cache of its own finds only its share there, and encodes the rest when it reads.

    Args:
        tell: called now and then with how many texts and shots all ranks together have done.
        stop_requested: asked between pictures; a stop of one is a stop of all.

    Returns:
        Whether all ranks stop here. All get the same answer.
    """
    told = 0

    def tell_progress() -> None:
        nonlocal told
        if (done := ranks.tally("encoded")) > told:
            tell(done)
            told = done

    stop = False
    for _ in itertools.chain(
        encode_captions(ranks.share(work.texts), work.cache, work.base, work.device, work.dtype, work.tokens),
        encode_pictures(ranks.share(work.shots), work.cache, work.base, work.device, work.dtype),
    ):
        ranks.tally("encoded", 1)
        tell_progress()
        if stop := ranks.tally("told to stop", stop_requested()) > 0:
            break
    ranks.meet("encoding", meanwhile=tell_progress)
    tell_progress()
    return ranks.any(stop or stop_requested())
