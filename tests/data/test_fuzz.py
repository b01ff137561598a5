"""Whatever lies in a folder: it is read and accounted for file by file, or refused with the names of those at fault."""

import io
import json
import tempfile
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from worker.data.buckets import bucket_sizes, cut_for, pixel_values
from worker.data.config import DatasetConfig, MasksConfig, RegularisationConfig
from worker.data.dataset import REGULARISATION, read_dataset
from worker.data.pictures import PICTURE_ENDINGS
from worker.data.report import dataset_report, in_short, write_report
from worker.errors import DatasetInvalid

SLOW = settings(deadline=None, max_examples=120, suppress_health_check=list(HealthCheck))


def picture(form: str, size: tuple[int, int], mode: str) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size).save(buffer, form)
    return buffer.getvalue()


GOOD = [picture("PNG", (8, 8), mode) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")]
GOOD += [picture("JPEG", (5, 90), "CMYK"), picture("BMP", (1, 1), "RGB"), picture("WEBP", (9, 8), "RGBA")]
READ = [picture("PNG", (8, 8), mode) for mode in ("L", "P", "RGB", "I;16")]  # of one size, as masks want it
GOOD += [picture("GIF", (8, 8), "P"), picture("TIFF", (8, 8), "F")]  # of no format that is read

FOLDERS = st.sampled_from(["", "a/", "a/b/", "10_x/", "0_x/", "10_/", "masks/", "masks/a/", "99999_y/", ".hidden/"])
STEMS = st.text("ab.é \n", min_size=1, max_size=3).filter(lambda stem: stem not in (".", ".."))
ENDINGS = st.sampled_from([*PICTURE_ENDINGS, ".PNG", ".gif", ".heic", ".txt", ".TXT", ".caption", ".json", "", "."])
NAMES = st.builds("{}{}{}".format, FOLDERS, STEMS, ENDINGS).filter(lambda name: not name.endswith(("/.", "/..")))
CUTS = st.builds(lambda data, at: data[: int(len(data) * at)], st.sampled_from(GOOD), st.floats(0, 1))
CONTENTS = st.one_of(st.sampled_from(GOOD), st.sampled_from(GOOD), CUTS, st.binary(max_size=64))
LINES = st.one_of(
    st.builds(lambda name, text: json.dumps({"file_name": name, "text": text}), NAMES, st.text(max_size=9)),
    st.sampled_from(['{"file_name": 1}', "[]", "{", '{"file_name": "../a.png", "text": "x"}', "\x00"]),
)
METADATA = st.builds(lambda lines: "\n".join(lines).encode(), st.lists(LINES, max_size=3))
FILES = st.dictionaries(NAMES, CONTENTS, max_size=8)
# Folders in which no single file is at fault, though much of it may be of no use.
SOUND_ENDINGS = st.sampled_from([*PICTURE_ENDINGS, ".PNG", ".txt", ".TXT", ".caption", ".json", ""])
SOUND_FOLDERS = st.sampled_from(["", "a/", "10_x/", "10_x/b/", "0_x/", "masks/", "masks/a/", "masks/10_x/"])
SOUND_NAMES = st.builds(
    "{}{}{}".format, SOUND_FOLDERS, st.sampled_from(["a", "b", "a.b", "a.mask", "b.mask"]), SOUND_ENDINGS
)
SOUND = st.dictionaries(SOUND_NAMES, st.sampled_from(READ), max_size=12).map(
    lambda files: {**files, "10_x/z.png": READ[0]}
)
CONFIGS = st.fixed_dictionaries(
    {
        "missing_captions": st.sampled_from(["error", "empty", "filename"]),
        "layout": st.sampled_from(["plain", "kohya", "webdataset"]),
        "masks": st.sampled_from([None, MasksConfig("folder"), MasksConfig("alpha")]),
        "trigger": st.sampled_from([None, "ohwx"]),
    }
)


def write(folder: Path, files: dict[str, bytes]) -> set[str]:
    """The names that could be written: a file cannot stand where a folder does. Each caption has a text of its own."""
    for number, (name, content) in enumerate(files.items()):
        path = folder / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(f"caption{number}".encode() if name.lower().endswith((".txt", ".caption")) else content)
        except OSError:
            continue
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def check(files: dict[str, bytes], metadata: bytes | None, options: dict, regularisation: bool) -> int:
    """Read the folder, and hold what comes of it to every file: how many pictures, 0 if it is refused."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "dataset"
        folder.mkdir()
        names = write(folder, files | ({} if metadata is None else {"metadata.jsonl": metadata}))
        config = DatasetConfig(str(folder), **options)
        if regularisation:
            config = DatasetConfig(str(folder), **options, regularisation=RegularisationConfig(str(folder)))
        dataset, refusal = None, ""
        try:
            dataset = read_dataset(config)
        except DatasetInvalid as error:
            refusal = str(error)
        if dataset is None:
            assert any(name in refusal for name in names) or "has no picture" in refusal
            return 0

        sizes = bucket_sizes(64)
        cuts = [cut_for(picture.size_px, sizes) for picture in dataset.pictures]
        report = dataset_report(dataset, cuts)
        json.dumps(in_short(report))
        write_report(report, Path(place) / "dataset.json")
        assert sum(report.bucket_sizes.values()) == len(dataset.pictures) == sum(report.caption_sources.values())
        for prefix in ("", REGULARISATION) if regularisation else ("",):
            pictures = [p for p in dataset.pictures if p.regularisation is bool(prefix)]
            for name in names:
                used = (
                    any(p.name == prefix + name for p in pictures)
                    or name.rpartition("/")[2] == "metadata.jsonl"
                    or any(p.mask and p.mask.path == folder / name for p in pictures)
                    or (
                        name.lower().endswith((".txt", ".caption"))
                        and any((folder / name).read_text() in p.caption.split(", ") for p in pictures)
                    )
                )
                told = any(line.startswith(f"{prefix}{name} ") for line in dataset.skipped)
                assert used != told, name
        return len(dataset.pictures)


@SLOW
@given(files=SOUND, options=CONFIGS, regularisation=st.booleans(), listed=st.booleans())
def test_a_folder_with_nothing_at_fault_is_read_and_told_file_by_file(
    files: dict[str, bytes], options: dict, regularisation: bool, listed: bool
) -> None:
    options["missing_captions"] = "empty"
    metadata = json.dumps({"file_name": "10_x/z.png", "text": "listed"}).encode() if listed else None
    assert check(files, metadata, options, regularisation) > 0


@SLOW
@given(files=FILES, metadata=st.one_of(st.none(), METADATA), options=CONFIGS, regularisation=st.booleans())
def test_every_file_is_used_told_or_at_fault(
    files: dict[str, bytes], metadata: bytes | None, options: dict, regularisation: bool
) -> None:
    check(files, metadata, options, regularisation)


@SLOW
@given(
    step=st.sampled_from([32, 64]),
    steps=st.integers(1, 40),
    width=st.integers(1, 60_000),
    height=st.integers(1, 60_000),
)
def test_every_picture_has_a_bucket_and_a_cut_within_it(step: int, steps: int, width: int, height: int) -> None:
    resolution = step * steps
    sizes = bucket_sizes(resolution, step)
    assert len(set(sizes)) == len(sizes)
    assert all(w % step == 0 and h % step == 0 and w * h <= resolution**2 for w, h in sizes)
    cut = cut_for((width, height), sizes)
    assert cut.bucket_px in sizes
    for cut_ in (cut, cut.mirrored()):
        assert 0 <= cut_.left_px <= cut.resized_px[0] - cut.bucket_px[0]
        assert 0 <= cut_.top_px <= cut.resized_px[1] - cut.bucket_px[1]
    best = min(abs(np.log(w / h * height / width)) for w, h in sizes)
    assert abs(np.log(cut.bucket_px[0] / cut.bucket_px[1] * height / width)) <= best + 1e-9
    assert cut.time_ids().isfinite().all()


@SLOW
@given(width=st.integers(1, 200), height=st.integers(1, 200), resolution=st.sampled_from([32, 64, 96]))
def test_every_picture_is_cut_to_its_bucket_size(width: int, height: int, resolution: int) -> None:
    cut = cut_for((width, height), bucket_sizes(resolution))
    values = pixel_values(Image.new("RGB", (width, height), (255, 0, 0)), cut)
    assert tuple(values.shape) == (3, cut.bucket_px[1], cut.bucket_px[0])
    assert values[0].min() == 1
    assert values[1].max() == -1
