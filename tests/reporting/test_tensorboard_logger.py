"""What TensorBoard shows, and what a run is called there."""

import errno
import io
import re
import threading
from pathlib import Path

import commands
import pandas as pd
import pytest
from omegaconf import OmegaConf
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2
from tensorboard.summary.writer.record_writer import RecordWriter

from hmtl.reporting.tensorboard_logger import TensorBoardLogger
from hmtl.training.folder import run_name

SMALL = ("K=6", "H=3", "r=2", "rounds=3", "dataset.rows_per_user=20", "~logger.console")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("board")
    done = commands.here("hmtl.train", *SMALL, "regularizer=mean", f"hydra.run.dir={folder}/run")
    assert done.returncode == 0, done.stderr
    return folder


def test_a_run_is_called_as_its_command_line(run: Path) -> None:
    (place,) = {path.parent for path in run.rglob("events.out.tfevents.*")}
    assert place.name == "mocha,H=3,K=6,dataset.rows_per_user=20,r=2,regularizer=mean"
    events = EventAccumulator(str(place), size_guidance={"tensors": 0}).Reload()
    (command,) = (event.tensor_proto.string_val[0].decode() for event in events.Tensors("command/text_summary"))
    assert command == "python -m hmtl.train " + " ".join((*SMALL, "regularizer=mean"))


@pytest.mark.parametrize(
    ("job", "folder", "name"),
    [
        ("algorithm=fedu,seed=0", "algorithm=fedu,seed=0", ""),
        ("seed=0", "seed=0", "fedu"),
        ("algorithm=fedu,communicator=coded", "11-05", "fedu,communicator=coded"),
        ("", "11-05", "fedu"),
    ],
)
def test_nothing_is_named_twice(job: str, folder: str, name: str, tmp_path: Path) -> None:
    """The folder of a run, which TensorBoard shows, too, may say what the run is."""
    place = tmp_path / folder / ".hydra"
    place.mkdir(parents=True)
    hydra = {"job": {"override_dirname": job}, "runtime": {"choices": {"algorithm": "fedu"}}}
    OmegaConf.save({"hydra": hydra}, place / "hydra.yaml")
    assert run_name(place.parent) == name


def test_links_and_users_are_those_of_the_files(run: Path) -> None:
    (place,) = {path.parent for path in run.rglob("events.out.tfevents.*")}
    events = EventAccumulator(str(place), size_guidance={"scalars": 0, "tensors": 0, "histograms": 0}).Reload()
    links = pd.read_csv(run / "run" / "links.csv")
    kbit = links.assign(kbit=(links.payload_bits + links.overhead_bits) / 1e3).groupby(["tier", "link"]).kbit.sum()
    for tier in links.tier.unique():
        shown = events.Scalars(f"6 busiest links/{tier} [kbit], by rank")
        assert [event.step for event in shown] == [*range(1, len(shown) + 1)]
        assert [event.value for event in shown] == pytest.approx(sorted(kbit[tier], reverse=True))
    (listed,) = (event.tensor_proto.string_val[0].decode() for event in events.Tensors("busiest links/text_summary"))
    assert all(link in listed for _, link in kbit.index)
    errors = pd.read_csv(run / "run" / "users.csv").test_error
    (histogram,) = events.Histograms("test_error of users [%]")
    drawn = histogram.histogram_value
    assert (drawn.num, drawn.min, drawn.max) == pytest.approx((6, 100 * errors.min(), 100 * errors.max()))
    assert events.Scalars("1 overview/1 test_error [%]")[-1].value == pytest.approx(100 * errors.mean())


@pytest.mark.slow
def test_a_run_that_replaces_another_is_called_as_its_own_command_line(tmp_path: Path) -> None:
    for setting in ("regularizer=mean", "lam=0.5"):
        done = commands.here("hmtl.train", *SMALL, setting, f"hydra.run.dir={tmp_path}/run")
        assert done.returncode == 0, done.stderr
    (place,) = {path.parent for path in tmp_path.rglob("events.out.tfevents.*")}
    assert "lam=0.5" in place.name.split(",")


def test_pictures_are_shown(run: Path) -> None:
    (place,) = {path.parent for path in run.rglob("events.out.tfevents.*")}
    events = EventAccumulator(str(place)).Reload()
    assert {"topology"} <= set(events.Tags()["images"])
    shown = Image.open(io.BytesIO(events.Images("topology")[0].encoded_image_string))
    with Image.open(run / "run" / "topology.png") as file:
        assert shown.size == file.size


def test_hyperparameters_name_charts_that_there_are(run: Path) -> None:
    (place,) = {path.parent for path in run.rglob("events.out.tfevents.*")}
    events = EventAccumulator(str(place), size_guidance={"tensors": 0}).Reload()
    scalars = events.Tags()["scalars"]
    data = events.summary_metadata
    experiment = plugin_data_pb2.HParamsPluginData.FromString(
        data["_hparams_/experiment"].plugin_data.content
    ).experiment
    assert {info.name.tag for info in experiment.metric_infos} <= set(scalars)
    assert {"lam", "regularizer", "seed", "rounds", "rates"} <= {info.name for info in experiment.hparam_infos}
    session = plugin_data_pb2.HParamsPluginData.FromString(data["_hparams_/session_start_info"].plugin_data.content)
    traveled = {name: value.string_value for name, value in session.session_start_info.hparams.items()}
    assert (traveled["communicator"], traveled["aggregators"]) == ("sums", "server"), "coding was asked for"
    assert not {"test_error", "gap", "V_bits"} & {info.name for info in experiment.hparam_infos}


def test_a_long_command_line_makes_a_name_that_a_folder_can_have(tmp_path: Path) -> None:
    (tmp_path / ".hydra").mkdir()
    name = ",".join(f"word{n}=a b/${{seed}}" for n in range(100))
    choices = {"algorithm": "mocha", "communicator": "coded", "topology": "any_r"}
    hydra = {"job": {"override_dirname": f"algorithm=mocha,{name}"}, "runtime": {"choices": choices}}
    OmegaConf.save({"hydra": hydra}, tmp_path / ".hydra" / "hydra.yaml")
    logger = TensorBoardLogger(str(tmp_path))
    logger.log({"round": 0, "test_error": 0.5})
    logger.close()
    (place,) = {path.parent for path in tmp_path.rglob("events.out.tfevents.*")}
    assert place.parent == tmp_path
    assert place.name == re.sub("[^a-z0-9_=,]+", "_", f"mocha,{name}")[:100]


@pytest.mark.parametrize("records", [0, 1, 7])
def test_a_full_disk_is_one_error(records: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorBoard writes in a thread of its own."""
    write, written, reported = RecordWriter.write, list[bytes](), list[threading.ExceptHookArgs]()

    def limited(self: RecordWriter, data: bytes) -> None:
        written.append(data)
        if len(written) > records:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(self, data)

    monkeypatch.setattr(threading, "excepthook", reported.append)
    monkeypatch.setattr(RecordWriter, "write", limited)
    logger = TensorBoardLogger(str(tmp_path))
    with pytest.raises(OSError, match="No space left"):  # noqa: PT012  # at which record depends on the thread
        for number in range(1000):
            logger.log({"round": number, "test_error": 0.5})
    logger.close()
    assert not reported
    thread = threading.Thread(target=[].pop)
    thread.start()
    thread.join()
    assert [each.exc_type for each in reported] == [IndexError], "those of other threads are reported"
