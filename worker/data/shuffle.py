"""Captions with their tags in another order: a model that has seen one order only learns the order, too.

A caption is encoded before training, in `count` orders, and a step draws one of them: the text encoders need not stay
on the GPU, and an order that was drawn once costs nothing the second time.
"""

import torch

from worker.seeds import generator

SEPARATOR = ","


def tags_of(text: str) -> list[str]:
    """The comma-separated tags of a caption."""
    return [tag for each in text.split(SEPARATOR) if (tag := each.strip())]


def shuffled(caption: str, keep_tokens: int, count: int) -> tuple[str, ...]:
    """`caption` in different orders, as many as there are but no more than `count`.

    They depend on the caption alone, so that jobs with other seeds and other pictures find them in the cache.

    Args:
        caption: tags, separated by commas.
        keep_tokens: tags at the front that stay in place.
        count: orders, at least 1.
    """
    tags = tags_of(caption)
    front, rest = tags[:keep_tokens], tags[keep_tokens:]
    source = generator(f"tags of {caption}")
    orders: dict[str, None] = {}  # a set that keeps its order
    for _ in range(4 * count):  # of few tags all orders are found soon, and the rest would only repeat them
        order = torch.randperm(len(rest), generator=source).tolist()
        orders[", ".join([*front, *(rest[i] for i in order)])] = None
        if len(orders) == count:
            break
    return tuple(orders)
