"""The command `plan`: formats, picture, faults in the input, and late imports."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import commands
import pandas as pd
import pytest
from matplotlib.figure import Figure
from omegaconf import DictConfig

from hmtl.errors import ConfigError
from hmtl.plan import plan

Configure = Callable[..., DictConfig]
FIG2 = Path(__file__).parent.parent / "experiments" / "network" / "fig2.csv"


@pytest.fixture
def as_json(configure: Configure, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    def as_json(*overrides: str) -> Any:
        plan(configure("format=json", *overrides, name="plan"))
        return json.loads(capsys.readouterr().out)

    return as_json


def test_json_and_picture(as_json: Callable[..., Any], tmp_path: Path) -> None:
    result = as_json("topology=file", f"topology.path={FIG2}")
    assert result["loads"]["paper"] == {"relays_to_server": 8.5, "server_to_relays": 7}
    assert result["network"]["medium"] == "broadcast"
    assert result["verdict"].startswith("Coding pays")
    assert "note" not in result
    assert (tmp_path / "topology.png").read_bytes().startswith(b"\x89PNG")


def test_text(configure: Configure, capsys: pytest.CaptureFixture[str]) -> None:
    plan(configure(name="plan"))
    printed = capsys.readouterr().out
    assert "best for broadcast" in printed
    assert "Coding pays" in printed


def test_a_wire_adds_the_cost_in_its_format(configure: Configure, capsys: pytest.CaptureFixture[str]) -> None:
    plan(configure("wire=int4", name="plan"))
    printed = capsys.readouterr().out
    plain, narrow = (line.split() for line in printed.splitlines() if line.lstrip().startswith("all  "))
    assert plain[0] == narrow[0] == "all"
    assert float(plain[1]) / float(narrow[1]) == pytest.approx(14.9, abs=0.2)  # 15.06 without overhead


def test_secure_sums_and_what_they_add(
    as_json: Callable[..., Any], configure: Configure, capsys: pytest.CaptureFixture[str]
) -> None:
    secure = as_json("secure=true", "colluding=0.2")["secure"]
    assert (secure["neighbors"], secure["threshold"], secure["colluding"], secure["fewest"]) == (19, 5, 4, 6)
    plan(configure("secure=true", "wire=int4", name="plan"))
    assert "2 of 20 users may collude" in " ".join(capsys.readouterr().out.split())
    assert as_json()["secure"] is None


def test_moving_users_are_planned_for_the_first_contacts(as_json: Callable[..., Any]) -> None:
    moving = as_json("topology=moving")
    assert "first contacts" in moving.pop("note")
    assert moving == as_json("topology=geometric")


def test_a_picture_that_cannot_be_written_leaves_the_old_one(
    configure: Configure,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    def half(self: Figure, file: BinaryIO, **how: object) -> None:
        file.write(b"half")
        raise OSError(27, "File too large")

    (tmp_path / "topology.png").write_bytes(b"whole")
    monkeypatch.setattr(Figure, "savefig", half)
    plan(configure(name="plan"))
    assert capsys.readouterr().out
    assert "File too large" in caplog.text
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"whole"]


@pytest.mark.parametrize("words", [("K=6", "H=3", "r=2"), ("topology=geometric", "wire=int4"), ("secure=true",)])
def test_what_a_round_costs_is_a_table_too(as_json: Callable[..., Any], tmp_path: Path, words: tuple[str, ...]) -> None:
    formats = as_json(*words)["formats"]
    table = pd.read_csv(tmp_path / "costs.csv")
    assert sorted(table.columns) == ["bytes", "format", "seconds", "tier", "travels"]
    assert set(table["format"]) == {"64 bits" if name == "null" else name for name in formats}
    for name, costs in formats.items():
        rows = table[table["format"] == ("64 bits" if name == "null" else name)]
        assert len(rows) == 4 * len(costs)
        totals = rows.groupby("travels", sort=False)["seconds"].sum()
        assert totals.tolist() == pytest.approx([cost["seconds"] for cost in costs.values()])


@pytest.mark.parametrize(
    ("overrides", "setting"),
    [
        (("format=xml",), "format=xml"),
        (("V_bits=0",), "V_bits"),
        (("wire=int5",), "wire=int5"),
        (("topology=file", f"topology.path={FIG2}", "K=12"), "K=12"),
        (("fail=7",), "fail=7"),
        (("fail=roof",), "fail=roof"),
        (("network.W1=0",), "W1"),
        (("network.uplink_bps=[1,2]",), "uplink_bps"),
        (("network.medium=smoke",), "medium"),
        (("secure=true", "K=1", "r=1"), "secure"),
        (("secure=true", "colluding=1"), "colluding"),
    ],
)
def test_bad_input(configure: Configure, overrides: tuple[str, ...], setting: str) -> None:
    with pytest.raises(ConfigError, match=setting):
        plan(configure(*overrides, name="plan"))


@pytest.mark.parametrize("word", ["aggregators=all", "+aggregators=[0]"])
def test_a_plan_has_no_aggregators_and_says_why(word: str, tmp_path: Path) -> None:
    done = commands.here("hmtl.plan", word, f"hydra.run.dir={tmp_path}")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "aggregators is not a setting. A plan compares" in done.stderr


def test_a_relay_that_fails_may_be_misspelled(configure: Configure, tmp_path: Path) -> None:
    names = ["Fulda", "Kassel", "Hannover", "Celle", "Bremen", "Hamburg"]
    (tmp_path / "G.csv").write_text("relay,user\n" + "".join(f"{name},{n}\n" for n, name in enumerate(names)))
    words = ("topology=file", f"topology.path={tmp_path}/G.csv")
    for fail, says in (
        ("Fuldaa", r"Did you mean Fulda\?"),
        ("eech", r"Did you mean each\?"),
        ("Ulm", r"one of Fulda, Kassel, Hannover, Celle and 2 more\."),
        ("7", "one of"),
    ):
        with pytest.raises(ConfigError, match=says):
            plan(configure(*words, f"fail={fail}", name="plan"))


def test_the_command_loads_torch_and_matplotlib_only_when_it_runs() -> None:
    code = "import hmtl.plan, sys; print(*{name.split('.')[0] for name in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert not {"torch", "matplotlib", "scipy", "numba", "sklearn", "pandas"} & set(loaded)


NAMED = "relay,alice,bob,carol\nroof,1,1,1\nbarn,0,1,1\n"
LINKS = """
server: {up_bps: 1e8, down_bps: 1e6, latency_s: 0.001}
relays:
  roof: {up_bps: 1e8, down_bps: 1e8, latency_s: 0.01}
  barn: {up_bps: 1e8, down_bps: 1e8, latency_s: 0.002}
hosts:
  alice: {up_bps: 1e8, down_bps: 1e8, latency_s: 0.02}
  van: {up_bps: 1e8, down_bps: 1e8, latency_s: 0.02, users: [bob, carol]}
"""


def test_names_and_links(as_json: Callable[..., Any], configure: Configure, tmp_path: Path, capsys: Any) -> None:
    """The server receives slowly, so that relay roof, which hears everybody, had better aggregate."""
    (tmp_path / "G.csv").write_text(NAMED)
    (tmp_path / "links.yaml").write_text(LINKS)
    words = ("topology=file", f"topology.path={tmp_path}/G.csv")
    assert as_json(*words)["names"] == {"relays": ["roof", "barn"], "users": ["alice", "bob", "carol"]}
    plan(configure(*words, name="plan"))
    assert "aggregators='[roof]'" in capsys.readouterr().out
    words = (*words, "network=links", f"network.links={tmp_path}/links.yaml", "V_bits=8000000")
    result = as_json(*words)
    assert result["every"]
    assert result["choices"][0][0] == [0]
    assert result["choices"][0][1] < result["uncoded"]
    plan(configure(*words, "secure=true", "colluding=0", name="plan"))
    printed = " ".join(capsys.readouterr().out.split())
    assert "roof" in printed
    assert "secure sums" in printed
    failures = as_json(*words, "fail=ROOF")["failures"]  # alice has no other relay
    assert [(each["relay"], each["cut_off"]) for each in failures] == [(None, 0), ("roof", 1)]
    assert (tmp_path / "failures.png").exists()
    plan(configure(*words, "fail=each", name="plan"))
    assert "A round if a relay fails" in capsys.readouterr().out


@pytest.mark.slow
def test_a_sweep_of_plans_ends_with_a_table(tmp_path: Path) -> None:
    done = commands.here("hmtl.plan", "-m", "K=6", "H=3", "topology=any_r", "r=1,3", f"hydra.sweep.dir={tmp_path}")
    assert (done.returncode, done.stdout.count("A round")) == (0, 1)
    table = pd.read_csv(tmp_path / "plans.csv")
    assert table["plan"].tolist() == ["r=1", "r=3"]
    assert table["coded saved"][1] == pytest.approx(0.5, abs=0.01)  # 6 + 6 + 6 + 6 rows become 6 + 0 + 0 + 6
