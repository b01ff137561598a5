"""Both CLIP text encoders of SDXL: captions to text_embeds and pooled_text_embeds.

They are transformers' own, frozen, and peripheral unless an adapter is put on them. Shapes: b batch, n chunks, 77
tokens, t both widths together (2048), p the second encoder's projection (1280).

Source: Podell et al. 2023, "SDXL" (arXiv:2307.01952), section 2.1: the penultimate outputs of both, side by side.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from worker.errors import BaseModelInvalid
from worker.model.base_model import BaseModel
from worker.model.single_file import Part
from worker.model.token_chunks import CHUNK, chunks_of, joined
from worker.model.tokenizer import END, MAX_TOKENS, load_tokenizer
from worker.model.weights import load_part

PENULTIMATE = -2


@dataclass
class TextEncoders:
    """Both encoders with their tokenizers."""

    encoder_1: CLIPTextModel
    encoder_2: CLIPTextModelWithProjection
    tokenizer_1: CLIPTokenizer = field(default_factory=lambda: load_tokenizer(END))
    tokenizer_2: CLIPTokenizer = field(default_factory=lambda: load_tokenizer("!"))

    @torch.no_grad()
    def encode(self, captions: list[str], chunks: int = 1) -> tuple[Tensor, Tensor]:
        """Return (text_embeds [b, 75 chunks + 2, t], pooled_text_embeds [b, p]) in the encoders' dtype.

        What lies beyond 75 tokens a chunk is cut off: ask `truncated` which captions lose something. Chunks are
        encoded apart, see worker.model.token_chunks; the pooled embedding is that of the first.
        """
        return self.embed(self.token_ids(captions, chunks))

    def token_ids(self, captions: list[str], chunks: int = 1) -> Tensor:
        """Return what both tokenizers make of captions: [b, 2, 75 chunks + 2], on the CPU."""
        return tokenized(captions, chunks, self.tokenizer_1, self.tokenizer_2)

    def embed(self, token_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Encode token ids [b, 2, 75 n + 2] as `encode` does captions, with a gradient if an adapter asks for one."""
        token_ids = token_ids.to(self.encoder_1.device)
        ids_1, ids_2 = token_ids[:, 0], token_ids[:, 1]  # [b, 75 n + 2]
        chunks = (token_ids.shape[-1] - 2) // CHUNK
        output_1 = self.encoder_1(_in_chunks(ids_1, self.tokenizer_1, chunks), output_hidden_states=True)
        output_2 = self.encoder_2(_in_chunks(ids_2, self.tokenizer_2, chunks), output_hidden_states=True)
        hidden = [output.hidden_states[PENULTIMATE] for output in (output_1, output_2)]  # each [b n, 77, t]
        text_embeds = torch.cat([joined(each, chunks) for each in hidden], dim=-1)  # [b, 75 n + 2, t]
        return text_embeds, output_2.text_embeds[::chunks]  # [b, p]

    @property
    def towers(self) -> dict[str, nn.Module]:
        """What holds the layers that an adapter may be on, by the start of their paths in published files."""
        # transformers 5 leaves `text_model` out of a CLIPTextModel's names.
        tower_1 = getattr(self.encoder_1, "text_model", self.encoder_1)
        return {"text_encoder.text_model": tower_1, "text_encoder_2.text_model": self.encoder_2.text_model}

    def truncated(self, captions: list[str]) -> dict[str, int]:
        """Return the captions that do not fit in 77 tokens, each with its number of tokens (start and end included)."""
        # Not verbose: transformers would log what this method is asked to return.
        lengths = {caption: len(self.tokenizer_1(caption, verbose=False)["input_ids"]) for caption in captions}
        return {caption: length for caption, length in lengths.items() if length > MAX_TOKENS}


def tokenized(captions: list[str], chunks: int, tokenizer_1: CLIPTokenizer, tokenizer_2: CLIPTokenizer) -> Tensor:
    """Return the token ids of captions, start and end included, filled up or cut: [b, 2, 75 chunks + 2], on the CPU."""
    length = MAX_TOKENS + (chunks - 1) * CHUNK

    def ids(tokenizer: CLIPTokenizer) -> Tensor:
        batch = tokenizer(captions, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        return batch["input_ids"]  # [b, 75 n + 2]

    return torch.stack([ids(tokenizer_1), ids(tokenizer_2)], dim=1)


def _in_chunks(token_ids: Tensor, tokenizer: CLIPTokenizer, chunks: int) -> Tensor:
    if chunks == 1:
        return token_ids  # [b, 77]
    pad_id, end_id = (tokenizer.convert_tokens_to_ids(str(token)) for token in (tokenizer.pad_token, END))
    assert isinstance(pad_id, int)
    assert isinstance(end_id, int)
    return chunks_of(token_ids, pad_id, end_id)  # [b n, 77]


def load_text_encoders(
    base: BaseModel, device: torch.device | str, dtype: torch.dtype = torch.bfloat16
) -> TextEncoders:
    """Return the base model's text encoders on `device`, frozen.

    Raises:
        BaseModelInvalid: the weights or the configs are not those of SDXL's text encoders.
    """
    encoders = skeleton_text_encoders(base)
    parts: tuple[tuple[Part, CLIPTextModel | CLIPTextModelWithProjection], ...]
    parts = (("text_encoder", encoders.encoder_1), ("text_encoder_2", encoders.encoder_2))
    for part, encoder in parts:
        load_part(encoder, base, part, device, dtype)
        for module in encoder.modules():  # the one buffer that no file holds, and the meta device left empty
            if hasattr(module, "position_ids"):
                module.position_ids = torch.arange(MAX_TOKENS, device=device)[None]  # [1, 77]
    return encoders


def skeleton_text_encoders(base: BaseModel) -> TextEncoders:
    """Return the base model's text encoders on the meta device, without weights, frozen.

    Raises:
        BaseModelInvalid: the configs are not those of SDXL's text encoders.
    """
    config_1, config_2 = (CLIPTextConfig.from_dict(base.configs[part]) for part in ("text_encoder", "text_encoder_2"))
    width = config_1.hidden_size + config_2.hidden_size
    if (width, config_2.projection_dim) != (base.unet_config.text_embed_dim, base.unet_config.pooled_text_embed_dim):
        raise BaseModelInvalid(
            f"The text encoders give embeddings {width} and {config_2.projection_dim} wide, but the U-Net takes "
            f"{base.unet_config.text_embed_dim} and {base.unet_config.pooled_text_embed_dim}: use an SDXL base model."
        )
    with torch.device("meta"):
        encoder_1, encoder_2 = CLIPTextModel(config_1), CLIPTextModelWithProjection(config_2)
    return TextEncoders(encoder_1.requires_grad_(False), encoder_2.requires_grad_(False))
