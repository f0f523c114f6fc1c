"""ridge: a linear classifier on features that do not train, solved in one round from exact sums.

Every client sends second moments of its features and first moments of its annotated labels, once; the server solves a
ridge regression per label (``fedmlic.solved_head`` has the formulas). The result is that of the pooled known entries,
whatever the partition. Scores are the regression's values through a sigmoid: they rank, and 0.5 is the middle
between the targets, but they are no calibrated probabilities.

Sources: He et al. 2025 (AFL, CVPR) for one label per image; per-label sums over clients that annotate the label are
those of "One round is all you need" (arXiv 2607.20641), of which only the abstract is known here.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from fedmlic.method import Method, Objective
from fedmlic.pretrained import freeze
from fedmlic.solved_head import Gram, SolvedHead, pooled_features, squared_error
from fedmlic.training import classifier

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from fedmlic.method import Task


def ridge(
    *,
    alpha: Annotated[float, Field(gt=0)] = 1.0,
    standardise: bool = True,
    balanced: bool = False,
    gram: Gram = "auto",
) -> Method:
    """One-round ridge regression on a backbone that does not train.

    Args:
        alpha: penalty of the squared weights, more than 0, as scikit-learn's ``Ridge``.
        standardise: divide features by their standard deviation over the images that count for a label.
        balanced: targets n / (2 p) and -n / (2 (n - p)) in place of 1 and -1: a label's ranking stays, its threshold
            moves to where present and absent entries weigh the same.
        gram: second moments of features per ``label`` (exact), of all images for all labels (``shared``, an
            approximation where labels are incomplete), or ``auto``: shared where annotations, counted before round
            1, say that it is exact.
    """
    head = SolvedHead(pooled_features, alpha, standardise, balanced, gram)
    base = classifier(squared_error)
    objective = Objective(base.objective.loss, needs_annotations=True) if base.objective else None
    return base._replace(
        build=partial(_frozen, base.build),
        phases=(head.phase(objective),),
        freezes=True,
        statistics=head.counts,
        remembers=True,
    )


def _frozen(build: Callable[[Task], nn.Module], task: Task) -> nn.Module:
    network = build(task)
    backbone = network.get_submodule("backbone")
    freeze(backbone, {name for name, _ in backbone.named_parameters()})
    return network
