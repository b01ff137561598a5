"""Which pictures are held out of training: decided by their bytes alone, so that no name, order or seed moves one.

A picture that lies in the dataset twice is held out twice, also where it lies among the regularisation pictures: what
is measured was never trained. One that was saved anew (resized, another format) is another picture to loraq.
"""

from dataclasses import replace

from worker.data.dataset import Dataset
from worker.errors import DatasetInvalid

MAX_HELD_OUT = 128
"""More of them tell little more, and each costs eight predictions whenever their loss is taken."""

_NAMES_SHOWN = 10


def hold_out(dataset: Dataset, pictures: int | None, share: float | None) -> Dataset:
    """The dataset without the pictures that are held out, and these in `held_out`.

    Those with the smallest SHA-256 are taken, which is as good as at random.

    Args:
        dataset: whole, none held out yet.
        pictures: how many are held out; None: `share` says it.
        share: of the different pictures, rounded, at least one and at most MAX_HELD_OUT.

    Raises:
        DatasetInvalid: no picture is left to train on, or no regularisation picture.
    """
    own = sorted({picture.sha256 for picture in dataset.pictures if not picture.regularisation})
    count = pictures if pictures is not None else min(MAX_HELD_OUT, max(1, round((share or 0.0) * len(own))))
    if count >= len(own):
        raise DatasetInvalid(
            f"training.validation holds out {count} pictures, and the dataset has {len(own)} different ones: none would"
            " be left to train on. Hold out fewer, or leave validation out."
        )
    chosen = set(own[:count])
    left = tuple(picture for picture in dataset.pictures if picture.sha256 not in chosen)
    if any(picture.regularisation for picture in dataset.pictures) and not left[-1].regularisation:
        raise DatasetInvalid(
            "Every regularisation picture is one that training.validation holds out: the same files lie in both "
            "folders. Use others, or leave one of the two out."
        )
    held_out = {picture.sha256: picture for picture in reversed(dataset.pictures) if picture.sha256 in chosen}
    firsts = {picture.name for picture in held_out.values()}
    copies = [p.name for p in dataset.pictures if p.sha256 in chosen and p.name not in firsts]
    return replace(
        dataset,
        pictures=left,
        held_out=tuple(sorted(held_out.values(), key=lambda picture: picture.name)),
        warnings=(*dataset.warnings, *_warning(copies)),
    )


def _warning(copies: list[str]) -> list[str]:
    if not copies:
        return []
    shown = ", ".join(copies[:_NAMES_SHOWN]) + (", …" if len(copies) > _NAMES_SHOWN else "")
    return [f"{len(copies)} pictures are the same as one that is held out, and are not trained either: {shown}."]
