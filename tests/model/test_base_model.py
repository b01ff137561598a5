"""What is an SDXL base model, and what is refused, by name of what it is instead."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from worker.errors import BaseModelInvalid
from worker.model.base_model import CONFIG_KEY, open_base_model
from worker.model.unet import UNetConfig


@pytest.mark.parametrize("layout", ["single_file", "diffusers"])
def test_both_layouts_are_told_apart_and_say_the_same(tiny_paths: dict[str, Path], layout: str):
    base = open_base_model(tiny_paths[layout])
    assert base.layout == layout
    assert base.path == tiny_paths[layout]
    assert base.unet_config == UNetConfig.tiny()
    assert base.prediction_type == "epsilon"
    assert base.configs["vae"]["scaling_factor"] == 0.13025


def test_hashes_name_the_parts_that_caches_rest_on(
    tiny_paths: dict[str, Path], tmp_path: Path, rewrite: Callable[..., Path]
):
    base = open_base_model(tiny_paths["single_file"])

    def hashes(change: Callable[[dict[str, torch.Tensor]], object]) -> tuple[bool, bool]:
        other = open_base_model(rewrite(tiny_paths["single_file"], tmp_path / "other.safetensors", change))
        return other.vae_sha256 == base.vae_sha256, other.text_encoders_sha256 == base.text_encoders_sha256

    assert hashes(lambda state: None) == (True, True)
    assert hashes(lambda state: state["first_stage_model.quant_conv.bias"].add_(1)) == (False, True)
    assert hashes(lambda state: state["conditioner.embedders.1.model.text_projection"].add_(1)) == (True, False)
    assert hashes(lambda state: state["model.diffusion_model.out.2.bias"].add_(1)) == (True, True)


def test_a_vae_config_is_part_of_its_hash(folder: Path):
    before = open_base_model(folder).vae_sha256
    config = json.loads((folder / "vae/config.json").read_text())
    (folder / "vae/config.json").write_text(json.dumps(config | {"scaling_factor": 0.5}))
    assert open_base_model(folder).vae_sha256 != before


def test_nothing_there(tmp_path: Path):
    with pytest.raises(BaseModelInvalid, match="There is no base model at"):
        open_base_model(tmp_path / "nothing")


def refusal(path: Path) -> str:
    with pytest.raises(BaseModelInvalid) as caught:
        open_base_model(path)
    return str(caught.value)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"lora_unet_input_blocks_4_1_proj_in.lora_down.weight": (4, 8)}, "is a LoRA"),
        ({"unet.down_blocks.1.attentions.0.proj_in.lora_A.weight": (4, 8)}, "is a LoRA"),
        ({"down_blocks.0.resnets.0.conv1.weight": (4, 4, 3, 3)}, "is one part of a diffusers pipeline"),
        ({"cond_stage_model.transformer.text_model.final_layer_norm.bias": (768,)}, "is Stable Diffusion 1.5"),
        ({"cond_stage_model.model.ln_final.bias": (1024,)}, "is Stable Diffusion 2"),
        ({"model.diffusion_model.input_blocks.0.0.weight": (320, 9, 3, 3)}, "is an inpainting model"),
        ({"conditioner.embedders.0.model.ln_final.bias": (1280,)}, "is the SDXL refiner"),
        ({"model.diffusion_model.out.2.bias": (4,)}, "holds no tensor first_stage_model"),
        ({"something.else": (4,)}, "holds no tensor model.diffusion_model.*"),
        ({}, "holds no tensor"),
    ],
)
def test_single_files_of_other_kinds_are_refused_by_name(
    make_single_file: Callable[..., Path], shapes: dict[str, tuple[int, ...]], message: str
):
    assert message in refusal(make_single_file(shapes))


@pytest.mark.parametrize(
    ("marks", "metadata", "told"),
    [
        ((), {}, ("epsilon", False)),
        (("v_pred",), {}, ("v_prediction", False)),
        (("v_pred", "ztsnr"), {}, ("v_prediction", True)),
        ((), {"modelspec.prediction_type": "v"}, ("v_prediction", False)),
        (("ztsnr",), {}, ("epsilon", False)),  # to predict the noise where there is nothing else is no task
    ],
)
def test_a_single_file_says_by_its_marks_what_it_predicts(
    tiny_paths: dict[str, Path],
    tmp_path: Path,
    marks: tuple[str, ...],
    metadata: dict[str, str],
    told: tuple[str, bool],
):
    with safe_open(tiny_paths["single_file"], "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no dict)
        metadata = file.metadata() | metadata
    save_file(tensors | {mark: torch.zeros(0) for mark in marks}, tmp_path / "marked.safetensors", metadata)

    base = open_base_model(tmp_path / "marked.safetensors")

    assert (base.prediction_type, base.zero_terminal_snr) == told


@pytest.mark.parametrize("config", ["no json", "[]", '{"unet": {}}'])
def test_damaged_config_metadata_is_refused(
    tiny_paths: dict[str, Path], tmp_path: Path, rewrite: Callable[..., Path], config: str
):
    file = rewrite(tiny_paths["single_file"], tmp_path / "x.safetensors", metadata={CONFIG_KEY: config})
    assert f"metadata {CONFIG_KEY} of x.safetensors is damaged" in refusal(file)


def test_a_single_file_without_config_is_taken_as_full_size(
    tiny_paths: dict[str, Path], tmp_path: Path, rewrite: Callable[..., Path]
):
    file = rewrite(tiny_paths["single_file"], tmp_path / "x.safetensors", metadata={"format": "pt"})
    assert open_base_model(file).unet_config == UNetConfig.sdxl()


def test_tensors_outside_of_all_parts_are_counted_in_a_warning(
    tiny_paths: dict[str, Path], tmp_path: Path, rewrite: Callable[..., Path], caplog: pytest.LogCaptureFixture
):
    extra = {"sqrt_alphas_cumprod": torch.ones(1), "strange.a": torch.ones(1), "strange.b": torch.ones(1)}
    with caplog.at_level(logging.WARNING):
        open_base_model(
            rewrite(tiny_paths["single_file"], tmp_path / "x.safetensors", lambda state: state.update(extra))
        )
    assert [record.message for record in caplog.records] == [
        "Left 2 tensors of x.safetensors unread, since no part of SDXL holds them: strange.a, strange.b"
    ]


def test_a_folder_must_be_a_whole_pipeline(folder: Path):
    (folder / "model_index.json").unlink()
    assert "holds no model_index.json" in refusal(folder)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "text_encoder_2"])
def test_a_folder_without_a_part_is_refused(folder: Path, part: str):
    shutil.rmtree(folder / part)
    assert f"has no {part}/config.json" in refusal(folder)


def test_a_folder_with_pickles_only_is_refused(folder: Path):
    weights = folder / "unet/diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    assert "only diffusion_pytorch_model.bin, a pickle" in refusal(folder)


def test_a_folder_says_in_its_scheduler_what_it_predicts(folder: Path):
    told = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
    (folder / "scheduler/scheduler_config.json").write_text(json.dumps(told))
    base = open_base_model(folder)
    assert (base.prediction_type, base.zero_terminal_snr) == ("v_prediction", True)


def test_a_folder_that_predicts_something_else_is_refused(folder: Path):
    (folder / "scheduler/scheduler_config.json").write_text('{"prediction_type": "sample"}')
    assert "prediction_type sample; known: epsilon, v_prediction" in refusal(folder)


@pytest.mark.parametrize("content", ["{", "[]"])
def test_a_damaged_config_is_named(folder: Path, content: str):
    (folder / "unet/config.json").write_text(content)
    assert "unet/config.json is not" in refusal(folder)


def test_an_index_naming_an_absent_file_is_refused(folder: Path):
    (folder / "unet/diffusion_pytorch_model.safetensors").unlink()
    index = {"weight_map": {"conv_in.weight": "part-1.safetensors"}}
    (folder / "unet/diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    assert "names part-1.safetensors, which is not there" in refusal(folder)


def test_an_index_must_not_point_out_of_its_folder(folder: Path):
    (folder / "unet/diffusion_pytorch_model.safetensors").unlink()
    index = {"weight_map": {"conv_in.weight": "../vae/diffusion_pytorch_model.safetensors"}}
    (folder / "unet/diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    assert "which is not there" in refusal(folder)
