"""Partitions deal the rows of a labeled data set to K users; no two users share a row."""

from hmtl.data.partitions.paper import even_sets, one_vs_rest
from hmtl.data.partitions.skewed import Dirichlet, Partition, Pathological, Quantity, Shards

__all__ = ["Dirichlet", "Partition", "Pathological", "Quantity", "Shards", "even_sets", "one_vs_rest"]
