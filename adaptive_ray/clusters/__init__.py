"""DatasetClusters of a data set: pretrained features, their clusters, and what they say about batches."""

from adaptive_ray.clusters.counting import Clustering, count_clusters
from adaptive_ray.clusters.encoders import encode

__all__ = ["Clustering", "count_clusters", "encode"]
