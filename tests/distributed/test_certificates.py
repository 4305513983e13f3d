"""Certificates: OpenSSL takes those that are made, and a node refuses those that would not work, in one line."""

import os
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import commands
import pytest

from hmtl.distributed import certificates
from hmtl.distributed.certificates import certify, load_credentials, open_authority
from hmtl.errors import ConfigError

SITE = """
server: {name: hub, address: "10.0.0.1:4700"}
relays: [{name: mast-a, address: "10.0.0.2:4700"}]
hosts: [{name: east}]
certificates: keys
"""
NODES = ("hub", "mast-a", "east")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the certificates of all nodes."""
    authority = open_authority(tmp_path / "keys", tmp_path / "authority")
    assert all(certify(tmp_path / "keys", authority, node, False) for node in NODES)
    return tmp_path / "keys"


def test_a_node_of_another_authority_is_a_stranger(folder: Path, tmp_path: Path) -> None:
    certify(folder, open_authority(tmp_path / "other", tmp_path / "other"), "mast-b", False)
    with pytest.raises(ConfigError, match="mast-b"):
        load_credentials(folder, "mast-b")


def test_keys_are_private_and_certificates_are_kept_until_they_expire_soon(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert {path.stat().st_mode & 0o777 for path in tmp_path.rglob("*.key")} == {0o600}
    authority, before = open_authority(folder, tmp_path / "authority"), (folder / "hub.key").read_bytes()
    assert not certify(folder, authority, "hub", renew=False)
    assert (folder / "hub.key").read_bytes() == before
    assert certify(folder, authority, "hub", renew=True)
    assert (folder / "hub.key").read_bytes() != before
    now = datetime.now(UTC)
    for days, expired in ((certificates.DAYS - 29, False), (certificates.DAYS + 1, True)):
        monkeypatch.setattr(certificates, "_now", lambda days=days: now + (days * certificates.SOON) / 30)
        if expired:
            with pytest.raises(ConfigError, match="expired"):
                load_credentials(folder, "mast-a")
        else:
            load_credentials(folder, "mast-a")
        assert certify(folder, authority, "mast-a", renew=False)


@pytest.mark.parametrize("missing", ["hub.key", "hub.pem", "ca.pem"])
@pytest.mark.parametrize("how", ["gone", "noise", "another"])
def test_what_cannot_be_used_is_named(folder: Path, tmp_path: Path, missing: str, how: str) -> None:
    path = folder / missing
    if how == "another":
        other = open_authority(tmp_path / "more", tmp_path / "more")
        certify(tmp_path / "more", other, "hub", False)
        path.write_bytes((tmp_path / "more" / missing).read_bytes())
    elif how == "noise":
        path.write_bytes(os.urandom(100))
    else:
        path.unlink()
    with pytest.raises(ConfigError, match=r"(hub|ca)\.(key|pem)") as caught:
        load_credentials(folder, "hub")
    assert "\n" not in str(caught.value)


def test_the_certificate_of_another_node_is_refused(folder: Path) -> None:
    for end in ("key", "pem"):
        (folder / f"east.{end}").rename(folder / f"hub.{end}")
    with pytest.raises(ConfigError, match="of east, not of hub"):
        load_credentials(folder, "hub")


def test_a_key_that_others_can_read_is_a_warning(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder / "hub.key").chmod(0o640)
    load_credentials(folder, "hub")
    assert "hub.key" in caplog.text


def test_the_two_files_of_an_authority_belong_together(folder: Path, tmp_path: Path) -> None:
    (folder / "ca.pem").unlink()
    with pytest.raises(ConfigError, match=r"ca\.pem"):
        open_authority(folder, tmp_path / "authority")
    open_authority(folder, tmp_path / "new")
    with pytest.raises(ConfigError, match=r"ca\.key"):
        open_authority(folder, tmp_path / "authority")


def test_certificates_of_ones_own_with_one_between(tmp_path: Path) -> None:
    """OpenSSL makes an authority, one that it signs, and a node's certificate, on an elliptic curve."""

    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], cwd=tmp_path, check=True, capture_output=True)

    more = ("-nodes", "-x509", "-days", "9")
    rsa, curve = ("-newkey", "rsa:2048", *more), ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-384", *more)
    openssl("req", *rsa, "-subj", "/CN=root", "-keyout", "root.key", "-out", "ca.pem")
    by_root, by_mid = ("-CA", "ca.pem", "-CAkey", "root.key"), ("-CA", "mid.pem", "-CAkey", "mid.key")
    openssl("req", *rsa, "-subj", "/CN=mid", "-keyout", "mid.key", "-out", "mid.pem", *by_root)
    names = ("-addext", "subjectAltName=DNS:other,DNS:hub", "-addext", "basicConstraints=critical,CA:FALSE")
    for key, error in ((rsa, "elliptic"), (curve, "not signed")):
        openssl("req", *key, "-subj", "/CN=any", *names, "-keyout", "hub.key", "-out", "hub.pem", *by_mid)
        with pytest.raises(ConfigError, match=error):
            load_credentials(tmp_path, "hub")
    with (tmp_path / "hub.pem").open("ab") as file:
        file.write((tmp_path / "mid.pem").read_bytes())
    load_credentials(tmp_path, "hub")
    for end in ("key", "pem"):
        (tmp_path / f"hub.{end}").rename(tmp_path / f"other.{end}")
    load_credentials(tmp_path, "other")


def test_the_folder_of_the_file_itself(tmp_path: Path) -> None:
    site = tmp_path / "site.yaml"
    site.write_text(SITE.replace("keys", "."))
    assert commands.here("hmtl.certificates", f"deployment={site}").returncode == 0
    assert (tmp_path.parent / f"{tmp_path.name}-authority" / "ca.key").exists()


def test_the_command(tmp_path: Path) -> None:
    site = tmp_path / "site.yaml"
    site.write_text(SITE)
    first = commands.here("hmtl.certificates", f"deployment={site}")
    again = commands.here("hmtl.certificates", f"deployment={site}", "renew=false")
    renewed = commands.here("hmtl.certificates", f"deployment={site}", "renew=true")
    openssl = ["openssl", "x509", "-noout", "-serial", "-in", tmp_path / "keys" / "hub.pem"]
    serial = subprocess.run(openssl, check=True, capture_output=True, text=True).stdout.strip().partition("=")[2]
    assert f"serial number {int(serial, 16):X}\n" in renewed.stdout
    site.write_text(SITE + f"revoked: ['{serial}']\n")
    revoked = commands.here("hmtl.certificates", f"deployment={site}")
    counts = [(done.stdout.count("made"), done.stdout.count("kept")) for done in (first, again, renewed, revoked)]
    assert counts == [(3, 0), (0, 3), (3, 0), (1, 2)]
    for name in NODES:
        assert load_credentials(tmp_path / "keys", name).trusted == (tmp_path / "keys" / "ca.pem").read_bytes()
    assert [path.name for path in (tmp_path / "keys-authority").iterdir()] == ["ca.key"]
    for words in ([], ["deployment=none.yaml"], [f"deployment={site}", "renew=perhaps"], [f"deployment={site}", "x=1"]):
        done = commands.here("hmtl.certificates", *words)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
