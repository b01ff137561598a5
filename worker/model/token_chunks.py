"""Captions longer than CLIP's 75 tokens: in chunks of 75, each with a start and an end of its own, as in sd-scripts.

Source: sd-scripts v0.10.1, library/strategy_base.py (TokenizeStrategy._get_input_ids) and library/strategy_sdxl.py
(SdxlTextEncodingStrategy._get_hidden_states_sdxl), by what they do. Shapes: b captions, n chunks, t a width.
"""

import torch
from torch import Tensor

CHUNK = 75  # tokens of a caption in a chunk; 77 with start and end


def chunks_of(token_ids: Tensor, pad_id: int, end_id: int) -> Tensor:
    """Cut captions, start and end included and filled up, into what the encoders take: [b, 75 n + 2] -> [b n, 77].

    Every chunk has the caption's start before it, and its last token behind it: an end, or filling if the caption ended
    before. A chunk that is full gets an end, and so does one that is empty, behind its start.
    """
    starts, ends = token_ids[:, :1], token_ids[:, -1:]  # [b, 1]
    chunks = [torch.cat([starts, part, ends], dim=1) for part in token_ids[:, 1:-1].split(CHUNK, dim=1)]
    stacked = torch.stack(chunks, dim=1).flatten(0, 1)  # [b n, 77]
    if pad_id != end_id:  # else every chunk has ends enough
        full = (stacked[:, -2] != pad_id) & (stacked[:, -2] != end_id)  # [b n]
        stacked[full, -1] = end_id
        stacked[stacked[:, 1] == pad_id, 1] = end_id
    return stacked


def joined(hidden: Tensor, chunks: int) -> Tensor:
    """Put chunks together, with the first one's start and the last one's end: [b n, 77, t] -> [b, 75 n + 2, t]."""
    apart = hidden.unflatten(0, (-1, chunks))  # [b, n, 77, t]
    middle = apart[:, :, 1:-1].flatten(1, 2)  # [b, 75 n, t]
    return torch.cat([apart[:, 0, :1], middle, apart[:, -1, -1:]], dim=1)  # [b, 75 n + 2, t]
