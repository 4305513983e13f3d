"""Bytes from one process to another of this machine: the wire, with TLS, beside gloo."""

import datetime
import multiprocessing
from collections.abc import Callable

import torch
import torch.distributed as dist
from timing import medians

from hmtl.communication.messages import BROADCAST, SERVER
from hmtl.distributed.dialing import Party, Streams
from hmtl.distributed.frames import CONTROL, Frame
from hmtl.distributed.identity import Credentials, issue, key_to_pem, make_authority, make_key, to_pem
from hmtl.distributed.launching import free_port

SIZE, FRAMES, REPEATS = 100_000_000, 8, 9  # bytes of a frame; in each transfer; transfers
NAMES = (SERVER, "relay 0")
IDENTITIES = {name: name.replace(" ", "-") for name in NAMES}
Transfer = Callable[[], None]


def credentials():
    """What the two nodes prove who they are with."""
    authority, made = make_authority("the authority", 1), []
    for name in NAMES:
        key = make_key()
        certificate = issue(IDENTITIES[name], key, 1, authority)
        made.append(Credentials(key_to_pem(key), to_pem(certificate), to_pem(authority[1])))
    return made


def by_gloo(rank, port) -> Transfer:
    dist.init_process_group(
        "gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2, timeout=datetime.timedelta(seconds=100)
    )
    content, answer = torch.randint(256, (SIZE,), dtype=torch.uint8), torch.zeros(1)

    def transfer() -> None:
        for _ in range(FRAMES):
            dist.recv(torch.empty(SIZE, dtype=torch.uint8), 0) if rank else dist.send(content, 1)
        dist.send(answer, 0) if rank else dist.recv(answer, 1)

    return transfer


def by_wire(rank, port, own) -> Transfer:
    address = f"127.0.0.1:{port}"
    wire = Streams(Party(NAMES[rank], NAMES, IDENTITIES, None if rank else address, {SERVER: address}, own.present), 60)
    assert not wire.missing(60)
    (connection,) = wire.connections.values()
    content = torch.randint(256, (1, SIZE), dtype=torch.uint8)

    def transfer() -> None:
        for _ in range(FRAMES):
            assert connection.receive(60) if rank else connection.send(Frame(BROADCAST, 0, content)) is None
        connection.send(Frame(CONTROL, 0)) if rank else connection.receive(60)

    return transfer


def transfers(rank, ports, own) -> list[Transfer]:
    torch.set_num_threads(1)
    return [by_gloo(rank, ports[0]), by_wire(rank, ports[1], own)]


def receive_all(*known) -> None:
    for transfer in (1 + REPEATS) * transfers(*known):
        transfer()


def test_transfers(record):
    ports, own = [free_port() for _ in range(2)], credentials()
    child = multiprocessing.get_context("spawn").Process(target=receive_all, args=(1, ports, own[1]), daemon=True)
    child.start()
    try:
        gloo, wire = medians(*transfers(0, ports, own[0]), repeats=REPEATS)
    finally:
        child.kill()
        dist.destroy_process_group()
    amount = SIZE * FRAMES / 1e6
    for name, seconds in (("gloo", gloo), ("the wire", wire)):
        record(f"{amount:.0f} MB over loopback by {name}", seconds, "s", "gloo", gloo / seconds)
