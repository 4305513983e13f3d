"""The loop on an algorithm that learns nothing, with clocks that stand still: every sum by hand or by a second run."""

from pathlib import Path

import pytest
import torch

from hmtl.communication import TIERS, CodedHierarchical, Network, Uncoded
from hmtl.topology import any_r
from hmtl.trainer import Trainer, load_checkpoint

TOPOLOGY = any_r(K=12, H=4, r=2, seed=1)
NETWORK = Network(W1=30.0, W2=70.0, uplink_bps=(10, 20, 50, 90), uplink="parallel")  # so slow that seconds are many
LINKS = {"uplink_bps": NETWORK.uplink_bps, "uplink": NETWORK.uplink}
SECONDS = {"relay 0": 3.0, "relay 1": 2.0, "relay 2": 1.0, "relay 3": 0.0, "server": 10.0, "global update": 100.0}


class Counting:
    """IVs of 5 numbers; 2 further ones travel with each model; user 3 drops out of every second round."""

    def __init__(self):
        self.total = torch.zeros(12, 5, dtype=torch.float64)

    def user_seconds(self, round, users):
        return 1000.0

    def absent(self, round):
        return (3,) if round % 2 else ()

    def local_update(self, round):
        ivs = torch.full((12, 5), round + 1.0, dtype=torch.float64)
        ivs[list(self.absent(round))] = 0
        return ivs

    def global_update(self, ivs):
        return torch.cat([self.total + ivs, ivs[:, :2]], dim=1)

    def receive(self, models):
        self.total = models[:, :5]

    def metrics(self):
        return {"gap": 1 / float(self.total[0, 0]), "primal": -1.0}

    def state_dict(self):
        return {"total": self.total}

    def load_state_dict(self, state):
        self.total = state["total"]


class Rows(list):
    log = list.append


@pytest.fixture
def trainer(tmp_path: Path):
    def trainer(communicator, name, **settings):
        exchange = communicator.exchange

        def timed(*arguments):
            models = exchange(*arguments)
            coded = isinstance(communicator, CodedHierarchical)
            communicator.stopwatch.seconds = SECONDS if coded else {"global update": 100.0}
            return models

        communicator.exchange = timed
        return Trainer(Counting(), communicator, NETWORK, checkpoint=tmp_path / name, **settings)

    return trainer


def coded():
    return CodedHierarchical(TOPOLOGY, **LINKS)


def test_bits_and_seconds(trainer):
    made = trainer(coded(), "coded", rounds=4)
    rows, ledger = made.fit(), made.communicator.ledger
    beside = trainer(Uncoded(TOPOLOGY, **LINKS), "uncoded", rounds=4).fit()
    sent = 0
    for number, (row, uncoded) in enumerate(zip(rows, beside, strict=True)):
        bits = {tier: ledger.per_link(tier, number).sum(axis=1) for tier in TIERS}
        assert [row[f"bits/{tier}"] for tier in TIERS] == [bits[tier].sum() for tier in TIERS]
        assert row["bits/users_to_relays"] == (12 - number % 2) * 5 * 64
        assert row["bits/relays_to_users"] == 12 * 7 * 64
        assert uncoded["bits/relays_to_server"] == (12 - number % 2) * 5 * 64
        assert uncoded["bits/server_to_relays"] == 12 * 7 * 64
        sent += sum(bits[tier].sum() for tier in TIERS)
        assert row["bits_total"] == sent
        assert row["round"] == number
        assert row["compute_s"] == 1000 + 100 + 3 + 10
        assert row["communication_s"] == NETWORK.seconds(bits)
        assert row["uncoded_s"] == pytest.approx(1000 + 100 + uncoded["communication_s"], rel=1e-12)
        assert uncoded["compute_s"] + uncoded["communication_s"] == pytest.approx(uncoded["uncoded_s"], rel=1e-12)


def test_a_resumed_run_is_the_whole_run(trainer):
    whole = trainer(coded(), "whole", rounds=5)
    whole.fit()
    first = trainer(coded(), "first", rounds=3)
    first.fit()
    seen = Rows()
    for rounds in (5, 3):  # with rounds left to do, and without
        then = trainer(coded(), "then", rounds=rounds, loggers=[seen])
        assert then.fit(load_checkpoint(first.checkpoint)) == whole.history[:rounds]
        assert then.communicator.V_bits == 5 * 64
        assert then.communicator.ledger.rounds == rounds
    assert seen == whole.history + whole.history[:3]


@pytest.mark.parametrize(("tolerance", "rounds"), [(0.0, 6), (0.2, 3), (0.15, 4)])
def test_stops_at_the_gap(trainer, tolerance, rounds):
    """Gaps are 1, 1/3, 1/6, 1/10, ..; the primal objective may be negative."""
    assert len(trainer(coded(), "gap", rounds=6, gap_tolerance=tolerance).fit()) == rounds


def test_a_checkpoint_every_few_rounds_and_at_the_end(trainer):
    saved = []

    class Watch:
        def log(self, row):
            saved.append(len(load_checkpoint(made.checkpoint)["history"]) if made.checkpoint.exists() else 0)

    made = trainer(coded(), "every", rounds=5, checkpoint_every=2, loggers=[Watch()])
    made.fit()
    assert saved == [0, 0, 2, 2, 4]  # as each round is logged, before it is saved
    assert len(load_checkpoint(made.checkpoint)["history"]) == 5
