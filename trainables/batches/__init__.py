"""Chooses the images of each batch and loads them onto the device."""

from trainables.batches.feed import Feed
from trainables.batches.files import ImageFiles
from trainables.batches.information import InformationAccumulator
from trainables.batches.order import EpochOrder, SampleStream, shard_rows
from trainables.batches.sampling import CLUSTER_ORDERS, balanced_order, clustered_order, stratified_order
from trainables.batches.scores import BatchScore, batch_score
from trainables.batches.updates import AdaptiveAccumulation, Update
from trainables.batches.weighting import percentiles, sample_weights

__all__ = [
    "CLUSTER_ORDERS",
    "AdaptiveAccumulation",
    "BatchScore",
    "EpochOrder",
    "Feed",
    "ImageFiles",
    "InformationAccumulator",
    "SampleStream",
    "Update",
    "balanced_order",
    "batch_score",
    "clustered_order",
    "percentiles",
    "sample_weights",
    "shard_rows",
    "stratified_order",
]
