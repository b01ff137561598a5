"""What the spec can say and loraq does not carry out yet: each is refused, with the way round, and none is ignored."""

from collections.abc import Iterator

from jobs.errors import Problem
from jobs.needs import estimate_gib, largest_gib
from jobs.spec import JobSpec


def not_yet(spec: JobSpec) -> Iterator[Problem]:
    """Every field of `spec` that asks for something loraq does not carry out yet."""
    if spec.base_model.startswith("hf://"):
        yield Problem("base_model", "hf:// is not carried out yet: upload the model to a bucket and name it as s3://.")
    for field, uri in spec.dataset.uris().items():
        if uri.startswith("hf://"):
            yield Problem(field, "hf:// is not carried out yet: use `loraq submit --dataset DIR` or s3://.")
    if (spec.lora.init_from or "").startswith("hf://"):
        yield Problem("lora.init_from", "hf:// is not carried out yet: upload the file to a bucket, name it as s3://.")
    if spec.memory.budget_gib != "auto" and spec.memory.budget_gib < (need_gib := estimate_gib(spec)):
        yield Problem(
            "memory.budget_gib",
            f"is {spec.memory.budget_gib:g}, but as it is written this training takes about {need_gib:.1f} GiB, and "
            f"loraq does not make one smaller by itself yet: allow so much, {_smaller(spec)}.",
        )
    elif estimate_gib(spec) > largest_gib():
        yield Problem(
            "training.batch_size",
            f"this training takes about {estimate_gib(spec):.0f} GiB of a card, and the largest has "
            f"{largest_gib():.0f}: {_smaller(spec)}.",
        )
    if spec.memory.base_dtype == "int8":
        yield Problem("memory.base_dtype", "int8 is not carried out yet: use bfloat16.")
    if spec.memory.streamed_blocks:
        yield Problem("memory.streamed_blocks", "is not carried out yet: use 0 or leave it out.")


def _smaller(spec: JobSpec) -> str:
    """What makes a training take less."""
    if spec.fine_tuning:
        return "use fine_tuning.weights bfloat16 with optimizer adafactor, or lower training.batch_size or resolution"
    return "use memory.checkpointing all, or lower training.resolution, training.batch_size or lora.rank"
