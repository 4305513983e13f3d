"""`hmtl.plan`: figures, verdicts, formats."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import DictConfig

from hmtl.errors import ConfigError
from hmtl.plan import plan

Configure = Callable[..., DictConfig]
FIG2 = Path(__file__).parent.parent / "experiments" / "network" / "fig2.csv"


@pytest.fixture
def as_json(configure: Configure, capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, dict[str, object]]]:
    def as_json(*overrides: str) -> dict[str, dict[str, object]]:
        plan(configure("format=json", *overrides, name="plan"))
        result: dict[str, dict[str, object]] = json.loads(capsys.readouterr().out)
        return result

    return as_json


def test_fig2(as_json: Callable[..., dict[str, dict[str, object]]], tmp_path: Path) -> None:
    result = as_json("topology=file", f"topology.path={FIG2}")
    assert result["loads"]["uncoded"] == {"relays_to_server": 10, "server_to_relays": 10}
    assert result["loads"]["optimal"] == {"relays_to_server": 7, "server_to_relays": 7}
    assert result["proof"] == {"relays_to_server": 7, "partition": [[0, 1, 3, 4], [2]]}
    assert result["loads"]["paper"] == {"relays_to_server": 8.5, "server_to_relays": 7}
    assert result["loads"]["equal"] == {"relays_to_server": pytest.approx(8 + 5 / 6), "server_to_relays": 7}
    assert result["bounds"] == {"relays_to_server": 6.5, "server_to_relays": 7}
    assert (tmp_path / "topology.png").read_bytes().startswith(b"\x89PNG")


def test_times_and_verdict_by_hand(as_json: Callable[..., dict[str, dict[str, object]]]) -> None:
    result = as_json("V_bits=1000", "network.W1=2000", "network.W2=1000")
    assert result["seconds"]["broadcast"]["uncoded"] == pytest.approx(20 + 40)
    assert result["seconds"]["broadcast"]["paper"] == pytest.approx(20 + 10 + 8)
    assert result["seconds"]["unicast"]["paper"] == pytest.approx(20 + 10 + 5 * 8)
    assert result["seconds"]["unicast"]["uncoded"] == pytest.approx(60)
    assert str(result["verdict"]).startswith("Coding pays here")
    assert "36.7% less" in str(result["verdict"])
    unicast = as_json("V_bits=1000", "network.W1=2000", "network.W2=1000", "network.medium=unicast")
    assert str(unicast["verdict"]).startswith("Coding does not pay here")
    assert "16.7% more" in str(unicast["verdict"])


def test_unequal_uplinks_by_hand(as_json: Callable[..., dict[str, dict[str, object]]]) -> None:
    """Three relays that hear one user each: two IVs suffice if users are many; here each has to send its own."""
    slow = "network.uplink_bps=[1000,1000,500]"
    settings = ("topology=symmetric", "K=3", "H=3", "r=1", "V_bits=1000", "network.W1=1e9", "network.W2=1000", slow)
    shared, parallel = as_json(*settings), as_json(*settings, "network.uplink=parallel")
    assert shared["network"]["uplink_bps"] == [1000, 1000, 500]
    for scheme, down in (("uncoded", 3), ("optimal", 2)):
        assert shared["seconds"]["broadcast"][scheme] == pytest.approx(1 + 1 + 2 + down, rel=1e-5)
        assert parallel["seconds"]["broadcast"][scheme] == pytest.approx(2 + down, rel=1e-5)


def test_one_relay_needs_no_code(as_json: Callable[..., dict[str, dict[str, object]]]) -> None:
    result = as_json("K=4", "H=1", "r=1")
    assert result["loads"]["uncoded"] == {"relays_to_server": 4, "server_to_relays": 4}
    for scheme in ("optimal", "paper", "equal"):
        assert result["loads"][scheme] == {"relays_to_server": 0, "server_to_relays": 0}


def test_what_is_slow_to_import_is_imported_by_what_needs_it() -> None:
    code = (
        "import hmtl.coding, sys; print(*{name.split('.')[0] for name in sys.modules}, 'scipy.optimize' in sys.modules)"
    )
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert "numpy" in loaded
    assert not {"cvxpy", "matplotlib", "networkx", "llvmlite", "sklearn", "pandas", "True"} & set(loaded)


def test_proof_is_told(configure: Configure, capsys: pytest.CaptureFixture[str]) -> None:
    plan(configure("topology=file", f"topology.path={FIG2}", name="plan"))
    assert "No scheme does with less than uplink 7.00, proven by {0,1,3,4}{2}." in capsys.readouterr().out
    plan(configure("topology=symmetric", "K=4", "H=2", "r=2", name="plan"))
    assert "uplink 0.00, proven by {0}{1}" in capsys.readouterr().out


def test_text_fits_80_columns(
    configure: Configure, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    plan(configure("topology=heterogeneous", "d=0.2", name="plan"))
    lines = capsys.readouterr().out.splitlines()
    assert any("paper" in line for line in lines)
    assert max(len(line) for line in lines if not line.startswith("Picture")) <= 80


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("format=xml",), "format=xml"),
        (("V_bits=0",), "V_bits=0"),
        (("topology=file", f"topology.path={FIG2}", "K=12"), "K=12, but the topology has K=10"),
        (("network.W1=0",), "W1=0"),
        (("network.uplink_bps=[1,2]",), "2 entries for H=5"),
        (("network.medium=smoke",), "medium=smoke"),
    ],
)
def test_bad_input(configure: Configure, overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan(configure(*overrides, name="plan"))
