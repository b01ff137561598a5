"""Text encoders and their tokenizer."""

import hashlib
from dataclasses import replace

import pytest
import torch

from worker.errors import BaseModelInvalid
from worker.model.base_model import BaseModel
from worker.model.text_encoders import TextEncoders, load_text_encoders
from worker.model.tokenizer import END, FOLDER, load_tokenizer

CAT = [49406, 320, 1125, 539, 320, 2368, 49407]


@pytest.fixture(scope="module")
def encoders(tiny_bases: dict[str, BaseModel]) -> TextEncoders:
    return load_text_encoders(tiny_bases["single_file"], "cpu", torch.float32)


def test_a_photo_of_a_cat_has_clips_tokens():
    assert load_tokenizer(END)("a photo of a cat")["input_ids"] == CAT


@pytest.mark.parametrize(("pad_token", "pad_id"), [(END, 49407), ("!", 0)])
def test_short_captions_are_filled_up_to_77_tokens(pad_token: str, pad_id: int):
    ids = load_tokenizer(pad_token)("A photo  of a CAT", padding="max_length")["input_ids"]
    assert ids == CAT + [pad_id] * 70


def test_the_vocabulary_is_the_one_that_clip_was_trained_with():
    """SHA-256 of what the recipe in worker/model/tokenizer/__main__.py makes of open_clip_torch 3.3.0's file."""
    hashes = {file.name: hashlib.sha256(file.read_bytes()).hexdigest()[:16] for file in FOLDER.glob("[mv]*.*")}
    assert hashes == {"vocab.json": "5047b556ce86ccaf", "merges.txt": "9fd691f7c8039210"}
    assert len(load_tokenizer(END)) == 49_408


def test_embeddings_have_both_widths_side_by_side(encoders: TextEncoders):
    text_embeds, pooled_text_embeds = encoders.encode(["a photo of a cat", "", "rocks"])
    assert text_embeds.shape == (3, 77, 32)
    assert pooled_text_embeds.shape == (3, 16)
    assert not text_embeds.requires_grad


def test_a_caption_is_encoded_alike_alone_and_in_company(encoders: TextEncoders):
    alone = encoders.encode(["a photo of a cat"])
    together = encoders.encode(["rocks", "a photo of a cat"])
    for ours, theirs in zip(together, alone, strict=True):
        torch.testing.assert_close(ours[1:], theirs)  # FP32 rounding: kernels may split a batch otherwise


def test_captions_that_lose_something_are_reported_with_their_length(
    encoders: TextEncoders, capfd: pytest.CaptureFixture[str]
):
    fits, too_long = " ".join(["cat"] * 75), " ".join(["cat"] * 76)
    encoders.encode([fits, too_long])  # which leaves the tokenizers cutting
    assert encoders.truncated(["a cat", fits, too_long]) == {too_long: 78}
    assert torch.equal(*encoders.encode([fits, too_long])[0]), "what lies beyond changes nothing"
    assert "Token indices sequence length" not in "".join(capfd.readouterr())


def test_encoders_that_do_not_fit_the_unet_are_refused(tiny_bases: dict[str, BaseModel]):
    base = tiny_bases["single_file"]
    wrong = replace(
        base, configs={**base.configs, "text_encoder_2": base.configs["text_encoder_2"] | {"projection_dim": 8}}
    )
    with pytest.raises(BaseModelInvalid, match="32 and 8 wide, but the U-Net takes 32 and 16"):
        load_text_encoders(wrong, "cpu")
