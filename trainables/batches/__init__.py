"""Which images form a batch, and how they reach the device."""

from trainables.batches.feed import Feed
from trainables.batches.files import ImageFiles
from trainables.batches.order import SampleStream, share
from trainables.batches.stratified import stratified_order

__all__ = ["Feed", "ImageFiles", "SampleStream", "share", "stratified_order"]
