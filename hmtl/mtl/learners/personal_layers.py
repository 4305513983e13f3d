"""FedPer, FedRep and LG-FedAvg: FedAvg of some layers of a network, while each user has the others for itself."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from hmtl.mtl.learners.base import Learner, Numbers, Section, Train
from hmtl.mtl.networks.split import Split, last_layer, matching


class FedPer(Learner):
    """FedAvg of the first layers; each user has a last layer of its own. Users train both at once.

    The personal parameters start alike and never travel. Those of an absent user stay as they are, while the shared
    ones are replaced by the new average.

    Args:
        personal: names of the personal parameters, or of modules with personal parameters only, as in `state_dict` of
            the network; `*` stands for any characters, as in "*lora_B*". None: the last layer.
        coupled: whether the regularizer of the problem couples the personal parameters, as in FedU; they then travel
            beside the shared ones.

    Ref: Arivazhagan et al. 2019, *Federated learning with personalization layers*.
    """

    def __init__(self, personal: Sequence[str | int] | str | int | None = None, coupled: bool = False) -> None:
        self._personal = personal
        self.coupled = self.regularized = coupled

    def check(self) -> None:
        names = list(self.model.shapes)
        chosen = [self._personal] if isinstance(self._personal, str | int) else self._personal
        if chosen is None:
            personal = self.usual(names, last_layer([name for name in names if name not in self.model.buffers]))
        else:
            personal = matching(names, [str(each) for each in chosen])
        self.split = Split(self.model, personal)
        if self.coupled:
            self.model.check_no_buffers("FedPer with coupled=true")

    def usual(self, names: Sequence[str], last: frozenset[str]) -> frozenset[str]:
        """Return the parameters that are personal if none were chosen, given those of the last layer."""
        return last

    def sections(self) -> Mapping[str, Section]:
        shared = {"w": Section(self.split.part(self.start, self.split.shared))}
        head = self.split.part(self.start, self.split.personal)
        return shared | ({"head": Section(head, coupled=True)} if self.coupled else {})

    def personal(self) -> Mapping[str, Tensor]:
        return {} if self.coupled else {"head": self.split.part(self.start, self.split.personal)}

    def local(self, shared: Numbers, own: Numbers, train: Train) -> Mapping[str, Tensor]:
        models = self.trained(self.predictor(shared, own), train)
        w, head = (self.split.part(models, names) for names in (self.split.shared, self.split.personal))
        if self.coupled:
            return {"w": w, "head": head}
        own.head = head
        return {"w": w}

    def trained(self, models: Tensor, train: Train) -> Tensor:
        """Return the models [b, m] after local training."""
        return train(models)

    def predictor(self, shared: Numbers, own: Numbers) -> Tensor:
        return self.split.models(shared.w, shared.head if self.coupled else own.head)

    def describe(self) -> dict[str, Any]:
        return {"algorithm": type(self).__name__.lower(), "personal": sorted(self.split.personal)}


class FedRep(FedPer):
    """FedPer whose users train the personal layers first, with the shared ones fixed, and then the shared ones.

    Each of the two phases takes the solver's epochs. Args: as in `FedPer`.

    Ref: Collins et al. 2021, *Exploiting shared representations for personalized federated learning*.
    """

    phases = 2

    def trained(self, models: Tensor, train: Train) -> Tensor:
        for phase, names in enumerate((self.split.personal, self.split.shared)):
            models = train(models, only=names, phase=phase)
        return models


class LGFedAvg(FedPer):
    """FedPer the other way round: each user has first layers of its own, and the last layer is averaged.

    Args: as in `FedPer`; personal=None: all but the last layer.

    Ref: Liang et al. 2020, *Think locally, act globally: federated learning with local and global representations*.
    """

    def usual(self, names: Sequence[str], last: frozenset[str]) -> frozenset[str]:
        return frozenset(names) - last

    def describe(self) -> dict[str, Any]:
        return super().describe() | {"algorithm": "lg_fedavg"}
