"""What a person sees of a job: every kind of event in words, and a bar that counts."""

from datetime import UTC, datetime
from io import StringIO
from typing import Any, get_args

import pytest
from rich.console import Console

from api.cli_events import in_words
from api.cli_follow import Bar
from api.schemas import JobEvent
from jobs.events import Kind

# As worker/trainer.py and jobs/store.py write them.
EVENTS: list[tuple[Kind, dict[str, Any], str]] = [
    ("status", {"from": None, "to": "queued"}, "queued"),
    ("status", {"from": "training", "to": "failed", "reason": "nan_loss", "message": "NaN."}, "failed: NaN."),
    ("cancel_requested", {}, "cancel asked for"),
    ("phase", {"name": "encoding"}, "encoding ..."),
    (
        "dataset",
        {
            "pictures": 8,
            "repeated": 17,
            "regularisation_pictures": 3,
            "sizes_px": {"smallest": "60x30", "median": "96x64", "largest": "512x384"},
            "bucket_sizes": {"64x64": 7, "96x32": 1},
            "captions": ["a cat", ""],
            "caption_sources": {".txt": 7, "none": 1},
            "held_out": ["b.png", "c/d.png"],
            "skipped": ["a\n12:00:00  succeeded.md is neither a picture nor a caption."],
            "skipped_total": 12,
        },
        "8 pictures, 17 with repeats, 3 regularisation pictures, 60x30 to 512x384 px\n"
        "    trained at 64x64 (7), 96x32 (1)\n"
        "    captions from .txt (7), none (1)\n"
        "    caption: a cat\n"
        "    caption: (none)\n"
        "    held out, for validation: b.png, c/d.png\n"
        "    skipped: a 12:00:00 succeeded.md is neither a picture nor a caption.\n"
        "    skipped: 11 more",
    ),
    ("encoded", {"done": 3, "total": 16}, "encoded 3 of 16"),
    (
        "step",
        {"step": 3, "steps": 10, "loss": 0.12345, "lr": 1e-4, "seconds": 2.0, "peak_bytes": None},
        "step 3/10, loss 0.1235, 2.00 s",
    ),
    (
        "validation",
        {"step": 0, "validation_loss": 0.12345, "by_timestep": {"62": 0.12345}, "weights": "last"},
        "held-out pictures have loss 0.1235 after step 0",
    ),
    ("sample", {"step": 3, "path": "samples/a.png"}, "drew samples/a.png"),
    ("checkpoint", {"step": 3, "seconds": 0.1}, "checkpoint of step 3 is in the bucket"),
    ("warning", {"message": "Clamped."}, "warning: Clamped."),
]


def _event(kind: Kind, data: dict[str, Any]) -> JobEvent:
    return JobEvent(id="1-0", kind=kind, at=datetime.now(UTC), attempt=1, data=data)


@pytest.mark.parametrize(("kind", "data", "words"), EVENTS)
def test_each_event_has_words(kind: Kind, data: dict[str, Any], words: str) -> None:
    assert in_words(_event(kind, data)) == words


def test_no_kind_is_left_out() -> None:
    assert {kind for kind, _, _ in EVENTS} == set(get_args(Kind))


def test_the_bar_counts_and_tells_what_is_left() -> None:
    console = Console(file=StringIO(), force_terminal=True, width=120, color_system=None)
    with Bar(console) as bar:
        for kind, data, _ in EVENTS:
            bar.show(_event(kind, data))
            bar._progress.refresh()
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "3/16" in shown
    assert "3/10 loss 0.1235  2.00 s/step  0:14 left" in shown
    assert "failed: NaN." in shown
    assert "warning: Clamped." in shown
