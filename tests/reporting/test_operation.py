"""What those who operate a node see, through the clients that they use."""

import logging
import socket
import subprocess
import sys
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from hmtl.distributed.launching import free_port
from hmtl.errors import ConfigError
from hmtl.reporting.operation import Operation

ROW = {
    "round": 0,
    "users": 7,
    "empty": 0,
    "gap": 0.5,
    "test_error": 0.25,
    "bits/users_to_relays": 100,
    "bits/relays_to_server": 40,
    "bits_total": 140,
    "local_s": 1.0,
    "compute_s": 2.0,
    "communication_s": 3.0,
}


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def operation(port: int) -> Iterator[Operation]:
    made = Operation(10, lambda name: name.replace(" ", "-"), port)
    yield made
    made.close()


def scraped(port: int) -> dict[str, float]:
    """Metrics by name and labels."""
    connection = HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    return {
        "/".join([sample.name, *sample.labels.values()]): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_metrics_of_rounds(operation: Operation, port: int) -> None:
    history: list[int] = []
    missing: set[str] = set()
    operation.begin(history, ["relay 0", "host 0"], lambda: missing)
    for round in range(3):
        history.append(round)
        operation.log(ROW | {"round": round, "gap": 0.5 / (round + 1)})
    missing.add("host 0")
    metrics = scraped(port)
    expected = {
        "hmtl_round": 3,
        "hmtl_users": 7,
        "hmtl_measure/gap": 0.5 / 3,
        "hmtl_measure/test_error": 0.25,
        "hmtl_bits_total/users_to_relays": 300,
        "hmtl_bits_total/relays_to_server": 120,
        "hmtl_seconds_total/compute": 6,
        "hmtl_seconds_total/communication": 9,
        "hmtl_node_missing/relay-0": 0,
        "hmtl_node_missing/host-0": 1,
    }
    assert {name: metrics[name] for name in expected} == pytest.approx(expected)
    assert not {name for name in metrics if name.startswith("hmtl_measure")} - set(expected)
    assert metrics["process_resident_memory_bytes"] > 0


def test_a_node_without_measurements_counts_rounds(operation: Operation, port: int) -> None:
    operation.begin([{}, {}], [], tuple)
    operation.log({})
    metrics = scraped(port)
    assert metrics["hmtl_round"] == 2
    assert "hmtl_users" not in metrics


def test_metrics_tell_whether_a_node_takes_part(operation: Operation, port: int) -> None:
    compose = yaml.safe_load((Path(__file__).parents[2] / "deploy" / "compose.yaml").read_text())
    _, program, *words = compose["x-node"]["healthcheck"]["test"]
    check = [program.replace("python", sys.executable), *(word.replace("9100", str(port)) for word in words)]
    assert scraped(port)["hmtl_takes_part"] == 0
    assert subprocess.run(check, capture_output=True).returncode == 1
    operation.begin([], [], tuple)
    assert scraped(port)["hmtl_takes_part"] == 1
    assert subprocess.run(check).returncode == 0
    operation.wait()
    assert scraped(port)["hmtl_takes_part"] == 0


def test_the_log_has_the_round_and_no_flood(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "hmtl")
    history: list[int] = []
    operation = Operation(10)
    operation.begin(history, [], tuple)
    for round in range(10):
        history.append(round)
        operation.log(ROW | {"round": round})
    assert [record.getMessage() for record in caplog.records] == [
        "round 1 of 10, 7 users, duality gap 0.5, test error 0.25",
        "round 10 of 10, 7 users, duality gap 0.5, test error 0.25",
    ]


def test_a_resumed_run_counts_its_earlier_rounds_and_logs_only_the_last(
    caplog: pytest.LogCaptureFixture, operation: Operation, port: int
) -> None:
    caplog.set_level(logging.INFO, "hmtl")
    operation.begin(range(5), [], tuple)
    for round in range(5):
        operation.log(ROW | {"round": round})
    assert [record.getMessage().partition(",")[0] for record in caplog.records] == ["round 5 of 10"]
    assert scraped(port)["hmtl_bits_total/users_to_relays"] == 500


def test_a_port_in_use_is_named() -> None:
    with socket.create_server(("", 0)) as other, pytest.raises(ConfigError, match="metrics"):
        Operation(10, metrics=other.getsockname()[1])
