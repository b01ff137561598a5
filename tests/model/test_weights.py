"""Loading is strict, and the same from every layout."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from worker.errors import BaseModelInvalid
from worker.model.base_model import BaseModel
from worker.model.text_encoders import load_text_encoders
from worker.model.vae import load_vae
from worker.model.weights import load_unet, open_base_model

State = dict[str, Tensor]


def all_tensors(base: BaseModel) -> State:
    encoders = load_text_encoders(base, "cpu", torch.float32)
    parts = {
        "unet": load_unet(base, "cpu", torch.float32),
        "vae": load_vae(base, "cpu", torch.float32),
        "text_encoder": encoders.encoder_1,
        "text_encoder_2": encoders.encoder_2,
    }
    return {f"{part}.{name}": t for part, module in parts.items() for name, t in module.state_dict().items()}


def assert_equal(ours: State, theirs: State) -> None:
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def test_both_layouts_load_to_identical_tensors(tiny_bases: dict[str, BaseModel]):
    assert_equal(all_tensors(tiny_bases["single_file"]), all_tensors(tiny_bases["diffusers"]))


def test_loaded_is_what_was_saved(tiny_paths: dict[str, Path], tiny_bases: dict[str, BaseModel]):
    for base in tiny_bases.values():
        saved = load_file(tiny_paths["diffusers"] / "unet/diffusion_pytorch_model.safetensors")
        assert_equal(dict(load_unet(base, "cpu").state_dict()), saved)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_all_weights_are_frozen_cast_and_off_the_meta_device(tiny_bases: dict[str, BaseModel], dtype: torch.dtype):
    base = tiny_bases["single_file"]
    encoders = load_text_encoders(base, "cpu", dtype)
    for module in (load_unet(base, "cpu", dtype), load_vae(base, "cpu", dtype), encoders.encoder_1, encoders.encoder_2):
        assert not module.training
        for tensor in (*module.parameters(), *module.buffers()):
            assert not tensor.requires_grad
            assert tensor.device.type == "cpu"
        assert {parameter.dtype for parameter in module.parameters()} == {dtype}


def test_half_precision_file_names_are_found(folder: Path, tiny_bases: dict[str, BaseModel]):
    for file in [*folder.rglob("*.safetensors")]:
        file.rename(file.with_suffix(".fp16.safetensors"))
    assert_equal(all_tensors(open_base_model(folder)), all_tensors(tiny_bases["diffusers"]))


@pytest.mark.parametrize(
    "index_name",
    ["diffusion_pytorch_model.safetensors.index.json", "diffusion_pytorch_model.safetensors.index.fp16.json"],
)
def test_shards_are_put_together(folder: Path, tiny_bases: dict[str, BaseModel], index_name: str):
    whole = folder / "unet/diffusion_pytorch_model.safetensors"
    state = load_file(whole)
    names = {key: f"shard-{i % 3}.safetensors" for i, key in enumerate(state)}
    for shard in set(names.values()):
        save_file({key: tensor for key, tensor in state.items() if names[key] == shard}, whole.parent / shard)
    whole.unlink()
    (whole.parent / index_name).write_text(json.dumps({"weight_map": names}))
    assert_equal(all_tensors(open_base_model(folder)), all_tensors(tiny_bases["diffusers"]))


def test_names_of_other_versions_are_understood(folder: Path, tiny_bases: dict[str, BaseModel]):
    """Old diffusers spelt the VAE's attention otherwise; transformers 5 saves encoder 1 without `text_model.`"""
    old = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}

    def spelt_old(key: str) -> str:
        for new_name, old_name in old.items():
            key = key.replace(new_name, old_name)
        return key

    vae, encoder = folder / "vae/diffusion_pytorch_model.safetensors", folder / "text_encoder/model.safetensors"
    vae_state, encoder_state = load_file(vae), load_file(encoder)
    save_file({spelt_old(key): tensor for key, tensor in vae_state.items()}, vae)
    save_file({key.removeprefix("text_model."): tensor for key, tensor in encoder_state.items()}, encoder)
    assert_equal(all_tensors(open_base_model(folder)), all_tensors(tiny_bases["diffusers"]))


def test_tensors_that_clip_leaves_behind_do_no_harm(
    tiny_paths: dict[str, Path], tiny_bases: dict[str, BaseModel], tmp_path: Path, rewrite: Callable[..., Path]
):
    extra = {
        "conditioner.embedders.0.transformer.text_model.embeddings.position_ids": torch.arange(77)[None],
        "conditioner.embedders.1.model.logit_scale": torch.tensor(4.6),
    }
    file = rewrite(tiny_paths["single_file"], tmp_path / "x.safetensors", lambda state: state.update(extra))
    assert_equal(all_tensors(open_base_model(file)), all_tensors(tiny_bases["diffusers"]))


def six_missing(state: State) -> None:
    for index in range(6):
        del state[f"model.diffusion_model.output_blocks.{index}.0.in_layers.0.bias"]


def one_unexpected(state: State) -> None:
    state["model.diffusion_model.control.weight"] = torch.ones(1)


def one_misshaped(state: State) -> None:
    state["model.diffusion_model.out.2.weight"] = torch.ones(4, 16, 1, 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (six_missing, "6 tensors are missing: model.diffusion_model.output_blocks.0.0.in_layers.0.bias, "),
        (one_unexpected, "1 tensors are unexpected: model.diffusion_model.control.weight."),
        (one_misshaped, "of another shape: model.diffusion_model.out.2.weight (4x16x1x1 instead of 4x16x3x3)."),
    ],
)
def test_what_does_not_fit_is_counted_and_named(
    tiny_paths: dict[str, Path],
    tmp_path: Path,
    rewrite: Callable[..., Path],
    change: Callable[[State], None],
    message: str,
):
    base = open_base_model(rewrite(tiny_paths["single_file"], tmp_path / "x.safetensors", change))
    with pytest.raises(BaseModelInvalid) as caught:
        load_unet(base, "cpu")
    text = str(caught.value)
    assert text.startswith("The unet is not SDXL's.")
    assert message in text
    assert text.endswith("Use an unmodified SDXL base model.")
    assert text.count("model.diffusion_model.") <= 5, "the first five are enough"


def test_fused_and_transposed_tensors_are_checked_in_the_files_own_shape(
    tiny_paths: dict[str, Path], tmp_path: Path, rewrite: Callable[..., Path]
):
    def narrow(state: State) -> None:
        state["conditioner.embedders.1.model.transformer.resblocks.0.attn.in_proj_bias"] = torch.ones(71)

    base = open_base_model(rewrite(tiny_paths["single_file"], tmp_path / "x.safetensors", narrow))
    with pytest.raises(BaseModelInvalid, match=r"in_proj_bias \(71 instead of 72\)"):
        load_text_encoders(base, "cpu")
