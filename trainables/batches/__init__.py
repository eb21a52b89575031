"""Which images form a batch, and how they reach the device."""

from trainables.batches.feed import Feed
from trainables.batches.files import ImageFiles
from trainables.batches.order import EpochOrder, SampleStream, share
from trainables.batches.sampling import CLUSTER_ORDERS, balanced_order, clustered_order, stratified_order

__all__ = [
    "CLUSTER_ORDERS",
    "EpochOrder",
    "Feed",
    "ImageFiles",
    "SampleStream",
    "balanced_order",
    "clustered_order",
    "share",
    "stratified_order",
]
