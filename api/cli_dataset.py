"""The dataset's report in words, as the trainer tells it before it trains."""

from pydantic import JsonValue

_INDENT = "\n    "
_SHOWN = 10


def report_in_words(data: dict[str, JsonValue]) -> str:
    """Counts, sizes, bucket sizes, where captions come from and the first of them, and what is skipped and why."""
    lines = [_counts(data)]
    if sizes := _counted(data, "bucket_sizes"):
        lines.append(f"trained at {sizes}")
    if sources := _counted(data, "caption_sources"):
        lines.append(f"captions from {sources}")
    lines += [f"caption: {caption or '(none)'}" for caption in _texts(data, "captions")]
    if held_out := _texts(data, "held_out"):
        more = ", …" if len(held_out) > _SHOWN else ""
        lines.append(f"held out, for validation: {', '.join(held_out[:_SHOWN])}{more}")
    skipped = _texts(data, "skipped")
    lines += [f"skipped: {line}" for line in skipped[:_SHOWN]]
    # The event holds the first of many only.
    total = data.get("skipped_total")
    more = (total if isinstance(total, int) else len(skipped)) - len(skipped[:_SHOWN])
    if more > 0:
        lines.append(f"skipped: {more} more")
    return _INDENT.join(lines)


def _counts(data: dict[str, JsonValue]) -> str:
    words = f"{data['pictures']} pictures"
    if (repeated := data.get("repeated", data["pictures"])) != data["pictures"]:
        words += f", {repeated} with repeats"
    if masked := data.get("masked"):
        words += f", {masked} with masks"
    if regularisation := data.get("regularisation_pictures"):
        words += f", {regularisation} regularisation pictures"
    sizes = data.get("sizes_px")
    if isinstance(sizes, dict):
        words += f", {sizes['smallest']} to {sizes['largest']} px"
    return words


def _counted(data: dict[str, JsonValue], name: str) -> str:
    counts = data.get(name)
    return ", ".join(f"{key} ({count})" for key, count in counts.items()) if isinstance(counts, dict) else ""


def _texts(data: dict[str, JsonValue], name: str) -> list[str]:
    """Strings, each on one line: a file's name may hold a line end, and would forge another event's line."""
    values = data.get(name)
    return [" ".join(str(value).split()) for value in values] if isinstance(values, list) else []
