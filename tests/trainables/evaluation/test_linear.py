from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from trainables.evaluation.linear import linear_accuracy


def test_equals_scikit_learns_logistic_regression() -> None:
    """On digits with 64 features, some of which are constant."""
    images, labels = load_digits(return_X_y=True)
    features = images.astype(np.float32)
    train, test = slice(600), slice(600, None)
    theirs = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500)).fit(features[train], labels[train])
    values = [torch.from_numpy(array) for array in (features[train], labels[train], features[test], labels[test])]
    found = linear_accuracy(*values)
    assert found.top5 is None
    assert found.top1 > 0.85
    assert found.top1 == pytest.approx(theirs.score(features[test], labels[test]), abs=0.005)
    assert linear_accuracy(*values) == found


def test_many_classes_have_a_top5_accuracy() -> None:
    random = np.random.default_rng(0)
    labels = random.integers(0, 12, 600)
    features = (random.standard_normal((12, 8))[labels] + random.standard_normal((600, 8))).astype(np.float32)
    theirs = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500)).fit(features[:400], labels[:400])
    ranked = np.argsort(-theirs.decision_function(features[400:]), axis=1)[:, :5]
    expected = (ranked == labels[400:, None]).any(1).mean()
    found = linear_accuracy(*map(torch.from_numpy, (features[:400], labels[:400], features[400:], labels[400:])))
    assert found.top5 == pytest.approx(expected, abs=0.011)
    assert found.top5 > found.top1 > 1 / 12
