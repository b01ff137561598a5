"""What of a dataset is to be encoded, and the examples that come of it."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from PIL import ImageOps

from worker.data.batches import Example, View
from worker.data.buckets import Cut
from worker.data.config import DatasetConfig
from worker.data.dataset import Dataset
from worker.data.encoding import Latents, Shot, TextEmbedding
from worker.data.masks import mask_of_latents
from worker.data.shuffle import shuffled, tags_of
from worker.errors import DatasetInvalid

Orders = tuple[str, ...]  # of one caption, each to be encoded


def caption_orders(dataset: Dataset, config: DatasetConfig) -> list[Orders]:
    """For each picture, its caption with tags in the orders that are trained."""
    options = config.shuffle
    if options is None:
        return [(picture.caption,) for picture in dataset.pictures]
    of_trigger = len(tags_of(config.trigger or ""))
    return [
        shuffled(
            picture.caption,
            max(options.keep_tokens, 0 if picture.regularisation else of_trigger),
            options.orders,
        )
        for picture in dataset.pictures
    ]


def shots_of(dataset: Dataset, cuts: Sequence[Cut], flip: bool) -> list[Shot]:
    """Every picture as it is cut, each followed by its mirrored self if there is `flip`; then those held out.

    `cuts` are of the pictures, then of those held out.
    """
    shots: list[Shot] = []
    for picture, cut in zip((*dataset.pictures, *dataset.held_out), cuts, strict=True):
        shots.append(Shot(picture, cut))
        if flip and len(shots) < 2 * len(dataset.pictures):
            shots.append(Shot(picture, cut.mirrored(), mirrored=True))
    return shots


def view_of(shot: Shot, latents: Latents, config: DatasetConfig) -> View:
    """What of a shot is kept for training.

    Raises:
        DatasetInvalid: its mask leaves nothing of it.
    """
    mask = None
    if shot.picture.mask and config.masks:
        try:
            image = shot.picture.mask.open()
            image = ImageOps.mirror(image) if shot.mirrored else image
            mask = mask_of_latents(image, shot.cut, config.masks.background)  # [1, h, w]
        except DatasetInvalid as error:
            raise DatasetInvalid(f"{shot.picture.name} {error}.") from error
    spread = latents.spread if config.latents == "drawn" else None
    return View(latents.mean, shot.cut.time_ids(), spread, mask)


def make_examples(
    dataset: Dataset, views: Sequence[View], orders: Sequence[Orders], captions: Mapping[str, TextEmbedding]
) -> list[Example]:
    """One example a picture; `views` are those of `shots_of`, one or two a picture, and one each that is held out."""
    each = (len(views) - len(dataset.held_out)) // len(dataset.pictures)
    return [
        Example(
            view=views[n * each],
            captions=tuple(captions[text] for text in orders[n]),
            repeats=picture.repeats,
            mirrored=views[n * each + 1] if each == 2 else None,
        )
        for n, picture in enumerate(dataset.pictures)
    ]


def make_held_out(dataset: Dataset, views: Sequence[View], captions: Mapping[str, TextEmbedding]) -> list[Example]:
    """One example each picture that is held out, its caption as it stands; `views` are those of `shots_of`."""
    own = views[len(views) - len(dataset.held_out) :]
    return [
        Example(replace(view, spread=None), (captions[picture.caption],))
        for picture, view in zip(dataset.held_out, own, strict=True)
    ]
