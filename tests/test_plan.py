"""`hmtl.plan`: figures, verdicts, formats."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from matplotlib.figure import Figure
from omegaconf import DictConfig

from hmtl.coding import Choice
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
    slow = ("V_bits=1000", "network.W1=2000", "network.W2=1000")
    result = as_json(*slow)
    assert result["seconds"]["broadcast"]["uncoded"] == pytest.approx(20 + 40)
    assert result["seconds"]["broadcast"]["paper"] == pytest.approx(20 + 10 + 8)
    assert result["seconds"]["unicast"]["paper"] == pytest.approx(20 + 10 + 5 * 8)
    assert result["seconds"]["unicast"]["uncoded"] == pytest.approx(60)
    assert result["aggregators"]["broadcast"]["seconds"]["broadcast"] == pytest.approx(20 + 8 + 8)
    assert result["aggregators"]["unicast"]["seconds"]["unicast"] == pytest.approx(20 + 28)
    assert result["sums"]["seconds"] == pytest.approx({"broadcast": 10 + 3 + 1 + 1.5, "unicast": 10 + 3 + 3 + 1.5})
    apart = as_json(*slow, "network.last_hop=unicast")["sums"]
    assert apart["seconds"] == pytest.approx({"broadcast": 10 + 3 + 1 + 10, "unicast": 10 + 3 + 3 + 10})
    assert apart["relays"] == [0, 1, 2]
    assert str(result["verdict"]).startswith("Coding pays here, on a broadcast downlink: with relays 0, 1, 2 as")
    assert "40.0% less" in str(result["verdict"])
    unicast = as_json(*slow, "network.medium=unicast")
    assert str(unicast["verdict"]).startswith("Coding pays here, on a unicast downlink")
    assert "20.0% less" in str(unicast["verdict"])
    alone = as_json(*slow, "r=2", "network.medium=unicast")
    assert str(alone["verdict"]).startswith("Coding does not pay here, on a unicast downlink: no choice of aggregators")
    assert "all relays take 58.3% more" in str(alone["verdict"])


@pytest.mark.parametrize(
    ("overrides", "who"),
    [
        (("r=5",), "Relay 0 adds."),
        (("r=3",), "Relays 0, 1, 2 add."),
        (("H=9", "K=9", "r=1"), "9 relays add."),
    ],
)
def test_who_adds(
    configure: Configure, capsys: pytest.CaptureFixture[str], overrides: tuple[str, ...], who: str
) -> None:
    plan(configure(*overrides, name="plan"))
    assert who in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("overrides", "medium", "relays", "ivs"),
    [
        ((), "broadcast", 3, 16),
        ((), "unicast", 2, 28),
        (("r=2",), "unicast", 0, 40),
        (("topology=heterogeneous", "K=50", "H=4", "r=2", "d=0.45"), "broadcast", 2, 6),
    ],
)
def test_who_aggregates(
    as_json: Callable[..., dict[str, dict[str, object]]], overrides: tuple[str, ...], medium: str, relays: int, ivs: int
) -> None:
    best: Any = as_json(*overrides)["aggregators"][medium]
    assert len(best["relays"]) == relays
    assert best["relays_to_server"] + best["server_to_relays"] == pytest.approx(ivs)
    assert best["bound"] == best["cost"] == pytest.approx(ivs)
    assert best["proven"]
    assert best["downlinks"][medium] == best["server_to_relays"]


@pytest.mark.parametrize("medium", ["broadcast", "unicast"])
@pytest.mark.parametrize("seed", range(8))
def test_the_verdict_weighs_all_choices(
    as_json: Callable[..., dict[str, dict[str, object]]], seed: int, medium: str
) -> None:
    """On random networks, some with slow or parallel uplinks: coding pays where any choice takes less than uncoded."""
    links = ("network.uplink=parallel",) if seed % 2 else ("network.uplink_bps=[1e8,2e7,1e8,5e7]",)
    result: Any = as_json(
        "topology=any_r", "K=8", "H=4", f"r={1 + seed // 2 % 3}", f"seed={seed}", f"network.medium={medium}", *links
    )
    everyone = result["seconds"][medium]
    found = [best["seconds"][medium] for best in result["aggregators"].values()]
    least = min(*found, *(everyone[scheme] for scheme in ("optimal", "paper", "equal")))
    pays = least < everyone["uncoded"] * (1 - 1e-9)
    assert result["verdict"].startswith("Coding pays here" if pays else "Coding does not pay here")
    assert result["uplink_seconds"]["bound"] <= result["uplink_seconds"]["optimal"] * (1 + 1e-9)
    for best in result["aggregators"].values():
        assert best["bound"] <= best["cost"] * (1 + 1e-9)


def test_what_cannot_be_trained_is_told(
    as_json: Callable[..., dict[str, dict[str, object]]], configure: Configure, capsys: pytest.CaptureFixture[str]
) -> None:
    large = ("K=5000", "topology=any_r")
    told = as_json(*large)["not_trainable"]
    assert set(told) == {"paper", "equal"}
    assert "more than 4096 take too long" in str(told["paper"])
    assert as_json()["not_trainable"] == {}
    plan(configure(*large, name="plan"))
    text = " ".join(capsys.readouterr().out.split())
    assert "all relays, paper *" in text
    assert "* scheme=paper cannot be trained with. This allocation cuts" in text


def test_where_no_choice_pays(configure: Configure, capsys: pytest.CaptureFixture[str]) -> None:
    plan(configure("K=20", "topology=any_r", "r=1", "network.medium=unicast", name="plan"))
    told = " ".join(capsys.readouterr().out.split())
    assert re.search(r"no choice of aggregators takes less time .* all relays take \d+\.\d% more", told)


def test_a_picture_that_cannot_be_written_leaves_the_old_one(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(self: Figure, file: BinaryIO, **how: object) -> None:
        file.write(b"half")
        raise OSError(27, "File too large")

    (tmp_path / "topology.png").write_bytes(b"whole")
    monkeypatch.setattr(Figure, "savefig", half)
    with pytest.raises(OSError, match="File too large") as told:
        plan(configure(name="plan"))
    assert told.value.filename == str(tmp_path / "topology.png")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"whole"]


def test_what_is_not_proven_is_not_called_best(
    configure: Configure, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "hmtl.plan.best_aggregators", lambda t, scheme, uplinks, medium: Choice((0, 1), 20.0, bound=16.0)
    )
    plan(configure(name="plan"))
    text = " ".join(capsys.readouterr().out.split())
    assert "found for broadcast" in text
    assert "best for broadcast" not in text
    assert "others may take up to" in text


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
    told = " ".join(capsys.readouterr().out.split())
    assert "No scheme does with less than uplink 7.00, proven by the partition {0,1,3,4} {2} of the relays." in told
    plan(configure("topology=symmetric", "K=4", "H=2", "r=2", name="plan"))
    assert "uplink 0.00, proven by the partition {0} {1} of" in " ".join(capsys.readouterr().out.split())


def test_text_fits_80_columns(
    configure: Configure, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    plan(configure("topology=heterogeneous", "d=0.2", name="plan"))
    lines = capsys.readouterr().out.splitlines()
    assert any("paper" in line for line in lines)
    assert max(len(line) for line in lines if not line.startswith("Picture")) <= 80
    monkeypatch.setenv("COLUMNS", "200")
    plan(configure("topology=any_r", "K=1000", "H=20", "r=6", name="plan"))
    lines = capsys.readouterr().out.splitlines()
    assert max(len(line) for line in lines[: lines.index(next(line for line in lines if "Theorem 2" in line))]) <= 80


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


def test_of_users_that_move_it_is_the_first_contacts(
    as_json: Callable[..., dict[str, dict[str, object]]], configure: Configure, capsys: pytest.CaptureFixture[str]
) -> None:
    still, moving = as_json("topology=geometric"), as_json("topology=moving")
    assert moving.pop("note") == "Users move: all this is of the first contacts, and changes with them."
    assert moving == still
    plan(configure("topology=moving", name="plan"))
    assert "Users move: all this is of the first contacts" in " ".join(capsys.readouterr().out.split())
