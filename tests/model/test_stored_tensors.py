"""Reading safetensors headers, and telling damaged and foreign files apart."""

import io
import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from worker.errors import BaseModelInvalid
from worker.model.stored_tensors import content_sha256, read_header


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "weights.safetensors"
    save_file({"a": torch.arange(6.0).view(2, 3), "b": torch.ones(4, dtype=torch.bfloat16)}, path, metadata={"x": "y"})
    return path


def test_header_says_what_is_where(file: Path):
    tensors, metadata = read_header(file)
    assert metadata == {"x": "y"}
    assert {key: (t.dtype, t.shape) for key, t in tensors.items()} == {"a": ("F32", (2, 3)), "b": ("BF16", (4,))}
    a = tensors["a"]
    assert file.read_bytes()[a.start : a.end] == torch.arange(6.0).numpy().tobytes()


@pytest.mark.parametrize("length", [0, 5, 8, 40, -1])
def test_a_truncated_file_is_refused(file: Path, length: int):
    file.write_bytes(file.read_bytes()[:length])
    with pytest.raises(BaseModelInvalid, match="truncated"):
        read_header(file)


def test_bytes_too_many_are_refused(file: Path):
    file.write_bytes(file.read_bytes() + b"more")
    with pytest.raises(BaseModelInvalid, match=r"its header promises \d+: it is truncated or damaged"):
        read_header(file)


def test_a_header_longer_than_the_file_is_refused(file: Path):
    file.write_bytes((10**6).to_bytes(8, "little") + file.read_bytes()[8:])
    with pytest.raises(BaseModelInvalid, match="its header should take 1000000"):
        read_header(file)


@pytest.mark.parametrize("archive", [True, False])
def test_pickles_are_refused_unread_whatever_their_name(file: Path, archive: bool):
    buffer = io.BytesIO()
    torch.save({"a": torch.ones(2)}, buffer, _use_new_zipfile_serialization=archive)
    file.write_bytes(buffer.getvalue())
    with pytest.raises(BaseModelInvalid, match="is a pickle, which can run code"):
        read_header(file)


def test_a_bare_pickle_is_refused(file: Path):
    file.write_bytes(pickle.dumps({"a": 1}, protocol=4))
    with pytest.raises(BaseModelInvalid, match="is a pickle"):
        read_header(file)


def test_a_header_whose_length_looks_like_a_pickle_is_read(file: Path):
    """0x80 0x02 is 640 as length, and the first two bytes of a pickle of protocol 2."""
    save_file({"a": torch.ones(1)}, file, metadata={"pad": ""})
    header = json.loads(file.read_bytes()[8:].split(b"}}")[0] + b"}}")
    raw = json.dumps(header).ljust(0x0280).encode()
    file.write_bytes(len(raw).to_bytes(8, "little") + raw + torch.ones(1).numpy().tobytes())
    assert file.read_bytes()[:2] == b"\x80\x02"
    assert list(read_header(file)[0]) == ["a"]


@pytest.mark.parametrize(
    "header",
    [
        b"not json",
        b"[1, 2]",
        b'{"a": 3}',
        b'{"a": {"dtype": "F32"}}',
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0]}}',
    ],
)
def test_a_damaged_header_is_refused(file: Path, header: bytes):
    file.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(BaseModelInvalid, match=r"weights\.safetensors"):
        read_header(file)


def test_content_hash_changes_with_every_bit_and_name_and_with_nothing_else(file: Path, tmp_path: Path):
    def sha256(state: dict[str, torch.Tensor], *extra: str) -> str:
        other = tmp_path / "other.safetensors"
        save_file(state, other)
        return content_sha256(read_header(other)[0].values(), *extra)

    a, b = torch.arange(6.0).view(2, 3), torch.ones(4, dtype=torch.bfloat16)
    same = content_sha256(read_header(file)[0].values())
    assert sha256({"b": b, "a": a}) == same, "metadata, file name and order are not content"
    changed = a.clone()
    changed[1, 2] = changed[1, 2].nextafter(torch.tensor(9.0))
    others = [sha256({"a": changed, "b": b}), sha256({"c": a, "b": b}), sha256({"a": a.view(3, 2), "b": b})]
    others += [sha256({"a": a, "b": b}, "config"), sha256({"a": a, "b": b.half()})]
    assert len({same, *others}) == 6
