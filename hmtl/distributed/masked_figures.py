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
        introduced = self._ask({"keys": torch.from_numpy(keys)}, "threshold")
        if not introduced.get("threshold"):
            return None
        self._fewest = self._secure.fewest(introduced["total"], self._K)
        numbers, neighbor_keys = introduced["neighbors"].numpy(), introduced["neighbor keys"].numpy()
        sealed = [
            user.share(own, keys, introduced["threshold"])
            for user, own, keys in zip(self._users, numbers, neighbor_keys, strict=True)
        ]
        passed_on = self._ask({"sealed": torch.from_numpy(np.stack(sealed))}, "sealed")
        if passed_on.get("sealed") is None:
            return None
        total = rows.sum(0)
        for user, shared, own in zip(
            self._users, passed_on["shared"].numpy(), passed_on["sealed"].numpy(), strict=True
        ):
            user.take(shared, own)
            total += torch.from_numpy(user.mask([(rows.shape[1], 64)])[0].view(np.int64))
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
        self._sealing: list[str] = []  # the hosts that may send masked sums

    def introduce(self) -> None:
        """Choose neighbours for the users who advertise keys, and pass on what they share."""
        keys = self._control.receive(self._placement.hosts, key="keys")
        users, advertised = self._by_user({name: values["keys"] for name, values in keys.items()})
        n = len(users)
        chosen = self._secure.degree(n, self._placement.K)
        for name in self._placement.hosts:
            if chosen is None or name not in keys:
                self._control.send(name, {"threshold": 0})
        if chosen is None:
            return
        order = np.random.default_rng().permutation(n)
        self._server = server = UnmaskingServer(users, advertised, chosen, order)
        for name in keys:
            at = self._places(name)
            neighbors, neighbor_keys = (torch.from_numpy(each[at]) for each in (server.neighbors, server.keys))
            answer = {"neighbors": neighbors, "neighbor keys": neighbor_keys, "total": n}
            self._control.send(name, {**answer, "threshold": chosen.threshold})
        received = self._control.receive(list(keys), key="sealed")
        for name in set(keys) - set(received):
            self._control.send(name, {"sealed": None})
        if not received:
            return
        self._sealing = list(received)
        server.take(*self._by_user({name: values["sealed"] for name, values in received.items()}))
        shared, sealed = server.pass_on()
        for name in received:
            at = self._places(name)
            self._control.send(name, {"shared": torch.from_numpy(shared[at]), "sealed": torch.from_numpy(sealed[at])})

    def total(self, sums: Mapping[str, Tensor]) -> Tensor | None:
        """Return the sum [L] of all rows, given the masked sum of each host [L]; None: it cannot be unmasked."""
        server = self._server
        if server is None:
            return None
        counted = np.sort(np.concatenate([NOBODY, *(self._placement.users_of(name) for name in sums)]))
        counts = server.counted(counted)
        for name in self._sealing:
            own = torch.from_numpy(counts[self._places(name)])
            self._control.send(name, {"counted": own, "total": len(counted) if name in sums else 0})
        if not sums:
            return None
        received = self._control.receive(list(sums), key="revealed")
        answers = {name: values["revealed"] for name, values in received.items() if len(values["revealed"])}
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
