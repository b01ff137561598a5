"""A dataset by the names of sd-scripts' header: tags, folders and bucket sizes, as browsers of LoRAs show them.

Source: kohya-ss/sd-scripts v0.10.1 (commit 48d368fa), library/train_util.py (set_tag_frequency, make_buckets) and
train_network.py. What reads them, and in what shape: AUTOMATIC1111's and Forge's ui_edit_user_metadata.py.
"""

import json
import posixpath
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate

from worker.data.buckets import Cut
from worker.data.dataset import Dataset, Picture

MAX_TAGS_BYTES = 1 << 20
"""Of all tags together, as JSON, and as much of all folders' names. The format allows headers of 100 MB, but whoever
lists a folder of LoRAs reads them all."""

LEFT_OUT = "loraq_left_out"
"""The entry that says what that limit has left out; not there if it has left out nothing."""

_COUNT_BYTES = 12  # of a count, and of what stands about it and its tag


def kohya_summary(dataset: Dataset, cuts: Sequence[Cut], name: str) -> dict[str, str]:
    """What is trained, without what is held out; all values are strings, most of them JSON.

    Pictures are counted as sd-scripts counts them: `ss_num_*` and bucket sizes with repeats, tags and `img_count`
    without. Tags are those of captions as trained, the trigger among them.

    Args:
        dataset: as trained.
        cuts: one for each of `dataset.pictures`, in their order; more are not looked at.
        name: of the folder of pictures that lie in none, as sd-scripts takes their folder's.
    """
    folders = _by_folder(dataset.pictures, name)
    frequency, left_out = _tag_frequency(folders)
    pictures = [picture for picture in dataset.pictures if not picture.regularisation]
    regularisation = dataset.pictures[len(pictures) :]
    dirs = {folder: folders[folder] for folder in frequency}
    entries: dict[str, object] = {
        "ss_num_train_images": sum(picture.repeats for picture in pictures),
        "ss_num_reg_images": sum(picture.repeats for picture in regularisation),
        "ss_num_validation_images": len(dataset.held_out),
        "ss_dataset_dirs": json.dumps({folder: _counted(each) for folder, each in dirs.items() if not _is_reg(each)}),
        "ss_reg_dataset_dirs": json.dumps({folder: _counted(each) for folder, each in dirs.items() if _is_reg(each)}),
        "ss_tag_frequency": json.dumps(frequency),
        "ss_bucket_info": json.dumps(_bucket_info(dataset.pictures, cuts)),
    }
    return {key: str(value) for key, value in entries.items()} | ({LEFT_OUT: left_out} if left_out else {})


def _by_folder(pictures: Iterable[Picture], name: str) -> dict[str, list[Picture]]:
    """Pictures by the folder they lie in, a path within the dataset's; of regularisation it begins with that word."""
    pairs = [(posixpath.dirname(picture.name), picture) for picture in pictures]
    while any(folder == name for folder, _ in pairs):
        name += " (2)"  # as sd-scripts tells folders of one name apart
    folders: dict[str, list[Picture]] = {}
    for folder, picture in pairs:
        folders.setdefault(folder or name, []).append(picture)
    return folders


def _tag_frequency(folders: Mapping[str, Sequence[Picture]]) -> tuple[dict[str, dict[str, int]], str]:
    """Folder to tag to number of captions that have it; and what did not fit, in words: rare tags give way first."""
    counts = {
        folder: Counter(tag for picture in pictures for tag in _tags(picture.caption))
        for folder, pictures in folders.items()
    }
    frequency: dict[str, dict[str, int]] = {folder: {} for folder in _that_fit(list(counts))}
    ranked = [(count, folder, tag) for folder, tags in counts.items() for tag, count in tags.most_common()]
    ranked.sort(key=lambda each: -each[0])  # stable: those of one count stay as they were read, folder by folder
    kept = len(_that_fit([tag for _, _, tag in ranked]))
    for count, folder, tag in ranked[:kept]:
        if folder in frequency:
            frequency[folder][tag] = count
    told = sum(map(len, frequency.values()))
    if told == len(ranked) and len(frequency) == len(counts):
        return frequency, ""
    return frequency, (
        f"{len(ranked) - told} of {len(ranked)} tags, the rarest first, and {len(counts) - len(frequency)} of "
        f"{len(counts)} folders: a header has room for {MAX_TAGS_BYTES} bytes of each."
    )


def _that_fit(names: Sequence[str]) -> Sequence[str]:
    """As many of the first `names` as MAX_TAGS_BYTES hold, each with a count."""
    sizes = accumulate(len(json.dumps(name)) + _COUNT_BYTES for name in names)
    return names[: sum(size <= MAX_TAGS_BYTES for size in sizes)]


def _tags(caption: str) -> Iterable[str]:
    return (tag for part in caption.split(",") if (tag := part.strip().lower()))


def _is_reg(pictures: Sequence[Picture]) -> bool:
    return pictures[0].regularisation  # a folder's pictures are all alike in this, and in their repeats


def _counted(pictures: Sequence[Picture]) -> dict[str, int]:
    return {"n_repeats": pictures[0].repeats, "img_count": len(pictures)}


def _bucket_info(pictures: Sequence[Picture], cuts: Sequence[Cut]) -> dict[str, object]:
    counts: Counter[tuple[int, int]] = Counter()
    errors: list[float] = []  # of the aspect ratio, width over height
    for picture, cut in zip(pictures, cuts, strict=False):
        counts[cut.bucket_px] += picture.repeats
        errors.append(abs(cut.bucket_px[0] / cut.bucket_px[1] - cut.original_px[0] / cut.original_px[1]))
    buckets = {
        str(number): {"resolution": list(size), "count": count}
        for number, (size, count) in enumerate(sorted(counts.items()))
    }
    return {"buckets": buckets, "mean_img_ar_error": sum(errors) / len(errors)}
