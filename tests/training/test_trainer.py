"""The loop on an algorithm that learns nothing, with clocks that stand still: every sum by hand or by a second run."""

import signal
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from commands import saved_rows

from hmtl.communication import SETUP, TIERS, CodedHierarchical, Network, Uncoded
from hmtl.io.row_layout import RowLayout
from hmtl.topology import any_r
from hmtl.training.checkpoint import load_checkpoint
from hmtl.training.engine import Training
from hmtl.training.trainer import Trainer, TrainerSettings

TOPOLOGY = any_r(K=12, H=4, r=2, seed=1)
NETWORK = Network(W1=30.0, W2=70.0, uplink_bps=(10, 20, 50, 90), uplink="parallel")  # so slow that seconds are many
SECONDS = {"relay 0": 3.0, "relay 1": 2.0, "relay 2": 1.0, "relay 3": 0.0, "server": 10.0, "global update": 100.0}
EMPTY = 4  # the round in which no relay is there


class Users:
    """IVs of 5 numbers; user 3 drops out of every second round."""

    row_layout, seconds = RowLayout.zeros(5, answers=(2,)), 1000.0

    def __init__(self):
        self.W = torch.zeros(12, 5, dtype=torch.float64)

    def local_update(self, round, idle=()):
        users = np.setdiff1d(np.arange(12), [*idle, *([3] if round % 2 else [])])
        return users, torch.full((len(users), 5), 1.0, dtype=torch.float64)

    def hold_meaning(self):
        return None

    def commit(self, users):
        pass

    def roll_back(self, users):
        pass

    def receive(self, users, models):
        self.W[users] = models[:, :5]

    def measure(self):
        return {f"{split}_error": torch.arange(12.0) / 20 for split in ("train", "test")}

    def blocks(self):
        yield from ()


class Aggregator:
    """Models are the sums of the IVs that came; 2 further numbers travel with each of them."""

    def __init__(self):
        self.total = torch.zeros(12, 5, dtype=torch.float64)

    def hold_meaning(self):
        return None

    def update(self, users, ivs):
        self.total[users] += ivs
        return torch.cat([self.total, self.total[:, :2]], dim=1)

    def state_dict(self):
        return {"total": self.total.clone()}

    def load_state_dict(self, state):
        self.total = state["total"].clone()


class FactsOfUsers(Users):
    """Before round 1, every user tells 3 numbers and gets 1."""

    row_layout = RowLayout.zeros(0, further=3, answers=(1,))

    def local_update(self, round, idle=()):
        return np.arange(12), torch.ones(12, 3, dtype=torch.float64)

    def receive(self, users, models):
        assert models.shape == (len(users), 1)


class FactsOfAll(Aggregator):
    def update(self, users, ivs):
        assert ivs.shape == (12, 3)
        return torch.ones(12, 1, dtype=torch.float64)


class Counting:
    """Relay 0 drops out of round 1, all of them out of round EMPTY."""

    seed = 0

    unsettled = 0  # sums up to which what the gap takes for given still changes

    def __init__(self, facts=False):
        self.users, self.aggregator, self.facts = Users(), Aggregator(), facts
        self.participation = SimpleNamespace(absent_relays=self.absent_relays)
        self.problem = SimpleNamespace(splits=("train", "test"))

    def absent_relays(self, seed, round, H):
        return {1: (0,), EMPTY: tuple(range(H))}.get(round, ())

    def setup(self):
        return (FactsOfUsers(), FactsOfAll()) if self.facts else None

    def figures(self, measured, blocks):
        """Gaps are 1, 1/2, 1/3, ..; the primal objective may be negative."""
        return {"gap": 1 / float(self.aggregator.total[0, 0]), "primal": -1.0}

    def settled(self, tolerance):
        assert tolerance > 0
        return float(self.aggregator.total[0, 0]) > self.unsettled

    def state_dict(self):
        return {"users": {"W": self.users.W.clone()}, "aggregator": self.aggregator.state_dict()}

    def load_state_dict(self, state):
        self.users.W = state["users"]["W"].clone()
        self.aggregator.load_state_dict(state["aggregator"])


class StoppedClock:
    """A communicator whose nodes took as long as SECONDS says."""

    def round(self, *arguments):
        outcome = super().round(*arguments)
        self.stopwatch.seconds = {who: SECONDS[who] for who in self.on_the_clock}
        return outcome


class Coded(StoppedClock, CodedHierarchical):
    on_the_clock = tuple(SECONDS)


class Plain(StoppedClock, Uncoded):
    on_the_clock = ("global update",)


class Seen(list):
    log = list.append


@pytest.fixture
def trainer(tmp_path):
    def trainer(name, communicator=Coded, facts=False, **settings):
        (tmp_path / name).mkdir(exist_ok=True)
        loggers = settings.pop("loggers", ())
        settings = TrainerSettings(tmp_path / name, **settings)
        return Trainer(Training(Counting(facts), communicator(TOPOLOGY, NETWORK)), settings, loggers=loggers)

    return trainer


def sent(trainer, round):
    return {tier: trainer.communicator.ledger.bits(tier, round=round).total for tier in TIERS}


class Ledger(list):
    """Bits by tier and seconds of each round, asked for as it ends."""

    def log(self, row):
        self.append((sent(self.of, row["round"]), self.of.communicator.seconds(row["round"])))


@pytest.mark.parametrize("facts", [False, True])
def test_bits_and_seconds(trainer, facts):
    ledger = Ledger()
    made, beside = (trainer(kind.__name__, kind, facts, rounds=7, loggers=[ledger]) for kind in (Coded, Plain))
    beside.loggers, ledger.of = [], made
    made.fit()
    beside.fit()
    total = sum(sent(made, SETUP).values())
    assert (total > 0) is facts
    for number, (row, uncoded) in enumerate(zip(made.history, beside.history, strict=True)):
        bits, seconds = ledger[number]
        total += sum(bits.values())
        assert row["round"] == number
        assert row["empty"] == uncoded["empty"] == (number == EMPTY)
        if number != EMPTY + 1:  # when users may still wait for word of the one before
            assert row["users"] == uncoded["users"] == (0 if number == EMPTY else 12 - number % 2)
        assert {tier: row[f"bits/{tier}"] for tier in TIERS} == bits
        assert row["bits_total"] == total
        assert row["local_s"] == 1000
        assert row["compute_s"] == 1000 + 100 + 3 + 10
        assert row["communication_s"] == seconds
        assert row["uncoded_s"] == pytest.approx(1000 + 100 + uncoded["communication_s"], rel=1e-12)
        assert uncoded["compute_s"] + uncoded["communication_s"] == pytest.approx(uncoded["uncoded_s"], rel=1e-12)
    assert torch.equal(made.algorithm.users.W, beside.algorithm.users.W)
    counted = made.algorithm.users.W[:, 0]
    assert counted[3] == 3  # in rounds 0, 2 and 6
    assert counted.sum() == sum(row["users"] for row in made.history)


@pytest.mark.parametrize("facts", [False, True])
def test_a_resumed_run_is_the_whole_run(trainer, facts):
    whole = trainer("whole", facts=facts, rounds=6)
    whole.fit()
    first = trainer("first", facts=facts, rounds=3)
    first.fit()
    seen = Seen()
    for rounds in (6, 3):  # with rounds left to do, and without
        then = trainer("then", facts=facts, rounds=rounds, loggers=[seen])
        assert then.fit(load_checkpoint(first.checkpoint)) == list(whole.history)[:rounds]
        assert then.communicator.V_bits == 5 * 64
        assert then.communicator.ledger.rounds == rounds
        assert sent(then, SETUP) == sent(whole, SETUP)  # told once, not anew
    assert seen == [*whole.history, *list(whole.history)[:3]]


@pytest.mark.parametrize(
    ("tolerance", "unsettled", "every", "rounds"),
    [(0.0, 0, 1, 9), (0.5, 0, 1, 2), (0.4, 0, 1, 3), (0.5, 3, 1, 4), (0.3, 0, 5, 6)],
)
def test_stops_at_the_gap(trainer, tolerance, unsettled, every, rounds):
    """Where it is measured, and once what it takes for given has settled."""
    made = trainer("gap", rounds=9, gap_tolerance=tolerance, evaluate_every=every)
    made.algorithm.unsettled = unsettled
    assert len(made.fit()) == rounds


def test_a_checkpoint_every_few_rounds_and_at_the_end(trainer):
    saved = []

    class Watch:
        def log(self, row):
            saved.append(load_checkpoint(made.checkpoint)["history"]["rounds"] if made.checkpoint.exists() else 0)

    made = trainer("every", rounds=5, checkpoint_every=2, loggers=[Watch()])
    made.fit()
    assert saved == [0, 0, 2, 2, 4]  # as each round is logged, before it is saved
    assert load_checkpoint(made.checkpoint)["history"]["rounds"] == 5


def test_asked_to_stop_it_ends_after_the_round_in_work(trainer):
    class AskedInRound1:
        def log(self, row):
            if row["round"] == 1:
                signal.raise_signal(signal.SIGTERM)

    made = trainer("stopped", rounds=6, checkpoint_every=6, loggers=[AskedInRound1()])
    assert len(made.fit()) == 2
    assert made.interrupted == signal.SIGTERM
    assert saved_rows(made.checkpoint.parent) == list(made.history)


@pytest.mark.parametrize(
    ("rounds", "every", "wanted"), [(7, 3, [0, 3, 6]), (6, 4, [0, 4, 5]), (3, 9, [0, 2]), (2, 1, [0, 1])]
)
def test_evaluated_now_and_then(trainer, rounds, every, wanted):
    seen, plain = Seen(), trainer("plain", rounds=rounds)
    made = trainer("every", rounds=rounds, evaluate_every=every, loggers=[seen])
    rows, all_rows = made.fit(), plain.fit()
    assert [row["round"] for row in rows if "gap" in row] == wanted
    assert list(seen) == rows
    for row, full in zip(rows, all_rows, strict=True):
        assert row == {key: value for key, value in full.items() if key in row}
        assert set(full) - set(row) == (set() if row["round"] in wanted else {"gap", "primal"})


@pytest.mark.parametrize("stop", [1, *(pytest.param(stop, marks=pytest.mark.slow) for stop in (2, 3))])
def test_a_resumed_run_is_evaluated_in_the_same_rounds(trainer, stop):
    """Even if the first row after the resume has fewer figures than the file has columns."""
    settings = {"rounds": 6, "evaluate_every": 3, "checkpoint_every": 1}
    whole = trainer("whole", **settings).fit()
    first = trainer("part", **settings)
    first.loggers = [SimpleNamespace(log=lambda row: row["round"] == stop - 1 and signal.raise_signal(signal.SIGINT))]
    assert len(first.fit()) == stop
    second = trainer("part", **settings)
    assert second.fit(load_checkpoint(first.checkpoint)) == whole
    files = [made.checkpoint.with_name("metrics.csv").read_text() for made in (trainer("whole", **settings), second)]
    assert files[0] == files[1]
