"""Accuracy of a linear classifier on frozen features."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor

from trainables.evaluation.accuracy import Accuracy, accuracy, numbered

#: Weight of the loss against the L2 penalty, as scikit-learn's C.
_C = 1.0
#: Maximum number of L-BFGS iterations, and the largest entry of the gradient at which it stops.
_ITERATIONS, _GRADIENT = 500, 1e-4


def linear_accuracy(train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor) -> Accuracy:
    """Fits a linear classifier to ``train`` [n, d] and returns its accuracy on ``test`` [m, d], all on one device.

    The classifier is a multinomial logistic regression on standardised features with L2 penalty, C = 1, the objective
    of scikit-learn's ``LogisticRegression``. It is fitted to all images at once by L-BFGS: SciPy
    chooses the steps, loss and gradient are computed on the device of the features.

    Raises:
        ValueError: All training images are of one class, or there are no test images.
    """
    classes, targets = numbered(train_labels, test_labels)
    std, mean = torch.std_mean(train.float(), dim=0, correction=0)
    scale = torch.where(std > 0, std, 1)
    weights = _fit(_with_ones((train.float() - mean) / scale), targets, len(classes))
    return accuracy(_with_ones((test.float() - mean) / scale) @ weights, classes, test_labels)


def _with_ones(rows: Tensor) -> Tensor:
    """Appends the input of the bias."""
    return torch.cat([rows, rows.new_ones(len(rows), 1)], dim=1)


def _fit(rows: Tensor, targets: Tensor, classes: int) -> Tensor:
    """Returns the weights [d + 1, classes]; the last row, the bias, has no penalty."""
    shape = rows.shape[1], classes

    def objective(flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        weights = torch.from_numpy(flat.astype(np.float32)).view(shape).to(rows.device).requires_grad_()
        with torch.enable_grad():
            loss = F.cross_entropy(rows @ weights, targets)
            loss = loss + weights[:-1].square().sum() / (2 * _C * len(rows))
        (gradient,) = torch.autograd.grad(loss, weights)
        return loss.item(), gradient.flatten().cpu().numpy().astype(np.float64)

    options = {"maxiter": _ITERATIONS, "gtol": _GRADIENT, "ftol": 0}
    found = minimize(objective, np.zeros(shape).ravel(), jac=True, method="L-BFGS-B", options=options)
    return torch.from_numpy(found.x.astype(np.float32)).view(shape).to(rows.device)
