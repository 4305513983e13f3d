"""Deployments: what the file says is what nodes get, and what it says wrongly is refused in one line."""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from hmtl.distributed.certificates import certify, open_authority
from hmtl.distributed.deployment import Deployment
from hmtl.distributed.identity import serial_of
from hmtl.errors import ConfigError

SITE: dict[str, Any] = {
    "server": {"name": "hub", "address": "10.0.0.1:4700"},
    "relays": [
        {"name": "mast-a", "address": "mast-a.example.org:4700", "listen": "0.0.0.0:4701"},
        {"name": "mast-b", "address": "[fd00::2]:4700"},
    ],
    "hosts": [{"name": "east", "users": "0-2"}, {"name": "west", "users": [3, "4-5"]}],
    "certificates": "keys",
    "training": ["H=2", "K=6", "topology=any_r"],
}


def read(folder: Path, content: Mapping[str, Any] | str) -> Deployment:
    path = folder / "site.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return Deployment.read(path)


def test_what_the_file_says(tmp_path: Path) -> None:
    site = read(tmp_path, SITE)
    assert {role: node.name for role, node in site.nodes.items()} == {
        "server": "hub",
        "relay 0": "mast-a",
        "relay 1": "mast-b",
        "host 0": "east",
        "host 1": "west",
    }
    assert [site.role(name) for name in ("mast-b", "hub", "east")] == ["relay 1", "server", "host 0"]
    assert (site.relays[0].listen, site.relays[1].listen) == ("0.0.0.0:4701", None)
    assert {name: home.tolist() for name, home in site.homes(6).items()} == {"host 0": [0, 1, 2], "host 1": [3, 4, 5]}
    assert (site.certificates, site.training) == (tmp_path / "keys", ("H=2", "K=6", "topology=any_r"))


@given(data=st.data(), homes=st.lists(st.integers(0, 4), min_size=5, max_size=30))
def test_users_live_where_the_file_says(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, homes: list[int]
) -> None:
    """However it is written: as numbers, as ranges, as a text with commas, in any order."""
    expected = [users for n in range(5) if (users := [k for k, home in enumerate(homes) if home == n])]
    hosts = []
    for n, users in enumerate(expected):
        words: list[Any] = []
        while users:
            run = next((n for n, user in enumerate(users) if user != users[0] + n), len(users))
            length = data.draw(st.integers(1, run))
            words.append(users[0] if length == 1 else f"{users[0]}-{users[length - 1]}")
            users = users[length:]
        words = data.draw(st.permutations(words))
        hosts.append({"name": f"h{n}", "users": data.draw(st.sampled_from([words, ", ".join(map(str, words))]))})
    site = read(tmp_path_factory.mktemp("site"), SITE | {"hosts": hosts})
    assert [home.tolist() for home in site.homes(len(homes)).values()] == expected


def test_without_users_hosts_share_them_evenly(tmp_path: Path) -> None:
    site = read(tmp_path, SITE | {"hosts": [{"name": name} for name in "abc"]})
    homes = list(site.homes(8).values())
    assert np.concatenate(homes).tolist() == list(range(8))
    assert {len(home) for home in homes} == {2, 3}
    with pytest.raises(ConfigError, match="3 hosts"):
        site.homes(2)


@pytest.mark.parametrize(
    ("place", "value", "named"),
    [
        ("server.address", "10.0.0.1", "server.address=10.0.0.1"),
        ("server.address", "10.0.0.1:70000", "server.address"),
        ("server.address", "http://hub:80", "server.address"),
        ("server.addres", "a:1", "server.addres"),
        ("server.name", "The Hub", "server.name=The Hub"),
        ("server.name", "ca", "server.name=ca"),
        ("server.name", "mast-a", "mast-a"),
        ("relays.1.address", None, "relays.1.address"),
        ("relays.1.address", "10.0.0.1:4700", "10.0.0.1:4700"),
        ("relays", [], "relays"),
        ("hosts.0.users", "0-3", "user 3"),
        ("hosts.0.users", "0-1", "users 2"),
        ("hosts.0.users", "2-0", "hosts.0.users=2-0"),
        ("hosts.0.users", "0-999999999", "hosts.0.users=0-999999999"),  # at once
        ("hosts.0.users", f"0-{'9' * 5000}", "hosts.0.users"),
        ("hosts.0.users", [0, "10-99999999"], "hosts.0.users"),
        ("hosts.0.users", 99999999, "hosts.0.users=99999999"),
        ("hosts.0.users", "-1", "hosts.0.users=-1"),
        ("hosts.0.users", [], "hosts.0.users"),
        ("hosts.0.users", None, "east"),
        ("training", "K=6", "training=K=6"),
        ("training", ["K=6", {"r": 2}], "training.1={'r': 2}"),
        ("certs", "keys", "certs"),
        ("certificate", "keys", "Did you mean certificates?"),
        ("zebra", 1, "Choose from server, relays"),
        ("server.adress", "a:1", "server.adress is not a key of this file. Did you mean address?"),
        ("relays.0.listens", "a:1", "relays.0.listens is not a key of this file. Did you mean listen?"),
        ("hosts.1.user", 3, "hosts.1.user is not a key of this file. Did you mean users?"),
        ("server.name", None, "server.name is missing"),
        ("relays", 3, "relays=3 is not a list"),
        ("relays", {"name": "mast-a"}, "relays is not a list"),
        ("hosts", ["east"], "hosts.0=east has no keys"),
        ("server", [1], "server has no keys"),
        ("hosts", [], "hosts is empty"),
        ("certificates", 5, "certificates=5 is not a path"),
        ("revoked", [12], "revoked.0=12"),
        ("revoked", ["0x12"], "revoked.0=0x12"),
    ],
)
def test_mistakes_are_named_in_one_line(tmp_path: Path, place: str, value: Any, named: str) -> None:
    content = yaml.safe_load(yaml.safe_dump(SITE))
    *path, last = [int(part) if part.isdigit() else part for part in place.split(".")]
    at = content
    for part in path:
        at = at[part]
    at[last] = value
    if value is None:
        del at[last]
    with pytest.raises(ConfigError, match=re.escape(named)) as caught:
        read(tmp_path, content)
    assert "site.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_misspelled_key_is_named_before_what_is_missing_for_it(tmp_path: Path) -> None:
    """A misspelled key may be why another is missing."""
    content = {{"relays": "relay", "hosts": "host"}.get(key, key): value for key, value in SITE.items()}
    with pytest.raises(ConfigError, match=r"host is not a key of this file\. Did you mean hosts\?"):
        read(tmp_path, content)


@pytest.mark.parametrize("content", ["", "[1]", "hosts: ]", "server: {name: a, name: b}", "a: ${b}"])
def test_a_file_of_something_else_is_refused(tmp_path: Path, content: str) -> None:
    with pytest.raises(ConfigError, match=r"site\.yaml"):
        read(tmp_path, content)
    with pytest.raises(ConfigError, match="missing"):
        Deployment.read(tmp_path / "missing.yaml")


@pytest.mark.parametrize(("K", "H", "named"), [(6, 3, "H=3"), (7, 2, "K=7"), (5, 2, "K=5")])
def test_another_network_is_refused(tmp_path: Path, K: int, H: int, named: str) -> None:
    site = read(tmp_path, SITE)
    with pytest.raises(ConfigError, match=named):
        site.hosts_beside(H) and site.homes(K)
    with pytest.raises(ConfigError, match=r"name=relay-9.*mast-a"):
        read(tmp_path, SITE).role("relay-9")


def test_all_agree_on_settings_names_and_users_but_not_on_addresses(tmp_path: Path) -> None:
    agreed = read(tmp_path, SITE).agreed("settings")
    moved = read(tmp_path, SITE | {"server": {"name": "hub", "address": "192.168.0.1:1", "listen": "0.0.0.0:1"}})
    assert moved.agreed("settings") == agreed
    assert read(tmp_path, SITE | {"revoked": ["4F2A"]}).agreed("settings") == agreed
    others = [
        read(tmp_path, SITE).agreed("other settings"),
        read(tmp_path, SITE | {"server": {"name": "hub-2", "address": "10.0.0.1:4700"}}).agreed("settings"),
        read(tmp_path, SITE | {"relays": SITE["relays"][::-1]}).agreed("settings"),
        read(tmp_path, SITE | {"hosts": [{"name": "east", "users": "0-3"}, {"name": "west", "users": "4-5"}]}).agreed(
            "settings"
        ),
    ]
    assert len({agreed, *others}) == 5


def test_files_are_read_again_when_they_change_and_kept_out_while_they_are_broken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, authority = tmp_path / "keys", open_authority(tmp_path / "keys", tmp_path / "authority")
    certify(folder, authority, "east", False)
    present = read(tmp_path, SITE).party("host 0", "settings").credentials
    assert present is not None
    first = present()
    assert present() is first
    certify(folder, authority, "east", True)
    assert present().certificate == (folder / "east.pem").read_bytes() != first.certificate
    key, before = (folder / "east.key").read_bytes(), present()
    for break_it in (
        lambda: (folder / "east.key").write_text(""),
        lambda: (tmp_path / "site.yaml").write_text("hosts: ]"),
    ):
        caplog.clear()
        break_it()
        assert [present() for _ in range(3)] == [before] * 3
        assert len(caplog.records) == 1
        (folder / "east.key").write_bytes(key)
    read(tmp_path, SITE | {"revoked": [f"{serial_of(first.certificate):x}"]})
    assert present() == replace(before, revoked=frozenset({serial_of(first.certificate)}))
