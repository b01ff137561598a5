"""How the CLI finds the API: the environment first, then what `loraq up` left in its data folder."""

import os
from collections.abc import Callable
from pathlib import Path

from api.client import Loraq
from api.client_errors import Unavailable
from api.stack_state import CLIENT_FILE, ClientFile


class NotConnected(Exception):
    """Nothing says where the API is; the message says what to do."""


def data_folder() -> Path:
    """Where `loraq up` keeps its data: $LORAQ_HOME, else .loraq in the working directory."""
    return Path(os.environ.get("LORAQ_HOME") or ".loraq")


def connect(on_wait: Callable[[Unavailable], None] | None = None) -> Loraq:
    """A client for the API that the environment names, else for that of `loraq up`.

    Args:
        on_wait: see Loraq.

    Raises:
        NotConnected: neither is there.
    """
    url, token = os.environ.get("LORAQ_API_URL"), os.environ.get("LORAQ_API_TOKEN")
    if url and token:
        return Loraq(url, token, on_wait=on_wait)
    if url or token:
        missing = "LORAQ_API_TOKEN" if url else "LORAQ_API_URL"
        raise NotConnected(f"LORAQ_API_URL and LORAQ_API_TOKEN belong together: set {missing}, too.")
    file = data_folder() / CLIENT_FILE
    if not file.is_file():
        raise NotConnected(
            "No API is named. Set LORAQ_API_URL and LORAQ_API_TOKEN; or start one here with `loraq up`, "
            f"which leaves its address in {file} (LORAQ_HOME names another folder)."
        )
    client = ClientFile.model_validate_json(file.read_bytes())
    return Loraq(client.url, client.token, on_wait=on_wait)
