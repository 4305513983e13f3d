"""One node of the network experiment: a process of `run.py`, started with the variables of torchrun in its namespace.

It plays rounds with users who learn nothing: IVs are random bits, and the model of a user is the IV of another user, so
that each host can check every bit that it receives. The measurements are written as JSON to the given file.
"""

import argparse
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hmtl.communication import TIERS, CodedHierarchical, Communicator, Network, Sums, Uncoded
from hmtl.communication.messages import SERVER, Users
from hmtl.distributed.connections import Stream
from hmtl.distributed.control import Control
from hmtl.distributed.engine import TorchDistributed
from hmtl.distributed.frames import CONTROL, HEADER, RELAYS, Frame, role
from hmtl.distributed.links import ProcessLinks
from hmtl.distributed.multicast.group import Cast, Caster, Listener, Multicast
from hmtl.distributed.peers import Peers
from hmtl.distributed.placement import names_of
from hmtl.topology import Topology, any_r

SECONDS = 120.0  # to wait for a peer
SCHEMES: dict[str, Callable[..., Communicator]] = {
    "uncoded": Uncoded,
    "all relays": lambda *where, **how: CodedHierarchical(*where, aggregators="all", **how),
    "best aggregators": CodedHierarchical,
    "sums": lambda *where, **how: Sums(*where, sums="whole", aggregators="server", **how),
}
COUNTERS = ("tx_bytes", "tx_packets", "rx_bytes", "rx_packets")


class RandomUsers:
    """Users with random IVs, who check their models; see `hmtl.communication.nodes.host.UserSide`.

    Args:
        K: number of users.
        numbers: 64-bit numbers in an IV.
        mine: users of this host.
        sums: whether IVs are terms of a sum, which is every user's model.

    Attributes:
        correct: number of models that were correct in every bit.
    """

    def __init__(self, K: int, numbers: int, mine: Users, sums: bool) -> None:
        self.K, self.numbers, self.mine, self.sums = K, numbers, mine, sums
        self.row_bits, self.averages = (64 * numbers, 0, 0), None
        self.correct = 0

    def iv(self, user: int, round: int) -> Tensor:
        numbers = np.random.default_rng([user, round]).integers(0, 2**40, self.numbers)
        return torch.from_numpy(numbers).view(torch.int64 if self.sums else torch.float64)

    def local_update(self, round: int, idle: Users) -> tuple[Users, Tensor]:
        self.round = round
        return self.mine, torch.stack([self.iv(k, round) for k in self.mine.tolist()])

    def commit(self, users: Users) -> None: ...

    def roll_back(self, users: Users) -> None: ...

    def receive(self, users: Users, models: Tensor) -> None:
        total = sum(self.iv(k, self.round) for k in range(self.K)) if self.sums else None
        for k, model in zip(users.tolist(), models, strict=True):
            expected = self.iv(self.K - 1 - k, self.round) if total is None else total
            self.correct += torch.equal(model.view(torch.int64), expected.view(torch.int64))


class MirroringAggregator:
    """The aggregator of `RandomUsers`; see `hmtl.communication.nodes.aggregation.AggregatorSide`."""

    def update(self, users: Users, ivs: Tensor) -> Tensor:
        return ivs.flip(0)

    def state_dict(self) -> dict[str, Tensor]:
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None: ...


class TimedPeers(Peers):
    """Peers that record when each frame was handed over for sending, and when it had arrived.

    Args:
        peers: what they take over.
        group: this node's end of the multicast group, if it has one.
    """

    def __init__(self, peers: Peers, group: Caster | Listener | None) -> None:
        super().__init__(peers.name, peers.connections, SECONDS, group, peers._leave)
        self.sequences = dict.fromkeys(peers.connections, 0)
        self.sent: list[dict[str, Any]] = []

    def multicast(self, to: Sequence[str], frame: Frame) -> Cast | None:
        self.cast_at = time.monotonic()
        return super().multicast(to, frame)

    def send(self, to: str, frame: Frame, cast: Cast | None = None) -> None:
        sequence = self.sequences[to]
        self.sequences[to] += frame.kind != CONTROL  # as `record_arrivals` counts
        super().send(to, frame, cast)
        body = frame.payload.numel() + frame.overhead.numel() + 4 * (0 if frame.users is None else len(frame.users))
        record = {"receiver": to, "sequence": sequence, "kind": frame.kind, "bytes": HEADER + body}
        self.sent.append(record | {"at": self.cast_at if cast else time.monotonic()})

    def barrier(self, others: list[str]) -> None:
        """Wait until all nodes have arrived here."""
        if self.name != SERVER:
            self.send(SERVER, Frame(CONTROL, self.round))
            others = [SERVER]
        arrived = self.receive(CONTROL, others)
        if missing := set(others) - set(arrived):
            raise SystemExit(f"{self.name} did not hear {', '.join(sorted(missing))}")
        if self.name == SERVER:
            for name in others:
                self.send(name, Frame(CONTROL, self.round))


def record_arrivals() -> list[dict[str, Any]]:
    """Return a list to which each frame is added from now on, once it has arrived completely."""
    received: list[dict[str, Any]] = []
    counts: Counter[str] = Counter()
    take = Stream._frame

    def timed(stream: Stream, incoming: Iterator[bytes]) -> Frame:
        frame, sender = take(stream, incoming), stream.connection.name
        if frame.kind != CONTROL:
            received.append({"sender": sender, "sequence": counts[sender], "at": time.monotonic()})
            counts[sender] += 1
        return frame

    Stream._frame = timed  # type: ignore[method-assign]  # timed from outside: the engine notes no arrivals
    return received


def join_group(medium: str, peers: Peers) -> Caster | Listener | None:
    """Return this node's end of the multicast group, if it has one."""
    control, relays = Control(peers), [name for name in peers.connections if role(name) == RELAYS]
    if medium == "broadcast" and peers.name == SERVER:
        caster = Caster(Multicast(), os.environ["MASTER_ADDR"], Network().W2)
        for name in relays:
            control.send(name, {"invitation": caster.invitation(peers.connections[name].rank)})
        return caster
    if medium == "broadcast" and role(peers.name) == RELAYS:
        return Listener(Multicast(), control.wait_for(SERVER, "invitation", SERVER, SECONDS)["invitation"])
    return None


def counters() -> dict[str, dict[str, int]]:
    """Return the kernel's counters of each device of this namespace, and of all its multicast packets."""
    devices = {
        device.name: {name: int((device / "statistics" / name).read_text()) for name in COUNTERS}
        for device in Path("/sys/class/net").iterdir()
        if device.name.startswith("hop")
    }
    lines = [line.split() for line in Path("/proc/net/netstat").read_text().splitlines()]
    names, values = (line for line in lines if line[0] == "IpExt:")
    count = dict(zip(names, values, strict=True))
    return devices | {"multicast": {"tx_packets": int(count["OutMcastPkts"]), "rx_packets": int(count["InMcastPkts"])}}


def rounds(arguments: argparse.Namespace, topology: Topology) -> Iterator[dict[str, Any]]:
    """Play all rounds of all schemes, and yield the measurements of each."""
    K, H, rank, size = topology.K, topology.H, int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    homes = np.array_split(np.arange(K), size - 1 - H)
    names = names_of(size, H)
    me = names[rank]
    # threads that carry frames have priority over all others, as a network card would
    os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    received = record_arrivals()
    connected = TorchDistributed(SECONDS)._connect(names, "network")
    peers = TimedPeers(connected, join_group(arguments.medium, connected))
    network, number = Network(medium=arguments.medium), 0
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    for scheme in arguments.schemes.split(","):
        communicator = SCHEMES[scheme](
            topology, network, links=lambda ledger: ProcessLinks(ledger, peers, topology, homes)
        )
        mine = homes[rank - 1 - H] if rank > H else np.empty(0, np.int64)
        users, aggregator = RandomUsers(K, arguments.bytes // 8, mine, scheme == "sums"), MirroringAggregator()
        for repetition in range(arguments.rounds + 1):  # the first round compiles and plans
            peers.barrier(names[1:])
            peers.sent.clear()
            received.clear()
            users.correct, before, start = 0, counters(), time.monotonic()
            communicator.round(number, users, aggregator)
            end = time.monotonic()
            peers.barrier(names[1:])
            ledger, after = communicator.ledger, counters()
            yield {
                "node": me,
                "scheme": scheme,
                "repetition": repetition,
                "start": start,
                "end": end,
                "correct": users.correct,
                "compute": communicator.stopwatch.seconds,
                "sent": [frame for frame in peers.sent if frame["kind"] != CONTROL],
                "received": list(received),
                "ledger": {tier: (ledger.per_link(tier, -1).sum(axis=1) // 8).tolist() for tier in TIERS},
                "kernel": {
                    device: {name: after[device][name] - count for name, count in counts.items()}
                    for device, counts in before.items()
                },
            }
            number += 1
    peers.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("report", type=Path)
    for name in ("K", "H", "r", "seed", "bytes", "rounds"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--medium", required=True)
    parser.add_argument("--schemes", required=True)
    arguments = parser.parse_args()
    topology = any_r(arguments.K, arguments.H, arguments.r, arguments.seed)
    arguments.report.write_text(json.dumps(list(rounds(arguments, topology))))


if __name__ == "__main__":
    main()
