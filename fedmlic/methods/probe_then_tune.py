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
from fedmlic.method import Method, Phase


def probe_then_tune(*, probe_rounds: Annotated[int, Field(ge=1)] = 5, of: str = "bce()") -> Method:
    """A method whose backbone stands still in the first rounds and is fine-tuned after them.

    Args:
        probe_rounds: rounds in which only what is beside the backbone trains.
        of: the method and its arguments, such as ``"fedlgt(readout='shared')"``; it must train by one objective and
            have no phases of its own.

    Raises:
        InputError: ``of`` names no such method.
    """
    method: Method = spec.build("method", of)
    if method.phases or method.objective is None:
        why = "phases of its own" if method.phases else "a training of its own"
        msg = (
            f"Expected of of probe_then_tune to be a method that trains by one objective, got {of!r} with {why}. "
            "Name another method."
        )
        raise InputError(msg)

    def beside(network: nn.Module) -> list[str]:
        return [
            name
            for name, parameter in network.named_parameters()
            if parameter.requires_grad and not name.startswith(BACKBONE)
        ]

    probe = Phase(method.train, probe_rounds, beside, method.objective)
    return method._replace(phases=(probe, Phase(method.train, objective=method.objective)))
