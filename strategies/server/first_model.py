"""The first model of a run: the network's initial weights, or another run's model (the setting ``start``).

Rows of labels are taken over by the labels' names; rows of labels that the other run did not have keep their
initial weights. Everything else must fit, tensor by tensor: what never trains is built by every host from the
experiment, so it must be what the other model was trained with.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from fedmlic.arrays import sha256
from fedmlic.errors import InputError
from fedmlic.features import BACKBONE
from fedmlic.learner import build_network
from fedmlic.record import MODEL, RunFolder, open_run, read_frozen

if TYPE_CHECKING:
    from torch import Tensor

    from fedmlic.experiment import Experiment
    from fedmlic.learner import Learner


@dataclass(frozen=True)
class Source:
    """The model of another run.

    Attributes:
        model: exchanged tensors by name.
        frozen: what else its network has, by name.
        label_names: in the order of its rows.
        about: which model it is, for the record.
    """

    model: Mapping[str, Tensor]
    frozen: Mapping[str, Tensor]
    label_names: tuple[str, ...]
    about: Mapping[str, Any]


def first_model(experiment: Experiment, learner: Learner) -> tuple[Tensor, dict[str, Any]]:
    """The vector that round 1 begins with, and whose model it is, for the record (empty: nobody's).

    Raises:
        InputError: ``start`` is no complete run, or its model does not fit this experiment's network.
    """
    layout, flat = learner.resident.layout, learner.resident.flat.clone()
    if not experiment.start:
        return flat, {}
    source = _read(experiment.start)
    names, own = source.label_names, tuple(learner.task.label_names)
    _check_labels(names, own, learner, experiment.start)
    wrong = [*_unlike("exchanged", source.model, layout.names)]
    frozen = frozen_state(experiment, learner)
    wrong += _unlike("frozen", source.frozen, frozen)
    rows = {name for name, _ in layout.row_views(flat)}
    places = torch.tensor([own.index(name) for name in names], device=flat.device)
    for name, view in layout.views(flat):
        given = source.model.get(name)
        expected = (len(names), *view.shape[1:]) if name in rows else tuple(view.shape)
        if given is not None and tuple(given.shape) != expected:
            wrong.append(f"{name} of shape {tuple(given.shape)}, not {expected}")
        elif given is not None and name in rows:
            view[places] = given.to(view)
        elif given is not None:
            view.copy_(given)
    for name, tensor in frozen.items():
        given = source.frozen.get(name)
        if given is not None and not _same(given, tensor.detach().cpu(), places.cpu()):
            wrong.append(f"{name}, which never trains, with other values")
    if wrong:
        msg = (
            f"Expected the model of start={experiment.start} to fit this run's network, got {_some(wrong)}. Use its "
            "method, model and seed of label vectors; only labels may be added."
        )
        raise InputError(msg)
    new = [name for name in own if name not in set(names)]
    return flat, {**source.about, "new_labels": new, "weights_sha256": sha256(layout, flat)}


def frozen_state(experiment: Experiment, learner: Learner) -> dict[str, Tensor]:
    """What the network needs beyond the exchanged tensors, by name."""
    others = learner.resident.other_state()
    if learner.features is not None:  # the backbone that it stands for is frozen too
        built = build_network(experiment, learner.task)[1].state_dict()
        others |= {name: tensor for name, tensor in built.items() if name.startswith(BACKBONE)}
    return others


def _read(text: str) -> Source:
    path, wanted = _parts(text)
    folder = open_run(path)
    if not (path / "result.json").exists():
        msg = f"Expected start to be a complete run, got {path}, which has no result. Let it end (fedmlic resume)."
        raise InputError(msg)
    tensors, values = folder.load_checkpoint(_round(folder, wanted))
    frozen, names, _ = read_frozen(path)
    model = {name.removeprefix(MODEL): tensor for name, tensor in tensors.items() if name.startswith(MODEL)}
    about = {
        "run": str(path),
        "identity": folder.identity(),
        "round": values["round"],
        "checkpoint_sha256": values["sha256"],
    }
    return Source(model, frozen, names, about)


def _parts(text: str) -> tuple[Path, str]:
    """The folder, and which of its models: ``best``, ``last`` or a round."""
    path, mark, wanted = text.rpartition("@")
    if mark and (wanted in {"best", "last"} or wanted.isdecimal()):
        return Path(path), wanted
    return Path(text), "best"


def _round(folder: RunFolder, wanted: str) -> int:
    numbers = folder.checkpoints()
    if not numbers:
        msg = f"Expected start to be a run with its checkpoints, got {folder.path} without any. Restore them."
        raise InputError(msg)
    if wanted.isdecimal():
        if int(wanted) not in numbers:
            msg = f"Expected start to name a kept round of {folder.path} {numbers}, got {wanted}. Choose one of them."
            raise InputError(msg)
        return int(wanted)
    best = int(folder.checkpoint_values(numbers[-1])["best_round"]) if wanted == "best" else 0
    return best if best in numbers else numbers[-1]


def _check_labels(names: tuple[str, ...], own: tuple[str, ...], learner: Learner, start: str) -> None:
    if learner.resident.private_names:
        msg = (
            "Expected start to be empty where clients keep tensors to themselves "
            f"({', '.join(learner.resident.private_names[:3])}), got {start}. Leave it out, or do without fedper, "
            "fedrep or fedbn."
        )
        raise InputError(msg)
    lost = [name for name in names if name not in set(own)]
    if lost:
        msg = (
            f"Expected this run to have all labels of start={start}, got none called {_some(lost)}. Add "
            "them to the data set or to label-names; labels that nobody annotates keep their rows."
        )
        raise InputError(msg)
    if len(names) == len(own) and names != own:
        msg = f"Expected the labels of start={start} in its order, got another: {list(own)[:8]}. Keep the order."
        raise InputError(msg)
    if names != own and any(getattr(module, "labels_by_order", False) for module in learner.resident.network.modules()):
        msg = (
            "Expected a network in which each label has a part of its own, got one that deals labels to groups by "
            f"their order, which new labels change. Begin without start={start}, or give each label its own group."
        )
        raise InputError(msg)


def _some(texts: Sequence[str]) -> str:
    return ", ".join(texts[:5]) + (f" and {len(texts) - 5} more" if len(texts) > 5 else "")


def _unlike(kind: str, given: Mapping[str, Tensor], own: Iterable[str]) -> Iterator[str]:
    """Tensors that only one of both has, a text each."""
    known = set(own)
    yield from (f"no {kind} {name}" for name in sorted(known - given.keys()))
    yield from (f"{kind} {name}, which this network lacks" for name in sorted(given.keys() - known))


def _same(given: Tensor, own: Tensor, places: Tensor) -> bool:
    """Whether a frozen tensor is the other run's, or has its rows for all labels of that run."""
    if given.shape == own.shape:
        return torch.equal(given, own)
    by_label = given.ndim == own.ndim > 0 and given.shape == (len(places), *own.shape[1:]) and places.max() < len(own)
    return bool(by_label) and torch.equal(given, own[places])
