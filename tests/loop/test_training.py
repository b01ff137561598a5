"""One training from configuration to files, in this process: phases, facts and refusals."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from worker.data.config import DatasetConfig, MasksConfig, RegularisationConfig, ShuffleConfig
from worker.errors import BaseModelInvalid, LoRAInvalid, TrainerError
from worker.loop.config import (
    CheckpointsConfig,
    LossConfig,
    OptimizerConfig,
    SamplesConfig,
    ScheduleConfig,
    TrainerConfig,
)
from worker.loop.optim import learning_rate
from worker.loop.training import Stopped, Training
from worker.lora.config import LoRAConfig

Facts = list[dict[str, Any]]


def run(config: TrainerConfig, stop_after: int | None = None, facts: Facts | None = None) -> Facts:
    """Run a training here; ask it to stop once `stop_after` steps are done (0: from the start)."""
    facts = [] if facts is None else facts

    def emit(fact: str, **fields: object) -> None:
        facts.append(json.loads(json.dumps({"fact": fact, **fields})))

    def stop_requested() -> bool:
        return stop_after is not None and len(of_kind(facts, "step")) >= stop_after

    Training(config, emit, stop_requested).run()
    return facts


def of_kind(facts: Facts, kind: str) -> Facts:
    return [fact for fact in facts if fact["fact"] == kind]


def weights(config: TrainerConfig, name: str = "lora") -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(Path(config.output) / f"{name}.safetensors")


def test_a_training_leaves_what_its_facts_say(make_config: Callable[..., TrainerConfig]) -> None:
    config = make_config(
        5,
        train={"ema_decay": 0.9, "gradient_accumulation": 2},
        samples=SamplesConfig(("a cat", "a dog"), every_n_steps=2, sampler_steps=2),
        checkpoints=CheckpointsConfig(every_n_steps=2, keep=1),
        checkpointing="all",
    )
    facts = run(config)
    assert [fact["name"] for fact in of_kind(facts, "phase")] == [
        "reading",
        "encoding",
        "loading",
        "training",
        "exporting",
    ]
    (report,) = of_kind(facts, "dataset")
    assert report["pictures"] == 8
    assert sum(report["bucket_sizes"].values()) == 8
    assert len(report["captions"]) == 5
    assert report["skipped"] == ["LICENSES.md is neither a picture nor a caption."]
    whole = json.loads((Path(config.output) / "dataset.json").read_text())
    assert {key: report[key] for key in whole if key != "warnings"} == {
        k: v for k, v in whole.items() if k != "warnings"
    }
    assert [fact["done"] for fact in of_kind(facts, "encoded")] == list(range(1, 20))  # 8 + 8 + 2 prompts + empty
    assert {fact["total"] for fact in of_kind(facts, "encoded")} == {19}
    assert [(fact["step"], fact["steps"]) for fact in of_kind(facts, "step")] == [(n, 5) for n in range(1, 6)]
    assert [fact["path"] for fact in of_kind(facts, "checkpoint")] == [
        "checkpoints/step-000002",
        "checkpoints/step-000004",
    ]

    output = Path(config.output)
    samples = [fact["path"] for fact in of_kind(facts, "sample")]
    assert samples == [f"samples/step-00000{step}-{number}.png" for step in (2, 4, 5) for number in (0, 1)]
    assert facts[-1]["fact"] == "finished"
    assert facts[-1]["files"] == [
        *(f"lora{form}{ema}.safetensors" for ema in ("", "_ema") for form in ("", "_diffusers")),
        "loss.png",
        "metrics.jsonl",
        "dataset.json",
        *samples,
    ]
    assert all((output / name).stat().st_size > 0 for name in facts[-1]["files"])
    assert [path.name for path in (output / "checkpoints").iterdir()] == ["step-000004"]  # keep 1

    steps = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    reported = [{key: fact[key] for key in steps[0]} for fact in of_kind(facts, "step")]
    assert steps == reported
    assert (facts[-1]["loss_first"], facts[-1]["loss_last"]) == (steps[0]["loss"], steps[-1]["loss"])
    averaged = weights(config, "lora_ema")
    assert any(not torch.equal(tensor, averaged[name]) for name, tensor in weights(config).items())


@pytest.mark.parametrize(
    ("loss", "told"),
    [
        (LossConfig(), ("epsilon", "False")),
        (LossConfig(prediction="v_prediction", zero_terminal_snr=True), ("v", "True")),
    ],
    ids=["epsilon", "v-prediction"],
)
def test_the_file_says_what_the_training_predicted(
    make_config: Callable[..., TrainerConfig], loss: LossConfig, told: tuple[str, str]
) -> None:
    config = make_config(1, train={"loss": loss})
    run(config)
    with safetensors.safe_open(Path(config.output) / "lora.safetensors", "pt") as file:
        header = file.metadata()
    assert (header["modelspec.prediction_type"], header["ss_zero_terminal_snr"]) == told


def test_stopped_and_gone_on_equals_uninterrupted_to_the_bit(
    make_config: Callable[..., TrainerConfig], tmp_path: Path
) -> None:
    config = make_config(6, train={"ema_decay": 0.9})
    dataset = dataclasses.replace(config.dataset, caption_dropout=0.3)
    config = dataclasses.replace(config, dataset=dataset, batch_size=2)
    whole = dataclasses.replace(config, output=str(tmp_path / "whole"))
    run(whole)

    facts = run(config, stop_after=2)
    assert facts[-1] == {"fact": "stopped", "step": 2, "path": "checkpoints/step-000002"}
    assert not (Path(config.output) / "lora.safetensors").exists()
    checkpoint = Path(config.output) / "checkpoints" / "step-000002"
    going_on = dataclasses.replace(config, output=str(tmp_path / "second"), resume_from=str(checkpoint))
    facts = run(going_on)
    assert [fact["step"] for fact in of_kind(facts, "step")] == [3, 4, 5, 6]
    for name in ("lora", "lora_ema", "lora_diffusers"):
        theirs = weights(whole, name)
        assert all(torch.equal(tensor, theirs[key]) for key, tensor in weights(going_on, name).items())
    losses = [
        [json.loads(line)["loss"] for line in (Path(c.output) / "metrics.jsonl").read_text().splitlines()]
        for c in (whole, going_on)
    ]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 6


def test_regularisation_pictures_change_the_training_and_resume_is_exact_with_them(
    make_config: Callable[..., TrainerConfig], photos: Path, tmp_path: Path
) -> None:
    plain = make_config(5)
    dataset = dataclasses.replace(plain.dataset, regularisation=RegularisationConfig(str(photos), weight=0.5))
    whole = dataclasses.replace(plain, dataset=dataset, output=str(tmp_path / "whole"))
    run(whole)
    stopped = dataclasses.replace(whole, output=str(tmp_path / "stopped"))
    run(stopped, stop_after=3)
    checkpoint = str(tmp_path / "stopped" / "checkpoints" / "step-000003")
    going_on = dataclasses.replace(whole, output=str(tmp_path / "second"), resume_from=checkpoint)
    run(going_on)
    theirs = weights(whole)
    assert all(torch.equal(tensor, theirs[key]) for key, tensor in weights(going_on).items())
    losses = [json.loads(line)["loss"] for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    run(plain)
    without = [json.loads(line)["loss"] for line in (tmp_path / "output" / "metrics.jsonl").read_text().splitlines()]
    assert losses[0] == without[0], "the first step is the pictures'"
    assert losses[1] != without[1]
    lighter = dataclasses.replace(dataset, regularisation=RegularisationConfig(str(photos), weight=0.25))
    with pytest.raises(TrainerError, match=r"dataset\.regularisation was .*0\.5.* and is .*0\.25"):
        run(dataclasses.replace(going_on, dataset=lighter))


def test_resume_is_exact_with_all_that_is_drawn_for_a_sample(
    make_config: Callable[..., TrainerConfig], photos: Path, tmp_path: Path
) -> None:
    dataset = DatasetConfig(
        str(photos),
        caption_dropout=0.2,
        shuffle=ShuffleConfig(keep_tokens=1, orders=3),
        caption_tokens=150,
        flip=True,
        latents="drawn",
        masks=MasksConfig("alpha", background=0.5),
        regularisation=RegularisationConfig(str(photos)),
    )
    whole = make_config(6, dataset=dataset, batch_size=3, output=str(tmp_path / "whole"))
    run(whole)
    stopped = dataclasses.replace(whole, output=str(tmp_path / "stopped"))
    run(stopped, stop_after=1)
    again = dataclasses.replace(
        whole, output=str(tmp_path / "again"), resume_from=str(tmp_path / "stopped/checkpoints/step-000001")
    )
    run(again, stop_after=2)  # killed twice in a row
    going_on = dataclasses.replace(
        whole, output=str(tmp_path / "last"), resume_from=str(tmp_path / "again/checkpoints/step-000003")
    )
    run(going_on)
    theirs = weights(whole)
    assert all(torch.equal(tensor, theirs[key]) for key, tensor in weights(going_on).items())
    for change in ({"flip": False}, {"latents": "mean"}, {"shuffle": ShuffleConfig(2, 3)}, {"masks": None}):
        other = dataclasses.replace(going_on, dataset=dataclasses.replace(dataset, **change))
        with pytest.raises(TrainerError, match=f"another training: .*dataset.{next(iter(change))} was"):
            run(other)


def test_a_training_goes_on_from_the_file_of_another_and_its_resume_is_exact(
    make_config: Callable[..., TrainerConfig], tmp_path: Path
) -> None:
    first = make_config(3, output=str(tmp_path / "first"))
    run(first)
    file = tmp_path / "first" / "lora.safetensors"
    lora = LoRAConfig(init_from=str(file))
    still = make_config(1, lora=lora, output=str(tmp_path / "still"))
    still = dataclasses.replace(still, train=dataclasses.replace(still.train, optimizer=OptimizerConfig("adamw", 0.0)))
    run(still)
    assert all(torch.equal(tensor, weights(first)[key]) for key, tensor in weights(still).items())

    whole = make_config(4, lora=lora, train={"ema_decay": 0.5}, output=str(tmp_path / "whole"))
    run(whole)
    assert any(not torch.equal(tensor, weights(first)[key]) for key, tensor in weights(whole).items())
    run(dataclasses.replace(whole, output=str(tmp_path / "stopped")), stop_after=2)
    moved = file.rename(tmp_path / "elsewhere.safetensors")  # as on another worker: the place does not matter
    going_on = dataclasses.replace(
        whole,
        lora=LoRAConfig(init_from=str(moved)),
        output=str(tmp_path / "second"),
        resume_from=str(tmp_path / "stopped/checkpoints/step-000002"),
    )
    run(going_on)
    for name in ("lora", "lora_ema"):
        theirs = weights(whole, name)
        assert all(torch.equal(tensor, theirs[key]) for key, tensor in weights(going_on, name).items())
    other = LoRAConfig(init_from=str(tmp_path / "still" / "lora_diffusers.safetensors"))
    for changed in (other, LoRAConfig()):
        with pytest.raises(TrainerError, match=r"another training: lora was .*init_from"):
            run(dataclasses.replace(going_on, lora=changed))
    facts: Facts = []
    with pytest.raises(LoRAInvalid, match=r"lora\.init_from: .* another rank"):
        run(make_config(lora=LoRAConfig(rank=8, init_from=str(moved))), facts=facts)
    assert facts == [{"fact": "phase", "name": "reading"}]


def test_more_steps_may_be_asked_for_on_resume_but_nothing_else(
    make_config: Callable[..., TrainerConfig], tmp_path: Path
) -> None:
    config = make_config(2, checkpoints=CheckpointsConfig(2, 1))
    run(config)
    checkpoint = str(tmp_path / "output" / "checkpoints" / "step-000002")
    longer = dataclasses.replace(make_config(3), resume_from=checkpoint)
    assert [fact["step"] for fact in of_kind(run(longer), "step")] == [3]
    for change in ({"batch_size": 2}, {"lora": LoRAConfig(rank=2)}, {"resolution": 96}):
        with pytest.raises(TrainerError, match=f"another training: .*{next(iter(change))}( \\* gpus)? was"):
            run(dataclasses.replace(longer, **change))


def test_another_number_of_steps_has_its_own_schedule_from_there_on(
    make_config: Callable[..., TrainerConfig], tmp_path: Path
) -> None:
    def config(steps: int, schedule: str, name: str, **changes: Any) -> TrainerConfig:
        train = {"lr_schedule": ScheduleConfig(schedule, warmup_steps=1), "ema_decay": 0.9}
        return make_config(steps, train=train, output=str(tmp_path / name), **changes)

    for schedule in ("cosine", "constant"):
        run(config(4, schedule, f"{schedule}-short"), stop_after=3)
        checkpoint = str(tmp_path / f"{schedule}-short/checkpoints/step-000003")
        longer = config(7, schedule, f"{schedule}-longer", resume_from=checkpoint)
        facts = run(longer)
        told = [(fact["step"], fact["lr"]) for fact in of_kind(facts, "step")]
        assert told == [(step, learning_rate(step, longer.train)) for step in (4, 5, 6, 7)]
        with pytest.raises(TrainerError, match=r"step-000003 lies behind the 2 steps of this training: ask for at lea"):
            run(config(2, schedule, f"{schedule}-shorter", resume_from=checkpoint))
    exact = config(3, "constant", "exact", resume_from=checkpoint)
    assert of_kind(run(exact), "step") == []  # nothing is left to train
    three = config(3, "constant", "three")
    run(three)
    assert same(weights(exact), weights(three))
    whole = config(7, "constant", "whole")
    run(whole)
    assert same(weights(longer), weights(whole))
    assert same(weights(longer, "lora_ema"), weights(whole, "lora_ema"))


def same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_stopping_before_the_first_step_leaves_nothing_to_keep(make_config: Callable[..., TrainerConfig]) -> None:
    config, facts = make_config(), []
    with pytest.raises(Stopped):
        run(config, stop_after=0, facts=facts)
    assert of_kind(facts, "step") == []


def test_mistakes_are_told_before_anything_expensive(
    make_config: Callable[..., TrainerConfig], photos: Path, tmp_path: Path
) -> None:
    for change, error in (
        ({"base_model": str(tmp_path / "none.safetensors")}, BaseModelInvalid),
        ({"lora": LoRAConfig(rank=1000)}, LoRAInvalid),
    ):
        facts: Facts = []
        with pytest.raises(error):
            run(make_config(**change), facts=facts)
        assert facts == [{"fact": "phase", "name": "reading"}]


def test_captions_beyond_77_tokens_are_refused_cut_or_encoded_in_chunks(
    make_config: Callable[..., TrainerConfig], photos: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "cat.jpg").write_bytes((photos / "chelsea.jpg").read_bytes())
    (folder / "cat.txt").write_text("a very long caption " * 20)
    with pytest.raises(TrainerError, match=r"1 captions have more than 75 tokens: cat\.jpg \(80\)\. Shorten them, or"):
        run(make_config(1, dataset=DatasetConfig(str(folder))))
    facts = run(make_config(1, dataset=DatasetConfig(str(folder), long_captions="cut")))
    assert [fact["message"] for fact in of_kind(facts, "warning")] == [
        "1 captions have more than 75 tokens and were cut: cat.jpg (80)."
    ]
    cut = of_kind(facts, "step")[0]["loss"]
    samples = SamplesConfig(("a cat " * 90,), sampler_steps=1)
    facts = run(make_config(1, dataset=DatasetConfig(str(folder), caption_tokens=150), samples=samples))
    (warning,) = [fact["message"] for fact in of_kind(facts, "warning")]
    assert warning.endswith("has 180 tokens, more than 150, and was cut.")
    assert of_kind(facts, "step")[0]["loss"] != cut, "the end of the caption is seen"
    assert len(of_kind(facts, "sample")) == 1


def test_what_the_cache_lacks_is_asked_for_and_what_was_brought_is_not_encoded(
    make_config: Callable[..., TrainerConfig], tmp_path: Path
) -> None:
    full = make_config(1, cache=str(tmp_path / "full"))
    run(full)
    answer = tmp_path / "answer"
    asking = make_config(1, cache=str(tmp_path / "empty"), cache_answer=str(answer))
    facts: Facts = []

    def emit(fact: str, **fields: Any) -> None:
        facts.append({"fact": fact, **fields})
        if fact == "missing":
            for name in fields["files"][:-1]:
                target = tmp_path / "empty" / name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes((tmp_path / "full" / name).read_bytes())
            answer.touch()

    Training(asking, emit, lambda: False).run()

    (missing,) = of_kind(facts, "missing")
    encoded = of_kind(facts, "encoded")
    assert len(missing["files"]) == len(encoded) == 17  # eight pictures, eight captions and the empty one
    assert [fact["anew"] for fact in encoded] == [0] * 16 + [1]
    assert of_kind(run(asking), "missing") == []  # there is nothing to ask for
    answer.unlink()
    with pytest.raises(Stopped):
        run(dataclasses.replace(asking, cache=str(tmp_path / "another")), stop_after=0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_the_same_job_on_a_gpu(make_config: Callable[..., TrainerConfig]) -> None:
    config = make_config(
        5,
        train={"ema_decay": 0.9},
        device="cuda",
        dtype="bfloat16",
        checkpointing="all",
        samples=SamplesConfig(("a cat",), sampler_steps=2),
    )
    facts = run(config)
    assert facts[-1]["fact"] == "finished"
    assert all(fact["peak_bytes"] > 0 for fact in of_kind(facts, "step"))
