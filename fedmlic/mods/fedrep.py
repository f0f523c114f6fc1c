"""fedrep: a personal head that is trained first in every turn, then the shared body.

Source: Collins et al., "Exploiting Shared Representations for Personalized Federated Learning"
(ICML 2021), algorithm 1: with the body of the round's global model fixed the client trains its own
head, then, with the head fixed, the body; only the body is sent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from fedmlic.errors import InputError
from fedmlic.mod import Hooks, Mod, Stage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from fedmlic.arrays import Resident
    from fedmlic.method import Local, Method
    from fedmlic.shard import Shard

Epochs = Annotated[int, Field(ge=1)]


def fedrep(*, head_epochs: Epochs = 10, body_epochs: Epochs = 1) -> Mod:
    """A personal head (the tensors with one row per label), trained before the body in every turn.

    Args:
        head_epochs: passes over the client's images for the head.
        body_epochs: and then for the body, in place of ``local-epochs``.
    """

    def begin(resident: Resident, shard: Shard, local: Local) -> Hooks:
        del shard, local
        head = frozenset(resident.private_rows)
        # What another mod keeps private, such as norms, belongs to the body.
        body = frozenset(resident.trainable.names) - head
        return Hooks(stages=[Stage(head_epochs, head), Stage(body_epochs, body)])

    return Mod(begin, private=head_of, changes_steps=True, has_stages=True)


def head_of(network: nn.Module, method: Method) -> Sequence[str]:
    """Names of the tensors with one row per label.

    Raises:
        InputError: there are none.
    """
    names = method.label_rows(network)
    if not names:
        msg = "Expected tensors with one row per label for fedrep's personal head, got none. Use readout='row'."
        raise InputError(msg)
    return names
