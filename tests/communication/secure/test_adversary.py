"""Relays, server and colluding users, who remember all that they saw, cannot tell terms with the same sum apart.

In small rings, for all values of all masks; for real sizes, by statistics. The same tests find a term when users leave
out one of the two kinds of masks, when fewer shares reveal a seed, or when no honest neighbor is left.
"""

from collections import defaultdict
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from functools import reduce
from itertools import product
from operator import mul

import galois
import numpy as np
import pytest
from masked_round import MaskedRound
from scipy.stats import chisquare

from hmtl.communication.secure import masking
from hmtl.communication.secure.crypto import agree, expand, key_from, unseal
from hmtl.communication.secure.neighbors import Degree, degree
from hmtl.gf256.simd import POLYNOMIAL

FIELD = galois.GF(2**8, irreducible_poly=POLYNOMIAL, compile="python-calculate")  # without numba, which takes long
OWN, COMMON = "own", "common"
Seeds = dict[frozenset[int], bytes]
"""The seed of the mask of a user, and of two users, by their places."""


@dataclass(frozen=True)
class Scene:
    """Who does what, by places in a round of n users with numbers of w bits.

    Attributes:
        colluding: users who tell relays and server all they know.
        late: whose masked term arrives, but is not counted.
        dropped: who shared seeds, but send no term.
        silent: whose shares do not reach the server.
    """

    n: int
    w: int
    degree: Degree
    colluding: frozenset[int] = frozenset()
    late: frozenset[int] = frozenset()
    dropped: frozenset[int] = frozenset()
    silent: frozenset[int] = frozenset()

    def play(self, order: np.ndarray | None = None) -> MaskedRound:
        return MaskedRound(self.n, self.degree, self.silent, order)

    @property
    def senders(self) -> list[int]:
        """Honest users whose masked terms relays hear."""
        return [k for k in range(self.n) if k not in self.colluding | self.dropped | self.silent]

    @property
    def counted(self) -> list[int]:
        return [k for k in range(self.n) if k not in self.late | self.dropped | self.silent]


def interpolated(points: dict[int, bytes]) -> bytes:
    """Return the value at 0 of the polynomials through these points."""
    xs, values = FIELD(list(points)), FIELD(np.array([list(share) for share in points.values()], np.uint8))
    total = FIELD.Zeros(values.shape[1])
    for i, x in enumerate(xs):
        others = np.delete(xs, i)
        total += reduce(mul, others / (others - x), FIELD(1)) * values[i]
    return bytes(total.tolist())


def known_seeds(played: MaskedRound, colluding: Collection[int]) -> Seeds:
    """Return what follows from all revealed shares, and all that these users have and received."""
    place = {number: k for k, number in enumerate(played.numbers.tolist())}
    around = [[place[number] for number in row] for row in played.neighbors.tolist()]
    shares: dict[tuple[str, int], dict[int, bytes]] = defaultdict(dict)
    for k, (revealed, counted) in played.revealed.items():
        for other, share, counts in zip(around[k], revealed, counted, strict=True):
            shares[OWN if counts else COMMON, other][around[other].index(k) + 1] = share.tobytes()
    seeds: Seeds = {}
    for k in colluding:
        user = played.users[k]
        seeds[frozenset({k})] = user._own
        for other, (key, agreed), shared, sealed in zip(around[k], user._keys, *played.received[k], strict=True):
            seeds[frozenset({k, other})] = agreed
            if shared:
                pair = unseal(key, bool(played.numbers[other] < user.number), sealed.tobytes())
                for kind, share in ((OWN, pair[:16]), (COMMON, pair[16:])):
                    shares[kind, other][around[other].index(k) + 1] = share
    for (kind, k), points in shares.items():
        user, t = played.users[k], played.degree.threshold
        true = user._own if kind == OWN else user._common
        few = {1, max(1, t - 1), t}  # fewer than t should not help; who guesses a seed can verify it
        if not any(
            interpolated(dict(list(points.items())[:number])) == true for number in few if number <= len(points)
        ):
            continue
        if kind == OWN:
            seeds[frozenset({k})] = true
        else:
            for other in around[k]:
                seeds[frozenset({k, other})] = agree(key_from(true), played.users[other].advertised[32:].tobytes())
    return seeds


Expand = Callable[[bytes, int, int, int], np.ndarray]


def leave_out(kind: str, played: MaskedRound, expand: Expand) -> Expand:
    """Return `expand` with masks of zeros in place of those of a kind."""
    own = {user._own for user in played.users}

    def without(seed: bytes, part: int, count: int, bits: int) -> np.ndarray:
        mask = expand(seed, part, count, bits)
        return np.zeros_like(mask) if (kind == OWN and seed in own) or (kind == COMMON and seed not in own) else mask

    return without


def hidden(scene: Scene, without: str, patch: pytest.MonkeyPatch) -> bool:
    """Return whether what is seen has the same distribution for all terms of honest users with the same sum.

    Each number of a mask stands for one choice of the values of all masks; together they are all choices.
    """
    if without == "threshold":
        scene = replace(scene, degree=Degree(scene.degree.neighbors, 1))
    played, w = scene.play(), scene.w
    edges = {frozenset(pair) for k in played.sharing for pair in product([k], played.server.around[k].tolist())}
    masks = len(played.sharing) + sum(pair <= set(played.sharing) for pair in edges)
    choices, at = np.arange(2 ** (w * masks)), {}

    def values(seed: bytes, part: int, count: int, bits: int) -> np.ndarray:
        place = at.setdefault(seed, len(at))
        assert place < masks
        return (choices >> (w * place) & (2**w - 1)).astype(np.uint8)

    patch.setattr(masking, "expand", leave_out(without, played, values))
    parts = [(len(choices), w)]
    by_user = {k: mask.astype(np.int64) for k, (mask,) in played.masks(parts).items()}
    (unmasked,) = played.unmask(scene.counted, played.sharing, parts)
    assert not ((sum(by_user[k] for k in scene.counted) - unmasked) % 2**w).any(), "the sum is right"
    assert len(at) == masks
    known = [at[seed] for seed in set(known_seeds(played, scene.colluding).values()) if seed in at]
    base = sum((choices >> (w * place) & (2**w - 1)) << (w * n) for n, place in enumerate(sorted(known)))
    seen = defaultdict(list)
    honest = [place for place, k in enumerate(scene.senders) if k in scene.counted]
    for terms in product(range(2**w), repeat=len(scene.senders)):
        if (total := sum(terms[place] for place in honest) % 2**w) > 1:
            continue
        view = base.copy()
        for place, (k, term) in enumerate(zip(scene.senders, terms, strict=True)):
            view |= ((by_user[k] + term) % 2**w) << (w * (len(known) + place))
        seen[total].append(np.bincount(view))
    assert not np.array_equal(seen[0][0], seen[1][0]), "the sum itself is seen"
    return all(np.array_equal(each, views[0]) for views in seen.values() for each in views)


RING = Scene(5, 1, Degree(2, 2), colluding=frozenset({0}))
SCENES = {
    "all count": Scene(3, 3, Degree(2, 1)),
    "one is late": Scene(3, 2, Degree(2, 1), late=frozenset({2})),
    "one colludes": Scene(4, 1, Degree(3, 2), colluding=frozenset({0})),
    "all of these": Scene(5, 1, Degree(4, 2), colluding=frozenset({1}), late=frozenset({2}), dropped=frozenset({4})),
    "one is silent": Scene(4, 2, Degree(3, 1), late=frozenset({0}), silent=frozenset({3})),
    "few neighbors": RING,
}


@pytest.mark.parametrize("name", SCENES)
def test_all_terms_with_the_same_sum_look_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert hidden(SCENES[name], "", monkeypatch)


@pytest.mark.parametrize(
    ("name", "without"),
    [
        *((name, COMMON) for name in SCENES),
        *((name, OWN) for name, scene in SCENES.items() if scene.late),
        *((name, "threshold") for name, scene in SCENES.items() if scene.colluding),
    ],
)
def test_a_term_is_found_without_a_mask_or_the_threshold(
    name: str, without: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not hidden(SCENES[name], without, monkeypatch)


def test_a_term_is_found_if_no_honest_neighbor_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """User 1, between one who colludes and one who is late; `degree` chooses k so that this hardly ever happens."""
    assert not hidden(replace(RING, late=frozenset({2})), "", monkeypatch)


PARTS = [(20_000, 8), (16_000, 8)]


def stripped(played: MaskedRound, scene: Scene, terms: np.ndarray, expand: Expand) -> np.ndarray:
    """Return the bytes of honest users' masked terms, without all masks that relays, server and colluders know."""
    masks, seeds, rows = played.masks(PARTS), known_seeds(played, scene.colluding), []
    for k in scene.senders:
        row = []
        for part, shape in enumerate(PARTS):
            y = masks[k][part] + terms[k, : shape[0]].astype(masks[k][part].dtype)
            for users, seed in seeds.items():
                if k in users:
                    mask, (other,) = expand(seed, part, *shape), users - {k} or {k}
                    y = y - mask if k <= other else y + mask
            row.append(y.view(np.uint8))
        rows.append(np.concatenate(row))
    return np.stack(rows)


def uniform(sample: np.ndarray) -> bool:
    return bool(chisquare(np.bincount(sample.ravel(), minlength=256)).pvalue > 1e-10)


@pytest.mark.parametrize(
    ("n", "without"),
    [(12, ""), (12, OWN), (12, COMMON), (12, "threshold"), pytest.param(60, "", marks=pytest.mark.slow)],
)
def test_masked_terms_are_uniform_to_who_knows_the_sum(n: int, without: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One by one, two by two, part by part at any of the first places, and in two rounds."""
    rng, chosen = np.random.default_rng(n), degree(n, n // 10)
    assert chosen is not None
    if without == "threshold":
        chosen = Degree(chosen.neighbors, 1)
    colluding, late, dropped = np.split(rng.permutation(n)[: 3 * (n // 10)], 3)
    scene = Scene(n, 8, chosen, *(frozenset(users.tolist()) for users in (colluding, late, dropped)))
    terms, seen, order = np.arange(n)[:, None] * np.ones(20_000, np.int64), [], rng.permutation(n)
    for _ in range(2):
        played = scene.play(order)
        masks_of = leave_out(without, played, expand)
        monkeypatch.setattr(masking, "expand", masks_of)
        counted, unmasked = scene.counted, played.unmask(scene.counted, played.sharing, PARTS)
        seen.append(stripped(played, scene, terms, masks_of))
        honest = [place for place, k in enumerate(scene.senders) if k in counted]
        total = terms[sorted(set(counted) - scene.colluding)].sum(0)
        assert not (seen[-1][honest, :20_000].sum(0) - total.astype(np.uint8)).astype(np.uint8).any(), "the sum is seen"
        assert len(unmasked) == len(PARTS)
    pairs = [(i, j) for i in range(len(honest)) for j in range(i)]
    samples = [*seen[0], *(seen[0] - seen[1]), *(seen[0][honest[i]] + seen[0][honest[j]] for i, j in pairs)]
    samples += [seen[0][i] - seen[0][j] for i, j in pairs]
    samples += [row[lag : lag + 16_000] - row[20_000:] for row in seen[0] for lag in range(0, 200, 8)]
    assert all(map(uniform, samples)) == (without == "")
