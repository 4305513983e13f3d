"""What those who operate a node see: its log, and metrics for Prometheus."""

import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence, Sized
from functools import cached_property
from importlib import import_module
from typing import Any

from hmtl.communication import TIERS
from hmtl.errors import ConfigError
from hmtl.reporting.console import SECONDS_BETWEEN_LINES
from hmtl.reporting.console_logger import LEARNED, SHOWN
from hmtl.training.history import Measurements
from hmtl.training.summary import Summary

log = logging.getLogger(__name__)


class Operation:
    """A logger at any node of a deployment; only the leading one has measurements.

    Args:
        rounds: of the run in total.
        named: replaces "relay 3" and the like by the names of nodes.
        metrics: port of the metrics, at /metrics; None: there are none.

    Raises:
        ConfigError: the port cannot be used, or the package prometheus_client is missing.
    """

    def __init__(
        self,
        rounds: int,
        named: Callable[[str], str] = str,
        metrics: int | None = None,
    ) -> None:
        self._rounds = rounds
        self._history: Sized = ()
        self._played: list[None] = []  # an item for each round
        self._logged, self._next_line = 0, 0.0
        self._metrics = Metrics(metrics, named) if metrics else None

    def wait(self) -> None:
        """Report that this node takes no part until `begin`."""
        if self._metrics:
            self._metrics.wait()

    def begin(self, history: Sized, nodes: Sequence[str], missing: Callable[[], Collection[str]]) -> None:
        """Report that this node takes part from now on.

        Args:
            history: has an item per round, and grows.
            nodes: the names of the others.
            missing: returns those of them that are late or lost.
        """
        self._history = history
        if self._metrics:
            self._metrics.begin(history, nodes, missing)

    def plays(self, round: int) -> None:
        """Report a round in which this node, which has no measurements, takes part."""
        if not self._history:
            self.begin(self._played, [], tuple)
        self._played.extend([None] * (round + 1 - len(self._played)))
        self.log({})

    def log(self, row: Measurements) -> None:
        """Count the bits and seconds of a round, and log it unless the last line was a short time ago."""
        if self._metrics:
            self._metrics.add(row)
        now, done = time.monotonic(), int(row.get("round", len(self._history) - 1)) + 1
        past = done < len(self._history)  # of a run that is resumed
        if past or done == self._logged or (now < self._next_line and done < self._rounds):
            return
        self._logged, self._next_line = done, now + SECONDS_BETWEEN_LINES
        figures = "".join(f", {LEARNED[key]} {row[key]:.4g}" for key in SHOWN if key in row)
        users = f", {row['users']} users" if "users" in row else ""
        log.info("round %d of %d%s%s", done, self._rounds, users, figures)

    def finish(self, summary: Summary, draw: Callable[[], Mapping[str, bytes]]) -> None:
        """Log the end of the run."""
        log.info("finished after %d rounds", summary.rounds)

    def close(self) -> None:
        """Give back the port."""
        if self._metrics:
            self._metrics.close()


class Metrics:
    """Metrics for Prometheus over HTTP, with those of the process (memory, CPU time, open files).

    Raises:
        ConfigError: the port cannot be used, or the package prometheus_client is missing.
    """

    def __init__(self, port: int, named: Callable[[str], str]) -> None:
        self._named = named
        try:
            client: Any = import_module("prometheus_client")
        except ImportError as error:
            raise ConfigError("metrics needs a package that is not installed: pip install 'hmtl[site]'.") from error
        self._client = client
        self._registry = client.CollectorRegistry()
        client.ProcessCollector(registry=self._registry)
        self._takes_part = self._gauge("hmtl_takes_part", "1 if the node takes part in rounds.")
        self._round = self._gauge("hmtl_round", "Rounds so far.")
        self._time = self._gauge("hmtl_last_round_timestamp_seconds", "When the last round ended, since 1970.")
        self._measure = self._gauge("hmtl_measure", "Losses, errors and gap, as last evaluated.", ["name"])
        self._missing = self._gauge("hmtl_node_missing", "1 if the node is late or lost.", ["node"])
        registry: dict[str, Any] = {"registry": self._registry}
        self._bits = client.Counter("hmtl_bits", "Bits sent, payload and overhead.", ["tier"], **registry)
        self._seconds = client.Counter("hmtl_seconds", "Seconds by the formula of time.", ["part"], **registry)
        try:
            self._server, self._thread = client.start_http_server(port, **registry)
        except OSError as error:
            raise ConfigError(f"metrics={port}: {error.strerror}. Set another port.") from error

    def wait(self) -> None:
        self._takes_part.set(0)

    def begin(self, history: Sized, nodes: Sequence[str], missing: Callable[[], Collection[str]]) -> None:
        self._takes_part.set(1)
        self._round.set_function(lambda: len(history))
        for node in nodes:
            self._missing.labels(self._named(node)).set_function(lambda node=node: node in missing())

    def add(self, row: Measurements) -> None:
        self._time.set_to_current_time()
        for key, value in row.items():
            if key == "users":
                self._users.set(value)
            elif key.removeprefix("bits/") in TIERS:
                self._bits.labels(key.removeprefix("bits/")).inc(value)
            elif key in ("compute_s", "communication_s"):
                self._seconds.labels(key.removesuffix("_s")).inc(value)
            elif key not in ("round", "empty", "bits_total") and not key.endswith("_s"):
                self._measure.labels(key).set(value)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @cached_property
    def _users(self) -> Any:  # only where users are counted, at the server
        return self._gauge("hmtl_users", "Users whose update counted in the last round.")

    def _gauge(self, name: str, text: str, labels: Sequence[str] = ()) -> Any:
        return self._client.Gauge(name, text, labels, registry=self._registry)
