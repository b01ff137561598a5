"""/healthz and /readyz, for whatever watches over the process. Neither asks for a token."""

from fastapi import APIRouter, Response

from api.deps import ServicesDep
from api.schemas import Health

router = APIRouter(tags=["health"])


@router.get("/healthz")
async def healthz() -> Health:
    """The process is alive. If this fails, restart it."""
    return Health(status="ok")


@router.get("/readyz", responses={503: {"model": Health, "description": "It is not; `checks` says what is missing."}})
def readyz(services: ServicesDep, response: Response) -> Health:
    """Redis and every bucket answer. If this fails, send no requests here for now."""
    checks = services.readiness.look()
    ready = all(outcome == "ok" for outcome in checks.values())
    if not ready:
        response.status_code = 503
    return Health(status="ok" if ready else "unavailable", checks=checks)
