"""The deployment of a run in the field: a YAML file that all nodes share, with names, addresses, users and settings."""

import hashlib
import json
import re
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Self

import numpy as np
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PrivateAttr, ValidationError, model_validator
from yaml import YAMLError

from hmtl.communication.messages import SERVER, host_name, relay_name
from hmtl.distributed.certificates import Files, load_credentials
from hmtl.distributed.dialing import Party
from hmtl.distributed.identity import Credentials
from hmtl.distributed.mail import Homes, shared_evenly
from hmtl.errors import ConfigError, did_you_mean, few


def _name(value: Any) -> str:
    if value == "ca" or not re.fullmatch(r"(?=.{1,63}$)[a-z0-9]([a-z0-9.-]*[a-z0-9])?", str(value)):
        raise ValueError(
            "a name consists of at most 63 lower-case letters, digits, hyphens and dots, as certificates have it, and "
            "is not ca"
        )
    return str(value)


def _address(value: Any) -> str:
    match = re.fullmatch(r"(\[[0-9a-fA-F:]+\]|[^\s:/\[\]]+):(\d{1,5})", str(value))
    if not match or not 0 < int(match[2]) < 2**16:
        raise ValueError("write the address as host:port, such as relay-0.example.org:4700 or 10.0.0.2:4700")
    return str(value)


def _users(value: Any) -> tuple[int, ...]:
    users: list[int] = []
    for word in value if isinstance(value, list) else str(value).split(","):
        match = re.fullmatch(r"(\d{1,7})(?:-(\d{1,7}))?", str(word).strip())  # at most as many as a topology may have
        if not match or int(match[2] or match[1]) < int(match[1]):
            raise ValueError(
                "write users as 7, as a range such as 0-9, or as a list of these such as [0-4, 7], up to 9999999"
            )
        users += range(int(match[1]), int(match[2] or match[1]) + 1)
    if not users:
        raise ValueError("each host needs at least one user; remove the host, or leave out users at all hosts")
    return tuple(sorted(users))


def _serial(value: Any) -> int:
    if not isinstance(value, str) or not re.fullmatch(r"[0-9a-fA-F]+", value):
        raise ValueError("write the serial number in quotes, as python -m hmtl.certificates prints it")
    return int(value, 16)


WRONG_TYPES = {
    "missing": "is missing; set it",
    "tuple_type": "is not a list; write each entry on a line that begins with -",
    "model_type": "has no keys; write it as in docs/guide/six_boxes.md, such as name: relay-0",
    "too_short": "is empty; give at least one",
    "path_type": "is not a path; write the name of a folder",
    "invalid_key": "is not a key of this file; remove it",
}
"""What is wrong and what to do, by pydantic's names of such errors."""
Address = Annotated[str, BeforeValidator(_address)]


class NamedNode(BaseModel):
    """A node of a deployment; the others know it by its name, which its certificate holds."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: Annotated[str, BeforeValidator(_name)]


class ListeningNode(NamedNode):
    """The server or a relay.

    Attributes:
        address: host:port at which the other nodes reach it.
        listen: host:port at which it listens, if its own machine knows it by another address.
    """

    address: Address
    listen: Address | None = None

    @property
    def listens_at(self) -> str:
        """Where it listens: at its address, or on all networks if that is a name, as that may be loopback here."""
        host, _, port = self.address.rpartition(":")
        is_name = host != "localhost" and not re.fullmatch(r"[\d.]+|\[.*\]", host)
        return self.listen or (f"[::]:{port}" if is_name else self.address)


class HostNode(NamedNode):
    """A host; `users` are the numbers of its users, None if all hosts share the users evenly."""

    users: Annotated[tuple[int, ...], BeforeValidator(_users)] | None = None


class Deployment(BaseModel):
    """All nodes of a site, and what they share; `read` makes it from a file.

    Attributes:
        server, relays, hosts: the nodes.
        certificates: folder with the node's certificate and key, and with `ca.pem`.
        revoked: serial numbers of certificates that are trusted no more.
        training: settings of `hmtl.train` that all nodes share, as on its command line.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    server: ListeningNode
    relays: Annotated[tuple[ListeningNode, ...], Field(min_length=1)]
    hosts: Annotated[tuple[HostNode, ...], Field(min_length=1)]
    certificates: Path = Path("certs")
    revoked: tuple[Annotated[int, BeforeValidator(_serial)], ...] = ()
    training: tuple[str, ...] = ()
    _file: Path = PrivateAttr()

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """Return the deployment in a file; a relative folder of certificates is beside the file.

        Raises:
            ConfigError: the file is missing, cannot be read, or contradicts itself.
        """
        try:
            content: Any = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
            deployment = cls.model_validate(content or {})
        except OSError as error:
            raise ConfigError(
                f"deployment={path}: {error.strerror or 'it has no settings'}. Set it to the file of the site, see "
                "docs/guide/six_boxes.md."
            ) from error
        except ValidationError as error:
            raise ConfigError(f"deployment={path}: {_first(error)}") from error
        except (YAMLError, OmegaConfBaseException, UnicodeDecodeError) as error:
            raise ConfigError(f"deployment={path} cannot be read as YAML ({' '.join(str(error).split())}).") from error
        deployment._file = Path(path)
        return deployment.model_copy(update={"certificates": Path(path).parent / deployment.certificates})

    @model_validator(mode="after")
    def _check(self) -> Self:
        for what, values in (
            ("the name", [node.name for node in self.nodes.values()]),
            ("the address", [node.address for node in (self.server, *self.relays)]),
            ("user", [user for host in self.hosts for user in host.users or ()]),
        ):
            if twice := [value for value, times in Counter(values).items() if times > 1]:
                raise ValueError(f"{what} {twice[0]} is there twice; each belongs to one node")
        placed = {user for host in self.hosts for user in host.users or ()}
        if placed and (without := [host.name for host in self.hosts if host.users is None]):
            raise ValueError(f"{without[0]} has no users, but other hosts have: give users to all hosts, or to none")
        if missing := [str(user) for user in range(max(placed, default=-1)) if user not in placed]:
            raise ValueError(f"no host has the users {few(missing)}: users are numbered from 0 without gaps")
        return self

    @property
    def nodes(self) -> dict[str, NamedNode]:
        """All nodes by the names that a run gives them: the server, relay 0, relay 1, ..., host 0, ..."""
        relays = {relay_name(i): node for i, node in enumerate(self.relays)}
        return {SERVER: self.server, **relays, **{host_name(n): node for n, node in enumerate(self.hosts)}}

    def role(self, name: str) -> str:
        """Return the name that a run gives to the node `name`, such as "relay 3", or raise ConfigError."""
        roles = {node.name: role for role, node in self.nodes.items()}
        if name not in roles:
            raise ConfigError(f"name={name} is not a node of the deployment. Choose one of {', '.join(roles)}.")
        return roles[name]

    def named(self, text: str) -> str:
        """Return a text with the nodes' own names in place of "relay 3" and the like."""
        nodes = self.nodes
        return re.sub(r"\b(relay|host) \d+\b", lambda each: nodes[each[0]].name if each[0] in nodes else each[0], text)

    def hosts_beside(self, H: int) -> int:
        """Return the number of hosts; raise ConfigError if the deployment is for another number of relays than H."""
        if len(self.relays) != H:
            raise ConfigError(
                f"the deployment has {len(self.relays)} relays, but the topology has H={H}. Set H under training, or "
                "add or remove relays."
            )
        return len(self.hosts)

    def homes(self, K: int) -> Homes:
        """Return the users of each host, in ascending order.

        Raises:
            ConfigError: the deployment is for another number of users.
        """
        placed = sum(len(host.users or ()) for host in self.hosts)
        if placed and placed != K:
            raise ConfigError(
                f"the deployment's hosts have {placed} users, but the run has K={K}. Set K under training, or users."
            )
        if placed:
            return {host_name(n): np.array(host.users) for n, host in enumerate(self.hosts)}
        return shared_evenly(len(self.hosts), K)

    def agreed(self, settings: str) -> str:
        """Return a hash of what all nodes share: their settings, and the names and users of all nodes."""
        nodes = {role: node.model_dump(include={"name", "users"}) for role, node in self.nodes.items()}
        return hashlib.sha256(json.dumps([settings, nodes]).encode()).hexdigest()

    def party(self, role: str, settings: str) -> Party:
        """Return a node, such as "relay 3", among all; raise ConfigError if its certificate cannot be used."""
        nodes, name = self.nodes, self.nodes[role].name
        files = [self._file, *(self.certificates / each for each in (f"{name}.key", f"{name}.pem", "ca.pem"))]
        listening = {each: node for each, node in nodes.items() if isinstance(node, ListeningNode)}
        return Party(
            role,
            list(nodes),
            {each: node.name for each, node in nodes.items()},
            listening[role].listens_at if role in listening else None,
            {each: node.address for each, node in listening.items()},
            Files(files, partial(self._credentials, name)).present,
            self.agreed(settings),
        )

    def _credentials(self, name: str) -> Credentials:
        """Return the credentials of a node, and what is revoked at present."""
        return replace(load_credentials(self.certificates, name), revoked=frozenset(self.read(self._file).revoked))


def _first(error: ValidationError) -> str:
    """Return one line on what is wrong: first an unknown key, which may be a misspelled one that is missing."""
    errors = error.errors(include_url=False)
    first = next((each for each in errors if each["type"] == "extra_forbidden"), errors[0])
    place = ".".join(map(str, first["loc"])) or "the file"
    if first["type"] == "extra_forbidden":
        part, *inside = first["loc"]
        known = (HostNode if part == "hosts" else ListeningNode if inside else Deployment).model_fields
        remedy = did_you_mean(str(first["loc"][-1]), known, f"Choose from {', '.join(known)}.")
        return f"{place} is not a key of this file. {remedy}"
    value = f"={first['input']}" if isinstance(first["input"], str | int | float) else ""
    if first["type"] in WRONG_TYPES:
        return f"{place}{value} {WRONG_TYPES[first['type']]}."
    if first["type"] == "string_type" and first["loc"][0] == "training":
        return f"{place}={first['input']} is not text; write settings as on a command line, such as - K=20."
    text = first["msg"].removeprefix("Value error, ")
    return f"{place}{value}: {text[0].lower()}{text[1:]}." if first["loc"] else f"{text[0].lower()}{text[1:]}."
