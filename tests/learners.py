"""All learners of networks by their names in descriptions."""

from hmtl.mtl import (
    APFL,
    Ditto,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedNova,
    FedPer,
    FedProx,
    FedRep,
    FedU,
    FedYogi,
    LGFedAvg,
    LocalNetworks,
    PFedMe,
    Scaffold,
)

LEARNERS = {
    "fedavg": FedAvg(),
    "fedprox": FedProx(0.5),
    "ditto": Ditto(0.5),
    "pfedme": PFedMe(0.8, eta=0.5, local_rounds=2),
    "apfl": APFL(),
    "scaffold": Scaffold(),
    "fednova": FedNova(),
    "fedavgm": FedAvgM(),
    "fedadam": FedAdam(),
    "fedyogi": FedYogi(),
    "local_networks": LocalNetworks(),
    "fedper": FedPer(),
    "fedrep": FedRep(),
    "lg_fedavg": LGFedAvg(),
    "fedu": FedU(),
}
LAYERED = ("fedper", "fedrep", "lg_fedavg")  # they need a network of several layers
