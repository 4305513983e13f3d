"""Access links: the rates and the latency with which each node is connected, from a file. K users, H relays.

Each node has one link: that of a relay leads to the server and to its users, and users of the same host share its link.
A transfer takes the latencies of both ends, and no end carries more than its rate. `Access.seconds` is the time of a
round.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
import yaml
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hmtl.communication.accounting.ledger import TIERS
from hmtl.errors import ConfigError, did_you_mean
from hmtl.topology import Topology
from hmtl.topology.names import in_any_case

# descriptions are for messages; with lower rates, times would not be finite
Rate = Annotated[float, Field(ge=1e-6, allow_inf_nan=False, description="a rate in bit/s above 0, such as 1e7")]
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]  # of any currency
Seconds = Annotated[Amount, Field(description="a time in seconds, such as 0.01")]
Prices = Annotated[Amount | tuple[Amount, Amount], Field(description="a price such as 0.09, or two such as [0.09, 0]")]
T = TypeVar("T")


class Link(BaseModel):
    """What a node sends and receives at most, its share of a path's latency, and the price of 1e9 bytes.

    The price is that of sending and of receiving, or a list of both.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    up_bps: Rate
    down_bps: Rate
    latency_s: Seconds
    price_per_gb: Prices = 0.0


UNLIMITED = Link.model_construct(up_bps=inf, down_bps=inf, latency_s=0.0)


class HostLink(Link):
    """The link of a host; None: its only user has its name."""

    users: tuple[int | str, ...] | None = None


class LinkFile(BaseModel):
    """The content of a file of links, by name or number; without hosts, nothing limits the links of users."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    server: Link
    relays: dict[int | str, Link]
    hosts: dict[int | str, HostLink] | None = None


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
        names: of the nodes with these links.
        prices: of 1e9 bytes sent and received [1 + H + N, 2]; None: the file has none.
    """

    links: NDArray[np.float64]
    homes: NDArray[np.int64]
    names: Sequence[str] = ()
    prices: NDArray[np.float64] | None = None

    def seconds(self, bits: Mapping[str, ArrayLike], paths: Paths) -> float:
        """Return the time of a round [s]: on each tier, that of the busiest node and the latencies, summed over tiers.

        T = Σ_tier (max over nodes of bits on the node's link / its rate + turns · max over hops of their latency)

        The nodes of a tier are those that send and those that receive, see `crossing`. Nodes wait for each other on
        every tier, and computing takes no time.

        Args:
            bits: of each tier by link, as a ledger counts them.
            paths: who sent to whom.
        """
        server, relays, hosts = np.split(self.links, [1, 1 + len(paths.near)])
        at_home = np.equal.outer(self.homes, np.arange(len(hosts)))  # [K, N]
        within = np.where(paths.near @ at_home > 0, np.add.outer(relays[:, 2], hosts[:, 2]), 0.0)
        between = np.where(paths.near.any(axis=1), relays[:, 2] + server[:, 2], 0.0)
        hops = [within.max(), between.max(), between.max(), within.max()]
        slowest = (self.crossing(bits, paths) / self.links[:, :2]).max(axis=(1, 2))
        return float(sum(slowest.tolist()) + np.dot(paths.turns, hops))

    def crossing(self, bits: Mapping[str, ArrayLike], paths: Paths) -> NDArray[np.float64]:
        """Return the bits that each node sends and receives on its link, by tier [4, 1 + H + N, 2].

        A user's row leaves once for each relay that hears it, through the link that all users of its host share. A
        broadcast of the server leaves once, and arrives at all relays; one of a relay leaves once, and arrives once at
        each host of users whom the relay serves.

        Args:
            bits, paths: see `seconds`.
        """
        H, K = paths.near.shape
        rows, up, down, last = (np.asarray(bits[tier], np.float64) for tier in TIERS)
        heard, served = paths.heard * rows, paths.served * last[:K]
        at_home = np.equal.outer(self.homes, np.arange(len(self.links) - 1 - H))  # [K, N]
        crossing = np.zeros((len(TIERS), len(self.links), 2))
        server, relays, hosts = np.split(crossing, [1, 1 + H], axis=1)
        hosts[0, :, 0], relays[0, :, 1] = heard.sum(axis=0) @ at_home, heard.sum(axis=1)
        relays[1, :, 0], server[1, :, 1] = up, up.sum()
        server[2, :, 0], relays[2, :, 1] = down.sum(), down[:H] + down[H] * paths.near.any(axis=1)
        relays[3, :, 0] = served.sum(axis=1) + last[K:]
        hosts[3, :, 1] = served.sum(axis=0) @ at_home + last[K:] @ ((paths.served > 0) @ at_home)
        return crossing


def read_links(path: str | Path) -> LinkFile:
    """Return the content of a file of links; raise ConfigError if it is not one."""
    try:
        return LinkFile.model_validate(yaml.safe_load(Path(path).read_text()))
    except ValidationError as error:
        raise ConfigError(f"{path}: {_first(error)}") from None
    except Exception as error:  # of the system, of YAML, or of characters
        raise ConfigError(f"{path} cannot be read ({' '.join(str(error).split())}). Give a YAML file.") from error


def _first(error: ValidationError) -> str:
    """Return what is wrong in a file of links: first an unknown key, which may be a misspelled one that is missing."""
    errors = error.errors(include_url=False)
    first = next((each for each in errors if each["type"] == "extra_forbidden"), errors[0])
    place, msg = ".".join(map(str, first["loc"])), first["msg"]
    if first["type"] == "extra_forbidden":
        part, *inside = first["loc"]
        known = (HostLink if part == "hosts" else Link).model_fields if inside else LinkFile.model_fields
        remedy = did_you_mean(str(first["loc"][-1]), known, f"Choose from {', '.join(known)}.")
        return f"{place} is not a key of this file. {remedy}"
    for key, field in Link.model_fields.items():
        if key in first["loc"] and first["type"] != "missing":
            above = place.partition(f".{key}")[0]
            return f"{above}.{key} must be {field.description}, not {first['input']!r}. Correct this entry."
    return f"{place}: {msg[0].lower()}{msg[1:]}. Correct this entry."


def access_of(file: LinkFile, t: Topology, path: str) -> Access:
    """Return the access links of a network; raise ConfigError if one of its relays or users has none."""
    relay_names, given = [str(t.names.relay(i)) for i in range(t.H)], file.hosts
    hosts = {"users": UNLIMITED} if given is None else {f"host {name}": host for name, host in given.items()}
    home = {
        str(user): n
        for n, (name, host) in enumerate((given or {}).items())
        for user in ((name,) if host.users is None else host.users)
    }
    users = [str(t.names.user(k)) for k in range(t.K)]
    links = [file.server, *_each("relay", relay_names, file.relays, path), *hosts.values()]
    prices = np.array([np.broadcast_to(each.price_per_gb, 2) for each in links])
    return Access(
        np.array([[each.up_bps, each.down_bps, each.latency_s] for each in links]),
        np.zeros(t.K, np.int64) if given is None else np.array(_each("user", users, home, path)),
        ["server", *(name if t.names.relays else f"relay {name}" for name in relay_names), *hosts],
        prices if prices.any() else None,
    )


def _each(what: str, names: Iterable[str], known: Mapping[Any, T], path: str) -> list[T]:
    """Return what is known of nodes by their names, in any case; raise ConfigError if a node is missing."""
    find = in_any_case({str(name): value for name, value in known.items()})
    values = list[T]()
    for name in names:
        if (value := find(name)) is None:
            raise ConfigError(f"{path} has no link of {what} {name}. Add it to this file.")
        values.append(value)
    return values
