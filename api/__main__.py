"""`python -m api`: serve the HTTP API, with the settings of the environment."""

from typing import Annotated

import typer
import uvicorn

from api.app import create_app
from jobs.logs import set_up_logging
from jobs.metrics import serve as serve_metrics
from jobs.settings import Settings


def serve(
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.", min=1, max=65535)] = 8000,
) -> None:
    """Serve loraq's HTTP API. It reads LORAQ_* from the environment; docs/settings.md lists them."""
    set_up_logging()
    settings = Settings()
    app = create_app(settings)
    serve_metrics(app.state.metrics.registry, settings)
    uvicorn.run(
        app,
        host=host,
        port=port,
        log_config=None,  # ours is set up already
        access_log=False,  # api/access_log.py has one
        server_header=False,
        timeout_graceful_shutdown=5,  # people who follow a job reconnect: they need no waiting for
    )


if __name__ == "__main__":
    typer.run(serve)
