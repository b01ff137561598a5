"""Captions longer than what is encoded of them: refused, or cut with a warning."""

from collections.abc import Iterable

from worker.data.config import DatasetConfig
from worker.data.dataset import Dataset
from worker.errors import DatasetInvalid
from worker.model.tokenizer import END, load_tokenizer

_NAMES_SHOWN = 10


def check_lengths(dataset: Dataset, prompts: Iterable[str], config: DatasetConfig) -> list[str]:
    """Warnings of captions and sample prompts whose ends are cut off.

    Raises:
        DatasetInvalid: captions are too long, and are to be an error then; the message names their pictures.
    """
    limit = config.caption_tokens
    texts = {picture.name: picture.caption for picture in dataset.pictures}
    warnings: list[str] = []
    if long := _longer(texts, limit):
        told = f"{len(long)} captions have more than {limit} tokens"
        names = ", ".join(f"{name} ({tokens})" for name, tokens in list(long.items())[:_NAMES_SHOWN])
        names += ", …" if len(long) > _NAMES_SHOWN else ""
        if config.long_captions == "error":
            raise DatasetInvalid(
                f"{told}: {names}. Shorten them, or set captions.max_tokens to 150 or 225, or captions.too_long to cut."
            )
        warnings.append(f"{told} and were cut: {names}.")
    warnings += [
        f"The prompt {prompt!r} has {tokens} tokens, more than {limit}, and was cut."
        for prompt, tokens in _longer({prompt: prompt for prompt in prompts}, limit).items()
    ]
    return warnings


def _longer(texts: dict[str, str], limit: int) -> dict[str, int]:
    """Those that have more tokens than `limit`, and how many."""
    suspects = {name: text for name, text in texts.items() if len(text.encode()) > limit}  # a token has a byte at least
    if not suspects:
        return {}
    tokenizer = load_tokenizer(END)
    lengths = {name: len(tokenizer.tokenize(text)) for name, text in suspects.items()}
    return {name: length for name, length in lengths.items() if length > limit}
