"""What is learned from: a data set is a tuple of Tasks, one per user.

In: where the data lie, K, rows per user, the share kept for testing, a seed.
Out: float tensors, split into train and test.
"""

from hmtl.data.activity import har
from hmtl.data.digits import mnist, mnist5k
from hmtl.data.images import torchvision
from hmtl.data.outline import from_outline, outline, results, with_results
from hmtl.data.preprocessing import Preprocessing, Scaling, Wanted
from hmtl.data.skew import Dirichlet, Partition, Pathological, Quantity, Shards
from hmtl.data.tables import files
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
    "from_outline",
    "har",
    "mnist",
    "mnist5k",
    "outline",
    "results",
    "torchvision",
    "with_results",
]
