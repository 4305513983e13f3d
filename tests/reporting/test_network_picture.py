"""The parts of a picture, by number and position."""

import sys
from io import BytesIO
from itertools import combinations

import numpy as np
import pytest
from matplotlib.collections import LineCollection, PathCollection

from hmtl.communication import TIERS, LinkLedger
from hmtl.reporting.network_picture import draw
from hmtl.topology import Names, Topology, Walk, any_r, geometric, symmetric


def parts(t):
    figure = draw(t)
    figure.savefig(BytesIO(), dpi=40)
    (axes,) = figure.axes
    users, relays, server = (c.get_offsets() for c in axes.collections if isinstance(c, PathCollection))
    to_server, links = (c.get_segments() for c in axes.collections if isinstance(c, LineCollection))
    assert not axes.axison
    assert f"K = {t.K} users, H = {t.H} relays" in axes.get_title()
    (legend,) = figure.legends
    names = [text.get_text() for text in legend.get_texts()]
    assert names[:2] == ["server", "relay"]
    assert len({line.get_marker() for line in legend.get_lines()[:3]}) == 3
    assert len(relays) == t.H
    assert len(server) == 1
    assert len(to_server) == len(t.active)
    labels = [(tuple(text.xy), text.get_text()) for text in axes.texts]
    return users, relays, links, labels, names[2]


def test_few_users_are_drawn_one_by_one_with_their_numbers():
    t = symmetric(20, 5, 3)
    users, _, links, labels, kind = parts(t)
    assert len(users) == t.K
    assert kind == "user"
    number = {xy: int(text) for xy, text in labels}
    drawn = {(number[tuple(a)], number[tuple(b)]) for a, b in links}
    assert drawn == {(i, k) for i in range(t.H) for k in t.N(i)}
    assert sorted(number[tuple(xy)] for xy in users) == list(range(t.K))


def test_beyond_100_users_the_picture_counts_those_that_two_relays_share():
    t = any_r(101, 5, 3, seed=1)
    (axes, bar) = draw(t, [1, 3]).axes
    counts = t.G.astype(int) @ t.G.T
    shown = np.array([int(text.get_text()) for text in axes.texts]).reshape(5, 5)
    assert (shown == counts).all()
    values = axes.images[0].get_array()
    off = ~np.eye(5, dtype=bool)
    assert (values[off] == counts[off]).all()
    assert np.isnan(values.diagonal().filled(np.nan)).all()
    assert [patch.get_xy() for patch in axes.patches] == [(0.5, 0.5), (2.5, 2.5)]
    assert "both relays hear" in bar.get_ylabel()
    (legend,) = draw(t, []).legends
    assert [text.get_text() for text in legend.get_texts()] == ["server computes models"]


@pytest.mark.parametrize(("K", "H"), [(101, 1), (2000, 12), pytest.param(100_000, 45, marks=pytest.mark.slow)])
def test_counts_stand_within_their_cells(K, H):
    figure = draw(any_r(K, H, min(H, 3), seed=0))
    figure.draw_without_rendering()
    axes = figure.axes[0]
    assert len(axes.texts) == (H * H if H <= 12 else 0)
    cell = axes.bbox.width / H
    assert all(text.get_window_extent().width < cell for text in axes.texts)


@pytest.mark.parametrize("K", [1, 20, 100])
def test_layout_is_drawn_true_to_scale(K):
    t = geometric(K, 4, 0.4)
    users, relays, links, labels, _ = parts(t)
    assert np.array_equal(users, t.layout[0])
    assert np.array_equal(relays, t.layout[1])
    assert len(links) == t.G.sum()
    assert len(labels) == t.H + (K if K <= 30 else 0)
    assert draw(t).axes[0].get_aspect() == 1


@pytest.mark.parametrize("t", [any_r(20, 4, 2), any_r(90, 4, 2), geometric(20, 4, 0.4)], ids=repr)
def test_absent_users_are_drawn_without_links(t):
    cut = t.restricted(users=range(2, t.K), relays=[1, 2])
    users, relays, links, _, _ = parts(cut)
    assert (len(users), len(links)) == (t.K, cut.G.sum())
    assert not any((segment == relays[0]).all(axis=1).any() for segment in links)
    assert parts(t.restricted(users=()))[2] == []


@pytest.mark.parametrize("t", [symmetric(20, 5, 3), pytest.param(geometric(30, 4, 0.4), marks=pytest.mark.slow)])
@pytest.mark.parametrize(("aggregators", "with_server"), [([0, 2], False), ([], False), ([1], True)])
def test_who_computes_models_is_framed(t, aggregators, with_server):
    figure = draw(t, aggregators, with_server=with_server)
    figure.savefig(BytesIO(), dpi=40)
    (axes,) = figure.axes
    _, *frames, relays, server = (c.get_offsets() for c in axes.collections if isinstance(c, PathCollection))
    assert np.array_equal(
        np.concatenate(frames), np.concatenate([relays[aggregators], server[: not aggregators or with_server]])
    )
    (legend,) = figure.legends
    assert "computes models" in [text.get_text() for text in legend.get_texts()]
    inside, page = legend.get_window_extent(), figure.bbox
    assert page.x0 <= inside.x0
    assert inside.x1 <= page.x1


@pytest.mark.parametrize("t", [any_r(20, 4, 2), any_r(20, 14, 2), geometric(20, 4, 0.4), any_r(101, 5, 3)], ids=repr)
def test_links_are_labeled_with_what_they_carried(t):
    ledger = LinkLedger(t.K, t.H, t.names)
    assert {text.get_text() for text in draw(t, ledger=ledger).axes[0].texts} == {
        text.get_text() for text in draw(t).axes[0].texts
    }
    ledger.begin_round()
    for n, tier in enumerate(TIERS):
        ledger.add(tier, "IVs", range(t.H), 1_000_000 * (n + 1), 250_000)
    ledger.add("server_to_relays", "broadcast", t.H, 7_000_000)
    axes = draw(t, ledger=ledger).axes[0]
    shown = " ".join(text.get_text() for text in [*axes.texts, *axes.get_yticklabels()]).replace("\n", " ")
    assert "Mbit after 1 round" in axes.get_title()
    assert shown.count("↑2.25 ↓3.25") == t.H
    if t.K <= 30:
        assert shown.count("↑1.25 ↓4.25") == min(t.K, t.H)
        assert shown.count("↓7") == 1


@pytest.mark.parametrize("K", [5, 36])
def test_long_names_overlap_neither_each_other_nor_their_marks(K):
    """Names of cities at relays; mm0 is wider than a circle, 0 is not."""
    relays = ("Ulm", "Berlin-Charlottenburg", "Garmisch-Partenkirchen", "Fulda", *(f"Hannover {n}" for n in range(8)))
    for user, inside in (("mm{}", False), ("{}", True)):
        names = Names(relays, tuple(user.format(k) for k in range(K)))
        figure = draw(Topology(any_r(K, 12, 2, 0).G, names=names))
        figure.draw_without_rendering()
        axes = figure.axes[0]
        boxes = [text.get_window_extent() for text in axes.texts]
        assert not any(a.overlaps(b) for a, b in combinations(boxes, 2))
        server = axes.transData.transform(axes.collections[-1].get_offsets())[0]
        assert max(box.y1 for box in boxes) < server[1]
        users = [text for text in axes.texts if text.get_text() in names.users]
        assert len(users) == (K if K <= 30 else 0)
        assert all((text.get_va() == "center_baseline") is inside for text in users)


def test_no_global_state():
    pyplot = sys.modules.get("matplotlib.pyplot")
    draw(symmetric(4, 3, 2))
    assert pyplot is None or not pyplot.get_fignums()


def test_where_users_move_the_title_says_when_this_was() -> None:
    still, moving = (draw(network).axes[0] for network in (geometric(20, 4, 0.4), Walk(20, 4, 0.4)))
    assert moving.get_title() == f"{still.get_title()}; first contacts"
    assert len(moving.collections[1].get_segments()) == len(still.collections[1].get_segments())
