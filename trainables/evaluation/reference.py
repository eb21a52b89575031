"""The reference loss, which can be compared between batch sizes: NT-Xent of a held-out set in two fixed views.

The training loss cannot be compared, because its chance level ln(2B - 1) grows with the batch size B.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from trainables.simclr.augment import Augment
from trainables.simclr.batchnorm import calibrate

#: Views in the network at once. The loss is computed over all of them.
_CHUNK = 1024


class ReferenceSet:
    """Measures models on held-out images, uint8 [n, C, H, W], in two fixed views, which ``seed`` determines."""

    def __init__(
        self, images: NDArray[np.uint8], augment: Augment, *, temperature: float, seed: int, device: torch.device
    ) -> None:
        both = torch.tensor(images).repeat(2, 1, 1, 1)
        views = augment(both, torch.Generator().manual_seed(seed))
        self._views = views.to(device, memory_format=torch.channels_last)
        self._temperature = temperature

    @torch.no_grad()
    def measure(self, model: nn.Module) -> dict[str, float]:
        """Returns the model's loss and three diagnostics of its projections.

        The model's running statistics are set to the batch statistics of the reference views, so that the results
        depend on the weights only.

        Returns:
            ``reference_loss``; ``alignment`` and ``uniformity`` (Wang & Isola 2020, equations 1 and 2, exponents 2 and
            t = 2; lower is better); ``rankme``, the effective rank (Garrido et al. 2023; higher is better).
        """
        z = torch.cat(calibrate(model, self._views.split(_CHUNK))).float()
        z_a, z_b = z.chunk(2)
        loss = _single_process_loss(z_a, z_b, self._temperature)
        unit = F.normalize(z, dim=1)
        u_a, u_b = unit.chunk(2)
        spectrum = torch.linalg.svdvals(torch.nan_to_num(z))  # svdvals raises on NaN, which the loss reports
        p = spectrum / spectrum.sum() + 1e-7
        measures = torch.stack(
            [
                loss,
                (u_a - u_b).square().sum(1).mean(),
                torch.pdist(u_a).square().mul(-2).exp().mean().log(),
                torch.exp(-(p * p.log()).sum()),
            ]
        ).tolist()
        return dict(zip(("reference_loss", "alignment", "uniformity", "rankme"), measures, strict=True))


def _single_process_loss(z_a: Tensor, z_b: Tensor, temperature: float) -> Tensor:
    """Computes NT-Xent without gathering from other workers, which do not evaluate."""
    u = F.normalize(torch.cat([z_a, z_b]), dim=1)
    similarities = u @ u.T / temperature
    similarities.fill_diagonal_(-torch.inf)
    n = len(z_a)
    partner = torch.arange(2 * n, device=u.device).roll(n)
    return F.cross_entropy(similarities, partner)
