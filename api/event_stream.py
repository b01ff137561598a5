"""Reads `text/event-stream`, as https://html.spec.whatwg.org/multipage/server-sent-events.html defines it."""

from collections.abc import Iterable, Iterator


def read_data(lines: Iterable[str]) -> Iterator[str]:
    """The data of each event. Names and ids are left out: the API repeats them in the data."""
    data: list[str] = []
    for line in lines:
        field, _, value = line.partition(":")
        if field == "data":
            data.append(value.removeprefix(" "))
        elif not line and data:  # an empty line ends an event; one that was cut off is no event
            yield "\n".join(data)
            data = []
