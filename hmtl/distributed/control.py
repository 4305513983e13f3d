"""Values that processes send each other alongside the messages of the network: measurements, state, decisions.

They go to the leading process or come from it. They are not part of the network under study, and the ledger does not
count them.
"""

import io
import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any
from zipfile import ZipFile

import torch

from hmtl.communication.messages import SERVER, nothing
from hmtl.data.preprocessing import Preprocessing, Scaling
from hmtl.data.table_features import FittedTable, TableFeatures
from hmtl.data.tasks import Prepared, Task
from hmtl.distributed.frames import CONTROL, Frame
from hmtl.distributed.launching import SERVER_LOST
from hmtl.distributed.meeting import START, reminding
from hmtl.distributed.peers import PER_NUMBER, Peers
from hmtl.errors import CodingError, ProcessLost, few
from hmtl.training.engine import Values

log = logging.getLogger(__name__)
RESUME = "If the run's folder has a checkpoint, restart from it with resume=FOLDER; otherwise start again."
AGAIN = "Start all processes again."
torch.serialization.add_safe_globals(
    [Task, Prepared, Preprocessing, Scaling, FittedTable, TableFeatures]
)  # besides numbers, strings and tensors


class Control:
    """The exchange of control values by one process.

    Args:
        peers: the other processes; the leading one plays the server and is connected to all others.
        patience: how long the leading process may wait for others to come back [s].
    """

    def __init__(self, peers: Peers, patience: float = 0.0) -> None:
        self.patience = 6 + math.ceil(patience / peers.seconds)
        self.peers, self.others, self.leads = peers, list(peers.connections), peers.name == SERVER
        self._logged: set[str] = set()  # lost nodes that have been logged

    def send(self, to: str, values: Mapping[str, Any]) -> None:
        """Send values to a node's process, without waiting."""
        self.peers.send(to, as_frame(values, self.peers.round))

    def receive(self, senders: Sequence[str], key: str = "", patience: int = 5) -> dict[str, Values]:
        """Return the next values from each sender, except from senders that are late or lost.

        Args:
            key: a name in the values of this step. Values without it are dropped: a sender that was late sends values
                of an earlier step.
            patience: see `Peers.receive`.
        """
        batches = self.peers.receive(CONTROL, senders, patience)
        received = {name: self._read(name, frames) for name, frames in batches.items()}
        return {name: values for name, values in received.items() if values is not None and (not key or key in values)}

    def gather(self, values: Values) -> dict[str, Values]:
        """Return, in the leading process, the values of all others by node, and log whom each of them has lost.

        In all other processes, send the values and return nothing.
        """
        values = {**values, "lost": dict(self.peers.lost), "notices": self.peers.notices.copy()}
        values["returned"] = self.peers.returned
        self.peers.notices.clear()
        if not self.leads:
            self.send(SERVER, values)
            return {}
        received = self.receive(self.others, key="notices")
        self._log([values, *received.values()])
        return received

    def welcome(self, name: str, round: int) -> None:
        """Log that a node takes part again from a round on."""
        self._logged.discard(name)
        log.warning("round %d: %s is back", round, name)

    def broadcast(self, values: Values) -> Values:
        """Return the values of the leading process in all processes.

        Raises:
            ProcessLost: they do not arrive.
        """
        if self.leads:
            for name in self.others:
                self.send(name, values)
            return values
        return self.receive_from_leader()

    def receive_from_leader(self) -> Values:
        """Return the next values that the leading process sends.

        Raises:
            ProcessLost: they do not arrive.
        """
        received = self.receive([SERVER], patience=self.patience)
        if SERVER not in received:
            raise self.lost_leader(f"it sent nothing for {self.patience * self.peers.seconds:g} s")
        return received[SERVER]

    def follow_leader(self) -> Values:
        """Return the first values of another epoch, which the leading process begins.

        Raises:
            ProcessLost: they do not arrive.
        """
        if not self.peers.follow(SERVER):
            raise self.lost_leader()
        return self.receive_from_leader()

    def lost_leader(self, reason: str = "") -> ProcessLost:
        """Return the error that the leading process is lost."""
        return ProcessLost(f"{SERVER_LOST}: {self.peers.lost.get(SERVER, reason)}.", RESUME)

    def agree(self, error: str = "") -> str:
        """Wait until all processes have come here, and return the first error of any of them; "" if there is none.

        It begins with the names of the nodes that have it, unless all have.

        Args:
            error: what went wrong in this process.

        Raises:
            ProcessLost: a process ended on the way, and nothing else went wrong.
        """
        lost = ""
        if self.leads:
            errors = {SERVER: error}
            for name in self.others:
                try:
                    errors[name] = self.wait_for(name, "error", name, START)["error"]
                except ProcessLost as missing:
                    lost = lost or missing.what
            error = next(filter(None, errors.values()), "")
            having = [name for name, each in errors.items() if error and each == error]
            if len(having) < len(errors):
                error = f"{few(having)}: {error}" if having else ""
            self.broadcast({"error": error, "lost": lost})
        else:
            self.send(SERVER, {"error": error})
            decision = self.wait_for(SERVER, "lost", "the others", 2 * START)
            error, lost = decision["error"], decision["lost"]
        if lost and not error:
            raise ProcessLost(lost, AGAIN)
        return error

    def wait_for(self, sender: str, key: str, whom: str, seconds: float) -> Values:
        """Return the next values of another process, before the first round; log after a while `whom` it waits for.

        Raises:
            ProcessLost: they do not arrive.
        """
        with reminding(self.peers.name, whom):
            received = self.receive([sender], key, math.ceil(seconds / self.peers.seconds))
        if sender not in received:
            reason = self.peers.lost.get(sender, f"it took more than {seconds / 60:g} minutes")
            raise ProcessLost(f"{sender} did not get ready: {reason}.", AGAIN)
        return received[sender]

    def _read(self, name: str, frames: Sequence[Frame]) -> Values | None:
        """Return the values that a node sent; None if they cannot be read, upon which the node is lost."""
        try:
            (frame,) = frames
            return from_bytes(frame.payload.numpy()[0].data)
        except Exception as error:  # torch raises various ones
            self.peers.lose(name, f"it sent control values that cannot be read ({type(error).__name__})")
            return None

    def _log(self, gathered: Sequence[Values]) -> None:
        """Log what processes noticed about each other; log only once what several of them noticed."""
        lost = {name: reason for values in gathered for name, reason in values["lost"].items()}
        sentences = [f"{name} is lost: {reason}" for name, reason in lost.items() if name not in self._logged]
        self._logged |= set(lost)
        sentences += [notice for values in gathered for notice in values["notices"]]
        for sentence in dict.fromkeys(sentences):
            log.warning("round %d: %s", self.peers.round // PER_NUMBER, sentence)


def as_frame(values: Mapping[str, Any], round: int) -> Frame:
    """Return a frame that carries values."""
    return Frame(CONTROL, round, torch.frombuffer(to_bytes(values), dtype=torch.uint8)[None], nothing(1))


def to_bytes(values: Mapping[str, Any]) -> memoryview:
    """Return named values (numbers, strings, tensors and tasks) as bytes."""
    content = io.BytesIO()
    torch.save(dict(values), content)
    return content.getbuffer()


def from_bytes(content: bytes | memoryview) -> Values:
    """Return the values that `to_bytes` encoded; nothing in them is executed, or larger than `content`."""
    archive = io.BytesIO(content)
    if sum(each.file_size for each in ZipFile(archive).infolist()) > len(content):
        raise CodingError("these values are compressed")
    archive.seek(0)
    return dict(torch.load(archive, weights_only=True))
