"""Make certificates: `python -m hmtl.certificates deployment=site.yaml`.

The deployment gets an authority, and each node a key and a certificate. Those
that exist are kept unless they are revoked or expire within a month; renew=true
makes all again. They are in the folder that the deployment names, or in
folder=PATH. PATH-authority has the authority's key: no node needs it, but keep
it to make more certificates.
"""

from collections.abc import Sequence
from pathlib import Path

from hmtl.errors import ConfigError, run_command


def main(arguments: Sequence[str]) -> None:
    """Make the certificates, and say what to copy where."""
    try:
        _make(dict(_setting(argument) for argument in arguments))
    except OSError as error:
        reason = f"{error.filename}: {error.strerror}"
        raise ConfigError(f"{reason}. Set folder to a folder that can be written to.") from error


def _setting(argument: str) -> tuple[str, str]:
    name, _, value = argument.partition("=")
    if name not in ("deployment", "folder", "renew") or not value or (name == "renew" and value not in USUAL):
        raise ConfigError(f"{argument} is not a setting. Write deployment=FILE, folder=PATH or renew=true.")
    return name, value


USUAL = {"true": True, "false": False}


def _make(settings: dict[str, str]) -> None:
    from hmtl.distributed.certificates import certify, expiry, load_credentials, open_authority
    from hmtl.distributed.deployment import Deployment
    from hmtl.distributed.identity import serial_of

    if "deployment" not in settings:
        raise ConfigError("deployment is not set. Set it to the file of the site, such as deployment=site.yaml.")
    deployment = Deployment.read(settings["deployment"])
    folder = Path(settings.get("folder", deployment.certificates))
    keys = Path(f"{folder.resolve()}-authority")  # also beside the folder "."
    authority = open_authority(folder, keys)
    for node in deployment.nodes.values():
        new = certify(folder, authority, node.name, USUAL[settings.get("renew", "false")], deployment.revoked)
        own = load_credentials(folder, node.name)
        state = f"{'made' if new else 'kept'}, valid until {expiry(own):%Y-%m-%d}"
        print(f"{folder / node.name}.pem  {state}, serial number {serial_of(own.certificate):X}")
    print(f"Copy to the machine of each node: {settings['deployment']}, and ca.pem, NAME.pem, NAME.key in {folder}.")
    print(f"Keep {keys / 'ca.key'} to yourself: with it, anybody can join under any name.")


if __name__ == "__main__":
    run_command(__doc__, main)
