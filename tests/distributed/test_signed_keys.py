"""Keys of secure sums that their hosts did not sign are not used, and the run goes on without their users."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from cells import SMALL, Cells, certified, check_equal, train, train_in_cells
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from omegaconf import DictConfig

from hmtl.communication.messages import KEYS, SHARES
from hmtl.communication.secure.crypto import agree, unseal
from hmtl.communication.secure.masking import MaskingUser
from hmtl.config.build import Run
from hmtl.distributed.frames import Frame
from hmtl.distributed.identity import Credentials, issue, make_authority, make_key, serial_of, to_pem
from hmtl.distributed.signed_keys import SignedKeys
from hmtl.training.engine import Values

WORDS = (*SMALL, "communicator=sums", "aggregators=server", "algorithm=cocoa", "secure=true")
HOMES = {"host 0": np.arange(2), "host 1": np.arange(2, 4), "host 2": np.arange(4, 6)}
IDENTITIES = {name: name.replace(" ", "-") for name in (*HOMES, "relay 0")}
DIGEST = bytes(40)


def test_a_run_with_signatures_ends_as_one_in_one_process(
    configure: Callable[..., DictConfig], caplog: pytest.LogCaptureFixture
) -> None:
    """With the same bits, also those of figures; nobody is suspected if users drop out."""
    cfg = configure(*WORDS, "metrics=sums", "participation.dropout=0.2", "rounds=2")
    check_equal(train_in_cells(cfg, signs=True), train(cfg))
    assert "sign" not in caplog.text


def secrets(cells: Cells) -> dict[int, MaskingUser]:
    """All users, with what only they know in this round."""
    hosts = [cells.cells[name]._players["learner"][1].hosts[0] for name in cells.hosts]
    return {k: user for host in hosts for k, user in host._secrets.items()}  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("keys", "signs"),
    [
        ("the last round's", True),
        pytest.param("the server's", False, marks=pytest.mark.slow),
        *(pytest.param(whose, True, marks=pytest.mark.slow) for whose in ("the server's", "another user's")),
    ],
)
def test_a_server_that_swaps_a_users_keys_reads_no_shares_and_the_others_count(
    configure: Callable[..., DictConfig], caplog: pytest.LogCaptureFixture, keys: str, signs: bool
) -> None:
    """Without signatures, it reads what all others share with that user."""
    before, read = [MaskingUser(3)], list[bytes | None]()

    def prepare(run: Run) -> None:
        cells: Any = run.engine

        def change(receiver: str, frame: Frame) -> Frame:
            if frame.kind == KEYS and frame.users is None:
                users = secrets(cells)
                if users[3] is not before[-1]:
                    before.append(users[3])
                false = {"the server's": before[0], "another user's": users[4], "the last round's": before[-2]}[keys]
                true, content = users[3].advertised.tobytes(), frame.overhead.numpy().tobytes()
                assert true in content
                content = content.replace(true, false.advertised.tobytes())
                return replace(frame, overhead=torch.frombuffer(bytearray(content), dtype=torch.uint8)[None])
            if frame.kind == SHARES and receiver.startswith("relay"):
                for k, row in zip(frame.users.tolist(), frame.overhead.numpy(), strict=True):  # type: ignore[union-attr]
                    key = agree(before[0]._sealing, secrets(cells)[k].advertised[:32].tobytes())
                    read.extend(unseal(key, k < 3, sealed.tobytes()) for sealed in row.reshape(-1, 48))
            return frame

        cells.change = change

    rows = train_in_cells(configure(*WORDS), signs=signs, prepare=prepare).rows
    assert read
    assert any(read) == (not signs)
    assert not signs or [row["users"] for row in rows] == [9, 9, 9]
    assert caplog.text.count("keys of users 3 are not used") == signs * 2 * 3


@pytest.mark.slow
def test_users_of_a_host_whose_certificate_has_expired_are_absent(
    configure: Callable[..., DictConfig], caplog: pytest.LogCaptureFixture
) -> None:
    def prepare(run: Run) -> None:
        cells: Any = run.engine
        cells.cells["host 1"]._sign = partial(
            SignedKeys, "host 1", IDENTITIES, certified(AUTHORITY, "host 1", -1).present
        )

    trained = train_in_cells(configure(*WORDS), signs=True, prepare=prepare)
    assert [row["users"] for row in trained.rows] == [5, 5, 5]
    assert "certificate of host 1 has expired" in caplog.text


AUTHORITY, ROUND = make_authority("tests", 1), 5
OWN = {name: certified(AUTHORITY, name) for name in IDENTITIES}


def keys_of(name: str, own: Credentials, nodes: str = "learner") -> SignedKeys:
    return SignedKeys(name, IDENTITIES, own.present, HOMES, nodes)


def note(reader: SignedKeys, own: Credentials = OWN["host 1"], round: int = ROUND, nodes: str = "learner") -> Values:
    """What a node signs as host 1, for host 0."""
    signer = keys_of("host 1", own, nodes)
    signer.notes = {"host 0": reader.nonce}
    assert signer.sign(round, {2: DIGEST})
    return signer.note


def by_relay(reader: SignedKeys) -> Values:
    """With its own certificate as that of an authority in between."""
    key = make_key()
    own = certified((key, issue("relay-0", key, 1, AUTHORITY)), "host 1")
    return note(reader, replace(own, certificate=own.certificate + own.trusted))


def expired(reader: SignedKeys) -> Values:
    key = load_pem_private_key(OWN["host 1"].key, None)
    return note(reader) | {"certificate": to_pem(issue("host-1", key, -1, AUTHORITY)).decode()}


def revoked(reader: SignedKeys) -> Values:
    numbers = frozenset([serial_of(OWN["host 1"].certificate)])
    reader._credentials = replace(OWN["host 0"], revoked=numbers).present
    return note(reader)


def changed(reader: SignedKeys) -> Values:
    right = note(reader)
    return right | {"content": right["content"].replace(DIGEST.hex(), bytes([1] * 40).hex())}


REFUSED: dict[str, Callable[[SignedKeys], Any]] = {
    "of another round": lambda reader: note(reader, round=ROUND - 1),
    "of other nodes": lambda reader: note(reader, nodes="section 1"),
    "of another run": lambda reader: note(keys_of("host 0", OWN["host 0"])),
    "by a relay": lambda reader: note(reader, OWN["relay 0"]),
    "by another host": lambda reader: note(reader, OWN["host 2"]),
    "by another authority": lambda reader: note(reader, certified(make_authority("tests", 1), "host 1")),
    "by a relay that issues certificates": by_relay,
    "with a revoked certificate": revoked,
    "with an expired certificate": expired,
    "with another digest": changed,
    "with nothing in it": lambda reader: {},
    "that is none": lambda reader: 1,
}


@pytest.mark.parametrize("refused", REFUSED)
def test_a_signature_serves_only_once_and_by_its_host(refused: str, caplog: pytest.LogCaptureFixture) -> None:
    """What is signed of user 3, who is absent, is as long as a digest."""
    reader = keys_of("host 0", OWN["host 0"])
    reader.notes = {"host 1": note(reader), "host 9": note(reader)}
    digests = reader.signed(ROUND)
    assert digests.pop(2) == DIGEST
    assert [(k, len(each)) for k, each in digests.items()] == [(3, len(DIGEST))]
    reader.notes = {"host 1": REFUSED[refused](reader)}
    assert reader.signed(ROUND) == {}
    assert caplog.text.count("what host 1 signed is not used") == 1
