"""Accuracy of k nearest neighbours by cosine similarity, in two protocols."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from trainables.evaluation.accuracy import Accuracy, accuracy, numbered

#: Neighbours of the quick protocol, weighted by inverse distance.
NEIGHBOURS = 20
#: Neighbours and temperature of Wu et al. 2018 (InstDisc), which lightly uses too.
FIELD_NEIGHBOURS, FIELD_TEMPERATURE = 200, 0.1
#: Similarities in memory at once.
_ELEMENTS = 1 << 25


def knn_accuracies(
    train: Tensor,
    train_labels: Tensor,
    test: Tensor,
    test_labels: Tensor,
    protocols: tuple[str, ...] = ("knn", "knn200"),
) -> dict[str, Accuracy]:
    """Classifies ``test`` [m, d] by the nearest neighbours in ``train`` [n, d], all on one device.

    Args:
        train, train_labels: Features and classes of the training images.
        test, test_labels: Features and classes of the test images.
        protocols: ``knn``: 20 neighbours, weighted by the inverse of their Euclidean distance between features of
            length 1. ``knn200``: 200 neighbours, weighted by exp(cosine similarity / 0.1) (Wu et al. 2018, equation 4
            and section 3.4). Fewer if there are fewer images.

    Returns:
        The accuracy of each protocol.

    Raises:
        ValueError: All training images are of one class, or there are no test images.
    """
    classes, targets = numbered(train_labels, test_labels)
    sizes = {"knn": NEIGHBOURS, "knn200": FIELD_NEIGHBOURS}
    bank, queries = F.normalize(train.float(), dim=1), F.normalize(test.float(), dim=1)
    most = min(max(sizes[name] for name in protocols), len(bank))
    scores: dict[str, list[Tensor]] = {name: [] for name in protocols}
    for part in queries.split(max(_ELEMENTS // len(bank), 1)):
        similar, nearest = (part @ bank.T).topk(most)
        for name in protocols:
            rows = nearest[:, : sizes[name]]
            by_similarity = (similar[:, : sizes[name]] / FIELD_TEMPERATURE).exp()
            weights = by_similarity if name == "knn200" else _inverse_distances(part, bank, rows)
            sums = weights.new_zeros(len(part), len(classes))
            scores[name].append(sums.scatter_add_(1, targets[rows], weights))
    return {name: accuracy(torch.cat(parts), classes, test_labels) for name, parts in scores.items()}


def nearest_rows(train: Tensor, queries: Tensor, count: int) -> Tensor:
    """Returns the ``count`` rows of ``train`` [n, d] with the highest cosine similarity to each query: [m, count]."""
    similarities = F.normalize(queries.float(), dim=1) @ F.normalize(train.float(), dim=1).T
    return similarities.topk(min(count, len(train))).indices


def _inverse_distances(queries: Tensor, bank: Tensor, nearest: Tensor) -> Tensor:
    """Inverse distances [m, k]. If some neighbours equal the query, only these have a weight."""
    # From the features themselves, since 2 - 2 * similarity is inexact for close neighbours.
    distances = torch.stack([torch.linalg.vector_norm(bank[rows] - queries, dim=1) for rows in nearest.unbind(1)], 1)
    equal = distances == 0
    return torch.where(equal.any(1, keepdim=True), equal.float(), 1 / distances)
