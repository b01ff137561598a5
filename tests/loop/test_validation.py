"""The loss of held-out pictures is what the formulas say, moves with the weights alone, and moves nothing itself."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from tests.loop.test_training import Facts, of_kind, run
from worker.data.config import DatasetConfig, RegularisationConfig, ShuffleConfig
from worker.data.dataset import read_dataset
from worker.data.held_out import hold_out
from worker.errors import TrainerError
from worker.loop.config import LossConfig, OptimizerConfig, TrainerConfig, ValidationConfig
from worker.loop.validation import Validation, fixed_timesteps
from worker.lora.config import LoRAConfig
from worker.model.schedule import NoiseSchedule

CPU = torch.device("cpu")


def lines(config: TrainerConfig) -> list[dict[str, Any]]:
    told = map(json.loads, (Path(config.output) / "metrics.jsonl").read_text().splitlines())
    return [line for line in told if "validation_loss" in line]


def weights(config: TrainerConfig, name: str = "lora") -> dict[str, Tensor]:
    return safetensors.torch.load_file(Path(config.output) / f"{name}.safetensors")


def same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.fixture
def make_validated(make_config: Callable[..., TrainerConfig], tmp_path: Path) -> Callable[..., TrainerConfig]:
    """A training that holds out three of the eight photos; its output lies in a folder called `name`."""

    def make(name: str, steps: int = 6, every: int | None = 2, **changes: Any) -> TrainerConfig:
        given = {"validation": ValidationConfig(3, None, every), "output": str(tmp_path / name)}
        return make_config(steps, **given | changes)

    return make


@pytest.fixture
def only_trained(photos: Path, tmp_path: Path) -> Path:
    """The photos without those that the validation of `make_validated` holds out."""
    folder = tmp_path / "only-trained"
    shutil.copytree(photos, folder)
    for picture in hold_out(read_dataset(DatasetConfig(str(folder))), 3, None).held_out:
        picture.path.unlink()
        picture.path.with_suffix(".txt").unlink()
    return folder


DRAWN = {"caption_dropout": 0.3, "flip": True, "latents": "drawn", "shuffle": ShuffleConfig(1, 3)}


@pytest.mark.parametrize(
    ("train", "lora"),
    [
        ({"ema_decay": 0.9}, LoRAConfig(dropout=0.2, rank_dropout=0.2)),
        ({"optimizer": OptimizerConfig("schedule_free_adamw", 2e-3)}, LoRAConfig()),
    ],
    ids=["ema and dropout", "schedule-free"],
)
def test_validation_changes_no_weight_by_a_bit(
    make_validated: Callable, only_trained: Path, photos: Path, train: dict, lora: LoRAConfig
) -> None:
    config = make_validated("on", lora=lora, batch_size=2)
    drawn = dataclasses.replace(config.dataset, regularisation=RegularisationConfig(str(only_trained)), **DRAWN)
    told = dataclasses.replace(config.train, **train)
    on = dataclasses.replace(config, dataset=drawn, train=told)
    off = dataclasses.replace(
        on,
        output=f"{on.output}-off",
        validation=None,
        dataset=dataclasses.replace(drawn, folder=str(only_trained)),
    )
    facts = [run(on), run(off)]
    names = ["lora"] + (["lora_ema"] if "ema_decay" in train else [])
    assert all(same(weights(on, name), weights(off, name)) for name in names)
    losses = [[fact["loss"] for fact in of_kind(each, "step")] for each in facts]
    assert losses[0] == losses[1]
    assert [line["step"] for line in lines(on)] == [0, 2, 4, 6]
    assert lines(off) == []


def test_what_is_held_out_is_named_and_never_trained(make_validated: Callable, photos: Path, tmp_path: Path) -> None:
    config = make_validated("one")
    facts = run(config)
    (report,) = of_kind(facts, "dataset")
    assert (report["pictures"], len(report["held_out"]), sum(report["bucket_sizes"].values())) == (5, 3, 5)
    assert json.loads((tmp_path / "one" / "dataset.json").read_text())["held_out"] == report["held_out"]

    changed = tmp_path / "changed"
    shutil.copytree(photos, changed)
    for name in report["held_out"]:
        (changed / name).with_suffix(".txt").write_text("something else altogether")
    other = make_validated("other", dataset=DatasetConfig(str(changed)))
    run(other)
    assert same(weights(config), weights(other))
    assert lines(config)[-1]["validation_loss"] != lines(other)[-1]["validation_loss"]


def test_the_seed_moves_no_figure_before_training(make_validated: Callable) -> None:
    """An adapter begins as nothing, so that only noise, timesteps and pictures are left to differ."""
    first = [lines(config)[0] for config in self_and_reseeded(make_validated) if run(config)]
    assert first[0] == first[1]


def self_and_reseeded(make_validated: Callable) -> list[TrainerConfig]:
    return [make_validated(f"seed-{seed}", steps=1, train={"seed": seed}) for seed in (0, 1)]


def test_figures_after_a_resume_are_those_without(make_validated: Callable, tmp_path: Path) -> None:
    whole = make_validated("whole", train={"ema_decay": 0.9})
    run(whole)
    facts: list[Facts] = []
    resume: dict[str, str] = {}
    for number, stop_after in enumerate((2, 1, None)):  # stopped where a validation is wanted, and where none is
        part = dataclasses.replace(whole, output=str(tmp_path / f"part-{number}"), **resume)
        facts.append(run(part, stop_after))
        if stop_after:
            resume = {"resume_from": str(Path(part.output) / facts[-1][-1]["path"])}
    assert lines(part) == lines(whole)
    assert [line["step"] for line in lines(whole)] == [0, 2, 4, 6]
    assert same(weights(part, "lora_ema"), weights(whole, "lora_ema"))
    assert [[fact["step"] for fact in of_kind(each, "validation")] for each in facts] == [[0], [2], [4, 6]]


def test_another_choice_of_pictures_is_another_training(make_validated: Callable) -> None:
    config = make_validated("one")
    facts = run(config, stop_after=1)
    checkpoint = str(Path(config.output) / facts[-1]["path"])
    other = dataclasses.replace(config, resume_from=checkpoint, validation=ValidationConfig(2, None, 2))
    with pytest.raises(TrainerError, match=r"belongs to another training: .*held out was"):
        run(other)


def test_the_figure_is_the_mean_of_the_formula(make_setup: Callable) -> None:
    """Noised, predicted and compared one by one, by the formulas of the paper, with every factor of the loss."""
    unet, _, batches = make_setup()
    config = LossConfig(noise_offset=0.1, min_snr_gamma=5.0, min_timestep=100, max_timestep=899)
    examples, digests = batches.examples[:2], ["a" * 64, "b" * 64]
    ours = Validation(examples, digests, None, config).losses(unet, CPU, lambda: False)
    assert fixed_timesteps(config) == [150, 250, 350, 450, 550, 650, 750, 850]

    validation = Validation(examples, digests, None, config)
    alphas = NoiseSchedule(CPU, "epsilon", False).alphas_cumprod
    rows = []
    for example, digest in zip(examples, digests, strict=True):
        latents = example.view.latents[None]
        for t in (150, 250, 350, 450, 550, 650, 750, 850):
            noise = validation._noise(latents.shape, digest, t)
            noisy = alphas[t].sqrt() * latents + (1 - alphas[t]).sqrt() * noise
            caption = example.captions[0]
            text = (caption.text_embeds[None], caption.pooled_text_embeds[None])
            with torch.no_grad():
                prediction = unet(noisy, torch.tensor([t]), *text, example.view.time_ids[None])
            snr = alphas[t] / (1 - alphas[t])
            rows.append((prediction - noise).square().mean() * min(snr, torch.tensor(5.0)) / snr)
    assert ours is not None
    torch.testing.assert_close(ours.flatten(), torch.stack(rows))  # rounding of float32
    assert torch.equal(validation._noise(latents.shape, "a", 3), validation._noise(latents.shape, "a", 3))
    assert not torch.equal(validation._noise(latents.shape, "a", 3), validation._noise(latents.shape, "b", 3))


def test_with_an_average_it_is_that_of_the_average(make_validated: Callable) -> None:
    """A decay of nearly one leaves the average where it began: the figure stays, while that of the weights moves."""
    slow = make_validated("slow", train={"ema_decay": 0.999999})
    plain = make_validated("plain")
    run(slow)
    run(plain)
    assert {line["weights"] for line in lines(slow)} == {"ema"}
    assert {line["weights"] for line in lines(plain)} == {"last"}
    assert lines(slow)[0]["validation_loss"] == lines(plain)[0]["validation_loss"]
    assert lines(slow)[-1]["validation_loss"] != lines(plain)[-1]["validation_loss"]


def test_a_stop_is_heard_between_pictures(make_setup: Callable) -> None:
    unet, _, batches = make_setup()
    validation = Validation(batches.examples[:3], ["a", "b", "c"], None, LossConfig())
    answers = iter([False, True])
    assert validation.losses(unet, CPU, lambda: next(answers)) is None


@pytest.mark.parametrize(("every", "steps"), [(None, [0, 6]), (4, [0, 4, 6]), (7, [0, 6])])
def test_it_is_due_before_and_after_and_between(every: int | None, steps: list[int]) -> None:
    validation = Validation([], [], every, LossConfig())
    assert [step for step in range(7) if validation.due(step, 6)] == steps
