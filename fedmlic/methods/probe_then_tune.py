"""probe_then_tune: first a linear classifier on fixed features, then the whole network.

In the first ``probe_rounds`` rounds only the head trains and is exchanged; the backbone stays what
it is, bit for bit, is not sent, and BatchNorm uses its statistics as they are. Then everything
trains. A head that fits the features keeps the first steps of fine-tuning from distorting them.

Source: Kumar et al., "Fine-Tuning can Distort Pretrained Features and Underperform
Out-of-Distribution" (ICLR 2022, LP-FT); the loss is binary cross-entropy over known labels.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from torch import nn

from fedmlic.losses import mean_binary_cross_entropy
from fedmlic.method import Method, Phase
from fedmlic.training import classifier


def probe_then_tune(
    *,
    probe_rounds: Annotated[int, Field(ge=1)] = 5,
    pool: Literal["mean", "max", "logsumexp"] = "mean",
) -> Method:
    """A linear probe in the first rounds, then fine-tuning.

    Args:
        probe_rounds: rounds in which only the head trains.
        pool: how the logit map becomes one logit per label (``fedmlic.model.Classifier``).
    """
    method = classifier(mean_binary_cross_entropy, pool=pool)

    def head(network: nn.Module) -> list[str]:
        return list(method.label_rows(network))

    probe = Phase(method.train, probe_rounds, head, method.objective)
    return method._replace(phases=(probe, Phase(method.train, objective=method.objective)))
