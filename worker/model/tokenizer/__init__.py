"""CLIP's tokenizer, from files shipped beside this one, so that a base model in a single file needs no model hub.

Both text encoders of SDXL split text alike; they differ only in how they fill a short caption up to 77 tokens.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

FOLDER = Path(__file__).parent
MAX_TOKENS = 77  # with the marks of start and end; the length of CLIP's position table
START, END = "<|startoftext|>", "<|endoftext|>"


def load_tokenizer(pad_token: str) -> CLIPTokenizer:
    """Return the tokenizer that fills captions with `pad_token`: END for text encoder 1, "!" for text encoder 2."""
    from transformers import CLIPTokenizer  # a second to import

    vocab = json.loads((FOLDER / "vocab.json").read_text(encoding="utf-8"))
    lines = (FOLDER / "merges.txt").read_text(encoding="utf-8").splitlines()
    merges: Any = [tuple(line.split()) for line in lines[1:]]  # the first line is a version
    return CLIPTokenizer(vocab=vocab, merges=merges, pad_token=pad_token, model_max_length=MAX_TOKENS)


def tokenizer_files(pad_token: str) -> dict[str, str]:
    """Return the files of a diffusers folder's tokenizer/, by name, as text."""
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": MAX_TOKENS,
        "bos_token": START,
        "eos_token": END,
        "unk_token": END,
        "pad_token": pad_token,
    }
    files = {name: (FOLDER / name).read_text(encoding="utf-8") for name in ("vocab.json", "merges.txt")}
    return files | {"tokenizer_config.json": json.dumps(config, indent=2)}
