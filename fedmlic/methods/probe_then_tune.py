"""probe_then_tune: any method, first on a backbone that stands still, then on all of the network.

In the first ``probe_rounds`` rounds only what the method has beside the backbone (its head, label
vectors, decoder) trains and is exchanged; the backbone stays what it is, bit for bit, is not sent,
and BatchNorm uses its statistics as they are. Then everything trains. A head that fits the
features keeps the first steps of fine-tuning from distorting them.

Source: Kumar et al., "Fine-Tuning can Distort Pretrained Features and Underperform
Out-of-Distribution" (ICLR 2022, LP-FT), there with a linear head. Deviation: other methods'
heads too.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import nn

from fedmlic import spec
from fedmlic.errors import InputError
from fedmlic.features import BACKBONE
from fedmlic.method import Method, Phase, needs_rounds_after


def probe_then_tune(*, probe_rounds: Annotated[int, Field(ge=1)] = 5, method: str = "bce()") -> Method:
    """A method whose backbone stands still in the first rounds and is fine-tuned after them.

    Args:
        probe_rounds: rounds in which only what is beside the backbone trains.
        method: the method and its arguments, such as ``"fedlgt(readout='shared')"``; it must train by one objective
            and have no phases, sums of every round or conditions of its own.

    Raises:
        InputError: ``method`` names no such method.
    """
    made: Method = spec.build("method", method)
    reason = _unsuited(made)
    if reason:
        msg = (
            f"Expected method of probe_then_tune to train by one objective in every round, got {method}, which has "
            f"{reason} of its own. Name another method."
        )
        raise InputError(msg)

    def beside(network: nn.Module) -> list[str]:
        return [
            name
            for name, parameter in network.named_parameters()
            if parameter.requires_grad and not name.startswith(BACKBONE)
        ]

    probe = Phase(made.train, probe_rounds, beside, made.objective)
    phases = probe, Phase(made.train, objective=made.objective)
    return made._replace(phases=phases, refuses=needs_rounds_after("probe_rounds", probe_rounds, "everything trains"))


def _unsuited(method: Method) -> str:
    """What a method has of its own that does not go with two stretches of rounds; empty where there is nothing."""
    if method.phases:
        return "phases"
    if method.objective is None:
        return "a training"
    if method.round_sums is not None:
        return "sums of every round"  # they begin anew with every stretch
    return "conditions" if method.refuses is not None else ""
