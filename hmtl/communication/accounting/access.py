"""Access links: the rates and the latency with which each node is connected, from a file. K users, H relays.

Each node has one link: that of a relay leads to the server and to its users, and users of the same host share its link.
A transfer takes the latencies of both ends, and no end carries more than its rate. `Access.seconds` is the time of a
round.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
import yaml
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hmtl.communication.accounting.ledger import TIERS
from hmtl.errors import ConfigError
from hmtl.topology import Topology

Rate = Annotated[float, Field(ge=1e-6, allow_inf_nan=False)]  # bit/s; with less, times would not be finite
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
T = TypeVar("T")


class Link(BaseModel):
    """What a node sends and receives at most, and its share of a path's latency."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    up_bps: Rate
    down_bps: Rate
    latency_s: Seconds


class HostLink(Link):
    """The link of a host; None: its only user has its name."""

    users: tuple[int | str, ...] | None = None


class LinkFile(BaseModel):
    """The content of a file of links, by name or number."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    server: Link
    relays: dict[int | str, Link]
    hosts: dict[int | str, HostLink]


@dataclass(frozen=True)
class Paths:
    """Who sends to whom in a round.

    Attributes:
        near: the users within range of each relay that takes part [H, K].
        heard: the users whose rows each relay hears [H, K].
        served: the share of what each user receives that each relay sends it [H, K].
        turns: how often nodes wait for messages of each tier [4].
    """

    near: NDArray[np.uint8]
    heard: NDArray[np.uint8]
    served: NDArray[np.float64]
    turns: NDArray[np.int64]


@dataclass(frozen=True)
class Access:
    """The access links of a network.

    Attributes:
        links: bit/s up and down, and seconds, of the links of the server, of relays and of hosts [1 + H + N, 3].
        homes: the host of each user [K].
    """

    links: NDArray[np.float64]
    homes: NDArray[np.int64]

    def seconds(self, bits: Mapping[str, ArrayLike], paths: Paths) -> float:
        """Return the time of a round [s]: on each tier, that of the busiest node and the latencies, summed over tiers.

        T = Σ_tier (max over nodes of bits on the node's link / its rate + turns · max over hops of their latency)

        The nodes of a tier are those that send and those that receive. A user's row leaves once for each relay that
        hears it, through the link that all users of its host share. A broadcast of the server leaves once, and arrives
        at all relays; one of a relay leaves once, and arrives once at each host of users whom the relay serves. Nodes
        wait for each other on every tier, and computing takes no time.

        Args:
            bits: of each tier by link, as a ledger counts them.
            paths: who sent to whom.
        """
        H, K = paths.near.shape
        rows, up, down, last = (np.asarray(bits[tier], np.float64) for tier in TIERS)
        server, relays, hosts = np.split(self.links, [1, 1 + H])
        at_home = np.equal.outer(self.homes, np.arange(len(hosts)))  # [K, N]
        acting = paths.near.any(axis=1)
        heard, served = paths.heard * rows, paths.served * last[:K]
        cast = last[K:] @ ((paths.served > 0) @ at_home)  # to each host
        busy = [  # bits on links, and their rates, of those who send and of those who receive
            ((heard.sum(axis=0) @ at_home, hosts[:, 0]), (heard.sum(axis=1), relays[:, 1])),
            ((up, relays[:, 0]), (up.sum(), server[:, 1])),
            ((down.sum(), server[:, 0]), (down[:H] + down[H] * acting, relays[:, 1])),
            ((served.sum(axis=1) + last[K:], relays[:, 0]), (served.sum(axis=0) @ at_home + cast, hosts[:, 1])),
        ]
        within = np.where(paths.near @ at_home > 0, np.add.outer(relays[:, 2], hosts[:, 2]), 0.0)
        between = np.where(acting, relays[:, 2] + server[:, 2], 0.0)
        hops = [within.max(), between.max(), between.max(), within.max()]
        slowest = [max(float((each / rates).max()) for each, rates in ends) for ends in busy]
        return sum(slowest) + float(np.dot(paths.turns, hops))


def read_links(path: str | Path) -> LinkFile:
    """Return the content of a file of links; raise ConfigError if it is not one."""
    try:
        return LinkFile.model_validate(yaml.safe_load(Path(path).read_text()))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise ConfigError(
            f"{path}: {place}: {first['msg'][0].lower()}{first['msg'][1:]}. Correct this entry."
        ) from None
    except Exception as error:  # of the system, of YAML, or of characters
        raise ConfigError(f"{path} cannot be read ({' '.join(str(error).split())}). Give a YAML file.") from error


def access_of(file: LinkFile, t: Topology, path: str) -> Access:
    """Return the access links of a network; raise ConfigError if one of its relays or users has none."""
    relays = [_of("relay", t.names.relay(i), file.relays, path) for i in range(t.H)]
    hosts = dict(enumerate(file.hosts.items()))
    home = {user: n for n, (name, host) in hosts.items() for user in ((name,) if host.users is None else host.users)}
    homes = [_of("user", t.names.user(k), home, path) for k in range(t.K)]
    links = [[each.up_bps, each.down_bps, each.latency_s] for each in (file.server, *relays, *file.hosts.values())]
    return Access(np.array(links), np.array(homes))


def _of(what: str, name: str | int, known: Mapping[Any, T], path: str) -> T:
    found = known.get(name, known.get(str(name)))
    if found is None:
        raise ConfigError(f"{path} has no link of {what} {name}. Add it to this file.")
    return found
