"""A loss that can be compared between batch sizes: NT-Xent of one fixed, held-out set in two fixed views.

The training loss's chance level ln(2B - 1) rises with the batch, so it always prefers the smallest one.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from trainables.simclr.augment import Augment
from trainables.simclr.batchnorm import calibrate

#: Embedded at a time; the loss is over all of them together.
_CHUNK = 1024


class ReferenceSet:
    """Held-out images in two views that never change.

    Args:
        images: uint8 [n, C, H, W], not used in training.
        augment: Draws the views, once.
        temperature: Of the loss.
        seed: Fixes the views.
        device: Where they are kept.
    """

    def __init__(
        self, images: NDArray[np.uint8], augment: Augment, *, temperature: float, seed: int, device: torch.device
    ) -> None:
        both = torch.tensor(images).repeat(2, 1, 1, 1)
        views = augment(both, torch.Generator().manual_seed(seed))
        self._views = views.to(device, memory_format=torch.channels_last)
        self._temperature = temperature

    @torch.no_grad()
    def measure(self, model: nn.Module) -> dict[str, float]:
        """The model's loss and three diagnoses of its projections.

        Batch statistics are those of the reference views, and the model keeps them as its running statistics: what is
        measured is a function of the weights alone.

        Returns:
            ``reference_loss``; ``alignment`` and ``uniformity`` (Wang & Isola 2020, equations 1 and 2, exponents 2 and
            t = 2; lower is better); ``rankme``, the effective rank (Garrido et al. 2023; higher is better).
        """
        z = torch.cat(calibrate(model, self._views.split(_CHUNK))).float()
        z_a, z_b = z.chunk(2)
        loss = _single_process_loss(z_a, z_b, self._temperature)
        unit = F.normalize(z, dim=1)
        u_a, u_b = unit.chunk(2)
        spectrum = torch.linalg.svdvals(torch.nan_to_num(z))  # it raises on nan, which the loss is to report
        share = spectrum / spectrum.sum() + 1e-7
        measures = torch.stack(
            [
                loss,
                (u_a - u_b).square().sum(1).mean(),
                torch.pdist(u_a).square().mul(-2).exp().mean().log(),
                torch.exp(-(share * share.log()).sum()),
            ]
        ).tolist()
        return dict(zip(("reference_loss", "alignment", "uniformity", "rankme"), measures, strict=True))


def _single_process_loss(z_a: Tensor, z_b: Tensor, temperature: float) -> Tensor:
    """NT-Xent written densely. ``nt_xent`` would gather from the other workers, which do not take part."""
    u = F.normalize(torch.cat([z_a, z_b]), dim=1)
    similarities = u @ u.T / temperature
    similarities.fill_diagonal_(-torch.inf)
    n = len(z_a)
    partner = torch.arange(2 * n, device=u.device).roll(n)
    return F.cross_entropy(similarities, partner)
