"""Secure sums of figures over processes: users mask their rows, hosts add them up, and the server unmasks the sum.

The steps are those of a round, see `hmtl.communication.secure.protocol`. Hosts and server exchange them directly, like
all measurements. A host that does not answer in time has dropped out with all its users. The server answers it, too: a
host that waits in vain would drop the next values of the server as late ones.

n users advertise keys, each has k neighbours; L numbers in a row.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hmtl.communication.messages import SERVER
from hmtl.communication.secure import protocol
from hmtl.communication.secure.neighbors import Secure
from hmtl.communication.secure.protocol import Bytes, MaskingUser, UnmaskingError, UnmaskingServer
from hmtl.distributed.control import Control
from hmtl.distributed.placement import Placement
from hmtl.mtl.algorithms.base import NOBODY, Ids

log = logging.getLogger(__name__)


class MaskingFigures:
    """A host in one round of measurements.

    Args:
        control: of this host.
        placement: who has which users.
        secure: settings of secure sums.
    """

    def __init__(self, control: Control, placement: Placement, secure: Secure) -> None:
        self._control, self._secure, self._K = control, secure, placement.K
        self._users = [MaskingUser(k) for k in placement.users.tolist()]
        self._fewest = 0  # users behind a sum
        self._has_masked = False

    def masked(self, rows: Tensor) -> Tensor | None:
        """Return the sum [L] of rows, int64 [users, L], with the mask of each; None: the server does not answer."""
        keys = np.stack([user.advertised for user in self._users])
        introduced = self._ask({"keys": torch.from_numpy(keys)}, "neighbors")
        if introduced.get("neighbors") is None:
            return None
        chosen = self._secure.degree(introduced["total"], self._K)
        if chosen is None:
            return None
        self._fewest = self._secure.fewest(introduced["total"], self._K)
        numbers, neighbor_keys = introduced["neighbors"].numpy(), introduced["neighbor keys"].numpy()
        sealed = [
            user.share(own, keys, chosen.threshold)
            for user, own, keys in zip(self._users, numbers, neighbor_keys, strict=True)
        ]
        passed_on = self._ask({"sealed": torch.from_numpy(np.array(sealed))}, "sealed").get("sealed")
        if passed_on is None:
            return None
        read = [user.take(own) for user, own in zip(self._users, passed_on.numpy(), strict=True)]
        told = self._ask({"read": torch.from_numpy(np.array(read, np.uint8))}, "shared").get("shared")
        if told is None:
            return None
        total = rows.sum(0)
        for user, shared in zip(self._users, told.numpy(), strict=True):
            total += torch.from_numpy(user.mask(shared, [(rows.shape[1], 64)])[0].view(np.int64))
        self._has_masked = True
        return total

    def reveal(self) -> None:
        """Reveal a share of one seed of each neighbour; none if too few users counted. Only after `masked`."""
        if not self._has_masked:
            return
        asked = self._control.receive([SERVER], key="counted").get(SERVER)
        if not asked or not asked["total"]:
            return
        shares: list[Bytes | None] = []
        if asked["total"] >= self._fewest:
            shares = [user.reveal(own) for user, own in zip(self._users, asked["counted"].numpy(), strict=True)]
        revealed = np.array([each for each in shares if each is not None])  # of all users or of none
        self._control.send(SERVER, {"revealed": torch.from_numpy(revealed)})

    def _ask(self, values: Mapping[str, Any], key: str) -> Mapping[str, Any]:
        """Return what the server answers; nothing if it does not."""
        self._control.send(SERVER, values)
        return self._control.receive([SERVER], key=key).get(SERVER, {})


class UnmaskingFigures:
    """The server in one round of measurements: first `introduce`, then `total`, once the hosts' sums have arrived.

    Args:
        control: of the server.
        placement: who has which users.
        secure: settings of secure sums.
    """

    def __init__(self, control: Control, placement: Placement, secure: Secure) -> None:
        self._control, self._placement, self._secure = control, placement, secure
        self._server: UnmaskingServer | None = None  # if there are enough users
        self._masking: list[str] = []  # the hosts that may send masked sums

    def introduce(self) -> None:
        """Choose neighbours for the users who advertise keys, and pass on what they share."""
        keys = self._receive(self._placement.hosts, "keys", protocol.KEYS)
        users, advertised = self._by_user(keys)
        n = len(users)
        chosen = self._secure.degree(n, self._placement.K)
        for name in self._placement.hosts:
            if chosen is None or name not in keys:
                self._control.send(name, {"neighbors": None})
        if chosen is None:
            return
        order = np.random.default_rng().permutation(n)
        self._server = server = UnmaskingServer(users, advertised, chosen, order)
        for name in keys:
            at = self._places(name)
            neighbors, neighbor_keys = (torch.from_numpy(each[at]) for each in (server.neighbors, server.keys))
            self._control.send(name, {"neighbors": neighbors, "neighbor keys": neighbor_keys, "total": n})
        received = self._receive(list(keys), "sealed", chosen.neighbors, protocol.SEALED)
        for name in set(keys) - set(received):
            self._control.send(name, {"sealed": None})
        if not received:
            return
        sealed = server.pass_on(*self._by_user(received))
        for name in received:
            self._control.send(name, {"sealed": torch.from_numpy(sealed[self._places(name)])})
        read = self._receive(list(received), "read", chosen.neighbors)
        if read:
            server.settle(server.table(*self._by_user(read)))
        self._masking = [name for name in read if server.shared[self._places(name)].all()]
        for name in received:
            shared = torch.from_numpy(server.shared[server.around[self._places(name)]])
            self._control.send(name, {"shared": shared if name in self._masking else None})

    def total(self, sums: Mapping[str, Tensor]) -> Tensor | None:
        """Return the sum [L] of all rows, given the masked sum of each host [L]; None: it cannot be unmasked."""
        server = self._server
        if server is None:
            return None
        sums = {name: each for name, each in sums.items() if name in self._masking}
        counted = np.sort(np.concatenate([NOBODY, *(self._placement.users_of(name) for name in sums)]))
        counts = server.counted(counted)
        for name in self._masking:
            own = torch.from_numpy(counts[self._places(name)])
            self._control.send(name, {"counted": own, "total": len(counted) if name in sums else 0})
        if not sums:
            return None
        answers = self._receive(list(sums), "revealed", server.degree.neighbors, protocol.SHARE)
        total = torch.stack(list(sums.values())).sum(0)
        try:
            if not answers:
                raise UnmaskingError(f"{len(counted)} users counted, and nobody revealed shares")
            seeds = server.seeds(counted, *self._by_user(answers))
            (mask,) = server.unmask(counted, seeds, [(len(total), 64)])
        except UnmaskingError as error:
            log.warning("figures of this round are unknown: their sum cannot be unmasked: %s", error)
            return None
        return total - torch.from_numpy(mask.view(np.int64))

    def _receive(self, hosts: Sequence[str], key: str, *shape: int) -> dict[str, Tensor]:
        """Return what hosts send: bytes of this shape for each of their users. Anything else counts as no answer."""
        received = {}
        for name, values in self._control.receive(hosts, key=key).items():
            rows, users = values[key], self._placement.users_of(name)
            if isinstance(rows, Tensor) and rows.dtype == torch.uint8 and rows.shape == (len(users), *shape):
                received[name] = rows
        return received

    def _by_user(self, rows: Mapping[str, Tensor]) -> tuple[Ids, Any]:
        """Return the users of some hosts, ascending, and a row for each."""
        users = np.concatenate([NOBODY, *(self._placement.users_of(name) for name in rows)])
        order = np.argsort(users)
        content: Sequence[Any] = [each.numpy() for each in rows.values()]
        return users[order], np.concatenate(content)[order] if content else np.empty(0)

    def _places(self, name: str) -> Ids:
        """Return the places of a host's users among those who advertised keys."""
        assert self._server is not None
        return np.searchsorted(self._server.users, self._placement.users_of(name))
