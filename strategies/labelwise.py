"""labelwise: each label's own rows are averaged over those who annotated that label.

Shared tensors are weighted by a client's known annotations. The tensors with one
row per label (classifier row, label token) are weighted row by row, by the
client's known annotations of that label; a label that nobody in the cohort
annotated keeps its row.

Source: this project. Relatives: FLAG (arXiv 2302.13571) and FPSL weight rows by
local *positives*; Surgical Aggregation (arXiv 2301.06683) averages rows equally over
the clients that own the label.
"""

from __future__ import annotations

from fedmlic.update import SharedWeight, Weighting
from strategies.strategy import Strategy, weighted_mean


def labelwise(*, shared: SharedWeight = "annotations") -> Strategy:
    """Label rows weighted by who annotated that label, shared tensors by all annotations.

    Args:
        shared: weight of the tensors that all labels share: ``annotations``, ``images`` or
            ``uniform``.
    """
    return Strategy(weighted_mean, weighting=Weighting(shared=shared, rows="annotations"))
