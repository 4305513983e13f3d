"""The wheel carries its configuration and runs in another directory."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_wheel_runs_elsewhere(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("hmtl-*.whl")
    site = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site), str(wheel)]
    subprocess.run(install, check=True)
    assert (site / "hmtl" / "conf" / "config.yaml").is_file()

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    command = (
        "import hmtl, runpy, sys; print(hmtl.__file__, file=sys.stderr); "
        "runpy.run_module('hmtl.plan', run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", command, "format=json"],
        check=True,
        capture_output=True,
        text=True,
        cwd=elsewhere,
        env={**os.environ, "PYTHONPATH": str(site)},
    )
    assert done.stderr.startswith(str(site))
    assert json.loads(done.stdout)["loads"]["paper"] == {"relays_to_server": 10.0, "server_to_relays": 8.0}
    assert list(elsewhere.glob("outputs/*/*/topology.png"))
