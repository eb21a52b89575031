"""Successive halving by the losses at an equal part of the budget (Jamieson and Talwalkar, AISTATS 2016).

Candidates start from the same weights and see the same images, so their losses at an equal part of the budget can be
compared early, and no forecast is needed. Every policy that extrapolates was worse on recorded runs (docs/choosing.md).
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping

from schedulers.forecast import TieBreak

#: Fractions of the window at which the worse half is pruned. Chosen on 28 recorded sweeps (docs/choosing.md).
HALVINGS = (0.4, 0.6)


def ranked(losses: Mapping[Hashable, float], tie_break: TieBreak | None) -> list[Hashable]:
    """Returns the candidates, best first: by loss, or the fastest of those that are almost the lowest."""
    if tie_break is None:
        return sorted(losses, key=lambda key: losses[key])
    left, order = dict(losses), []
    while left:
        order.append(tie_break.best(left))
        del left[order[-1]]
    return order


def halved(losses: Mapping[Hashable, float], tie_break: TieBreak | None) -> dict[Hashable, str]:
    """Returns the candidates to prune, with reasons: the worse half, and those slower and no better than the best.

    Two candidates continue, unless one of them is slower and no better.
    """
    best, *others = ranked(losses, tie_break)
    pruned = {}
    for rank, key in enumerate(others, 2):
        if rank > max(2, len(losses) // 2):
            pruned[key] = f"rank {rank} of {len(losses)} (best: {best}, {losses[best]:.3f})"
        elif tie_break is not None and tie_break.throughput[best] > tie_break.throughput[key]:
            ratio = tie_break.throughput[best] / tie_break.throughput[key]
            lower = losses[key] - losses[best]
            near = f"{lower:.3f} lower" if lower > tie_break.tolerance else f"within {tie_break.tolerance:.3f} of it"
            pruned[key] = f"{best} is {near} and {ratio:.2f} times as fast"
    return pruned
