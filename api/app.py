"""Puts the HTTP API together."""

# pyright: reportUnknownMemberType=false
# redis-py types its methods in part.

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial

from fastapi import FastAPI
from redis.asyncio import Redis as AsyncRedis

from api.access_log import AccessLog
from api.deps import Services
from api.errors import add_error_handlers
from api.following import BLOCK_MS
from api.metrics import ApiMetrics
from api.openapi import describe
from api.public_address import Allowed
from api.readiness import Readiness
from api.routes import artifacts, datasets, events, health, jobs, webhooks
from jobs.archive import Archive
from jobs.settings import Settings
from jobs.storage import Storage
from jobs.store import Store, open_store

API_VERSION = "1.0"
"""Of the contract in tests/contracts/openapi.json, not of the package: the paths carry its first part."""

DESCRIPTION = """\
Describe an SDXL LoRA training in a short spec, submit it, follow it, and collect the weights.

Every route under /v1 wants `Authorization: Bearer lrq_...`. Errors are `application/problem+json` (RFC 9457) with a
stable `code`; a spec that cannot be carried out comes back with every field at fault in `problems`.
"""


def create_app(settings: Settings, store: Store | None = None, storage: Storage | None = None) -> FastAPI:
    """The API as an ASGI app. Nothing is connected to before the first request.

    Args:
        store, storage: None for those that the settings name.
    """
    store = store or open_store(settings)
    storage = storage or Storage(settings)
    # Its reads block for BLOCK_MS, so its sockets must wait for longer.
    followers = AsyncRedis.from_url(settings.redis_url.get_secret_value(), socket_timeout=BLOCK_MS / 1000 + 10)

    def ping() -> None:
        store.redis.ping()

    checks = {f"bucket {bucket}": partial(storage.check, bucket) for bucket in settings.buckets}
    readiness = Readiness({"redis": ping, **checks})

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
        yield
        readiness.close()
        await followers.aclose()

    app = FastAPI(
        title="loraq",
        version=API_VERSION,
        summary="SDXL LoRA trainings as batch jobs.",
        description=DESCRIPTION,
        lifespan=lifespan,
        docs_url=None,  # it would load its scripts from a CDN; /openapi.json is there for any viewer
        redoc_url=None,
        separate_input_output_schemas=False,
        generate_unique_id_function=lambda route: route.name,
    )
    webhooks_to = Allowed(settings.webhook_allow)
    app.state.services = Services(
        settings, store, storage, followers, readiness, webhooks_to, Archive(store.redis, storage)
    )
    for routes in (jobs, events, artifacts, datasets, webhooks):
        app.include_router(routes.router, prefix="/v1")
    app.include_router(health.router)
    app.state.metrics = ApiMetrics(store)
    app.add_middleware(AccessLog, observe=app.state.metrics.observe)
    add_error_handlers(app)
    describe(app)
    return app
