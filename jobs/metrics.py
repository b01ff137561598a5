"""Serves a process's figures to Prometheus, on a port of their own: nobody who reaches the API reaches them."""

import logging

from prometheus_client import CollectorRegistry, disable_created_metrics, start_http_server

from jobs.settings import Settings

log = logging.getLogger(__name__)


def serve(registry: CollectorRegistry, settings: Settings) -> None:
    """Answer `GET /metrics` from a thread of its own from now on, if the settings name a port.

    A port that another process has is no reason to end: figures are not what this process is for.
    """
    if settings.metrics_port is None:
        return
    disable_created_metrics()  # a series more for each counter, which no dashboard asks for
    try:
        start_http_server(settings.metrics_port, addr=settings.metrics_host, registry=registry)
    except OSError as error:
        log.error(
            "No metrics: port %d of %s is not to be had (%s). Give each process of this machine a LORAQ_METRICS_PORT.",
            settings.metrics_port,
            settings.metrics_host,
            error,
        )
