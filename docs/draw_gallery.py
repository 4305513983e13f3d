"""Draw the pictures of the gallery and the guides by the commands that these show: `python docs/draw_gallery.py`.

`FOLDER-NAME.png` is the picture NAME.png that a command left in FOLDER, in fewer colors. TensorBoard is a screenshot,
which needs Chromium; without it, this picture stays as it is.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image

DOCS = Path(__file__).parent
GALLERY = DOCS / "static" / "gallery"
PAGES = DOCS / "guide" / "start.md", DOCS / "guide" / "sweeps.md", DOCS / "guide" / "own.md", DOCS / "gallery.md"
WIDTH, COLORS = 960, 64  # pixels, and colors of a picture
PORT = "6172"


def commands() -> list[list[str]]:
    """Return the words of each command that leaves pictures, or a report of them, without `python -m`."""
    folders = "|".join(name.partition("-")[0] for name in pictures())
    blocks = re.findall(r"^```([^\n]*)\n(.*?)^```", "".join(map(Path.read_text, PAGES)), re.MULTILINE | re.DOTALL)
    lines = "".join(text for language, text in blocks if not language).replace("\\\n", " ").splitlines()
    drawing = [line for line in lines if re.search(rf"(?<!resume=)(outputs|multirun)/({folders})\b", line)]
    return [shlex.split(line.removeprefix("python -m ")) for line in drawing]


def pictures() -> list[str]:
    """Return the names of the pictures on the pages."""
    return sorted(set(re.findall(r"gallery/([\w-]+)\.png", "".join(map(Path.read_text, PAGES)))))


def screenshot(folder: str, target: Path) -> None:
    """Write what TensorBoard shows of a run to `target`."""
    if not (browser := shutil.which("chromium")):
        return
    served = [sys.executable, "-m", "tensorboard.main", "--logdir", folder, "--port", PORT]
    options = [
        "--headless",
        "--no-sandbox",
        "--hide-scrollbars",
        "--window-size=1280,860",
        "--virtual-time-budget=20000",
    ]
    with subprocess.Popen(served, stderr=subprocess.DEVNULL) as server:
        time.sleep(20)  # until it has read the events
        page = f"http://localhost:{PORT}/#scalars"
        subprocess.run([browser, *options, f"--screenshot={target}", page], check=True, stderr=subprocess.DEVNULL)
        server.terminate()


def shrink(picture: Path, target: Path) -> None:
    """Write a picture in few colors and at most as wide as a page of the site is on a fine screen."""
    image = Image.open(picture).convert("RGB")
    image.thumbnail((WIDTH, 4 * WIDTH), Image.Resampling.LANCZOS)
    image.quantize(COLORS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(target, optimize=True)


def main() -> None:
    GALLERY.mkdir(exist_ok=True)
    shutil.copytree(DOCS.parent / "experiments" / "network", "experiments/network")
    for module, *words in commands():
        if module == "tensorboard":
            screenshot(words[-1], Path(words[-1]) / "tensorboard.png")
        else:
            subprocess.run([sys.executable, "-m", module, *words], check=True)
    for name in pictures():
        folder, _, picture = name.partition("-")
        for found in Path().glob(f"*/{folder}/**/{picture}.png"):
            shrink(found, GALLERY / f"{name}.png")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        os.environ["PYTHONPATH"] = os.pathsep.join([str(DOCS.parent), os.environ.get("PYTHONPATH", "")])
        os.chdir(folder)
        main()
