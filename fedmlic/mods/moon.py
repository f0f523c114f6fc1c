"""moon: the local representation is drawn to the global model's and away from the last local one's.

Source: Li et al., "Model-Contrastive Federated Learning" (CVPR 2021), equation 3: with z, z_glob
and z_prev the representations of an image under the local, the global and the client's previous
local model, the term is mu * -log(exp(cos(z, z_glob) / T) / (exp(cos(z, z_glob) / T) +
exp(cos(z, z_prev) / T))), averaged over the batch.

Departures: the representation is the backbone's feature map averaged over places, without the
paper's projection head, so that it is the same for every method. In a client's first turn there
is no previous model and no term.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch.func import functional_call

from fedmlic.mod import NO_HOOKS, Hooks, Mod, Step

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from fedmlic.arrays import Resident
    from fedmlic.method import Local, Trained
    from fedmlic.shard import Shard

PREVIOUS = "moon/previous"
"""Begins the names of the backbone's tensors as the client last trained them."""


def moon(*, mu: Annotated[float, Field(ge=0)] = 1.0, temperature: Annotated[float, Field(gt=0)] = 0.5) -> Mod:
    """Model-contrastive term, added to the loss of any method.

    Args:
        mu: its weight; 0 changes nothing. The paper chooses among 0.1, 1, 5, 10.
        temperature: T, above 0.
    """
    if mu == 0:
        return Mod()

    def begin(resident: Resident, shard: Shard, local: Local) -> Hooks:
        del shard
        held = {n.removeprefix(PREVIOUS): v.to(local.device) for n, v in local.memory.items() if n.startswith(PREVIOUS)}

        def term(step: Step) -> Tensor:
            assert step.features is not None  # noqa: S101  (the mod asks for features)
            backbone = local.incoming().get_submodule("backbone")
            with torch.no_grad():
                there = backbone(step.images).mean(dim=(2, 3))
                before = functional_call(backbone, held, (step.images,)).mean(dim=(2, 3))
            return mu * contrast(step.features.float(), there.float(), before.float(), temperature)

        def extras(change: Tensor, trained: Trained) -> Mapping[str, Tensor]:
            del change, trained
            backbone = resident.network.get_submodule("backbone").state_dict()
            local.memory.update({PREVIOUS + name: value.detach().cpu().clone() for name, value in backbone.items()})
            return {}

        return Hooks(term=term if held else NO_HOOKS.term, extras=extras)

    return Mod(begin, changes_steps=True, remembers=True, needs_features=True)


def contrast(here: Tensor, there: Tensor, before: Tensor, temperature: float) -> Tensor:
    """Equation 3 without mu, averaged over the batch.

    Args:
        here: floating ``[batch, features]``, of the local model, with gradient.
        there: of the global model.
        before: of the client's previous local model.
        temperature: T.
    """
    logits = torch.stack([F.cosine_similarity(here, there), F.cosine_similarity(here, before)], dim=1)
    return -F.log_softmax(logits / temperature, dim=1)[:, 0].mean()
