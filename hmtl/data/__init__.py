"""Data sets: each function here returns a tuple of Tasks, one per user.

A source reads rows, a partition deals them to K users, each user's rows are split into training and test rows, and
`prepare` scales them.
"""

from typing import TYPE_CHECKING, Any

from hmtl.data.datasets import deal, from_datasets
from hmtl.data.partitions import Dirichlet, Partition, Pathological, Quantity, Shards
from hmtl.data.preprocessing import Preprocessing, Scaling
from hmtl.data.sources.har import har
from hmtl.data.sources.mnist import mnist, mnist5k
from hmtl.data.sources.torchvision import torchvision
from hmtl.data.splitting import Wanted, with_validation
from hmtl.data.tasks import Task, prepare

if TYPE_CHECKING:
    from hmtl.data.sources.files import files

__all__ = [
    "Dirichlet",
    "Partition",
    "Pathological",
    "Preprocessing",
    "Quantity",
    "Scaling",
    "Shards",
    "Task",
    "Wanted",
    "deal",
    "files",
    "from_datasets",
    "har",
    "mnist",
    "mnist5k",
    "prepare",
    "torchvision",
    "with_validation",
]


def __getattr__(name: str) -> Any:
    if name != "files":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from hmtl.data.sources.files import files  # late, as pandas is

    return files
