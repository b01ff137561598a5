"""Reads request bodies: no further than the limit, and specs as JSON or YAML with every fault named."""

import json
from collections.abc import Iterator
from typing import Any

from fastapi import Request

from api.errors import BodyTooLarge, UnsupportedMediaType
from api.public_address import Allowed, ForbiddenAddress, check_url
from jobs.errors import InvalidSpec, Problem, UriNotAllowed
from jobs.settings import Settings
from jobs.spec import JobSpec
from jobs.spec_text import MAX_SPEC_BYTES, Check, parse_spec, read_spec
from jobs.uri import S3Uri, check_readable, check_writable

JSON_TYPES = ("application/json",)
YAML_TYPES = ("application/yaml", "text/yaml")


async def read_body(request: Request, limit_bytes: int) -> bytes:
    """The whole body.

    Raises:
        BodyTooLarge: it goes on behind `limit_bytes`; the rest was not read.
    """
    declared = request.headers.get("content-length", "")
    if declared.isascii() and declared.isdigit() and int(declared) > limit_bytes:
        raise BodyTooLarge(limit_bytes)
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit_bytes:
            raise BodyTooLarge(limit_bytes)
    return bytes(body)


async def spec_body(request: Request) -> tuple[str, bytes]:
    """Media type and bytes of a spec, as a dependency of routes.

    Raises:
        UnsupportedMediaType, BodyTooLarge.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type not in JSON_TYPES + YAML_TYPES:
        raise UnsupportedMediaType(
            f"A spec comes as {', '.join(JSON_TYPES + YAML_TYPES)}, not as {media_type or 'nothing in particular'}: "
            "set Content-Type."
        )
    return media_type, await read_body(request, MAX_SPEC_BYTES)


def submitted_spec(media_type: str, body: bytes, settings: Settings, owner: str, webhooks_to: Allowed) -> JobSpec:
    """The spec in a body of `owner`.

    Raises:
        InvalidSpec: with every field at fault, also those that name a folder or an address which is not open.
    """
    checks = _only_opened(settings, owner), _webhook_only(webhooks_to)
    if media_type in YAML_TYPES:
        return read_spec(body, *checks)
    try:
        data = json.loads(body, object_pairs_hook=_no_key_twice)
    except (ValueError, RecursionError) as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
        message = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise InvalidSpec([Problem("", f"The spec is not JSON: {message}.")]) from None
    return parse_spec(data, *checks)


def _only_opened(settings: Settings, owner: str) -> Check:
    """A check that all s3:// URIs of a spec lie where its owner may read and write."""

    def check(spec: JobSpec) -> Iterator[Problem]:
        uris = (
            ("base_model", spec.base_model, check_readable),
            *((field, uri, check_readable) for field, uri in spec.dataset.uris().items()),
            *([("lora.init_from", spec.lora.init_from, check_readable)] if spec.lora.init_from else []),
            ("output.uri", spec.output.uri, check_writable),
        )
        for field, uri, check_opened in uris:
            if uri.startswith("s3://"):  # whether a file:// is open, the worker knows: it lies there
                try:
                    check_opened(S3Uri.parse(uri), settings, owner)
                except UriNotAllowed as error:
                    yield Problem(field, str(error))

    return check


def _webhook_only(allowed: Allowed) -> Check:
    """A check of a spec's webhook, as far as its URL tells. What its host stands for is looked at when it is sent."""

    def check(spec: JobSpec) -> Iterator[Problem]:
        if spec.webhook is not None:
            try:
                check_url(spec.webhook, allowed)
            except ForbiddenAddress as error:
                yield Problem("webhook", str(error))

    return check


def _no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {json.dumps(twice)} is given twice")
    return found
