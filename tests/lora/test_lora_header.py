"""The hashes in a file's header are those that others compute of the file, and equal contents give equal files."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch

from tests.lora.conftest import save
from worker.lora.config import LoRAConfig
from worker.lora.inject import LoRA
from worker.lora.metadata import hashes
from worker.lora.serialized import Serialized
from worker.model.checkpoint_hashes import CheckpointHashes
from worker.model.unet import UNet

MIB = 1 << 20


def parts_of(file: Path) -> tuple[dict[str, str], bytes]:
    """Metadata and tensors' bytes of a file, from its bytes alone."""
    content = file.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    return json.loads(content[8:start])["__metadata__"], content[start:]


def addnet_legacy_hash(file: Path) -> str:
    """As sd-webui-additional-networks recomputes it (scripts/safetensors_hack.py): of the file that sd-scripts would
    have written, which had the ss_ entries alone; there 64 KiB from 1 MiB on, as A1111 took of any checkpoint."""
    metadata, _ = parts_of(file)
    of_training = {key: value for key, value in metadata.items() if key.startswith("ss_")}
    rewritten = safetensors.torch.save(safetensors.torch.load_file(file), of_training)
    return hashlib.sha256(rewritten[0x100000:0x110000]).hexdigest()[:8]


@pytest.mark.parametrize("form", ["kohya", "diffusers"])
@pytest.mark.parametrize("rank", [4, 32], ids=["less than 1 MiB", "more than 1 MiB"])
def test_the_hashes_are_those_of_the_files_bytes(
    make_unet: Callable[..., UNet], make_adapter: Callable[..., LoRA], tmp_path: Path, form: str, rank: int
) -> None:
    file = tmp_path / "lora.safetensors"
    save(make_adapter(make_unet(), LoRAConfig(rank, 16.0, "transformer")), file, form)
    assert (file.stat().st_size > 1.2 * MIB) is (rank == 32), "the old hash has something to look at"
    metadata, tensors = parts_of(file)
    assert metadata["sshs_model_hash"] == hashlib.sha256(tensors).hexdigest()
    assert metadata["modelspec.hash_sha256"] == "0x" + hashlib.sha256(tensors).hexdigest()
    assert metadata["sshs_legacy_hash"] == addnet_legacy_hash(file)


def test_the_old_hash_is_right_where_the_header_reaches_into_it() -> None:
    tensors = {"weight": torch.arange(1 << 18, dtype=torch.float32)}
    for length in (10, MIB - 100, MIB + 1000, 2 * MIB):
        told = {"ss_tag_frequency": "ä" * (length // 2)}  # one entry, as the library puts several in no fixed order
        theirs = safetensors.torch.save(tensors, told)[0x100000:0x110000]
        header = told | {"modelspec.title": "not looked at", "ssmd_cover_images": "[]"}
        ours = hashes(Serialized(tensors), header)["sshs_legacy_hash"]
        assert ours == hashlib.sha256(theirs).hexdigest()[:8], length


def test_equal_contents_give_equal_files_that_the_library_reads(tmp_path: Path) -> None:
    tensors = {"b": torch.randn(3, 5), "a": torch.zeros(7, dtype=torch.float16), "ключ": torch.tensor(1.5)}
    told = {f"key {number}": f'{{"ä": "{number}"}}\n' for number in range(20)}
    one, other = tmp_path / "one.safetensors", tmp_path / "other.safetensors"
    Serialized(tensors).write(one, told)
    Serialized(dict(reversed(tensors.items()))).write(other, dict(reversed(told.items())))
    assert one.read_bytes() == other.read_bytes()
    assert int.from_bytes(one.read_bytes()[:8], "little") % 8 == 0  # the tensors' bytes lie as the format aligns them
    with safetensors.safe_open(one, "pt") as file:
        assert file.metadata() == told
        assert {name: file.get_tensor(name).tolist() for name in file.keys()} == {  # noqa: SIM118, it is no mapping
            name: tensor.tolist() for name, tensor in tensors.items()
        }


def test_a_checkpoint_has_the_two_hashes_of_automatic1111(tmp_path: Path) -> None:
    content = bytes(torch.randint(0, 256, (2 * MIB,), dtype=torch.uint8).tolist())
    (tmp_path / "base.safetensors").write_bytes(content)
    old = hashlib.sha256(content[MIB : MIB + 65536]).hexdigest()[:8]
    assert CheckpointHashes(tmp_path / "base.safetensors").wait() == (old, hashlib.sha256(content).hexdigest())
    (tmp_path / "small").write_bytes(b"less")
    assert CheckpointHashes(tmp_path / "small").wait() == ("e3b0c442", hashlib.sha256(b"less").hexdigest())
    assert CheckpointHashes(tmp_path / "gone").wait() is None
