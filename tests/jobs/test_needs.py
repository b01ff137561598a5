"""What a job needs of a GPU, held to what was measured."""

import pytest

from jobs.needs import estimate_gib, needed_class
from jobs.not_yet import not_yet

# benchmarks/results/peak_memory_h100_2026-11-25.md: GiB allocated at the peak, and CUDA's context of 0.52 besides.
MEASURED = [
    ("all", 512, 1, 4, "qkv", 5.13),
    ("all", 768, 4, 4, "qkv", 6.17),
    ("all", 1024, 1, 4, "qkv", 5.52),
    ("all", 1024, 8, 4, "qkv", 9.15),
    ("all", 2048, 1, 4, "qkv", 7.07),
    ("all", 1024, 1, 64, "transformer", 7.73),
    ("none", 512, 1, 4, "qkv", 6.36),
    ("none", 768, 2, 4, "qkv", 11.04),
    ("none", 1024, 1, 4, "qkv", 10.25),
    ("none", 1024, 4, 4, "qkv", 25.98),
    ("none", 2048, 1, 4, "qkv", 25.91),
    ("none", 1024, 1, 16, "transformer", 11.82),
    ("none", 1024, 4, 16, "transformer", 30.8),
]


@pytest.mark.parametrize(("checkpointing", "px", "batch", "rank", "targets", "peak_gib"), MEASURED)
def test_the_estimate_is_no_less_than_was_measured_and_little_more(
    make_spec, checkpointing, px, batch, rank, targets, peak_gib
):
    spec = make_spec(
        training={"resolution": px, "batch_size": batch},
        memory={"checkpointing": checkpointing},
        lora={"rank": rank, "targets": targets},
    )
    spared = 4 * 2.5 if px == 2048 else 0  # there the VAE may take more than the step
    assert peak_gib + 0.52 <= estimate_gib(spec) <= peak_gib * 1.06 + 1.2 + spared


# The same file's second table: with both text encoders trained along, rank 4, qkv and transformer.
MEASURED_TEXT_ENCODERS = [("all", 1, 7.26), ("all", 4, 9.33), ("none", 1, 12.08), ("none", 4, 28.58)]


@pytest.mark.parametrize(("checkpointing", "batch", "peak_gib"), MEASURED_TEXT_ENCODERS)
def test_text_encoders_that_are_trained_stay_on_the_card_with_what_their_captions_leave(
    make_spec, checkpointing, batch, peak_gib
):
    spec = make_spec(
        training={"resolution": 1024, "batch_size": batch},
        memory={"checkpointing": checkpointing},
        lora={"text_encoders": {}},
    )
    assert peak_gib + 0.52 <= estimate_gib(spec) <= peak_gib * 1.06 + 1.2


# The third table: all of the U-Net.
MEASURED_FINE_TUNING = [
    ("all", 1024, 1, "bfloat16", "adafactor", 11.17),
    ("all", 1024, 1, "bfloat16", "adamw", 29.51),
    ("all", 1024, 4, "bfloat16", "adafactor", 12.01),
    ("all", 1024, 4, "bfloat16", "adamw", 30.32),
    ("all", 512, 1, "bfloat16", "adafactor", 11.22),
    ("all", 1024, 1, "float32", "adafactor", 25.4),
    ("all", 1024, 1, "float32", "lion", 34.09),
    ("all", 1024, 1, "float32", "adamw", 43.77),
    ("none", 1024, 1, "bfloat16", "adafactor", 12.32),
]


@pytest.mark.parametrize(("checkpointing", "px", "batch", "weights", "optimizer", "peak_gib"), MEASURED_FINE_TUNING)
def test_fine_tuning_takes_what_was_measured(make_spec, checkpointing, px, batch, weights, optimizer, peak_gib):
    spec = make_spec(
        fine_tuning={"weights": weights},
        training={
            "resolution": px,
            "batch_size": batch,
            "optimizer": {"name": optimizer, "learning_rate": 1e-5},
        },
        memory={"checkpointing": checkpointing},
    )
    assert peak_gib + 0.52 <= estimate_gib(spec) <= peak_gib * 1.06 + 1.2


def test_fine_tuning_goes_to_a_card_that_it_fits(make_spec):
    def fine_tuning(weights: str, optimizer: str, **changes) -> str:
        training = {"optimizer": {"name": optimizer, "learning_rate": 1e-5}}
        return needs(make_spec, fine_tuning={"weights": weights}, training=training, **changes)

    assert fine_tuning("bfloat16", "adafactor") == "16gb"
    assert fine_tuning("float32", "adamw") == "80gb"
    assert fine_tuning("float32", "adafactor", gpus=2) == "40gb-x2"  # the gradients once more, for the exchange


def needs(make_spec, **changes) -> str:
    return needed_class(make_spec(**changes)).name


def test_a_number_or_a_preset_names_the_card_and_the_training_may_need_a_larger_one(make_spec):
    assert needs(make_spec, training={"resolution": 1024}) == "8gb"
    assert needs(make_spec, preset="24gb", training={"resolution": 1024}) == "24gb"
    assert needs(make_spec, preset="24gb", memory={"budget_gib": 12}) == "12gb"  # the number goes before the preset
    assert needs(make_spec, memory={"budget_gib": 24}) == "24gb"
    assert needs(make_spec, memory={"budget_gib": 24.5}) == "32gb"
    # the preset is for 12 GB, but this overrides it
    assert needs(make_spec, preset="12gb", training={"resolution": 1024}, memory={"checkpointing": "none"}) == "16gb"
    assert needs(make_spec, training={"resolution": 1024}, samples={"prompts": ["a cat"]}) == "12gb"


def test_a_budget_below_what_the_training_takes_is_refused_and_says_how_much_that_is(make_spec):
    spec = make_spec(training={"resolution": 1024})
    small = spec.model_copy(update={"memory": spec.memory.model_copy(update={"budget_gib": 4.0})})

    (problem,) = not_yet(small)

    assert problem.field == "memory.budget_gib"
    assert "is 4, but" in problem.message
    assert f"{estimate_gib(spec):.1f} GiB" in problem.message


def test_what_is_too_large_for_any_card_is_refused(make_spec):
    spec = make_spec()
    training = spec.training.model_copy(update={"resolution": 2048, "batch_size": 256})

    (problem,) = not_yet(spec.model_copy(update={"training": training}))

    assert problem.field == "training.batch_size"


def test_an_adapter_with_patterns_counts_as_one_on_all_layers_at_its_highest_rank(make_spec):
    lora = {"targets": "none", "patterns": ["mid_block.*"], "overrides": [{"match": "*.attn2.*", "rank": 32}]}

    assert estimate_gib(make_spec(lora=lora)) == estimate_gib(make_spec(lora={"targets": "locon", "rank": 32}))
