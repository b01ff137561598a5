"""Full fine-tuning of the U-Net, from configuration to a checkpoint that others read."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from safetensors import safe_open

from tests.loop import several
from worker.errors import BaseModelInvalid
from worker.loop.config import (
    CheckpointsConfig,
    FineTuningConfig,
    HeaderConfig,
    LossConfig,
    OptimizerConfig,
    OptimizerName,
    SamplesConfig,
    TrainerConfig,
    ValidationConfig,
)
from worker.loop.training import Training
from worker.model.base_model import open_base_model
from worker.model.tiny import write_tiny_base
from worker.model.weights import load_unet

FLOAT32, BFLOAT16 = FineTuningConfig("float32"), FineTuningConfig("bfloat16")
Facts = list[dict[str, Any]]


@pytest.fixture
def make_fine_tuning(make_config: Callable[..., TrainerConfig]) -> Callable[..., TrainerConfig]:
    """A small one at a rate that moves every weight."""

    def make(steps: int = 4, optimizer: OptimizerName = "adamw", **changes: Any) -> TrainerConfig:
        config = make_config(steps, **({"fine_tuning": FLOAT32} | changes))
        train = dataclasses.replace(config.train, optimizer=OptimizerConfig(optimizer, learning_rate=1e-3))
        return dataclasses.replace(config, train=train)

    return make


def run(config: TrainerConfig, stop_after: int | None = None) -> Facts:
    facts: Facts = []

    def emit(fact: str, **fields: object) -> None:
        facts.append(json.loads(json.dumps({"fact": fact, **fields})))

    def stop_requested() -> bool:
        return stop_after is not None and sum(fact["fact"] == "step" for fact in facts) >= stop_after

    Training(config, emit, stop_requested).run()
    return facts


def checkpoint_of(config: TrainerConfig) -> Path:
    return Path(config.output) / "model.safetensors"


@pytest.mark.parametrize("how", [FLOAT32, BFLOAT16], ids=["float32", "bfloat16"])
def test_it_leaves_the_base_with_another_u_net(
    make_fine_tuning: Callable, tiny_base: Path, how: FineTuningConfig
) -> None:
    config = make_fine_tuning(4, fine_tuning=how, dtype="auto", samples=SamplesConfig(("a cat",), sampler_steps=2))
    facts = run(config)
    assert facts[-1]["fact"] == "finished"
    files = facts[-1]["files"]
    assert "model.safetensors" in files
    assert not [name for name in files if "lora" in name]
    assert "samples/step-000004-0.png" in files
    before, after = safetensors.torch.load_file(tiny_base), safetensors.torch.load_file(checkpoint_of(config))
    assert before.keys() == after.keys()
    for key, weight in before.items():
        assert after[key].dtype == weight.dtype
        assert torch.equal(after[key], weight) != key.startswith("model.diffusion_model."), key
    with safe_open(checkpoint_of(config), framework="pt") as file:
        metadata = file.metadata()
    assert metadata["modelspec.architecture"] == "stable-diffusion-xl-v1-base"
    assert metadata["modelspec.prediction_type"] == "epsilon"


def test_others_read_what_was_trained(make_fine_tuning: Callable, tiny_base: Path, tmp_path: Path) -> None:
    """diffusers from the single file, and our own loader: both give the weights of the last checkpoint, in BF16."""
    config = make_fine_tuning(3, checkpoints=CheckpointsConfig(every_n_steps=3))
    run(config)
    trained = safetensors.torch.load_file(Path(config.output) / "checkpoints/step-000003/unet.safetensors")
    ours = load_unet(open_base_model(checkpoint_of(config)), "cpu", torch.float32)
    (tmp_path / "unet").mkdir()
    config_file = tmp_path / "unet" / "config.json"
    config_file.write_text(json.dumps(ours.config.to_diffusers()))
    theirs = UNet2DConditionModel.from_single_file(
        str(checkpoint_of(config)), config=str(tmp_path), subfolder="unet", torch_dtype=torch.float32
    )
    for unet in (ours, theirs):
        state = unet.state_dict()
        assert state.keys() == trained.keys()
        assert all(torch.equal(weight, trained[name].bfloat16().float()) for name, weight in state.items())


def test_a_folder_and_a_single_file_give_the_same_checkpoint(make_fine_tuning: Callable, tmp_path: Path) -> None:
    bases = write_tiny_base(tmp_path / "bases")
    left: list[dict[str, torch.Tensor]] = []
    for layout, base in bases.items():
        config = make_fine_tuning(2, base_model=str(base), output=str(tmp_path / layout))
        run(config)
        open_base_model(checkpoint_of(config))
        left.append(safetensors.torch.load_file(checkpoint_of(config)))
    one, other = left
    assert one.keys() == other.keys()
    assert all(torch.equal(weight, other[key]) for key, weight in one.items())


def test_a_training_goes_on_from_the_checkpoint_as_from_any_base(make_fine_tuning: Callable, tmp_path: Path) -> None:
    config = make_fine_tuning(6)
    first = run(config)[-1]
    again = make_fine_tuning(6, base_model=str(checkpoint_of(config)), output=str(tmp_path / "again"))
    assert run(again)[-1]["loss_first"] < first["loss_first"]  # the same pictures, noise and timesteps


@pytest.mark.parametrize(
    ("how", "optimizer"),
    [
        *((FLOAT32, name) for name in ("adamw", "adamw8bit", "adafactor", "prodigy", "lion", "schedule_free_adamw")),
        *((BFLOAT16, name) for name in ("adamw", "adamw8bit", "adafactor", "lion")),
    ],
    ids=lambda value: value.weights if isinstance(value, FineTuningConfig) else value,
)
def test_stopped_twice_and_gone_on_equals_uninterrupted_to_the_bit(
    make_fine_tuning: Callable, tmp_path: Path, how: FineTuningConfig, optimizer: OptimizerName
) -> None:
    """With masters too: the model is float32 on this CPU only if it is not told otherwise."""
    told = {"fine_tuning": how, "dtype": "bfloat16", "optimizer": optimizer}
    whole = make_fine_tuning(4, **told, output=str(tmp_path / "whole"))
    facts = run(whole)
    config = make_fine_tuning(4, **told, output=str(tmp_path / "parts"))
    losses: list[float] = []
    for stop_after in (1, 1, None):
        part = run(config, stop_after)
        losses += [fact["loss"] for fact in part if fact["fact"] == "step"]
        if part[-1]["fact"] == "stopped":
            config = dataclasses.replace(config, resume_from=str(Path(config.output) / part[-1]["path"]))
    assert losses == [fact["loss"] for fact in facts if fact["fact"] == "step"]
    one, other = (safetensors.torch.load_file(checkpoint_of(each)) for each in (whole, config))
    assert all(torch.equal(weight, other[key]) for key, weight in one.items())


def test_validation_sees_the_weights_and_changes_nothing(make_fine_tuning: Callable, tmp_path: Path) -> None:
    told = {"dtype": "bfloat16", "optimizer": "schedule_free_adamw"}  # which is another point to look at
    plain = make_fine_tuning(4, **told, validation=ValidationConfig(2), output=str(tmp_path / "plain"))
    often = make_fine_tuning(4, **told, validation=ValidationConfig(2, every_n_steps=1), output=str(tmp_path / "often"))
    facts = (*run(plain), *run(often))
    seen = [fact["validation_loss"] for fact in facts if fact["fact"] == "validation"]
    assert seen[:2] == [seen[2], seen[-1]]
    assert len(set(seen)) == 5  # five points, of which both took two
    one, other = (safetensors.torch.load_file(checkpoint_of(each)) for each in (plain, often))
    assert all(torch.equal(weight, other[key]) for key, weight in one.items())


def test_a_checkpoint_says_what_it_predicts(make_fine_tuning: Callable, tmp_path: Path) -> None:
    config = make_fine_tuning(1)
    loss = LossConfig(prediction="v_prediction", zero_terminal_snr=True)
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, loss=loss))
    run(config)
    left = open_base_model(checkpoint_of(config))
    assert (left.prediction_type, left.zero_terminal_snr) == ("v_prediction", True)
    back = make_fine_tuning(1, base_model=str(checkpoint_of(config)), output=str(tmp_path / "back"))
    epsilon = dataclasses.replace(back.train, loss=LossConfig(prediction="epsilon"))
    with pytest.raises(BaseModelInvalid, match="says that it predicts v, from pure noise"):
        run(dataclasses.replace(back, train=epsilon))
    run(back)  # left to the base: it goes on to predict v
    assert open_base_model(checkpoint_of(back)).zero_terminal_snr


def test_a_checkpoint_has_its_base_s_licence_and_not_its_author(
    make_fine_tuning: Callable, tiny_base: Path, tmp_path: Path
) -> None:
    """SDXL's own file says all this, with a thumbnail."""
    with safe_open(tiny_base, "pt") as file:
        told = file.metadata()
    of_base = {"title": "Base", "author": "Stability AI", "date": "2023-07-20", "thumbnail": "data:image/jpeg;base64,"}
    told |= {f"modelspec.{key}": value for key, value in {**of_base, "license": "OpenRAIL++-M"}.items()}
    safetensors.torch.save_file(safetensors.torch.load_file(tiny_base), tmp_path / "base.safetensors", told)
    config = make_fine_tuning(1, base_model=str(tmp_path / "base.safetensors"))
    config = dataclasses.replace(config, header=HeaderConfig(title="Cats", entries=(("modelspec.tags", "Animal"),)))
    run(config)
    with safe_open(checkpoint_of(config), "pt") as file:
        left = file.metadata()
    assert (left["modelspec.title"], left["modelspec.tags"]) == ("Cats", "Animal")
    assert left["modelspec.license"] == "OpenRAIL++-M"
    assert left["modelspec.description"].startswith("U-Net of SDXL, trained by loraq on base.safetensors: 8 pictures")
    assert not {"modelspec.author", "modelspec.date", "modelspec.thumbnail"} & left.keys()


@pytest.mark.parametrize("how", [FLOAT32, BFLOAT16], ids=["float32", "bfloat16"])
def test_gradient_checkpointing_changes_no_bit(
    make_fine_tuning: Callable, tmp_path: Path, how: FineTuningConfig
) -> None:
    left: list[dict[str, torch.Tensor]] = []
    for scope in ("none", "all"):
        config = make_fine_tuning(
            2, fine_tuning=how, dtype="bfloat16", checkpointing=scope, output=str(tmp_path / scope)
        )
        run(config)
        left.append(safetensors.torch.load_file(checkpoint_of(config)))
    assert all(torch.equal(weight, left[1][key]) for key, weight in left[0].items())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("optimizer", ["adamw", "adamw8bit", "adafactor", "lion"])
@pytest.mark.parametrize("how", [FLOAT32, BFLOAT16], ids=["float32", "bfloat16"])
def test_the_same_on_a_gpu_and_its_resume(
    make_fine_tuning: Callable, tmp_path: Path, how: FineTuningConfig, optimizer: OptimizerName
) -> None:
    """Nothing that a step draws or rounds by differs in a resumed training; sums on a GPU may, in their last bits."""
    told = {"fine_tuning": how, "device": "cuda", "dtype": "bfloat16", "checkpointing": "all", "optimizer": optimizer}
    whole = make_fine_tuning(4, **told, output=str(tmp_path / "whole"))
    losses = [fact["loss"] for fact in run(whole) if fact["fact"] == "step"]
    config = make_fine_tuning(4, **told, output=str(tmp_path / "parts"))
    first = run(config, stop_after=2)
    config = dataclasses.replace(config, resume_from=str(Path(config.output) / first[-1]["path"]))
    parts = [fact["loss"] for fact in (*first, *run(config)) if fact["fact"] == "step"]
    assert parts == pytest.approx(losses, rel=2e-2)
    one, other = (safetensors.torch.load_file(checkpoint_of(each)) for each in (whole, config))
    before = safetensors.torch.load_file(Path(whole.base_model))
    moved = sum((weight.float() - before[key].float()).square().sum().item() for key, weight in one.items())
    apart = sum((weight.float() - other[key].float()).square().sum().item() for key, weight in one.items())
    assert apart < 0.05 * moved
    print(f"{how.weights} {optimizer}: apart/moved {(apart / moved) ** 0.5:.2e}, losses {losses} and {parts}")


@pytest.mark.parametrize("how", [FLOAT32, BFLOAT16], ids=["float32", "bfloat16"])
def test_two_ranks_train_as_one_of_twice_the_batch(
    make_fine_tuning: Callable, tmp_path: Path, how: FineTuningConfig
) -> None:
    """Both ranks end with the same weights to the bit, or the checkpoint would be refused; and near those of one."""
    told = {"fine_tuning": how, "dtype": "bfloat16", "checkpoints": CheckpointsConfig(every_n_steps=2)}
    by_one = make_fine_tuning(2, **told, batch_size=4, output=str(tmp_path / "one"))
    by_two = make_fine_tuning(2, **told, batch_size=2, output=str(tmp_path / "two"))
    run(by_one)
    several.run(by_two, tmp_path)
    assert several.losses(by_two)[0] == pytest.approx(several.losses(by_one)[0], rel=1e-2)  # bfloat16, in halves
    files = (checkpoint_of(by_one), checkpoint_of(by_two), Path(by_one.base_model))
    one, two, base = map(safetensors.torch.load_file, files)
    moved = sum((weight.float() - base[key].float()).square().sum().item() for key, weight in one.items())
    apart = sum((weight.float() - two[key].float()).square().sum().item() for key, weight in one.items())
    assert apart < 0.2 * moved
