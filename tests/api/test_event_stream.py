"""Server-sent events are read as the standard says."""

from api.event_stream import read_data


def test_data_of_each_event_in_order() -> None:
    lines = ["id: 1", "event: status", 'data: {"a": 1}', "", ": ping", "", "data: second", "data: line", "", ""]
    assert list(read_data(lines)) == ['{"a": 1}', "second\nline"]


def test_an_event_that_was_cut_off_is_none() -> None:
    assert list(read_data(["data: whole", "", "data: cut"])) == ["whole"]


def test_only_one_space_belongs_to_the_form() -> None:
    assert list(read_data(["data:  two", "", "data:none", ""])) == [" two", "none"]
