"""A job's events in words, one line each; a dataset's report has several."""

from api.cli_dataset import report_in_words
from api.schemas import JobEvent


def in_words(event: JobEvent) -> str:
    """What happened, for a person. An event of a kind unknown here shows its data."""
    data = event.data
    match event.kind:
        case "status":
            why = f": {data['message']}" if data.get("message") else ""
            return f"{data['to']}{why}"
        case "cancel_requested":
            return "cancel asked for"
        case "phase":
            return f"{data['name']} ..."
        case "dataset":
            return report_in_words(data)
        case "encoded":
            return f"encoded {data['done']} of {data['total']}"
        case "step":
            return f"step {data['step']}/{data['steps']}, loss {data['loss']:.4f}, {data['seconds']:.2f} s"
        case "validation":
            return f"held-out pictures have loss {data['validation_loss']:.4f} after step {data['step']}"
        case "sample":
            return f"drew {data['path']}"
        case "checkpoint":
            return f"checkpoint of step {data['step']} is in the bucket"
        case "warning":
            return f"warning: {data['message']}"


def line(event: JobEvent) -> str:
    """The words with their time before them, as `loraq logs` prints them."""
    return f"{event.at.astimezone():%H:%M:%S}  {in_words(event)}"
