"""The checker agrees with every caption that is true of a rendered picture, and with none that is not."""

import dataclasses
import random

import pytest
from PIL import Image

from benchmarks.drawing.checker import judge, rates
from benchmarks.drawing.pictures import COUNTS, SHAPES, SIDE_PX, Scene, all_scenes, render


@pytest.fixture
def scenes() -> list[Scene]:
    """Scenes of every shape, the new one included, in every arrangement."""
    return random.Random(0).sample(all_scenes(SHAPES), 120)


def test_true_captions_are_right(scenes: list[Scene]) -> None:
    source = random.Random(1)
    wrong = [scene for scene in scenes if not judge(render(scene, source), scene).right]
    assert wrong == []


@pytest.mark.parametrize(
    ("aspect", "change"),
    [
        ("shape", lambda scene: {"shape": SHAPES[(SHAPES.index(scene.shape) + 1) % len(SHAPES)]}),
        ("colour", lambda scene: {"colour": scene.background}),
        ("background", lambda scene: {"background": scene.colour}),
        ("count", lambda scene: {"count": scene.count % len(COUNTS) + 1}),
    ],
)
def test_a_false_caption_is_wrong_in_that_respect(aspect: str, change, scenes: list[Scene]) -> None:
    source = random.Random(2)
    for scene in scenes[:60]:
        verdict = judge(render(scene, source), dataclasses.replace(scene, **change(scene)))
        assert not getattr(verdict, aspect), scene
        assert not verdict.right


def test_a_corner_is_told_from_the_others() -> None:
    picture = render(Scene("star", "red", "white", place="top left"), random.Random(0))
    assert judge(picture, Scene("star", "red", "white", place="top left")).place
    assert not judge(picture, Scene("star", "red", "white", place="bottom left")).place


def test_an_empty_picture_shows_nothing() -> None:
    scene = Scene("circle", "red", "blue")
    verdict = judge(Image.new("RGB", (SIDE_PX, SIDE_PX), (36, 84, 206)), scene)
    assert (verdict.background, verdict.colour, verdict.shape, verdict.count) == (True, False, False, False)
    assert rates([verdict])["right"] == 0


def test_captions_read_as_people_write_them() -> None:
    assert Scene("circle", "red", "blue").caption == "a red circle on a blue background"
    assert Scene("cross", "white", "black", count=3).caption == "three white crosses on a black background"
    assert Scene("ring", "green", "purple", "top right").caption == "a green ring on a purple background, top right"
    captions = [scene.caption for scene in all_scenes(SHAPES)]
    assert len(captions) == len(set(captions)) == 2352
