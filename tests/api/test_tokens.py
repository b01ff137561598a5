"""No token, no entry; and a token is kept nowhere but with its holder."""

import re

import httpx
import pytest
from fastapi.routing import APIRoute
from starlette.routing import Route

from api.app import create_app
from api.auth import create_token, find_token, remember_token
from api.routes import artifacts, datasets, events, health, jobs, webhooks
from jobs.settings import Settings
from jobs.store import Store

pytestmark = pytest.mark.integration

OPEN = {"/healthz", "/readyz", "/openapi.json"}


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer lrq_nobodys"},
        {"Authorization": "Basic bHJxOng="},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer \xff".encode("latin-1")},
    ],
    ids=["none", "unknown", "basic", "empty", "not-ascii"],
)
def test_no_route_opens_without_a_token(
    url: str, settings: Settings, headers: dict[str, str], every_route: list[tuple[str, str]]
) -> None:
    for method, path in every_route:
        answer = httpx.request(method, url + path, headers=headers)
        if path in OPEN:
            assert answer.status_code == 200, path
        else:
            assert (answer.status_code, answer.json()["code"]) == (401, "unauthorized"), (method, path)
            assert answer.headers["WWW-Authenticate"].startswith("Bearer")


@pytest.fixture
def every_route(settings: Settings) -> list[tuple[str, str]]:
    """Method and path of all that the app serves, the description of itself included."""
    paths = create_app(settings).openapi()["paths"]
    described = [(method.upper(), path) for path, methods in paths.items() for method in methods]
    assert len(described) >= 10
    return [(method, re.sub(r"{\w+}", "some-job", path)) for method, path in described] + [("GET", "/openapi.json")]


def test_nothing_is_served_that_the_description_leaves_out(settings: Settings) -> None:
    app = create_app(settings)
    modules = artifacts, datasets, events, health, jobs, webhooks
    served = [route for module in modules for route in module.router.routes]
    described = {path.removeprefix("/v1") for path in app.openapi()["paths"]}
    assert {route.path for route in served if isinstance(route, APIRoute)} == described
    assert len([route for route in app.routes if hasattr(route, "original_router")]) == len(modules)
    assert [route.path for route in app.routes if isinstance(route, Route)] == ["/openapi.json"]


def test_redis_holds_a_hash_and_never_the_token(store: Store) -> None:
    token = create_token(store.redis, "alice", "laptop")
    assert re.fullmatch(r"lrq_[\w-]{43}", token)
    held = b"".join(key + (store.redis.get(key) or b"") for key in store.redis.scan_iter())
    assert b"alice" in held
    assert token.encode() not in held
    assert token.removeprefix("lrq_").encode() not in held


def test_a_token_names_its_owner(store: Store) -> None:
    found = find_token(store.redis, create_token(store.redis, "alice", "laptop"))
    assert found is not None
    assert (found.owner, found.name) == ("alice", "laptop")
    assert find_token(store.redis, "lrq_other") is None


@pytest.mark.parametrize("owner", ["", "Alice", "a b", "a:b", "x" * 41, "a\n"])
def test_an_owner_has_a_plain_name(store: Store, owner: str) -> None:
    with pytest.raises(ValueError, match="cannot be an owner"):
        remember_token(store.redis, "lrq_token", owner)
