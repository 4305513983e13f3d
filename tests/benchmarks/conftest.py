"""Benchmarks say what they measured; the session writes it all to bench.json."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

Record = Callable[..., None]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Unless a benchmark says otherwise, and whatever the one before it said."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def results() -> Iterator[list[dict[str, object]]]:
    rows: list[dict[str, object]] = []
    yield rows
    Path("bench.json").write_text(json.dumps(rows, indent=2) + "\n")


@pytest.fixture
def record(results: list[dict[str, object]]) -> Record:
    """`record(name, value, unit, peer, ratio)`: a median; its ratio to the peer measured beside it."""

    def record(name: str, value: float, unit: str, peer: str | None = None, ratio: float | None = None) -> None:
        results.append({"name": name, "value": value, "unit": unit, "peer": peer, "ratio": ratio})
        beside = f", {ratio:.2f} × {peer}" if ratio is not None else ""
        print(f"\n{name}: {value:.4g} {unit}{beside}", end="")

    return record
