"""positive_rows: beside its model a client sends its label rows times how often each label is present on its images.

With w_k,c the trained row of label c (classifier row and bias, label token) and n_k,c its positives, the client sends
n_k,c w_k,c and n_k,c, to be summed over clients. The server that adds them up cannot tell a client's counts, if it
adds without looking; one that looks can, so ``allow-statistics`` must be set.

Positives are annotated ones and, with a method that completes its labels (``fedlsm``, ``fedmlp``), those that it
took other entries for in this turn. What the rule ``flag`` does with the sums is in ``strategies/flag.py``.

Source: the head of FLAG (Chang et al., arXiv 2302.13571); with pseudo-positives, FedLSM (MICCAI 2023).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch

from fedmlic import spec
from fedmlic.image_state import COMPLETED, PREFIX
from fedmlic.labels import PRESENT
from fedmlic.mod import Bound, Hooks, Mod, Said
from fedmlic.update import LIMIT

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from fedmlic.arrays import Layout, Resident
    from fedmlic.experiment import Experiment
    from fedmlic.method import Local, Trained
    from fedmlic.shard import Shard

ROWS, POSITIVES = "positive_rows/rows", "positive_rows/positives"
"""Sums over clients: n_k,c w_k,c / ``SCALE``, ``[labels, values of a row]``, and n_k,c, int64 ``[labels]``."""
SCALE = 1024.0
"""What is sent may be 2^15 at most; this leaves room for 2^20 positives."""


def positives_of(shard: Shard, local: Local) -> Tensor:
    """int64 ``[labels]``: present entries of a client's images, guessed ones included where its method has any."""
    labels = local.memory.get(PREFIX + COMPLETED)
    if labels is None:
        labels = torch.from_numpy(np.ascontiguousarray(shard.labels))
    return (labels == PRESENT).sum(dim=0).cpu()


def positive_rows() -> Mod:
    """Label rows times their label's positives, in addition to the model."""

    def begin(resident: Resident, shard: Shard, local: Local) -> Hooks:
        layout = resident.layout if local.layout is None else local.layout

        def extras(change: Tensor, trained: Trained) -> Mapping[str, Tensor]:
            del trained
            flat = resident.layout.gather(local.start.to(change.device), layout) + change
            rows = [view.double().cpu() for _, view in layout.row_views(flat)]
            whole = torch.cat(rows, dim=1) if rows else torch.zeros(layout.num_labels, 0, dtype=torch.float64)
            positives = positives_of(shard, local)
            return {ROWS: whole * (positives / SCALE)[:, None], POSITIVES: positives}

        return Hooks(extras=extras)

    return Mod(begin, sums=sums, bounds=bounds, refuses=_refuses, rule="flag")


def sums(layout: Layout) -> Mapping[str, Tensor]:
    """Zeros of what is added up."""
    rows = layout.shapes[len(layout.names) - layout.num_row_tensors :]
    width = sum(math.prod(shape[1:]) for shape in rows)
    return {
        ROWS: torch.zeros(layout.num_labels, width, dtype=torch.float64),
        POSITIVES: torch.zeros(layout.num_labels, dtype=torch.int64),
    }


def bounds(said: Said) -> Mapping[str, tuple[Bound, Bound]]:
    """A label has no more positives than images, guessed ones included, and its row counts as often as these say."""
    largest = (said.sums[POSITIVES] * (LIMIT / SCALE))[:, None]
    return {POSITIVES: (0, sum(said.sizes)), ROWS: (-largest, largest)}


def _refuses(experiment: Experiment) -> str:
    """Rows travel whole beside the model: what a mod of the experiment holds back of them would come a second time."""
    if not experiment.allow_statistics:
        return (
            "with the rule flag it tells the server how often labels occur; set allow-statistics=true if clients agree"
        )
    texts = [str(each) for each in spec.parse_all(experiment.mods, "mods")]
    holding = [text for text in texts if spec.build("mods", text).holds_back]
    if holding:
        return (
            f"label rows are sent whole beside the model, so that {holding[0]} would add what it holds back of them a "
            "second time; use top_k with error_feedback=false, or leave it out"
        )
    return ""
