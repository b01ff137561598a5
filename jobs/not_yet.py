"""What the spec can say and loraq does not carry out yet: each is refused, with the way round, and none is ignored."""

from collections.abc import Iterator

from jobs.errors import Problem
from jobs.spec import JobSpec


def not_yet(spec: JobSpec) -> Iterator[Problem]:
    """Every field of `spec` that asks for something loraq does not carry out yet."""
    if spec.base_model.startswith("hf://"):
        yield Problem("base_model", "hf:// is not carried out yet: upload the model to a bucket and name it as s3://.")
    for field, uri in spec.dataset.uris().items():
        if uri.startswith("hf://"):
            yield Problem(field, "hf:// is not carried out yet: use `loraq submit --dataset DIR` or s3://.")
        if "{" in uri:
            yield Problem(field, "WebDataset shards are not carried out yet: unpack them into a folder that ends in /.")
    if spec.lora.text_encoders:
        yield Problem("lora.text_encoders", "is not carried out yet: leave it out.")
    if spec.memory.budget_gib != "auto":
        yield Problem(
            "memory.budget_gib", "a number is not carried out yet: leave it auto, or name memory.checkpointing."
        )
    if spec.memory.base_dtype == "int8":
        yield Problem("memory.base_dtype", "int8 is not carried out yet: use bfloat16.")
    if spec.memory.streamed_blocks:
        yield Problem("memory.streamed_blocks", "is not carried out yet: use 0 or leave it out.")
