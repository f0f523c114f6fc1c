"""fedper: the layers that decide stay on the client, everything below them is shared.

Source: Arivazhagan et al., "Federated Learning with Personalization Layers" (arXiv 1912.00818).
Here the personal layers are, by default, the tensors with one row per label: the classifier of a
plain network, the label tokens and read-out of a label transformer.

Every client is evaluated with its own tensors; one that never took part has the initial ones.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from fedmlic.errors import InputError
from fedmlic.mod import Mod

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from fedmlic.method import Method


def fedper(*, tensors: list[str] | None = None) -> Mod:
    """A personal head: some tensors are trained by every client for itself.

    Args:
        tensors: names or patterns (``"head.*"``) of trainable tensors; by default those with one
            row per label.
    """
    return Mod(private=lambda network, method: personal(network, method, tensors))


def personal(network: nn.Module, method: Method, patterns: Sequence[str] | None) -> list[str]:
    """The trainable tensors that the patterns name, or those with one row per label.

    Raises:
        InputError: a pattern names none, or nothing would be left to share.
    """
    names = [name for name, parameter in network.named_parameters() if parameter.requires_grad]
    chosen = list(method.label_rows(network))
    if patterns is not None:
        unused = [pattern for pattern in patterns if not any(fnmatchcase(name, pattern) for name in names)]
        if unused:
            msg = f"Expected patterns of personal tensors to match some, got {unused}. There are {names[:8]}, ..."
            raise InputError(msg)
        chosen = [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]
    if not chosen or set(chosen) == set(names):
        msg = f"Expected some tensors to be personal and some shared, got {len(chosen)} personal of {len(names)}."
        raise InputError(msg)
    return chosen
