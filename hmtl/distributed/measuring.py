"""Measuring the links of a running site: latency and throughput between neighbours, over the streams of the run.

The server leads. Each experiment is a set of flows that begin at the same time. A flow is two messages of some bytes,
whose receiver measures the time between them, so that clocks need not agree; a flow of no bytes is an exchange of short
messages, whose sender measures the time. First each pair is measured alone, then each node with all others at once,
which shows what its own link can carry.
"""

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from scipy.optimize import nnls

from hmtl.communication.accounting.access import KEYS, USERS_SIDE
from hmtl.communication.messages import IVS, MODELS, SERVER
from hmtl.distributed.control import Control
from hmtl.distributed.frames import CONTROL, HOSTS, RELAYS, Frame, role
from hmtl.distributed.peers import Peers
from hmtl.errors import EngineError

Flow = tuple[str, str, int]  # sender, receiver, bytes
Pair = tuple[str, str]
LEAST, LARGEST = 1 << 17, 1 << 25  # bytes of a message
ENOUGH = 0.8  # seconds between two messages, measured well enough
PINGS = 8


def take_part(control: Control) -> None:
    """Play the flows that the server asks for, until it asks for no more.

    Raises:
        EngineError: a node is lost.
    """
    while flows := control.receive_from_leader()["flows"]:
        seconds = _play(control.peers, flows)
        control.send(SERVER, {"seconds": [[*pair, value] for pair, value in seconds.items()]})


def measure(control: Control, names: Sequence[str]) -> dict[Pair, float]:
    """Return bits per second by sender and receiver, and seconds there and back for the sender "ping SENDER".

    With the receiver "all", it is what a node sends to all neighbours at once; with the sender "all", what it receives.

    Args:
        control: that of the server.
        names: all other nodes.

    Raises:
        EngineError: a node is lost.
    """

    def run(flows: Sequence[Flow]) -> dict[Pair, float]:
        control.broadcast({"flows": list(flows)})
        seconds = _play(control.peers, flows)
        for name in names:
            answer = control.wait_for(name, "seconds", name, 120.0)["seconds"]
            seconds |= {(sender, receiver): value for sender, receiver, value in answer}
        return seconds

    relays, hosts = ([name for name in names if role(name) == kind] for kind in (RELAYS, HOSTS))
    pairs = [(a, b) for a in [SERVER] for b in relays] + [(i, host) for i in relays for host in hosts]
    rates: dict[Pair, float] = {}
    sizes: dict[Pair, int] = {}
    for a, b in pairs:
        rates[f"ping {a}", b] = run([(a, b, 0)])[a, b]
        for sender, receiver in ((a, b), (b, a)):
            nbytes, gap = LEAST, 0.0
            while gap < ENOUGH and nbytes <= LARGEST:
                gap, nbytes = run([(sender, receiver, nbytes)])[sender, receiver], nbytes * 4
            sizes[sender, receiver] = nbytes // 4
            rates[sender, receiver] = 2 * nbytes / gap
    for center, others in [(SERVER, relays), *((i, hosts) for i in relays), *((host, relays) for host in hosts)]:
        for out in (True, False):
            flows = [(center, other) if out else (other, center) for other in others]
            wanted = max(sizes[flow] / rates[flow] for flow in flows)  # so that all of them take as long
            gaps = run([(*flow, int(wanted * rates[flow])) for flow in flows])
            total = sum(8 * int(wanted * rates[flow]) / gaps[flow] for flow in flows)
            rates[(center, "all") if out else ("all", center)] = total
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
    table: dict[str, Any] = {"server": row(KEYS, *port(SERVER, near), 0.0), "relays": {}, "hosts": {}}
    for name, i in zip(relays, near, strict=True):
        link = row(KEYS, rates[i, SERVER], rates[SERVER, i], rates[f"ping {SERVER}", i] / 2)
        table["relays"][name] = link | row(USERS_SIDE, *port(i, far), latency[i])
    for (name, users), host in zip(hosts.items(), far, strict=True):
        table["hosts"][name] = row(KEYS, *port(host, near), latency[host]) | {"users": list(users)}
    return table


def _play(peers: Peers, flows: Sequence[Flow]) -> dict[Pair, float]:
    """Play this node's part in some flows, and return the seconds that it measured."""
    me = peers.name
    with ThreadPoolExecutor(max(1, len(flows))) as threads:
        for sender, receiver, nbytes in flows:
            if sender == me and nbytes:
                for _ in range(2):
                    _send(peers, receiver, nbytes)
        results = {
            (sender, receiver): threads.submit(_gap if nbytes else _ping, peers, sender, receiver)
            for sender, receiver, nbytes in flows
            if receiver == me or (sender == me and not nbytes)
        }
        seconds = {pair: each.result() for pair, each in results.items()}
    return {pair: value for pair, value in seconds.items() if value}


def _gap(peers: Peers, sender: str, receiver: str) -> float:
    """Return the seconds between two messages."""
    _receive(peers, sender)
    start = time.monotonic()
    _receive(peers, sender)
    return time.monotonic() - start


def _ping(peers: Peers, sender: str, receiver: str) -> float:
    """Return the least seconds there and back at the sender; 0 at the receiver, which answers."""
    times = []
    for _ in range(PINGS):
        start = time.monotonic()
        if peers.name == sender:
            _send(peers, receiver, 1)
            _receive(peers, receiver)
        else:
            _receive(peers, sender)
            _send(peers, sender, 1)
        times.append(time.monotonic() - start)
    return min(times) if peers.name == sender else 0.0


def _send(peers: Peers, to: str, nbytes: int) -> None:
    kind = {(RELAYS, HOSTS): MODELS, (HOSTS, RELAYS): IVS}.get((role(peers.name), role(to)), CONTROL)
    peers.connections[to].send(Frame(kind, peers.round, torch.zeros(1, nbytes, dtype=torch.uint8)))


def _receive(peers: Peers, sender: str) -> None:
    if peers.connections[sender].receive(120.0) is None:
        raise EngineError(f"{sender} sent nothing for 120 s while links were measured. Start all nodes again.")
