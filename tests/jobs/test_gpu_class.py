"""Classes of GPUs: what a card counts as, what fits what, and where a job waits."""

import pytest

from jobs.gpu_class import CPU, NONE, GpuClass, class_of_cards, home, smallest_called, smallest_with


def named(*names: str) -> list[GpuClass]:
    return list(map(GpuClass.parse, names))


# MiB as drivers report them, with and without ECC
@pytest.mark.parametrize(
    ("card", "mib", "expected"),
    [
        ("RTX 3060", 12288, "12gb"),
        ("RTX 2080 Ti", 11264, "8gb"),
        ("T4", 15360, "16gb"),
        ("A10G", 22731, "24gb"),
        ("RTX 4090", 24564, "24gb"),
        ("L40S", 46068, "48gb"),
        ("A100 40GB", 40960, "40gb"),
        ("H100", 81559, "80gb"),
        ("H200", 143771, "141gb"),
        ("GT 1030", 2048, "none"),
    ],
)
def test_a_card_counts_as_what_is_printed_on_its_box(card, mib, expected):
    assert class_of_cards([mib << 20]).name == expected


def test_the_smallest_card_of_a_worker_decides():
    assert class_of_cards([24564 << 20, 12288 << 20]).name == "12gb-x2"
    assert class_of_cards([]) == NONE


def test_a_worker_takes_what_fits_in_number_and_size():
    takes = [GpuClass.parse("24gb-x2").takes(each) for each in named("12gb", "24gb", "24gb-x2", "24gb-x4", "48gb")]
    assert takes == [True, True, True, False, False]
    assert CPU.takes(GpuClass.parse("180gb-x4"))
    assert not CPU.takes(GpuClass.parse("4gb-x5"))
    assert not NONE.takes(GpuClass.parse("4gb"))


def test_a_job_waits_with_the_smallest_that_fits_and_is_there():
    need = GpuClass.parse("12gb")
    assert home(need, named("8gb", "24gb", "80gb", "16gb-x2")).name == "24gb"
    assert home(need, named("16gb-x2", "cpu")).name == "16gb-x2"  # a CPU only where there is nothing else
    assert home(need, named("cpu")) == CPU
    assert home(need, named("8gb", "none")) == need  # until one comes


@pytest.mark.parametrize("name", ["", "24", "24GB", "25gb", "24gb-x0", "24gb-x100", "gb"])
def test_a_name_that_is_no_class_is_refused(name):
    with pytest.raises(ValueError, match="no class of GPUs"):
        GpuClass.parse(name)


def test_names_read_back():
    assert [GpuClass.parse(name).name for name in ("4gb", "24gb-x4", "cpu", "none")] == [
        "4gb",
        "24gb-x4",
        "cpu",
        "none",
    ]


def test_what_a_training_takes_is_there_on_every_card_of_its_class_and_a_name_is_what_it_says():
    assert smallest_with(7.3).name == "8gb"
    assert smallest_with(7.4).name == "12gb"  # 92 % of 8
    assert smallest_called(8).name == "8gb"
    assert smallest_called(8.5, gpus=2).name == "12gb-x2"
    assert smallest_with(1000) is None
