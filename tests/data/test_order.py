"""Batches are full, of one size, fair to every picture as often as it repeats, and a function of seed and position."""

from collections import Counter

import pytest

from worker.data.order import Order

SIZES = ["wide"] * 5 + ["high"] * 3
REPEATS = [1, 1, 4, 1, 1, 2, 1, 1]


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7])
def test_repeats_are_how_often_a_picture_comes_up_in_a_cycle(batch_size: int) -> None:
    order = Order(SIZES, REPEATS, batch_size, seed=0)
    assert len(order) == sum(REPEATS)
    for cycle in range(2):
        drawn = [order[position] for position in range(cycle * len(order), (cycle + 1) * len(order))]
        assert {len(batch) for batch in drawn} == {batch_size}
        assert all(len({SIZES[i] for i in batch}) == 1 for batch in drawn)
        counts = Counter(i for batch in drawn for i in batch)
        assert [counts[i] for i in range(8)] == [batch_size * times for times in REPEATS]


def test_streams_of_the_same_seed_differ() -> None:
    one, other = Order(SIZES, [1] * 8, 1, 0), Order(SIZES, [1] * 8, 1, 0, "other ")
    assert [one[n] for n in range(16)] != [other[n] for n in range(16)]
