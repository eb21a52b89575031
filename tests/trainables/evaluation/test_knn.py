from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer

from trainables.evaluation import knn
from trainables.evaluation.knn import knn_accuracies, nearest_rows

Data = tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.float32], NDArray[np.int64]]


def data(classes: int, d: int = 16, seed: int = 0) -> Data:
    """Features of 600 training and 300 test images around one direction per class, and their labels."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes, 900)
    features = random.standard_normal((classes, d))[labels] + 1.2 * random.standard_normal((900, d))
    features = features.astype(np.float32)
    return features[:600], labels[:600], features[600:], labels[600:]


def plain(train: NDArray[np.float32], labels: NDArray[np.int64], queries: NDArray[np.float32]) -> NDArray[np.float64]:
    """Class scores of Wu et al. 2018 (section 3.4), one image and one neighbour at a time."""
    scores = np.zeros((len(queries), labels.max() + 1))
    for row, query in enumerate(queries.astype(np.float64)):
        similar = train @ query / np.linalg.norm(train, axis=1) / np.linalg.norm(query)
        for neighbour in np.argsort(-similar)[:200]:
            scores[row, labels[neighbour]] += np.exp(similar[neighbour] / 0.1)
    return scores


@pytest.mark.parametrize("classes", [4, 30])
def test_two_hundred_neighbours_vote_as_in_the_paper(classes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(knn, "_ELEMENTS", 600 * 7)  # several parts, the last one smaller
    train, labels, queries, expected = data(classes)
    ranked = np.argsort(-plain(train, labels, queries), axis=1)
    found = knn_accuracies(*map(torch.from_numpy, data(classes)))["knn200"]
    assert 0.4 < found.top1 < 0.99
    assert found.top1 == pytest.approx((ranked[:, 0] == expected).mean(), abs=0.004)  # one image may be a tie
    if classes <= 10:
        assert found.top5 is None
    else:
        assert found.top5 == pytest.approx((ranked[:, :5] == expected[:, None]).any(1).mean(), abs=0.004)
        assert found.top5 > found.top1


@pytest.mark.parametrize("classes", [4, 30])
def test_twenty_neighbours_vote_as_in_scikit_learn(classes: int) -> None:
    train, labels, queries, expected = data(classes)
    queries[:50], expected[:50] = train[:50], (labels[:50] + 1) % classes  # equal to training images
    train[100:110], labels[100:110] = train[0], labels[0]  # several equal ones
    theirs = make_pipeline(Normalizer(), KNeighborsClassifier(20, weights="distance")).fit(train, labels)
    found = knn_accuracies(*map(torch.from_numpy, (train, labels, queries, expected)), protocols=("knn",))
    assert list(found) == ["knn"]
    assert found["knn"].top1 == pytest.approx(theirs.score(queries, expected), abs=0.004)


def test_labels_may_have_gaps_and_test_images_other_classes() -> None:
    train, labels, queries, expected = data(4)
    found = knn_accuracies(*map(torch.from_numpy, (train, labels * 7 + 3, queries, expected * 7 + 3)))
    assert found == knn_accuracies(*map(torch.from_numpy, (train, labels, queries, expected)))
    expected[:150] = 99
    halved = knn_accuracies(*map(torch.from_numpy, (train, labels, queries, expected)))
    assert halved["knn"].top1 <= 0.5


def test_one_class_or_no_test_images_are_refused() -> None:
    train, labels, queries, expected = map(torch.from_numpy, data(4))
    with pytest.raises(ValueError, match="all 600 training images of a classifier are of one class"):
        knn_accuracies(train, torch.zeros_like(labels), queries, expected)
    with pytest.raises(ValueError, match="no held-out images"):
        knn_accuracies(train, labels, queries[:0], expected[:0])


def test_nearest_rows_are_sorted_by_cosine_similarity() -> None:
    train = torch.tensor([[1.0, 0.0], [0.0, 9.0], [5.0, 5.0]])
    assert nearest_rows(train, torch.tensor([[0.1, 0.0]]), 2).tolist() == [[0, 2]]
    assert nearest_rows(train, torch.tensor([[0.1, 3.0]]), 8).tolist() == [[1, 2, 0]]
