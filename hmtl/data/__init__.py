"""What is learned from: a data set is a tuple of Tasks, one per user.

In: where the data lie, K, rows per user, the share kept for testing, a seed.
Out: float64 tensors, split into train and test.
"""

from hmtl.data.mnist import mnist, mnist5k
from hmtl.data.tasks import Task

__all__ = ["Task", "mnist", "mnist5k"]
