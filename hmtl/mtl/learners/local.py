"""Local training of networks: the baseline of FedAvg and its relatives, in which nothing travels."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from hmtl.mtl.learners.base import Learner, Numbers, Section, Train


class LocalNetworks(Learner):
    """Each user trains a network on its own rows. Nothing travels, and the regularizer is not used."""

    def sections(self) -> Mapping[str, Section]:
        return {}

    def personal(self) -> Mapping[str, Tensor]:
        return {"v": self.start}

    def local(self, shared: Numbers, own: Numbers, train: Train) -> Mapping[str, Tensor]:
        own.v = train(own.v)
        return {}

    def predictor(self, shared: Numbers, own: Numbers) -> Tensor:
        v: Tensor = own.v
        return v

    def describe(self) -> dict[str, Any]:
        return super().describe() | {"algorithm": "local_networks"}
