"""Make vocab.json and merges.txt from OpenAI's byte-pair file: python -m worker.model.tokenizer BPE_FILE [FOLDER].

BPE_FILE is open_clip/bpe_simple_vocab_16e6.txt.gz of the wheel open_clip_torch. The vocabulary is, in order: the 256
bytes, each spelt as one printable character; the same at the end of a word; the first 48,894 merges of the file; the
marks of start and end. That is 49,408 tokens (Radford et al. 2021, "CLIP", arXiv:2103.00020, section 2.4).
"""

import gzip
import json
import sys
from pathlib import Path

from worker.model.tokenizer import END, FOLDER, START

VOCAB_SIZE = 49_408
MERGES = VOCAB_SIZE - 2 * 256 - 2


def byte_characters() -> list[str]:
    """Return a printable character for each of the 256 bytes, in the vocabulary's order.

    Bytes that Latin-1 prints stand for themselves and come first; the others take the characters from U+0100 on.
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    return [chr(byte) for byte in printable] + [chr(256 + i) for i in range(256 - len(printable))]


def main(bpe_file: Path, folder: Path = FOLDER) -> None:
    """Write both files into `folder`."""
    lines = gzip.decompress(bpe_file.read_bytes()).decode("utf-8").split("\n")
    merges = lines[1 : MERGES + 1]  # the first line is a version
    characters = byte_characters()
    tokens = [*characters, *(c + "</w>" for c in characters), *("".join(merge.split()) for merge in merges), START, END]
    vocab = {token: index for index, token in enumerate(tokens)}
    assert len(vocab) == VOCAB_SIZE, f"{len(vocab)} tokens instead of {VOCAB_SIZE}: this is another file"
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False, separators=(",", ":")), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
