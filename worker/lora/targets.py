"""Which layers get an adapter, and of what rank: from the module paths alone.

A pattern is a shell pattern of whole module paths (`*.attn2.to_[kv]`, where * also matches dots), or after `re:` a
regular expression of whole paths (`re:mid_block\\..*\\.conv[12]`). Paths are those of diffusers' U-Net; those of the
text encoders begin with `text_encoder.` and `text_encoder_2.`.
"""

import difflib
import re
from collections.abc import Callable, Collection, Mapping
from fnmatch import fnmatchcase

from worker.errors import LoRAInvalid
from worker.lora.config import LoRAConfig, Targets, TextTargets

REGEX = "re:"

_TRANSFORMER = r"(?:down_blocks\.\d+|mid_block|up_blocks\.\d+)\.attentions\.\d+"
_QKV = r"transformer_blocks\.\d+\.attn[12]\.to_[qkv]"
_OUT = r"transformer_blocks\.\d+\.attn[12]\.to_out\.0"
_REST = r"transformer_blocks\.\d+\.ff\.net\.(?:0\.proj|2)|proj_in|proj_out"
_ALL = rf"{_TRANSFORMER}\.(?:{_QKV}|{_OUT}|{_REST})"
_CONVOLUTIONS = (
    r"(?:down_blocks\.\d+|mid_block|up_blocks\.\d+)\."
    r"(?:resnets\.\d+\.(?:conv1|conv2|conv_shortcut|time_emb_proj)|(?:down|up)samplers\.0\.conv)"
)
_TARGETS: Mapping[Targets, re.Pattern[str]] = {  # of whole module paths
    "none": re.compile(r"(?!)"),
    "qkv": re.compile(rf"{_TRANSFORMER}\.(?:{_QKV})"),
    "attention": re.compile(rf"{_TRANSFORMER}\.(?:{_QKV}|{_OUT})"),
    "transformer": re.compile(_ALL),
    "locon": re.compile(rf"{_ALL}|{_CONVOLUTIONS}"),
}
_TEXT_LAYER = r"text_encoder(?:_2)?\.text_model\.encoder\.layers\.\d+"
_TEXT_TARGETS: Mapping[TextTargets, re.Pattern[str]] = {
    "attention": re.compile(rf"{_TEXT_LAYER}\.self_attn\.(?:[qkv]|out)_proj"),
    "transformer": re.compile(rf"{_TEXT_LAYER}\.(?:self_attn\.(?:[qkv]|out)_proj|mlp\.fc[12])"),
}


def choose(paths: Collection[str], config: LoRAConfig) -> dict[str, tuple[int, float]]:
    """Return rank and alpha of each layer that gets an adapter, by its path, sorted.

    Args:
        paths: of all layers that could get one.
        config: targets, patterns and overrides.

    Raises:
        LoRAInvalid: a pattern or an override matches nothing, or there is nothing to adapt.
    """
    whole = [_TARGETS[config.targets].fullmatch]
    if config.text_encoders:
        whole.append(_TEXT_TARGETS[config.text_encoders.targets].fullmatch)
    matches = {pattern: _matcher(pattern) for pattern in config.patterns}
    for pattern, match in matches.items():
        if not any(match(path) for path in paths):
            raise LoRAInvalid(f'lora.patterns: "{pattern}" matches no layer of the model. {_near(pattern, paths)}')
    chosen = sorted(path for path in paths if any(match(path) for match in (*whole, *matches.values())))
    if not chosen:
        raise LoRAInvalid(f'lora.targets is "{config.targets}", but no module of the U-Net matches: is it SDXL?')

    overrides = [(override, _matcher(override.match)) for override in config.overrides]
    for override, match in overrides:
        if not any(match(path) for path in chosen):
            raise LoRAInvalid(
                f'lora.overrides: "{override.match}" matches none of the {len(chosen)} layers that get an adapter. '
                f"{_near(override.match, chosen)}"
            )
    ranks: dict[str, tuple[int, float]] = {}
    for path in chosen:
        override = next((override for override, match in overrides if match(path)), None)
        rank = override.rank if override and override.rank is not None else config.rank
        alpha = override.alpha if override and override.alpha is not None else config.alpha
        ranks[path] = rank, alpha
    return ranks


def _matcher(pattern: str) -> Callable[[str], object]:
    if not pattern.startswith(REGEX):
        return lambda path: fnmatchcase(path, pattern)
    try:
        return re.compile(pattern.removeprefix(REGEX)).fullmatch
    except re.error as error:
        raise LoRAInvalid(f'"{pattern}" is no regular expression: {error}.') from error


def _near(pattern: str, paths: Collection[str]) -> str:
    """Say which paths look like the pattern: one of each kind, since a model has a kind many times."""
    kinds: dict[str, str] = {}
    for path in sorted(paths):
        kinds.setdefault(re.sub(r"\d+", "0", path), path)
    plain = re.sub(r"\d+", "0", re.sub(r"[*?\\^$]|\[.*?\]", "", pattern.removeprefix(REGEX)).strip("."))

    def likeness(kind: str) -> float:
        tail = kind[-len(plain) :] if plain else kind  # a pattern mostly begins with a star
        return max(difflib.SequenceMatcher(None, plain, text).ratio() for text in (kind, tail))

    near = sorted(kinds, key=lambda kind: (-likeness(kind), kind))[:3]
    return f"Near it are {', '.join(kinds[kind] for kind in near)}." if near else "The model has none."
