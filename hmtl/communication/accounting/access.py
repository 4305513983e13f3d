"""Access links: the rates and the latency with which each node is connected, from a file. K users, H relays.

A relay may have two access links, one towards the server and one towards the users. Users of the same host share its
link. A transfer takes the latencies of both ends, and no end carries more than its rate.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hmtl.errors import ConfigError
from hmtl.topology import Topology

KEYS = ("up_bps", "down_bps", "latency_s")
"""What a node sends at most [bit/s], what it receives at most [bit/s], and its share of a path's latency [s]."""
USERS_SIDE = ("to_users_bps", "from_users_bps", "users_latency_s")
"""The same of a relay towards its users; by default, it has one link for both."""
LEAST_BPS = 1e-6  # with less, times would not be finite


@dataclass(frozen=True)
class Access:
    """The access links of a network.

    Attributes:
        links: [n, 3] the values of KEYS of each link: of the server, of relays towards the server, of relays towards
            their users, and of hosts.
        ports: the link of each node in that order [1 + 2H + hosts]; one relay's two may be the same.
        homes: the host of each user [K].
    """

    links: NDArray[np.float64]
    ports: NDArray[np.int64]
    homes: NDArray[np.int64]


def read_access(path: str | Path) -> dict[str, Any]:
    """Return the content of a file of access links: server, relays by name, and hosts by name with their users.

    Raises:
        ConfigError: the file cannot be read, lacks a part, or has an impossible value.
    """
    from omegaconf import OmegaConf  # late: most networks have no such file

    try:
        table: Any = OmegaConf.to_container(OmegaConf.load(path))
    except Exception as error:  # of the system, of YAML, or of characters
        raise ConfigError(f"{path} cannot be read ({' '.join(str(error).split())}). Give a YAML file.") from error
    if not isinstance(table, dict) or set(table) != {"server", "relays", "hosts"}:
        raise ConfigError(f"{path}: the file needs the parts server, relays and hosts, and no others. Add them.")
    for name, part in (("server", {"server": table["server"]}), *((each, table[each]) for each in ("relays", "hosts"))):
        further = {"relays": USERS_SIDE, "hosts": ("users",)}.get(name, ())
        for node, link in part.items() if isinstance(part, dict) else [(name, None)]:
            wrong = "is no list of settings"
            if isinstance(link, dict):
                lacking = sorted(set(KEYS) - set(link)) or sorted(set(link) - {*KEYS, *further})
                wrong = f"lacks or does not know {', '.join(map(str, lacking))}" if lacking else _impossible(link)
            if wrong:
                raise ConfigError(f"{path}: {node} {wrong}. It needs {', '.join(KEYS)}, rates in bit/s and seconds.")
    return table


def _impossible(link: Mapping[str, Any]) -> str:
    for key, value in link.items():
        least = 0.0 if key.endswith("_s") else LEAST_BPS
        if key != "users" and not (isinstance(value, int | float) and least <= value < float("inf")):
            return f"has {key}={value}"
    return ""


def access_of(table: Mapping[str, Any], t: Topology, path: str) -> Access:
    """Return the access links of a network from the content of a file.

    Raises:
        ConfigError: a relay or a user of the network is missing.
    """
    relays = [_of("relay", t.names.relay(i), table["relays"], path) for i in range(t.H)]
    home: dict[str, int] = {}
    for n, (name, host) in enumerate(table["hosts"].items()):
        users: Sequence[Any] = host.get("users", [name])
        home |= {str(user): n for user in users}
    homes = [_of("user", t.names.user(k), home, path) for k in range(t.K)]
    rows, ports = [[table["server"][key] for key in KEYS]], [0]
    rows += [[relay[key] for key in KEYS] for relay in relays]
    ports += range(1, 1 + t.H)
    for i, relay in enumerate(relays):
        apart = any(key in relay for key in USERS_SIDE)
        ports.append(len(rows) if apart else 1 + i)
        if apart:
            rows.append([relay.get(there, relay[key]) for there, key in zip(USERS_SIDE, KEYS, strict=True)])
    ports += range(len(rows), len(rows) + len(table["hosts"]))
    rows += [[host[key] for key in KEYS] for host in table["hosts"].values()]
    return Access(np.array(rows, dtype=np.float64), np.array(ports), np.array(homes))


def _of(what: str, name: str | int, known: Mapping[Any, Any], path: str) -> Any:
    found = known.get(name, known.get(str(name)))
    if found is None:
        raise ConfigError(f"{path} has no link of {what} {name}. Add it, or measure the links again.")
    return found
