"""Long captions are cut into chunks as sd-scripts cuts them, and put together again as it does."""

import pytest
import torch

from worker.model.base_model import BaseModel
from worker.model.text_encoders import load_text_encoders
from worker.model.token_chunks import chunks_of, joined
from worker.model.tokenizer import END, load_tokenizer

START_ID, END_ID, CAT = 49406, 49407, 2368


def token_ids(words: int, pad_token: str, chunks: int) -> torch.Tensor:
    batch = load_tokenizer(pad_token)(
        ["cat " * words], padding="max_length", max_length=75 * chunks + 2, truncation=True, return_tensors="pt"
    )
    return batch["input_ids"]


@pytest.mark.parametrize(
    ("words", "chunks", "rows"),
    [
        # Of the second encoder, which fills with 0: start, words, end or filling.
        (3, 2, [[*[CAT] * 3, END_ID, *[0] * 71, 0], [END_ID, *[0] * 74, 0]]),  # an empty chunk begins with an end
        (75, 2, [[*[CAT] * 75, END_ID], [END_ID, *[0] * 74, 0]]),
        (80, 2, [[*[CAT] * 75, END_ID], [*[CAT] * 5, END_ID, *[0] * 69, 0]]),
        (149, 2, [[*[CAT] * 75, END_ID], [*[CAT] * 74, END_ID, 0]]),
        (150, 2, [[*[CAT] * 75, END_ID], [*[CAT] * 75, END_ID]]),
        (400, 3, [[*[CAT] * 75, END_ID]] * 3),  # the rest is cut
    ],
)
def test_chunks_of_the_second_encoder(words: int, chunks: int, rows: list[list[int]]) -> None:
    ours = chunks_of(token_ids(words, "!", chunks), pad_id=0, end_id=END_ID)
    assert ours.tolist() == [[START_ID, *row] for row in rows]


def test_chunks_of_the_first_encoder_are_filled_with_ends() -> None:
    ours = chunks_of(token_ids(80, END, 3), pad_id=END_ID, end_id=END_ID)
    rows = [[*[CAT] * 75, END_ID], [*[CAT] * 5, *[END_ID] * 71], [END_ID] * 76]
    assert ours.tolist() == [[START_ID, *row] for row in rows]


def test_chunks_are_joined_with_one_start_and_one_end() -> None:
    numbers = torch.arange(2 * 3 * 77).view(6, 77, 1)  # two captions of three chunks
    ours = joined(numbers, 3)
    assert ours.shape == (2, 227, 1)
    first = [0, *range(1, 76), *range(78, 153), *range(155, 230), 230]
    assert ours[0, :, 0].tolist() == first
    assert ours[1, :, 0].tolist() == [231 + n for n in first]
    assert torch.equal(joined(numbers, 1), numbers)


def test_a_long_caption_is_its_chunks_encoded_apart(tiny_bases: dict[str, BaseModel]) -> None:
    encoders = load_text_encoders(tiny_bases["single_file"], "cpu", torch.float32)
    first, second = "a photo of " + "cat " * 72, "sits on a mat"  # 75 tokens, and the rest
    whole, pooled = encoders.encode([first + second], chunks=2)
    parts = [encoders.encode([text]) for text in (first, second)]
    assert whole.shape == (1, 152, 32)
    torch.testing.assert_close(whole[:, :76], parts[0][0][:, :76])  # float32 rounding: a batch of two against one
    torch.testing.assert_close(whole[:, 76:151], parts[1][0][:, 1:76])
    torch.testing.assert_close(pooled, parts[0][1])


def test_several_captions_keep_their_own_pooled_embedding(tiny_bases: dict[str, BaseModel]) -> None:
    encoders = load_text_encoders(tiny_bases["single_file"], "cpu", torch.float32)
    _, together = encoders.encode(["a cat", "rocks"], chunks=3)
    alone = torch.cat([encoders.encode([caption])[1] for caption in ("a cat", "rocks")])
    torch.testing.assert_close(together, alone)
