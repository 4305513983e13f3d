"""Messages that arrive in any order, rows that arrive in parts, and codes that differ between nodes."""

from collections.abc import Callable
from copy import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from adding import Terms, Total, terms
from apart import Apart, with_other_plan
from changed import Changed

from hmtl.coding import sum_code
from hmtl.communication import Network, Sums, SumsOfRows
from hmtl.communication.codecs.formats import BYTES, ROUNDS
from hmtl.communication.flows.ivs import IVs
from hmtl.communication.flows.recipe import Recipe
from hmtl.communication.messages import IVS, STATE, VERDICT, Message
from hmtl.testing.scripted import ScriptedUsers, random_numbers, same_bits
from hmtl.topology import Topology, any_r, symmetric

EVEN = symmetric(K=10, H=5, r=3)
UNEVEN = Topology([[1, 1, 1, 0, 0, 1], [0, 1, 1, 1, 0, 1], [0, 0, 1, 1, 1, 0], [1, 0, 0, 1, 1, 0], [0, 0, 0, 0, 0, 0]])


@pytest.mark.parametrize(
    ("medium", "t"),
    [
        pytest.param("broadcast", UNEVEN, id="uneven, broadcast"),
        *(
            pytest.param(medium, t, marks=pytest.mark.slow, id=f"{name}, {medium}")
            for medium, t, name in (
                ("unicast", UNEVEN, "uneven"),
                ("broadcast", EVEN, "even"),
                ("unicast", EVEN, "even"),
            )
        ),
    ],
)
@pytest.mark.parametrize(
    "recipe",
    [
        IVs(aggregators="all"),
        IVs("paper", aggregators="all"),
        IVs("uncoded"),
        IVs(aggregators=["server", 0, 2]),
        SumsOfRows(sums="coded", aggregators="server"),
    ],
    ids=str,
)
def test_models_do_not_depend_on_the_order_in_which_messages_arrive(t: Topology, recipe: Recipe, medium: str) -> None:
    models = []
    for order in (np.arange, lambda n: np.arange(n)[::-1]):
        if recipe.adds:
            sides: list[Any] = [
                Terms([terms(n, t.K) for n in range(3)], [set()] * 3, range(n, t.K, 2)) for n in range(2)
            ]
        else:
            sides = [
                ScriptedUsers([random_numbers(n, t.K, 6, None) for n in range(3)], [set()] * 3, 0, range(n, t.K, 2))
                for n in range(2)
            ]
        apart, got = Apart(t, sides, recipe, Network(medium=medium, last_hop=medium)), []
        apart.links.shuffle = order
        for round in range(3):
            apart.play(round, away=[1] if round == 1 else [])
            got += [model.clone() for side in sides for _, model in sorted(side.models.items())]
        models.append(got)
    assert len(models[0]) > 2 * t.K
    assert all(same_bits(one, other) for one, other in zip(*models, strict=True))


@pytest.mark.parametrize("wire", [None, "int4"])
@pytest.mark.parametrize("reader", ["server", "relay 1"])
def test_a_state_that_says_a_wrong_version_is_handed_over_again(wire: str | None, reader: str) -> None:
    """A relay that believes it and then gets no verdict would report it, and take part in no later round."""
    sides = [ScriptedUsers([random_numbers(n, 6, 5, "") for n in range(5)], [set()] * 5, 0)]
    apart, versions = Apart(UNEVEN, sides, IVs(aggregators="all", wire=wire)), list[int]()

    def change(node: str, message: Message) -> Message | None:
        if (node, message.kind, message.round) == ("relay 1", VERDICT, 2):
            return None
        if (node, message.kind, message.round) != (reader, STATE, 2):
            return message
        content = message.overhead.clone()
        numbers = content[0, : 12 if wire else 4].numpy().view("<i4")  # one round, its size and its tag; or a version
        assert message.format == (ROUNDS if wire else BYTES)
        versions.append(int(numbers[0]))
        numbers[-1] += 99 << 6 if wire else 99
        return replace(message, overhead=content)

    for round in range(5):
        apart.play(round, away=[1] if round == 1 else [], change=change)
    assert versions
    assert all(version == 1 if wire else version > 0 for version in versions)
    assert apart.server.attendance.aggregating[1]


@pytest.mark.parametrize("wire", [None, pytest.param("int4", marks=pytest.mark.slow)])
@pytest.mark.parametrize("reliable", [False, True])
@pytest.mark.parametrize(
    "loses",
    [
        (0, "relay 0"),
        (1, "relay 3"),
        *(pytest.param((1, name), marks=pytest.mark.slow) for name in ("relay 0", "relay 1")),
    ],
)
def test_a_block_of_rows_that_is_lost_gives_no_wrong_sum(
    wire: str | None, reliable: bool, loses: tuple[int, str], monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    """Rows do not travel in blocks over lossy links; if they do, as links lose what they promised, nobody adds them."""
    K, m, blocks = 60, 130, list[Message]()

    class Losing(Changed):
        streams = True

        def collect(self, node: str, kind: str) -> list[Message]:
            arrived = super().collect(node, kind)
            if kind != IVS or node != loses[1] or not arrived or arrived[0].announces:
                return arrived
            blocks.extend(arrived)
            return [] if len(blocks) == 1 + loses[0] and self.round == 1 else arrived

        def begin(self, round: int) -> None:
            self.round = round
            blocks.clear()
            super().begin(round)

    Losing.reliable = reliable
    monkeypatch.setattr("hmtl.communication.nodes.host.SEND_CHUNK_BYTES", 8 * 40 * m)
    ivs = [terms(n, K, m + 1) for n in range(4)]
    users, total = Terms(ivs, [set()] * 4), Total(m + 1)
    made, expected = Sums(any_r(K=K, H=4, r=2), wire=wire, links=Losing, aggregators="server"), torch.zeros(m + 1)
    for round in range(4):
        outcome = made.round(round, users, total)
        expected = expected.long() + ivs[round][outcome.users].sum(0)
        assert outcome.empty or total.seen[-1][0].tolist() == outcome.users.tolist()
        if wire is None:
            assert total.state["last"][0].tolist() == expected.tolist()
        assert int(total.state["last"][0, -1]) == int(expected[-1])
    assert len(outcome.users) == K
    assert ("it lacks numbers of users" in caplog.text) == reliable


def _other_code(code: Any) -> Any:
    return replace(code, combine=code.combine + 2)


def test_a_relay_with_another_code_of_sums_stays_out(caplog: pytest.LogCaptureFixture) -> None:
    """Nobody else would notice: the server would add shares of two codes."""
    sides = [Terms([terms(n, 6, 91) for n in range(2)], [set()] * 2)]
    apart = Apart(UNEVEN, sides, SumsOfRows(sums="coded", aggregators="server"))
    sends = sum_code(UNEVEN).relays[-1]
    own = apart.relays[sends]
    own.transport = with_other_plan(own.transport, b"else")
    apart.play(0)
    assert apart.server.attendance.relays == tuple({*range(5)} - {sends})
    assert f"round 0: relay {sends} stays out: its plan differs" in caplog.text
    heard = apart.server.attendance.users
    assert apart.total.state["last"][0].tolist() == sides[0].ivs[0][heard].sum(0).tolist()
    assert all(model[:-1].tolist() == apart.total.state["last"][0].tolist() for model in sides[0].models.values())
    assert len(sides[0].models) >= 4


def test_a_host_with_another_code_of_sums_takes_no_models(caplog: pytest.LogCaptureFixture) -> None:
    ivs = [terms(n, 6, 91) for n in range(2)]
    sides = [Terms(ivs, [set()] * 2, mine) for mine in ([0, 2, 4], [1, 3, 5])]
    apart = Apart(UNEVEN, sides, SumsOfRows(sums="coded", aggregators="server"))
    apart.hosts[1].planner = other = copy(apart.hosts[1].planner)
    code: Callable[..., Any] = other.spread_code
    other.spread_code = lambda relays, L: _other_code(code(relays, L))
    apart.play(0)
    assert sorted(sides[0].models) == [0, 2, 4]
    assert not sides[1].models
    assert "round 0: host 1 takes no models of relay 0: its plan differs" in caplog.text
