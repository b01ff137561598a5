"""Batches are full, of one size, fair to every picture, and a function of seed and position alone."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch

from worker.data.batches import Batches, Example, Regularisation, View
from worker.data.encoding import TextEmbedding

EMPTY = TextEmbedding(torch.zeros(77, 4), torch.zeros(2))


def embedding(n: float) -> TextEmbedding:
    return TextEmbedding(torch.full((77, 4), float(n)), torch.full((2,), float(n)))


def numbered(shape: tuple[int, int, int], n: int, **options: Any) -> Example:
    """A picture filled with its number."""
    return Example(View(torch.full(shape, float(n)), torch.full((6,), float(n))), (embedding(n),), **options)


@pytest.fixture
def make_batches() -> Callable[..., Batches]:
    """Five wide and three high pictures, each filled with its own number from 1 on."""

    def make(batch_size: int = 2, seed: int = 0, dropout: float = 0.0) -> Batches:
        shapes = [(4, 2, 4)] * 5 + [(4, 4, 2)] * 3
        examples = [numbered(shape, n) for n, shape in enumerate(shapes, start=1)]
        return Batches(examples, EMPTY, batch_size, seed, dropout)

    return make


@pytest.mark.parametrize("batch_size", [1, 2, 3, 4, 10])
def test_every_batch_is_full_and_every_picture_comes_up_equally_often(
    make_batches: Callable[..., Batches], batch_size: int
) -> None:
    batches = make_batches(batch_size)
    for cycle in range(3):
        positions = range(cycle * len(batches), (cycle + 1) * len(batches))
        drawn = [batches.indices(position) for position in positions]
        assert {len(indices) for indices in drawn} == {batch_size}
        assert Counter(i for indices in drawn for i in indices) == dict.fromkeys(range(8), batch_size)
        for indices in drawn:
            assert len({tuple(batches.examples[i].view.latents.shape) for i in indices}) == 1


def test_a_batch_depends_on_seed_and_position_alone(make_batches: Callable[..., Batches]) -> None:
    straight = [make_batches().indices(position) for position in range(40)]
    batches = make_batches()
    torch.manual_seed(123)  # the global stream plays no part
    backwards = [batches.indices(position) for position in reversed(range(40))]
    assert straight == backwards[::-1]
    assert straight != [make_batches(seed=1).indices(position) for position in range(40)]
    assert straight[:8] != straight[8:16]  # each cycle is shuffled anew


def test_a_batch_holds_what_belongs_together(make_batches: Callable[..., Batches]) -> None:
    batches = make_batches(batch_size=3)
    for position in range(8):
        batch = batches.at(position)
        numbers = torch.tensor(batches.indices(position)) + 1
        assert batch.latents.shape[:2] == (3, 4)
        assert torch.equal(batch.latents[:, 0, 0, 0], numbers)
        assert torch.equal(batch.text_embeds[:, 0, 0], numbers)
        assert torch.equal(batch.pooled_text_embeds[:, 0], numbers)
        assert torch.equal(batch.time_ids[:, 0], numbers)


def test_caption_dropout_replaces_both_embeddings_at_its_rate(make_batches: Callable[..., Batches]) -> None:
    batches = make_batches(batch_size=4, dropout=0.25)
    dropped = []
    for position in range(500):
        batch = batches.at(position)
        assert torch.equal(batch.text_embeds[:, 0, 0] == 0, batch.pooled_text_embeds[:, 0] == 0)
        assert (batch.time_ids > 0).all()  # only the caption goes
        dropped += (batch.pooled_text_embeds[:, 0] == 0).tolist()
        assert torch.equal(batches.at(position).text_embeds, batch.text_embeds)  # the same each time it is asked for
    assert sum(dropped) / len(dropped) == pytest.approx(0.25, abs=0.04)  # 4 sigma of 2,000 draws


@pytest.mark.parametrize(("dropout", "kept"), [(0.0, 8), (1.0, 0)])
def test_caption_dropout_has_clean_ends(make_batches: Callable[..., Batches], dropout: float, kept: int) -> None:
    batches = make_batches(batch_size=1, dropout=dropout)
    assert sum(bool(batches.at(position).text_embeds.any()) for position in range(8)) == kept


@pytest.mark.parametrize("batch_size", [1, 3])
def test_regularisation_pictures_take_every_other_batch_and_their_weight(batch_size: int) -> None:
    pictures = [numbered((4, 2, 4), n) for n in (1, 2, 3)]
    regularisation = [numbered((4, 4, 2), n) for n in (11, 12, 13, 14, 15)]
    batches = Batches(pictures, EMPTY, batch_size, 0, regularisation=Regularisation(regularisation, 0.25))
    seen: Counter[int] = Counter()
    for position in range(30):  # five cycles of three, three cycles of five
        batch = batches.at(position)
        assert batch.weights is not None
        of_regularisation = position % 2 == 1
        assert batch.weights.tolist() == [0.25 if of_regularisation else 1.0] * batch_size
        numbers = batch.latents[:, 0, 0, 0]
        assert (numbers > 10).tolist() == [of_regularisation] * batch_size
        assert torch.equal(numbers, batch.pooled_text_embeds[:, 0])
        seen.update(numbers.tolist())
    assert seen == dict.fromkeys((1, 2, 3), 5 * batch_size) | dict.fromkeys((11, 12, 13, 14, 15), 3 * batch_size)


def test_without_regularisation_all_weigh_the_same(make_batches: Callable[..., Batches]) -> None:
    assert make_batches().at(0).weights is None


def test_no_examples_are_refused() -> None:
    with pytest.raises(ValueError, match="no examples"):
        Batches([], EMPTY, 1, 0)
    with pytest.raises(ValueError, match="no examples"):
        Batches([numbered((4, 2, 2), 1)], EMPTY, 1, 0, regularisation=Regularisation([]))


def test_half_of_the_samples_are_mirrored_if_they_may_be() -> None:
    mirrored = View(torch.full((4, 2, 2), -1.0), torch.full((6,), -1.0))
    batches = Batches([numbered((4, 2, 2), 1, mirrored=mirrored)], EMPTY, 4, 0)
    seen = [batches.at(position) for position in range(250)]
    signs = torch.cat([batch.latents[:, 0, 0, 0] for batch in seen])
    assert torch.equal(signs, torch.cat([batch.time_ids[:, 0] for batch in seen]))  # sizes go with the picture
    assert (signs < 0).float().mean().item() == pytest.approx(0.5, abs=0.064)  # 4 sigma of 1,000 draws


def test_latents_are_drawn_anew_from_the_posterior() -> None:
    view = View(torch.full((4, 8, 8), 3.0), torch.zeros(6), spread=torch.full((4, 8, 8), 0.5))
    batches = Batches([Example(view, (embedding(1),))], EMPTY, 2, 0)
    drawn = torch.cat([batches.at(position).latents for position in range(50)])
    assert drawn.mean().item() == pytest.approx(3.0, abs=0.02)  # 5 sigma of 25,600 draws
    assert drawn.std().item() == pytest.approx(0.5, abs=0.02)
    assert len({tuple(latents.flatten().tolist()) for latents in drawn}) == 100
    assert torch.equal(batches.at(7).latents, batches.at(7).latents)


def test_one_of_the_orders_of_a_caption_is_drawn_for_each_sample() -> None:
    orders = tuple(embedding(n) for n in (1, 2, 3, 4))
    batches = Batches([Example(numbered((4, 2, 2), 1).view, orders)], EMPTY, 2, 0)
    drawn = [n for position in range(400) for n in batches.at(position).pooled_text_embeds[:, 0].tolist()]
    counts = Counter(drawn)
    assert set(counts) == {1.0, 2.0, 3.0, 4.0}
    assert all(count == pytest.approx(200, abs=50) for count in counts.values())  # 4 sigma
    assert drawn[0::2] != drawn[1::2]  # the samples of a batch draw apart


def test_what_is_switched_on_does_not_change_the_other_draws() -> None:
    plain = numbered((4, 2, 2), 1)
    rich = Example(plain.view, (embedding(1), embedding(2)), mirrored=plain.view)
    one, other = (Batches([example], EMPTY, 2, 0, caption_dropout=0.5) for example in (plain, rich))
    for position in range(50):
        dropped = [batches.at(position).pooled_text_embeds[:, 0] == 0 for batches in (one, other)]
        assert torch.equal(*dropped)


def test_if_one_picture_has_a_mask_every_batch_has_masks() -> None:
    mask = torch.tensor([[[0.0, 1.0], [0.5, 1.0]]])
    masked = Example(View(torch.full((4, 2, 2), 1.0), torch.zeros(6), mask=mask), (embedding(1),))
    batches = Batches([masked, numbered((4, 2, 2), 2)], EMPTY, 1, 0, regularisation=Regularisation([masked]))
    for position in range(8):
        batch = batches.at(position)
        assert batch.masks is not None
        assert torch.equal(batch.masks[0], mask if batch.latents[0, 0, 0, 0] == 1 else torch.ones(1, 2, 2))
    assert Batches([numbered((4, 2, 2), 2)], EMPTY, 1, 0).at(0).masks is None
