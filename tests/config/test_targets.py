"""Parts: targets are found, arguments are validated against their signature, and the first wrong setting is named."""

import re
from pathlib import Path
from typing import Any

import pytest

from hmtl.config.build import check as check_all
from hmtl.config.build import compose
from hmtl.config.targets import check, description, make, no_setting, parameters
from hmtl.errors import ConfigError
from hmtl.mtl import Hinge, Loss, SmoothHinge
from hmtl.topology import Topology


class Base:
    def __init__(self, size: int, names: list[str] | None = None) -> None:
        self.size = size
        self.names = names


class Derived(Base):
    def __init__(self, ratio: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.ratio = ratio


def part(target: str, **arguments: Any) -> dict[str, Any]:
    return {"_target_": target, **arguments}


SYMMETRIC = {"K": 20, "H": 5, "r": 3}
WRONG: dict[str, tuple[dict[str, Any], str]] = {  # a part called "part", and the setting that its error names
    "no target": ({}, "part._target_"),
    "not a name": (part("Hinge"), "part._target_"),
    "no module": (part("nope.Hinge"), "part._target_"),
    "no attribute": (part("hmtl.mtl.Hing"), "part._target_"),
    "not callable": (part("os.path"), "part._target_"),
    "an exit": (part("sys.exit"), "part._target_"),
    "another kind": (part("builtins.dict"), "part._target_"),
    "unknown argument": (part("hmtl.mtl.SmoothHinge", widht=1), "part.widht"),
    "unknown private argument": (part("hmtl.mtl.Hinge", _foo=1), "part._foo"),
    "text for a number": (part("hmtl.mtl.SmoothHinge", width="wide"), "part.width"),
    "list for a number": (part("hmtl.mtl.SmoothHinge", width=[1]), "part.width"),
    "infinite number": (part("hmtl.mtl.SmoothHinge", width=float("inf")), "part.width"),
}


@pytest.mark.parametrize("what", WRONG)
def test_the_wrong_setting_is_named(what: str) -> None:
    wrong, setting = WRONG[what]
    with pytest.raises(ConfigError) as error:
        make("part", wrong, (Loss,))
    assert str(error.value).startswith(setting)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("setting", "value"),
    [("K", 1.5), ("K", "many"), ("K", None), ("r", []), ("seed", [1]), ("seed", 0.5)],
)
def test_functions_are_validated_as_classes_are(setting: str, value: object) -> None:
    with pytest.raises(ConfigError, match=rf"^topology\.{setting}="):
        check("topology", part("hmtl.topology.any_r", **{**SYMMETRIC, setting: value}), (Topology,))


def test_arguments_come_in_the_types_of_the_signature() -> None:
    checked = check("topology", part("hmtl.topology.any_r", K=1e3, H=5, r=3))
    assert (checked["K"], type(checked["K"])) == (1000, int)
    communicator = part("hmtl.communication.CodedHierarchical", aggregators=[0, 2], wire=None)
    assert check("communicator", communicator) == communicator


def test_a_part_is_made() -> None:
    loss = make("loss", part("hmtl.mtl.SmoothHinge", width=2), (Loss,))
    assert isinstance(loss, SmoothHinge)
    assert loss.width == 2
    assert isinstance(make("loss", part("hmtl.mtl.Hinge"), (Hinge,)), Hinge)
    with pytest.raises(ConfigError, match=r"^topology\.H is missing"):
        make("topology", part("hmtl.topology.symmetric", K=20, r=3), (Topology,))
    assert isinstance(make("topology", part("hmtl.topology.symmetric", K=20, r=3), (Topology,), H=5), Topology)


def test_parts_within_parts_are_checked() -> None:
    model = part("hmtl.mtl.mlp", _partial_=True, hiden=3)
    with pytest.raises(ConfigError, match=r"^algorithm\.model\.hiden.*algorithm\.model\.hidden"):
        check("algorithm", part("hmtl.mtl.FedAvg", model=model))


def test_a_class_that_hands_keywords_on_has_those_of_its_base() -> None:
    known, is_open = parameters(Derived)
    assert ([*known], is_open) == (["ratio", "size", "names"], False)
    assert known["size"].annotation is int
    known, is_open = parameters(dict)
    assert is_open


@pytest.mark.parametrize(
    ("text", "reason"),
    [("1 / 0", "ZeroDivisionError"), ("raise SystemExit(7)", "SystemExit"), ("import not_there", "not_there")],
)
def test_a_module_that_cannot_be_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, reason: str
) -> None:
    name = f"broken_{reason.lower()}"
    (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=rf"^loss\._target_={name}.*{reason}"):
        check("loss", part(f"{name}.Loss"))


def test_a_similar_setting_is_suggested() -> None:
    known = ["rounds", "network.medium", "solver.passes"]
    assert "rounds?" in no_setting("rouns", known)
    assert "network.medium?" in no_setting("medium", known)
    assert "solver.passes?" in no_setting("solver.pases", known)
    assert "--help" in no_setting("foo", known)


@pytest.mark.parametrize(
    ("override", "meant"),
    [
        ("lamb=0.1", "lam?"),
        ("algoritm=fedavg", "algorithm?"),
        ("algorithm=fedavgg", "fedavg?"),
        ("solver.pases=1", "solver.passes?"),
        ("privacy.clp=1", "privacy.clip?"),
        ("logger.consol.label=x", "logger.console?"),
        ("hydra.rn.dir=x", "hydra.run?"),
    ],
)
def test_hydra_refuses_an_unknown_name_with_what_may_be_meant(override: str, meant: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"Did you mean {meant}")):
        compose("output_dir=.", override)


@pytest.mark.parametrize("algorithm", ["local", "mocha", pytest.param("cocoa", marks=pytest.mark.slow)])
@pytest.mark.parametrize("setting", ["model._target_=hmtl.mtl.mlp", "model=3"])
def test_linear_models_have_no_module(algorithm: str, setting: str) -> None:
    for word in (f"algorithm.{setting}", f"+algorithm.{setting}"):
        with pytest.raises(ConfigError, match=r"^algorithm\.model .*local_networks"):
            check_all(compose("output_dir=.", f"algorithm={algorithm}", word))


def test_hydra_says_how_a_part_gets_an_argument() -> None:
    with pytest.raises(ConfigError, match=r"\+solver\.momentum=0\.9"):
        compose("output_dir=.", "algorithm=fedavg", "solver.momentum=0.9")


def test_what_a_part_has_computed_is_no_setting() -> None:
    t = Topology([[1, 1], [0, 1]])
    described = description(t)
    assert t.serving.tolist() == [0, 1]
    assert t.present == (0, 1)
    assert description(t) == described
