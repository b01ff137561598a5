"""WebDataset shards: one address for many archives, `s3://bucket/cats-{000..007}.tar`."""

import re

MAX_SHARDS = 1000

_RANGE = re.compile(r"(?P<head>s3://[^{}/]+/[^{}]*)\{(?P<first>[0-9]+)\.\.(?P<last>[0-9]+)\}(?P<tail>[^{}/]*)")
_ENDINGS = (".tar", ".tar.gz", ".tgz", ".zip")


def is_sharded(uri: str) -> bool:
    """Whether an address stands for many."""
    return "{" in uri or "}" in uri


def shards(uri: str) -> list[str]:
    """Every address that `uri` stands for, in order; itself, if it stands for one.

    Raises:
        ValueError: the braces are no range of numbers in the name of an archive in a bucket, or of too many.
    """
    if not is_sharded(uri):
        return [uri]
    match = _RANGE.fullmatch(uri)
    if match is None or not uri.lower().endswith(_ENDINGS):
        raise ValueError(
            f"{uri} is no range of archives in a bucket: write one like s3://bucket/cats-{{000..007}}.tar, with one "
            f"range in the name and the ending {', '.join(_ENDINGS)}."
        )
    first, last, width = int(match["first"]), int(match["last"]), len(match["first"])
    if first > last or last - first >= MAX_SHARDS or len(match["last"]) < width:
        raise ValueError(
            f"{{{match['first']}..{match['last']}}} counts up to no more than {MAX_SHARDS} archives: write the lower "
            "number first, and both with as many digits."
        )
    return [f"{match['head']}{number:0{width}}{match['tail']}" for number in range(first, last + 1)]
