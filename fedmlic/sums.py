"""Sums beside the model: what the mods of a run declare of theirs, and whether an update keeps to it.

A device looks at what it adds before it is added, and the server at what came before any of its numbers is used, both
by the same declaration. So a wrong sum is the failed turn of one client, and a rule finds every sum that it adds up.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from fedmlic.errors import shown
from fedmlic.mod import Said
from fedmlic.training import most_steps

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from fedmlic.arrays import Layout
    from fedmlic.experiment import Experiment
    from fedmlic.mod import Bound, Mod


@dataclass(frozen=True)
class Declared:
    """What the turns of a run may add beside the model.

    Args:
        experiment: the whole configuration.
        mods: of the server's rule, then the experiment's own.
        passes: the method's (``Method.passes``).
    """

    experiment: Experiment
    mods: Sequence[Mod] = ()
    passes: int = 1

    def problem(
        self, layout: Layout, sizes: Sequence[int], annotations: Tensor, extras: Mapping[str, Tensor], unit: float = 1.0
    ) -> str:
        """Why the sums of some clients cannot be right; empty where they can.

        Args:
            layout: of the exchanged tensors.
            sizes: training images of each client.
            annotations: int64 ``[labels]``, known entries of all of them together.
            extras: their mods' sums, by name.
            unit: what floating sums were divided by.
        """
        zeros = {name: each for mod in self.mods if mod.sums is not None for name, each in mod.sums(layout).items()}
        if extras.keys() != zeros.keys():
            wanted = f"the sums {sorted(zeros)}" if zeros else "no sums"
            return (
                f"Expected {wanted} beside the model, which mods declare (Mod.sums), got {shown(sorted(extras)[:9])}."
            )
        for name, each in zeros.items():
            floats = extras[name].is_floating_point()
            if extras[name].shape != each.shape or floats != each.is_floating_point():
                kind, shape = "floating" if floats else "int64", list(extras[name].shape)
                return f"Expected the sum {name!r} to be like {each.dtype} {list(each.shape)}, got {kind} {shape}."
        steps = tuple(most_steps(self.experiment, size, self.passes) for size in sizes)
        said = Said(self.experiment, layout, tuple(sizes), annotations, steps, {})
        for mod in self.mods:
            if mod.sums is None or mod.bounds is None:
                continue
            own = {name: _whole(extras[name], unit) for name in mod.sums(layout)}
            for name, (low, high) in mod.bounds(said._replace(sums=own)).items():
                # Each client's term was rounded once (fedmlic.update).
                slack = len(sizes) * 2.0**-36 * unit if own[name].is_floating_point() else 0
                if not _within(own[name], low, high, slack):
                    return (
                        f"Expected the sum {name!r} within what its mod allows, got smaller or larger numbers, or NaN."
                    )
        return ""


def _whole(tensor: Tensor, unit: float) -> Tensor:
    tensor = tensor.detach().cpu()
    return tensor.double() * unit if tensor.is_floating_point() else tensor


def _within(values: Tensor, low: Bound, high: Bound, slack: float) -> bool:
    least, most = (torch.as_tensor(each) for each in (low, high))
    return bool(((values >= least - slack) & (values <= most + slack)).all())
