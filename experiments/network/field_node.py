"""One node of `field.py`: it plays rounds for each choice of aggregators."""

import json
import os
import sys
import time
from pathlib import Path

import numpy as np
from node import MirroringAggregator, RandomUsers

from hmtl.communication import CodedHierarchical, Network, Sums
from hmtl.distributed.control import Control
from hmtl.distributed.engine import TorchDistributed
from hmtl.distributed.links import ProcessLinks
from hmtl.distributed.placement import names_of
from hmtl.topology import any_r

BEGIN = 0.3  # seconds from the announcement of a round to its beginning


def main() -> None:
    settings = json.loads(Path(sys.argv[1]).read_text())
    rank, size, H, K = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), settings["H"], settings["K"]
    topology = any_r(K, H, settings["r"], 0)
    names = names_of(size, H)
    peers = TorchDistributed(120.0)._connect(names, "field")
    control, homes = Control(peers), np.array_split(np.arange(K), size - 1 - H)
    network = Network(medium="unicast", links=settings["links"])
    number, found = 0, []
    for scheme, nodes, nbytes in settings["choices"]:
        make = Sums if scheme == "sums" else CodedHierarchical
        communicator = make(
            topology, network, links=lambda ledger: ProcessLinks(ledger, peers, topology, homes), aggregators=nodes
        )
        mine = homes[rank - 1 - H] if rank > H else np.empty(0, np.int64)
        users, aggregator = RandomUsers(K, nbytes // 8, mine, scheme == "sums"), MirroringAggregator()
        for _ in range(settings["rounds"]):
            control.gather({})
            start = control.broadcast({"start": time.monotonic() + BEGIN})["start"]
            time.sleep(max(0.0, start - time.monotonic()))
            users.correct = 0
            communicator.round(number, users, aggregator)
            taken = control.gather({"seconds": time.monotonic() - start, "correct": users.correct})
            number += 1
            if rank == 0:
                assert sum(each["correct"] for each in taken.values()) == K, "a model is wrong"
                found.append([scheme, nodes, nbytes, max(each["seconds"] for each in taken.values())])
                Path(settings["report"]).write_text(json.dumps(found))
    peers.close()


if __name__ == "__main__":
    main()
