"""The plan of a network: codes with the matrices of all nodes, whose coefficients are drawn from a seed.

Shapes: c pieces per IV; m messages of the server; rows_i uplink messages of relay i. Lists over i run over the active
relays, lists over j over the aggregators. All matrices are uint8 tensors over GF(2^8); messages and pieces have equal
lengths.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hmtl.coding.formulas import Loads, carriers, forwarded, unheard
from hmtl.coding.rates import Uplinks
from hmtl.errors import CodingError
from hmtl.gf256 import inverses, matmul
from hmtl.rng import generator
from hmtl.topology import Topology

PLAN_DIGEST_BYTES = 4
TRIES = 20  # a draw fails with a probability near H/255, so tens of relays never need this many

Draw = Callable[[np.random.Generator], list[Tensor]]


@dataclass(frozen=True, eq=False)
class Block:
    """A code for the IVs of some users, independent of all other blocks.

    Attributes:
        users: the users whose IVs the block carries.
        pieces: c, the number of pieces of each IV.
        heard: for each relay, the positions within `users` of those that it hears. If the server knows all IVs: only
            for aggregators, otherwise empty.
        uplink: for each relay, `[rows_i, c·|heard_i|]`, acting on the pieces that it hears: piece s of the user at
            position p of `heard[i]` is row p·c + s. Without rows if the server knows all IVs.
        downlink: [m, Σ_i rows_i], acting at the server on the uplink messages in the order of relays; or, if the server
            knows all IVs, `[m, c·|users|]`, acting on the pieces of all users. Aggregator j needs the first
            `need_j = c·(|users| − |heard_j|)` of its messages.
        aggregators: the relays that learn all IVs, as positions among the active relays.
        decoders: for each aggregator, `[need_j, need_j + c·|heard_j|]`, acting on the messages that it needs, followed
            by the pieces that it hears; gives the pieces that it misses, in the order of `users`.
    """

    users: tuple[int, ...]
    pieces: int
    heard: tuple[tuple[int, ...], ...]
    uplink: tuple[Tensor, ...]
    downlink: Tensor
    aggregators: tuple[int, ...]
    decoders: tuple[Tensor, ...]

    def need(self, i: int) -> int:
        """Return how many messages of the server relay i needs to learn all pieces."""
        return self.pieces * (len(self.users) - len(self.heard[i]))

    @cached_property
    def forwards(self) -> bool:
        """Whether the server forwards the messages that it receives without combining them."""
        m, received = self.downlink.shape
        return m == received and torch.equal(self.downlink, torch.eye(m, dtype=torch.uint8))

    def piece_bytes(self, nbytes: int) -> int:
        """Return the length in bytes of a piece of an IV of `nbytes` bytes."""
        return -(-nbytes // self.pieces)


@dataclass(frozen=True, eq=False)
class Plan:
    """Codes with which every aggregator learns the IVs of all present users.

    Users that all relays among the aggregators hear need no code.

    Attributes:
        topology: the network.
        scheme: the name of the scheme that determines the uplink.
        seed: the source of the coefficients.
        aggregators: the relays that learn all IVs.
        uplinks: links of the active relays, see `make_plan`.
        blocks: the codes, for disjoint sets of users.
        server: whether the server aggregates, so that relays send it each IV once, uncoded.
    """

    topology: Topology
    scheme: str
    seed: int
    aggregators: tuple[int, ...]
    uplinks: Uplinks | None
    blocks: tuple[Block, ...] = field(repr=False)
    server: bool

    @cached_property
    def sent(self) -> tuple[Fraction, ...]:
        """IVs' worth of combinations that each active relay sends, or IVs if the server aggregates, without padding."""
        if self.server:
            return tuple(map(Fraction, forwarded(self.topology, self.uplinks)))
        sent = [Fraction()] * len(self.topology.active)
        for block in self.blocks:
            for i, rows in enumerate(block.uplink):
                sent[i] += Fraction(len(rows), block.pieces)
        return tuple(sent)

    @cached_property
    def loads(self) -> Loads:
        """The loads in IVs without padding; with enough pieces, those of `hmtl.coding.loads`."""
        if self.server:
            u = unheard(self.topology, self.aggregators)
            return Loads.of(self.topology, self.sent, *(ivs + u for ivs in self.received))
        return Loads.coded(self.topology, self.aggregators, self.sent, *self.received, self.uplinks)

    @cached_property
    def received(self) -> tuple[Fraction, Fraction]:
        """IVs' worth of combinations that the server sends, as a broadcast and as copies."""
        broadcast, unicast = Fraction(), Fraction()
        for block in self.blocks:
            broadcast += Fraction(len(block.downlink), block.pieces)
            unicast += Fraction(sum(map(block.need, block.aggregators)), block.pieces)
        return broadcast, unicast

    @cached_property
    def digest(self) -> bytes:
        """A digest of the codes, which differs if another solver comes to another plan."""
        content = hashlib.blake2b(digest_size=PLAN_DIGEST_BYTES)
        for block in self.blocks:
            content.update(np.array([*block.users, block.pieces]).tobytes())
            for matrix in (*block.uplink, block.downlink):
                content.update(matrix.numpy().tobytes())
        return content.digest()

    def carriers(self, models: int) -> NDArray[np.int64]:
        """Return the aggregator that sends each model of a user that no aggregator hears."""
        return carriers(self.topology, self.aggregators, self.sent, models, self.uplinks)


def draw_block(
    users: tuple[int, ...],
    pieces: int,
    heard: tuple[tuple[int, ...], ...],
    aggregators: tuple[int, ...],
    draw: Draw,
    seed: int,
    *name: str | int,
) -> Block:
    """Draw coefficients until all aggregators can decode; raise CodingError if no draw lets them.

    Args:
        users, pieces, heard, aggregators: see `Block`.
        draw: returns the uplink's matrices from a random generator.
        seed, name: of the block's random streams.
    """
    needs = [pieces * (len(users) - len(heard[i])) for i in aggregators]
    m = max(needs)
    for attempt in range(TRIES):
        uplink = draw(generator(seed, "uplink", *name, attempt))
        received = sum(map(len, uplink))
        if received == m == min(needs):
            downlink = torch.eye(m, dtype=torch.uint8)  # every aggregator needs all messages, so they are forwarded
        else:
            downlink = random_matrix(generator(seed, "downlink", *name, attempt), (m, received))
        decoders = _decoders(pieces, heard, aggregators, uplink, downlink, len(users))
        if decoders is not None:
            return Block(users, pieces, heard, tuple(uplink), downlink, aggregators, decoders)
    raise CodingError(
        f"No code found for a block of {len(users)} users and {len(aggregators)} aggregators in {TRIES} draws: random "
        "coefficients from GF(2^8) fail more often if more relays aggregate. Set another seed or fewer aggregators."
    )


def block_of(
    t: Topology, aggregators: Sequence[int], users: Sequence[int], uplink: Sequence[Any], downlink: Any, pieces: int = 1
) -> Block:
    """Return the code with these matrices over GF(2^8), and the decoders of its aggregators.

    Args:
        t: the topology.
        aggregators: the relays that learn all IVs.
        users: whose IVs the code carries.
        uplink, downlink, pieces: see `Block`, as lists of numbers 0..255: an uplink for each active relay.

    Raises:
        CodingError: a user or an aggregator is not in the network, a matrix has a wrong shape or other entries, or an
            aggregator cannot decode.
    """
    users, aggregators = list(users), list(aggregators)
    for what, given, among in (("users", users, t.present), ("aggregators", aggregators, t.active)):
        whole = all(isinstance(each, int | np.integer) for each in given)
        if not whole or not given or len(set(given)) < len(given) or not set(given) <= set(among):
            raise CodingError(f"{what}={given}: a code has {what} of the network, each once. Correct the list.")
    if not isinstance(pieces, int | np.integer) or pieces < 1 or len(uplink) != len(t.active):
        raise CodingError(
            f"pieces={pieces} and {len(uplink)} uplinks: give a whole number, and one for each active relay."
        )
    places = [t.active.index(i) for i in aggregators]
    heard = tuple(tuple(np.flatnonzero(t.G[i][list(users)]).tolist()) for i in t.active)
    widths = [pieces * len(known) for known in heard]
    senders = [f"the uplink of relay {t.names.relay(i)}" for i in t.active]
    matrices = [_matrix(*each) for each in zip(senders, uplink, widths, strict=True)]
    down = _matrix("the downlink", downlink, sum(map(len, matrices)))
    decoders: list[Tensor] = []
    for i, n in zip(aggregators, places, strict=True):
        need, decoder = pieces * (len(users) - len(heard[n])), _decoders(pieces, heard, [n], matrices, down, len(users))
        if decoder is None:
            raise CodingError(
                f"relay {t.names.relay(i)} cannot decode: the first {need} of the server's {len(down)} messages do not "
                f"determine the {need} pieces that it misses. Add combinations, or change their coefficients."
            )
        decoders += decoder
    return Block(tuple(users), pieces, heard, tuple(matrices), down, tuple(places), tuple(decoders))


def _matrix(name: str, rows: Any, width: int) -> Tensor:
    """Return whole numbers 0..255 as a matrix of this width, uint8; a single row need not be nested."""
    try:
        matrix = np.atleast_2d(np.asarray(rows))
    except ValueError as error:
        raise CodingError(f"{name} has rows of unequal lengths. Give {width} coefficients in each row.") from error
    if not matrix.size:
        return torch.empty(0, width, dtype=torch.uint8)
    if matrix.ndim > 2 or matrix.shape[1] != width:
        raise CodingError(
            f"{name} has the shape {matrix.shape}. Give rows of {width} coefficients, one for each input."
        )
    if matrix.dtype.kind not in "iu" or matrix.min() < 0 or matrix.max() > 255:
        raise CodingError(f"{name} has coefficients outside GF(2^8). Give whole numbers from 0 to 255.")
    return torch.from_numpy(matrix.astype(np.uint8))


def _decoders(
    pieces: int,
    heard: Sequence[Sequence[int]],
    aggregators: Sequence[int],
    uplink: Sequence[Tensor],
    downlink: Tensor,
    n: int,
) -> tuple[Tensor, ...] | None:
    """Return the aggregators' decoders of a code for n users; None if one of them cannot decode."""
    heard_rows = [piece_rows(heard[i], pieces) for i in aggregators]
    missing_rows = [piece_rows(sorted(set(range(n)).difference(heard[i])), pieces) for i in aggregators]
    on_all = torch.zeros(downlink.shape[1], pieces * n, dtype=torch.uint8)  # the uplink, acting on all pieces
    for rows, known, matrix in zip(torch.split(on_all, [len(m) for m in uplink]), heard, uplink, strict=True):
        rows[:, piece_rows(known, pieces)] = matrix
    sent = matmul(downlink, on_all)
    if any(len(sent) < len(rows) for rows in missing_rows):
        return None
    solutions = inverses([sent[: len(rows), rows] for rows in missing_rows])
    if solutions is None:
        return None
    return tuple(  # in this field, subtraction is addition
        torch.cat([inverse, matmul(inverse, sent[: len(inverse)][:, rows])], dim=1)
        for inverse, rows in zip(solutions, heard_rows, strict=True)
    )


def random_matrix(rng: np.random.Generator, shape: tuple[int, int]) -> Tensor:
    """Draw a matrix of uniform coefficients."""
    return torch.from_numpy(rng.integers(0, 256, shape, np.uint8))


def piece_rows(positions: Sequence[int], c: int) -> Tensor:
    """Return the rows of these users' pieces; piece s of position p is row p·c + s."""
    return (torch.tensor(positions, dtype=torch.int64)[:, None] * c + torch.arange(c)).flatten()
