"""What is learned from: a data set is a tuple of Tasks, one per user.

In: where the data lie, K, rows per user, the share kept for testing, a seed.
Out: float tensors, split into train and test.
"""

from hmtl.data.partitions import Dirichlet, Partition, Pathological, Quantity, Shards
from hmtl.data.preprocessing import Preprocessing, Scaling, Wanted
from hmtl.data.sources.har import har
from hmtl.data.sources.mnist import mnist, mnist5k
from hmtl.data.sources.tables import files
from hmtl.data.sources.torchvision import torchvision
from hmtl.data.tasks import Task

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
    "files",
    "har",
    "mnist",
    "mnist5k",
    "torchvision",
]
