"""What a dataset turns out to be, told before training starts."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from worker.data.buckets import Cut
from worker.data.dataset import Dataset

_CAPTIONS_SHOWN = 5
_NAMES_SHOWN = 10


@dataclass(frozen=True)
class DatasetReport:
    pictures: int
    bucket_sizes: dict[str, int]  # "width x height" as "512x768", to number of pictures
    captions: tuple[str, ...]  # the first five, as trained
    skipped: tuple[str, ...]  # one sentence a file that is not used
    warnings: tuple[str, ...]  # one sentence each


def dataset_report(dataset: Dataset, cuts: Sequence[Cut]) -> DatasetReport:
    """Sum up a dataset, with one cut for each picture."""
    counts = Counter(cut.bucket_px for cut in cuts)
    enlarged = [picture.name for picture, cut in zip(dataset.pictures, cuts, strict=True) if cut.enlarged]
    warnings = list(dataset.warnings)
    if enlarged:
        shown = ", ".join(enlarged[:_NAMES_SHOWN]) + (", …" if len(enlarged) > _NAMES_SHOWN else "")
        warnings.append(f"{len(enlarged)} pictures are smaller than their bucket size and were enlarged: {shown}.")
    return DatasetReport(
        pictures=len(dataset.pictures),
        bucket_sizes={f"{width}x{height}": n for (width, height), n in sorted(counts.items())},
        captions=tuple(picture.caption for picture in dataset.pictures[:_CAPTIONS_SHOWN]),
        skipped=dataset.skipped,
        warnings=tuple(warnings),
    )
