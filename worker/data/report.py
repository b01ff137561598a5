"""What a dataset turns out to be, told before training starts."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from worker.data.buckets import Cut
from worker.data.dataset import Dataset, caption_sources

_CAPTIONS_SHOWN = 5
_NAMES_SHOWN = 10
_SKIPPED_SHOWN = 20


@dataclass(frozen=True)
class DatasetReport:
    pictures: int
    regularisation_pictures: int
    repeated: int  # pictures of a cycle, repeats counted, without regularisation
    masked: int  # pictures that have a mask
    held_out: tuple[str, ...]  # names of pictures that are not trained, for validation
    sizes_px: dict[str, str]  # smallest, median and largest by area, as "512x768"
    bucket_sizes: dict[str, int]  # "width x height" as "512x768", to number of pictures
    captions: tuple[str, ...]  # the first five, as trained
    caption_sources: dict[str, int]  # .txt, .caption, metadata.jsonl, class tokens, file name or none, to number
    skipped: tuple[str, ...]  # one sentence a file that is not used
    warnings: tuple[str, ...]  # one sentence each


def dataset_report(dataset: Dataset, cuts: Sequence[Cut]) -> DatasetReport:
    """Sum up a dataset, with one cut for each picture, then for each that is held out, which only `held_out` names."""
    cuts = cuts[: len(dataset.pictures)]
    counts = Counter(cut.bucket_px for cut in cuts)
    enlarged = [picture.name for picture, cut in zip(dataset.pictures, cuts, strict=True) if cut.enlarged]
    warnings = list(dataset.warnings)
    if enlarged:
        shown = ", ".join(enlarged[:_NAMES_SHOWN]) + (", …" if len(enlarged) > _NAMES_SHOWN else "")
        warnings.append(f"{len(enlarged)} pictures are smaller than their bucket size and were enlarged: {shown}.")
    pictures = [picture for picture in dataset.pictures if not picture.regularisation]
    by_area = sorted((picture.size_px for picture in dataset.pictures), key=lambda size: (size[0] * size[1], size))
    sizes = {"smallest": by_area[0], "median": by_area[len(by_area) // 2], "largest": by_area[-1]}
    return DatasetReport(
        pictures=len(pictures),
        regularisation_pictures=len(dataset.pictures) - len(pictures),
        repeated=sum(picture.repeats for picture in pictures),
        masked=sum(picture.mask is not None for picture in pictures),
        held_out=tuple(picture.name for picture in dataset.held_out),
        sizes_px={name: f"{width}x{height}" for name, (width, height) in sizes.items()},
        bucket_sizes={f"{width}x{height}": n for (width, height), n in sorted(counts.items())},
        captions=tuple(picture.caption for picture in pictures[:_CAPTIONS_SHOWN]),
        caption_sources=caption_sources(dataset.pictures),
        skipped=dataset.skipped,
        warnings=tuple(warnings),
    )


def write_report(report: DatasetReport, path: Path) -> None:
    """Write the whole report, beside the weights that came of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(asdict(report), indent=2, ensure_ascii=False) + "\n", encoding="utf-8", errors="replace")


def in_short(report: DatasetReport) -> dict[str, Any]:
    """The report as a fact: with the first names of many, and without the warnings, which are facts too."""
    fields = asdict(report)
    del fields["warnings"]
    return fields | {"skipped": report.skipped[:_SKIPPED_SHOWN], "skipped_total": len(report.skipped)}
