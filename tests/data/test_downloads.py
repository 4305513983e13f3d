"""Where downloaded data sets are kept, and what is said if a download fails."""

import tarfile
import zipfile
from http.client import IncompleteRead
from urllib.error import URLError

import pytest

from hmtl.data import har, torchvision
from hmtl.data.downloads import cache_folder
from hmtl.errors import DataError


def test_folder_follows_xdg(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "hmtl"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder() == tmp_path / "home" / ".cache" / "hmtl"


@pytest.mark.parametrize(
    "error",
    [
        URLError("Name or service not known"),
        TimeoutError("timed out"),
        IncompleteRead(b"half", 100),
        RuntimeError("File not found or corrupted."),
        EOFError("Compressed file ended"),
        tarfile.ReadError("not a gzip file"),
        zipfile.BadZipFile("File is not a zip file"),
        OSError(28, "No space left on device"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_failure_is_one_line_with_its_reason_and_a_remedy(tmp_path, monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr("torchvision.datasets.CIFAR10", type("CIFAR10", (), {"__init__": fail}))
    with pytest.raises(DataError) as of_torchvision:
        torchvision("CIFAR10", 2, path=tmp_path)
    monkeypatch.setattr("hmtl.data.sources.har.download_url_to_file", fail)
    with pytest.raises(DataError) as of_others:
        har(path=tmp_path)
    reason = " ".join(str(error).split())
    for raised in (of_torchvision, of_others):
        assert reason in str(raised.value)
        assert str(tmp_path) in str(raised.value)
        assert "\n" not in str(raised.value)
        assert "there" in str(raised.value)
