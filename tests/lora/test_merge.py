"""A merged checkpoint draws what base and adapter draw, says what it is, and is otherwise the base, byte for byte."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline
from safetensors import safe_open
from torch import Tensor, nn

from tests.lora.conftest import save
from tests.lora.test_lora_readers import CONFIGS
from worker.errors import BaseModelInvalid, LoRAInvalid
from worker.lora.config import LoRAConfig
from worker.lora.export import save_kohya
from worker.lora.inject import LoRA
from worker.lora.merge import merge
from worker.lora.names import kohya_name
from worker.model.unet import UNet
from worker.model.weights import load_unet, open_base_model

pytestmark = pytest.mark.parity


@pytest.fixture
def make_base(tiny_paths: dict[str, Path], tmp_path: Path) -> Callable[..., Path]:
    """The tiny base in one file, in any dtype, with metadata as published files have it."""

    def make(dtype: torch.dtype = torch.float32, metadata: dict[str, str] | None = None) -> Path:
        with safe_open(tiny_paths["single_file"], "pt") as file:
            own = file.metadata()
            tensors = {key: file.get_tensor(key).to(dtype) for key in file.keys()}  # noqa: SIM118 - not a dict
        path = tmp_path / "base.safetensors"
        safetensors.torch.save_file(tensors, path, own | (metadata or {}))
        return path

    return make


def unet_of(file: Path) -> UNet:
    return load_unet(open_base_model(file), "cpu", torch.float32)


def trained(make_adapter: Callable[..., LoRA], base: Path, config: LoRAConfig, file: Path, form: str) -> UNet:
    """A U-Net with an adapter, which is also saved."""
    unet = unet_of(base)
    lora = make_adapter(unet, config)
    save(lora, file, form)
    return unet


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("form", ["kohya", "diffusers"])
def test_the_merged_unet_predicts_what_base_and_adapter_predict(
    make_base: Callable[..., Path],
    make_adapter: Callable[..., LoRA],
    unet_inputs: tuple[Tensor, ...],
    tmp_path: Path,
    kind: str,
    form: str,
) -> None:
    base, file, out = make_base(), tmp_path / "lora.safetensors", tmp_path / "merged.safetensors"
    adapted = trained(make_adapter, base, CONFIGS[kind], file, form)
    layers = [name for name in adapted.state_dict() if name.endswith("lora_A")]
    assert merge(base, file, out) == len(layers)
    with torch.no_grad():
        ours, theirs, plain = unet_of(out)(*unet_inputs), adapted(*unet_inputs), unet_of(base)(*unet_inputs)
    assert (theirs - plain).abs().max() > 0.01
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)  # float32: one product for three


@pytest.mark.parametrize("scale", [1.0, 0.5])
@pytest.mark.parametrize("targets", ["qkv", "locon"])
def test_whole_tensors_are_those_that_diffusers_fuses(
    make_base: Callable[..., Path],
    make_adapter: Callable[..., LoRA],
    tiny_paths: dict[str, Path],
    tmp_path: Path,
    targets: Any,
    scale: float,
) -> None:
    base, file, out = make_base(), tmp_path / "lora.safetensors", tmp_path / "merged.safetensors"
    trained(make_adapter, base, LoRAConfig(4, 16.0, targets), file, "kohya")
    pipeline = StableDiffusionXLPipeline.from_pretrained(tiny_paths["diffusers"], dtype=torch.float32)
    pipeline.load_lora_weights(file)
    pipeline.fuse_lora(components=["unet"], lora_scale=scale)
    pipeline.unload_lora_weights()
    assert isinstance(pipeline.unet, UNet2DConditionModel)
    theirs = pipeline.unet.state_dict()
    merge(base, file, out, scale)
    ours = unet_of(out).state_dict()
    assert ours.keys() == theirs.keys()
    changed = 0
    for name, weight in ours.items():
        torch.testing.assert_close(weight, theirs[name], rtol=1e-6, atol=1e-7)  # two roundings of 2**-24
        changed += not torch.equal(weight, unet_of(base).state_dict()[name]) if name.endswith("to_q.weight") else 0
    assert changed > 4


def test_dora_at_half_strength_lies_half_way(
    make_base: Callable[..., Path], make_adapter: Callable[..., LoRA], tmp_path: Path
) -> None:
    base, file = make_base(), tmp_path / "lora.safetensors"
    trained(make_adapter, base, LoRAConfig(targets="locon", dora=True), file, "kohya")
    merge(base, file, tmp_path / "whole.safetensors")
    merge(base, file, tmp_path / "half.safetensors", 0.5)
    states = [unet_of(tmp_path / f"{name}.safetensors").state_dict() for name in ("base", "half", "whole")]
    for name, half in states[1].items():
        torch.testing.assert_close(half, (states[0][name] + states[2][name]) / 2, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sums_are_rounded_once_to_the_base_s_dtype_and_all_else_stays(
    make_base: Callable[..., Path], make_adapter: Callable[..., LoRA], tmp_path: Path, dtype: torch.dtype
) -> None:
    told = {"modelspec.title": "Größe", "modelspec.hash_sha256": "0xab", "ss_steps": "7"}
    base, file, out = make_base(dtype, told), tmp_path / "lora.safetensors", tmp_path / "merged.safetensors"
    unet = unet_of(base)
    lora = make_adapter(unet, LoRAConfig(targets="transformer"))
    save_kohya(lora, file, {})
    merge(base, file, out, 0.7)
    before, after = safetensors.torch.load_file(base), safetensors.torch.load_file(out)
    assert list(before) == list(after)
    names = {f"model.diffusion_model.{name}": path for path in lora.modules for name in [_sgm(path)]}
    for key, tensor in before.items():
        if (path := names.pop(key, None)) is None:
            assert torch.equal(after[key], tensor)
        else:
            layer = lora.modules[path]
            theirs = tensor.double() + 0.7 * layer.scale * (layer.lora_B.double() @ layer.lora_A.double())
            assert after[key].dtype == dtype
            # Half a unit in the last place, and where float32's own rounding decides between two, a little more.
            torch.testing.assert_close(after[key].double(), theirs, rtol=0.501 * torch.finfo(dtype).eps, atol=1e-7)
    assert not names
    with safe_open(base, "pt") as one, safe_open(out, "pt") as other:
        expected = one.metadata()
        del expected["modelspec.hash_sha256"]  # it was of what the file held
        expected["loraq.merged"] = json.dumps([{"lora": "lora.safetensors", "strength": 0.7}])
        assert other.metadata() == expected
    again = tmp_path / "again.safetensors"
    merge(out, file, again, -0.7)
    with safe_open(again, "pt") as other:
        assert [each["strength"] for each in json.loads(other.metadata()["loraq.merged"])] == [0.7, -0.7]


def _sgm(path: str) -> str:
    from worker.model.single_file import unet_name

    return f"{unet_name(path)}.weight"


def text_file(base: Path, file: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """A kohya file for every layer of both text encoders; rank 2, alpha 1. Returns down and up by kohya's name."""
    model, tensors, pairs = open_base_model(base), {}, {}
    generator = torch.Generator().manual_seed(0)
    for part in ("text_encoder", "text_encoder_2"):
        config = model.configs[part]
        width, inner = config["hidden_size"], config["intermediate_size"]
        for number in range(config["num_hidden_layers"]):
            for layer in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj", "mlp.fc1"):
                name = kohya_name(f"{part}.text_model.encoder.layers.{number}.{layer}")
                out = inner if layer == "mlp.fc1" else width
                down, up = (torch.randn(shape, generator=generator) for shape in ((2, width), (out, 2)))
                tensors |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
                tensors[f"{name}.alpha"] = torch.tensor(1.0)
                pairs[name] = down, up
    safetensors.torch.save_file(tensors, file)
    return pairs


def test_text_encoders_are_merged_also_where_query_key_and_value_are_one_tensor(
    make_base: Callable[..., Path], tmp_path: Path
) -> None:
    from worker.model.text_encoders import load_text_encoders

    base, file, out = make_base(), tmp_path / "lora.safetensors", tmp_path / "merged.safetensors"
    pairs = text_file(base, file)
    assert merge(base, file, out) == len(pairs)
    for attribute, prefix in (("encoder_1", "lora_te1_"), ("encoder_2", "lora_te2_")):
        before, after = (
            getattr(load_text_encoders(open_base_model(path), "cpu", torch.float32), attribute) for path in (base, out)
        )
        for name, module in before.named_modules():
            if not isinstance(module, nn.Linear):
                continue
            dotted = name if name.startswith("text_") else f"text_model.{name}"
            pair = pairs.pop(prefix + dotted.replace(".", "_"), None)
            theirs = module.weight if pair is None else module.weight + 0.5 * pair[1] @ pair[0]
            torch.testing.assert_close(after.get_submodule(name).weight, theirs, rtol=1e-6, atol=1e-6)
    assert not pairs


def test_what_cannot_be_merged_is_refused_and_nothing_is_written(
    make_base: Callable[..., Path],
    make_adapter: Callable[..., LoRA],
    tiny_paths: dict[str, Path],
    tmp_path: Path,
) -> None:
    base, file, out = make_base(), tmp_path / "lora.safetensors", tmp_path / "merged.safetensors"
    trained(make_adapter, base, LoRAConfig(), file, "kohya")
    tensors = safetensors.torch.load_file(file)
    name = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k"

    def changed(edit: Callable[[dict[str, Tensor]], Any]) -> Path:
        edit(copy := dict(tensors))
        safetensors.torch.save_file(copy, tmp_path / "changed.safetensors")
        return tmp_path / "changed.safetensors"

    def rename(copy: dict[str, Tensor]) -> None:
        for end in ("lora_down.weight", "lora_up.weight", "alpha"):
            copy[f"lora_unet_input_blocks_9_1_attn.{end}"] = copy.pop(f"{name}.{end}")

    with pytest.raises(LoRAInvalid, match=r"1 modules that base\.safetensors does not have, as lora_unet_input"):
        merge(base, changed(rename), out)
    with pytest.raises(LoRAInvalid, match=rf"{name} is \d+x768, but .*\d+x32: it belongs to another model"):
        merge(base, changed(lambda copy: copy.update({f"{name}.lora_down.weight": torch.zeros(4, 768)})), out)
    with pytest.raises(BaseModelInvalid, match="is a folder"):
        merge(tiny_paths["diffusers"], file, out)
    half = make_base(torch.float16)
    with pytest.raises(LoRAInvalid, match="not finite in F16"):
        merge(half, file, out, 1e9)
    half.write_bytes(half.read_bytes()[:-1])
    with pytest.raises(BaseModelInvalid, match="truncated"):
        merge(half, file, out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base.safetensors", "changed.safetensors", file.name]
    with pytest.raises(FileExistsError, match="name another"):
        merge(make_base(), file, file)
