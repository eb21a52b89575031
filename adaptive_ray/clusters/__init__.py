"""Clusters of a data set: pretrained features, the number of clusters, and batch sizes derived from it."""

from adaptive_ray.clusters.counting import Clustering, count_clusters
from adaptive_ray.clusters.encoders import encode

__all__ = ["Clustering", "count_clusters", "encode"]
