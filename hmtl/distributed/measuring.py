"""Measuring the links of a running site: latency and throughput between neighbours, over the streams of the run.

The server leads. Each experiment is a set of flows that begin at the same time. A flow is a series of messages, whose
receiver notes when each arrives, so that clocks need not agree; a flow of no bytes is an exchange of short messages,
whose sender measures the time. First each pair is measured alone, then each node with all others at once, which shows
what its own link can carry.
"""

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from scipy.optimize import nnls

from hmtl.communication.messages import IVS, MODELS, SERVER
from hmtl.distributed.control import Control
from hmtl.distributed.frames import CONTROL, HOSTS, RELAYS, Frame, role
from hmtl.distributed.peers import Peers
from hmtl.errors import EngineError

Flow = tuple[str, str, int]  # sender, receiver, bytes of a message
Pair = tuple[str, str]
Seen = tuple[float, float, float]  # of a flow: bits per second, when the first and the last message arrived
MESSAGES = 16  # of a flow
LEAST, LARGEST = 1 << 13, 1 << 22  # bytes of a message
LASTING = 1.5  # seconds of a flow that is measured well enough
PINGS = 8
WAIT = 120.0  # seconds for a node to answer


def take_part(control: Control) -> None:
    """Play the flows that the server asks for, until it asks for no more.

    Raises:
        EngineError: a node is lost.
    """
    while flows := control.receive_from_leader()["flows"]:
        seen = _play(control.peers, flows)
        control.send(SERVER, {"seen": [[*pair, *each] for pair, each in seen.items()]})


def measure(control: Control, names: Sequence[str]) -> dict[Pair, float]:
    """Return bits per second by sender and receiver, and seconds there and back for the sender "ping SENDER".

    With the receiver "all", it is what a node sends to all neighbours at once; with the sender "all", what it receives.

    Args:
        control: that of the server.
        names: all other nodes.

    Raises:
        EngineError: a node is lost.
    """

    def run(flows: Sequence[Flow]) -> dict[Pair, Seen]:
        control.broadcast({"flows": list(flows)})
        seen = _play(control.peers, flows)
        for name in names:
            answer = control.wait_for(name, "seen", name, WAIT)["seen"]
            seen |= {(each[0], each[1]): tuple(each[2:]) for each in answer}
        return seen

    def size(rate: float) -> int:
        return int(min(max(rate * LASTING / 8 / MESSAGES, LEAST), LARGEST))

    relays, hosts = ([name for name in names if role(name) == kind] for kind in (RELAYS, HOSTS))
    rates: dict[Pair, float] = {}
    for a, b in [*((SERVER, i) for i in relays), *((i, host) for i in relays for host in hosts)]:
        rates[f"ping {a}", b] = run([(a, b, 0)])[a, b][2]
        for pair in ((a, b), (b, a)):
            about = run([(*pair, LEAST)])[pair][0]
            rates[pair] = run([(*pair, size(about))])[pair][0]
    for center, others in [(SERVER, relays), *((i, hosts) for i in relays), *((host, relays) for host in hosts)]:
        for out in (True, False):
            flows = [(center, other) if out else (other, center) for other in others]
            seen = run([(*pair, size(rates[pair])) for pair in flows]).values()
            bits = sum(8 * (MESSAGES - 1) * size(rates[pair]) for pair in flows)
            seconds = max(last for _, _, last in seen) - min(first for _, first, _ in seen)
            rates[(center, "all") if out else ("all", center)] = bits / seconds
    control.broadcast({"flows": []})
    return rates


def as_table(rates: Mapping[Pair, float], relays: Sequence[Any], hosts: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
    """Return measured rates as the content of a file of access links, see `hmtl.communication.accounting.access`.

    The latency between relay and host is that of both, which add up as closely as they can.

    Args:
        rates: what `measure` returned.
        relays: names or numbers of the relays.
        hosts: names or numbers of the users of each host.
    """
    nodes = [*(f"relay {i}" for i in range(len(relays))), *(f"host {n}" for n in range(len(hosts)))]
    near, far = nodes[: len(relays)], nodes[len(relays) :]

    def port(node: str, others: Sequence[str]) -> list[float]:
        """Return what a node sends and receives at most, as far as its neighbours can show."""
        out, into = ([(node, other) for other in others], [(other, node) for other in others])
        return [max(rates[flow] for flow in flows) for flows in ([*out, (node, "all")], [*into, ("all", node)])]

    def row(keys: Sequence[str], *values: float) -> dict[str, float]:
        return {key: float(f"{value:.4g}") for key, value in zip(keys, values, strict=True)}

    incidence = np.array([[float(node in (i, host)) for node in nodes] for i in near for host in far])
    paths = np.array([rates[f"ping {i}", host] / 2 for i in near for host in far])
    latency = dict(zip(nodes, nnls(incidence, paths)[0].tolist(), strict=True))
    link, users_side = ("up_bps", "down_bps", "latency_s"), ("to_users_bps", "from_users_bps", "users_latency_s")
    table: dict[str, Any] = {"server": row(link, *port(SERVER, near), 0.0), "relays": {}, "hosts": {}}
    for name, i in zip(relays, near, strict=True):
        own = row(link, rates[i, SERVER], rates[SERVER, i], rates[f"ping {SERVER}", i] / 2)
        table["relays"][name] = own | row(users_side, *port(i, far), latency[i])
    for (name, users), host in zip(hosts.items(), far, strict=True):
        table["hosts"][name] = row(link, *port(host, near), latency[host]) | {"users": list(users)}
    return table


def _play(peers: Peers, flows: Sequence[Flow]) -> dict[Pair, Seen]:
    """Play this node's part in some flows, and return what it measured."""
    me, start = peers.name, time.monotonic()
    with ThreadPoolExecutor(max(1, len(flows))) as threads:
        for sender, receiver, nbytes in flows:
            if sender == me and nbytes:
                for _ in range(MESSAGES):
                    _send(peers, receiver, nbytes)
        parts: dict[Pair, Future[Seen]] = {}
        for sender, receiver, nbytes in flows:
            if nbytes and receiver == me:
                parts[sender, receiver] = threads.submit(_arrivals, peers, sender, nbytes, start)
            elif not nbytes and sender == me:
                parts[sender, receiver] = threads.submit(_ping, peers, receiver)
            elif not nbytes and receiver == me:
                threads.submit(_answer, peers, sender)
        return {pair: part.result() for pair, part in parts.items()}


def _arrivals(peers: Peers, sender: str, nbytes: int, start: float) -> Seen:
    """Return the rate at which messages arrive: the slope of a line through their times."""
    times = [_receive(peers, sender) - start for _ in range(MESSAGES)]
    slope = float(np.polyfit(np.arange(MESSAGES), times, 1)[0])
    return 8 * nbytes / max(slope, 1e-9), times[0], times[-1]


def _ping(peers: Peers, receiver: str) -> Seen:
    """Return the least seconds there and back."""
    seconds = []
    for _ in range(PINGS):
        start = time.monotonic()
        _send(peers, receiver, 1)
        seconds.append(_receive(peers, receiver) - start)
    return 0.0, 0.0, min(seconds)


def _answer(peers: Peers, sender: str) -> None:
    for _ in range(PINGS):
        _receive(peers, sender)
        _send(peers, sender, 1)


def _send(peers: Peers, to: str, nbytes: int) -> None:
    kind = {(RELAYS, HOSTS): MODELS, (HOSTS, RELAYS): IVS}.get((role(peers.name), role(to)), CONTROL)
    peers.connections[to].send(Frame(kind, peers.round, torch.zeros(1, nbytes, dtype=torch.uint8)))


def _receive(peers: Peers, sender: str) -> float:
    """Return when the next message of a node arrives."""
    if peers.connections[sender].receive(WAIT) is None:
        raise EngineError(f"{sender} sent nothing for {WAIT:g} s while links were measured. Start all nodes again.")
    return time.monotonic()
