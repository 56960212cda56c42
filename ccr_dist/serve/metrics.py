"""What a server tells about itself, in Prometheus' text format."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Metrics:
    """Numbers of one server. No label holds what a client sent."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "ccr_requests", "Requests, by route and status", ["route", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "ccr_request_seconds", "Time of a request", ["route"], buckets=_SECONDS, registry=self.registry
        )
        self.waiting = Gauge("ccr_model_waiting", "Calls that wait for a model", registry=self.registry)
        self.refused = Counter("ccr_model_refused", "Calls that were refused: too many", registry=self.registry)
        self.model = Histogram(
            "ccr_model_seconds", "Time of one call of a model", buckets=_SECONDS, registry=self.registry
        )
        self.together = Histogram(
            "ccr_model_batch", "Requests in one call", buckets=(1, 2, 4, 8, 16, 32, 64), registry=self.registry
        )
        self.pictures = Counter(
            "ccr_pictures", "Thumbnails: found in the cache, or made", ["how"], registry=self.registry
        )

    def text(self) -> bytes:
        """All of them."""
        return generate_latest(self.registry)
