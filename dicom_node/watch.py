"""What monitoring asks over HTTP: ``/metrics`` for Prometheus, ``/healthz`` for a balancer.

Figures come from the ledger at the moment of the question, and are those of ``status``. UIDs and
patient attributes are no labels.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from socketserver import TCPServer, ThreadingMixIn
from typing import Any, Final, Self
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from dicom_node import __version__
from dicom_node.config import Settings
from dicom_node.errors import NodeError
from dicom_node.ledger import Ledger
from dicom_node.records import DeliveryState, Stage
from dicom_node.service import log
from dicom_node.service.listen import cannot_listen
from dicom_node.spool import Spool

_log = log.get(__name__)
_PREFIX: Final = "dicom_node"
_MB: Final = 1_000_000
_TEXT: Final = ("Content-Type", "text/plain; charset=utf-8")


class Watch:
    """The HTTP side of a node, in a thread of this process; nothing where its port is 0.

    Parameters
    ----------
    settings : Settings
        ``watch`` and the watermark of ``receive``.
    ledger, spool : Ledger, Spool
        Asked at each request.
    """

    def __init__(self, settings: Settings, ledger: Ledger, spool: Spool) -> None:
        self._settings, self._ledger, self._spool = settings, ledger, spool
        self._server: WSGIServer | None = None
        registry = CollectorRegistry()
        registry.register(_Figures(settings, ledger, spool))
        self._metrics = make_wsgi_app(registry)

    def __enter__(self) -> Self:
        """Listen.

        Raises
        ------
        Permanent
            The address cannot be listened on.
        """
        section = self._settings.watch
        if section.port:
            try:
                self._server = make_server(
                    section.host, section.port, self._answer, _Server, _Handler
                )
            except OSError as error:
                keys = "watch.host, watch.port"
                raise cannot_listen(keys, section.host, section.port, error) from error
            threading.Thread(target=self._server.serve_forever, daemon=True).start()
            _log.info("watch-started", host=section.host, port=section.port)
        return self

    def __exit__(self, *_: object) -> None:
        server, self._server = self._server, None
        if server is not None:
            server.shutdown()
            server.server_close()

    def _answer(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "")
        if path == "/healthz":
            ill = self._illness()
            start("503 Service Unavailable" if ill else "200 OK", [_TEXT])
            return [f"{ill or 'well'}\n".encode()]
        if path != "/metrics":
            start("404 Not Found", [_TEXT])
            return [b"/metrics or /healthz\n"]
        try:
            answer: Iterable[bytes] = self._metrics(environ, start)
        except NodeError as error:
            start("503 Service Unavailable", [_TEXT])
            return [f"{error.code}\n".encode()]
        return answer

    def _illness(self) -> str:
        """Why this node cannot take objects; "" where it can."""
        try:
            self._ledger.overview(errors=0)
            low = self._spool.free_mb() < self._settings.receive.min_free_mb
            self._spool.check_writable()
        except NodeError as error:
            return error.code
        return "disk-full" if low else ""


class _Figures(Collector):
    """The ledger at a glance, as Prometheus reads it."""

    def __init__(self, settings: Settings, ledger: Ledger, spool: Spool) -> None:
        self._settings, self._ledger, self._spool = settings, ledger, spool

    def describe(self) -> Iterable[Metric]:
        """Nothing in advance: the ledger may not answer yet."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """One reading."""
        overview = self._ledger.overview(errors=0)
        least = self._settings.receive.min_free_mb * _MB
        about = {"version": __version__, "ae_title": self._settings.node.ae_title}
        yield InfoMetricFamily(_PREFIX, "The node.", value=about)
        instances = GaugeMetricFamily(
            f"{_PREFIX}_instances", "Source instances by where they stand.", labels=["stage"]
        )
        for stage in Stage:
            instances.add_metric([str(stage)], overview.stages.get(stage, 0))
        yield instances
        reasons = GaugeMetricFamily(
            f"{_PREFIX}_reasons",
            "Source instances that were skipped or are parked, by error code.",
            labels=["stage", "code"],
        )
        for stage, counted in overview.reasons.items():
            for code, count in counted.items():
                reasons.add_metric([str(stage), code], count)
        yield reasons
        deliveries = GaugeMetricFamily(
            f"{_PREFIX}_deliveries", "Derived instances.", labels=["destination", "state"]
        )
        for name, counts in overview.deliveries.items():
            for state in DeliveryState:
                deliveries.add_metric([name, str(state)], counts.get(state, 0))
        yield deliveries
        oldest = overview.oldest_waiting
        waited = (datetime.now(UTC) - oldest).total_seconds() if oldest else 0.0
        for name, text, value in (
            ("oldest_waiting_seconds", "Since the oldest unfinished instance arrived.", waited),
            ("open_associations", "Associations that deliver.", overview.open_associations),
            ("free_bytes", "Free disk of the spool.", self._spool.free_mb() * _MB),
            ("least_free_bytes", "Below, receiving stops.", least),
        ):
            yield GaugeMetricFamily(f"{_PREFIX}_{name}", text, value=value)


class _Server(ThreadingMixIn, WSGIServer):
    """A slow reader keeps nobody waiting."""

    daemon_threads = True

    def server_bind(self) -> None:
        """Bind, without the look-up of the host's name, which waits where there is no DNS."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]
        self.setup_environ()

    def handle_error(self, request: object, client_address: object) -> None:
        """Log that a caller hung up, or said nothing; the base prints a traceback among the log."""
        del request, client_address
        error = sys.exception()
        if error is not None:
            _log.debug("watch-interrupted", exception=type(error).__name__, place=log.place(error))


class _Handler(WSGIRequestHandler):
    """Answers, and logs nothing: scrapes come every few seconds."""

    timeout = 10

    def log_message(self, *_: object) -> None:
        """Not logged."""
