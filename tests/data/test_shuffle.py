"""Tags come in other orders, those at the front stay, and nothing is lost or made up."""

from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from worker.data.config import DatasetConfig, ShuffleConfig
from worker.data.dataset import Dataset, Picture
from worker.data.examples import caption_orders
from worker.data.shuffle import shuffled, tags_of

TAGS = st.lists(st.text("abc ", min_size=1, max_size=3), max_size=8)


@settings(deadline=None, max_examples=50)
@given(tags=TAGS, keep=st.integers(0, 9), count=st.integers(1, 12))
def test_orders_hold_the_same_tags_and_the_same_front(tags: list[str], keep: int, count: int) -> None:
    caption = ",".join(tags)
    orders = shuffled(caption, keep, count)
    assert 1 <= len(orders) <= count
    assert len(set(orders)) == len(orders)
    for order in orders:
        assert sorted(tags_of(order)) == sorted(tags_of(caption))
        assert tags_of(order)[:keep] == tags_of(caption)[:keep]
    assert orders == shuffled(caption, keep, count)


def test_few_tags_have_few_orders_and_many_have_as_many_as_asked_for() -> None:
    assert shuffled("a", 0, 8) == ("a",)
    assert set(shuffled("k, a, b", 1, 8)) == {"k, a, b", "k, b, a"}
    assert len(shuffled("a, b, c, d, e, f", 0, 8)) == 8
    assert len(set(shuffled("a, b, c", 0, 64))) == 6  # all there are


def test_the_triggers_tags_stay_and_regularisation_has_none() -> None:
    def picture(caption: str, regularisation: bool) -> Picture:
        return Picture(Path(), "a.png", "", (8, 8), caption, regularisation=regularisation)

    captions = ("photo, ohwx, " + "a, b, c, d", "a, b, c, d")
    dataset = Dataset(tuple(picture(c, bool(i)) for i, c in enumerate(captions)), (), ())
    config = DatasetConfig("", trigger="photo, ohwx", shuffle=ShuffleConfig(keep_tokens=1, orders=6))
    pictures, regularisation = caption_orders(dataset, config)
    assert {order.split(", ")[1] for order in pictures} == {"ohwx"}
    assert {order.split(", ")[0] for order in regularisation} == {"a"}
    assert {order.split(", ")[1] for order in regularisation} > {"b"}
    plain = caption_orders(dataset, DatasetConfig(""))
    assert plain == [(caption,) for caption in captions]
