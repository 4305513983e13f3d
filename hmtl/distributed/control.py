"""What processes say to each other beside the messages of the network: measurements, state, and whether to go on.

Words go to the first process, which keeps the results, or come from it. The ledger does not count them.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from hmtl.communication import Communicator
from hmtl.communication.messages import SERVER, nothing
from hmtl.distributed.connections import Wires
from hmtl.distributed.frames import WORD, Frame
from hmtl.distributed.rendezvous import packed, unpacked
from hmtl.errors import EngineError

log = logging.getLogger(__name__)
Word = dict[str, Any]


class Words:
    """The words of this process.

    Args:
        wires: to the other processes.
        others: names of all but the first process.
    """

    def __init__(self, wires: Wires, others: Sequence[str]) -> None:
        self.wires, self.others, self.leads = wires, others, wires.me == SERVER
        self._lost: dict[str, str] = {}  # of whom the log has told

    def say(self, to: str, word: Mapping[str, Any]) -> None:
        """Bring a word on its way."""
        content = torch.frombuffer(packed(word), dtype=torch.uint8)[None]
        self.wires.say(to, Frame(WORD, self.wires.round, content, nothing(1)))

    def hear(self, names: Sequence[str], about: str, patience: int = 5) -> dict[str, Word]:
        """The words of these, if they are about that: what comes from a process that was late is about other things."""
        heard = self.wires.hear(WORD, names, patience)
        words = {name: unpacked(frames[0].payload.numpy()[0].data) for name, frames in heard.items()}
        return {name: word for name, word in words.items() if not about or about in word}

    def tell(self, communicator: Communicator, word: Word) -> dict[str, Word]:
        """The words of all processes at the first one, where bits and seconds are added up; elsewhere none."""
        word |= {"sent": communicator.ledger.latest(), "seconds": dict(communicator.stopwatch.seconds)}
        word |= {"lost": dict(self.wires.lost), "news": self.wires.news.copy()}
        self.wires.news.clear()
        if not self.leads:
            self.say(SERVER, word)
            return {}
        words = self.hear(self.others, "sent")
        self._log([word, *words.values()])
        for other in words.values():
            communicator.ledger.add_latest(other["sent"])
            communicator.stopwatch.seconds |= other["seconds"]
        return words

    def _log(self, words: Iterable[Word]) -> None:
        """What processes have to tell of each other."""
        words = list(words)
        lost = {name: why for word in words for name, why in word["lost"].items() if name not in self._lost}
        self._lost |= lost
        late = [sentence for word in words for sentence in word["news"]]
        for sentence in dict.fromkeys([*(f"{name} is lost: {why}" for name, why in lost.items()), *late]):
            log.warning("round %d: %s", self.wires.round, sentence)

    def agree(self, word: Word) -> Word:
        """The word of the first process.

        Raises:
            EngineError: it is not heard.
        """
        if self.leads:
            for name in self.others:
                self.say(name, word)
            return word
        words = self.hear([SERVER], "", patience=6)
        if SERVER not in words:
            why = self.wires.lost.get(SERVER, f"it said nothing for {6 * self.wires.seconds:g} s")
            raise EngineError(f"the server is lost ({why}): go on from the last checkpoint by resume=PATH.")
        return words[SERVER]
