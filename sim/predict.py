"""Label images with the model of a run."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedmlic.errors import InputError
from fedmlic.experiment import split_settings
from fedmlic.record import RunFolder, open_run

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from fedmlic.learner import Learner


AT_ONCE = 256
"""Images that are predicted at a time."""

SUFFIXES = (".avif", ".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
"""Endings of the files that are images in a folder."""


@dataclass(frozen=True)
class Predictor:
    """A trained network ready to label images.

    Attributes:
        learner: the method with the run's weights.
        label_names: column names.
        round: the checkpoint's round.
        threshold: probability above which a label counts as predicted.
        ask: ``images -> probabilities`` of labels asked for by name; None for those of the training.
    """

    learner: Learner
    label_names: tuple[str, ...]
    round: int
    threshold: float
    ask: Callable[[Tensor], Tensor] | None = None

    def scores(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Probabilities float32 ``[images, labels]`` of uint8 ``[images, height, width, channels]``."""
        import torch

        from fedmlic.training import to_float

        network = self.learner.resident.network.eval()
        predict = self.learner.inference.of(self.ask or partial(self.learner.method.predict, network))
        with torch.inference_mode():
            blocks = [images[start : start + AT_ONCE] for start in range(0, len(images), AT_ONCE)]
            found = [predict(to_float(block, self.learner.device)).float().cpu().numpy() for block in blocks]
        return np.concatenate(found)

    def uncertainty(self, images: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        """How sure the network is of stored images, float32 ``[images]`` by name; empty where a method does not say."""
        import torch

        from fedmlic.training import to_float

        ask, network = self.learner.method.uncertainty, self.learner.resident.network.eval()
        if ask is None:
            return {}
        with torch.inference_mode():
            blocks = [images[start : start + AT_ONCE] for start in range(0, len(images), AT_ONCE)]
            found = [ask(network, to_float(block, self.learner.device)) for block in blocks]
        return {name: torch.cat([block[name] for block in found]).float().cpu().numpy() for name in found[0]}

    def asked(self, names: Sequence[str], method: str) -> Predictor:
        """The same network, asked about labels by their names.

        Args:
            names: unique.
            method: the experiment's, for messages.

        Raises:
            InputError: the method, its network or its label vectors do not allow it.
        """
        learner = self.learner
        if learner.method.ask is None:
            msg = (
                f"Expected a run whose method can be asked about other names (fedlgt with readout='shared'), got "
                f"{method}: it has an output for each label of the training and no other. Leave --labels out."
            )
            raise InputError(msg)
        predict = learner.method.ask(learner.resident.network.eval(), learner.task, names)
        return replace(self, label_names=tuple(names), ask=predict)


def load_predictor(
    path: Path, round_number: int | None = None, client: int | None = None, inference: str | None = None
) -> Predictor:
    """The network of a run at its best checkpoint on validation (or the last, or a given round).

    Args:
        path: the run folder.
        round_number: a kept round; None for the best.
        client: where clients keep tensors to themselves (a personal head), whose.
        inference: how the network is asked; None for the run's own way.

    Raises:
        InputError: not a run, no checkpoint yet, a damaged or foreign one, a client that is
            missing, not wanted, or has not had a turn, or no such inference.
    """
    from fedmlic.learner import build_learner
    from strategies.server.server import MODEL

    folder = open_run(path)
    number = _checkpoint(folder, round_number)
    tensors, values = folder.load_checkpoint(number)
    frozen_tensors, label_names, image_shape = _frozen(path)
    experiment, _ = folder.settings()
    if inference is not None:
        experiment, _ = split_settings({**experiment.model_dump(), "inference": inference})
    learner = build_learner(experiment, label_names, image_shape)
    layout = learner.resident.layout
    model = {name.removeprefix(MODEL): tensor for name, tensor in tensors.items() if name.startswith(MODEL)}
    learner.resident.load(layout.pack(model))
    own = learner.resident.network.state_dict()
    for name, tensor in frozen_tensors.items():
        own[name].copy_(tensor)
    _load_personal(learner, folder, tensors, client)
    return Predictor(learner, label_names, values["round"], experiment.threshold)


def _load_personal(learner: Learner, folder: RunFolder, tensors: Mapping[str, Tensor], client: int | None) -> None:
    """Put a client's own tensors into the network, where clients have such."""
    from clients.host import private_of
    from clients.memory import FolderMemory
    from clients.opening import MEMORY_FOLDER
    from strategies.server.server import LAST

    resident = learner.resident
    if not resident.private_names:
        if client is not None:
            msg = f"Expected no client, since all clients of {folder.path} share one model, got {client}. Leave it out."
            raise InputError(msg)
        return
    last: dict[int, int] = dict(tensors[LAST].tolist())
    if client is None or client not in last:
        msg = (
            f"Expected a client that took part, since every client of {folder.path} has tensors of its own "
            f"({', '.join(resident.private_names[:3])}), got {client}. Give one of {sorted(last)[:20]}."
        )
        raise InputError(msg)
    kept = FolderMemory(folder.path / MEMORY_FOLDER).recall(client, last[client])
    resident.load_private(private_of(kept))


def _checkpoint(folder: RunFolder, wanted: int | None) -> int:
    numbers = folder.checkpoints()
    if not numbers:
        msg = f"Expected {folder.path} to have a checkpoint, got none. Let at least one round finish."
        raise InputError(msg)
    if wanted is None:
        best = folder.checkpoint_values(numbers[-1])["best_round"]
        return best if best in numbers else numbers[-1]
    if wanted not in numbers:
        msg = f"Expected round to be one of the kept checkpoints {numbers}, got {wanted}."
        raise InputError(msg)
    return wanted


def predict(
    path: Path,
    images: Sequence[Path],
    round_number: int | None = None,
    client: int | None = None,
    labels: str | None = None,
    inference: str | None = None,
) -> dict[str, Any]:
    """Labels with probabilities for image files, as ``fedmlic predict --json`` prints them.

    Args:
        path: the run folder.
        images: image files, and folders of such.
        round_number: a kept round; None for the best.
        client: whose model, where clients keep tensors to themselves.
        labels: names to ask for instead of the labels of the training, with commas between them; a
            name given twice is asked for once.
        inference: how the network is asked; None for the run's own way.

    Raises:
        InputError: as ``load_predictor``; unreadable images, a folder without any, an empty name,
            or a run that cannot be asked about names.
    """
    from fedmlic.images import read_images

    names = None if labels is None else asked_names(labels)
    files = image_files(images)
    stored = read_images(files, load_shape(path))
    predictor = load_predictor(path, round_number, client, inference)
    asked: dict[str, Any] = {}
    if names is not None:
        folder = open_run(path)
        unjudged = [name for name in names if name not in set(predictor.label_names)]
        unannotated = [name for name in names if name in set(folder.data()["unannotated_labels"])]
        asked = {"asked": names, "unjudged": unjudged, "unannotated": unannotated, "note": _note(unjudged, unannotated)}
        predictor = predictor.asked(names, folder.settings()[0].method)
    scores, unsure = predictor.scores(stored), predictor.uncertainty(stored)
    found: list[dict[str, Any]] = []
    for number, (file, row) in enumerate(zip(files, scores, strict=True)):
        order = np.argsort(-row, kind="stable")
        ranked = [{"label": predictor.label_names[i], "probability": float(row[i])} for i in order]
        present = [entry["label"] for entry in ranked if float(str(entry["probability"])) >= predictor.threshold]
        found.append({"image": str(file), "present": present, "labels": ranked})
        if unsure:
            found[-1]["uncertainty"] = {name: float(values[number]) for name, values in unsure.items()}
    about = {
        "run": str(path.absolute()),
        "round": predictor.round,
        "model": model_title(open_run(path), predictor.round),
        "threshold": predictor.threshold,
        "inference": inference or open_run(path).settings()[0].inference,
    }
    return {**about, **asked, "images": found}


def model_title(folder: RunFolder, number: int) -> str:
    """Which of a run's models the one after round ``number`` is, in words."""
    newest = folder.checkpoints()[-1]
    best = int(folder.checkpoint_values(newest)["best_round"])
    last = folder.settings()[0].num_rounds
    which = ["best on validation"] * (number == best) + ["the last round"] * (number == last)
    if number == newest != last:
        which.append("the last so far")
    if not best:
        which.append("none was chosen on validation")
    elif number != best and best not in folder.checkpoints():
        which.append(f"the best, of round {best}, is not kept")
    return f"after round {number} of {last}" + (f" ({', '.join(which)})" if which else "")


def asked_names(text: str) -> list[str]:
    """Names from a text with commas between them, each once, in Unicode's composed form as labels are.

    Raises:
        InputError: a name is empty.

    >>> asked_names("sea animal, kite,kite")
    ['sea animal', 'kite']
    """
    pieces = [unicodedata.normalize("NFC", piece).strip() for piece in text.split(",")]
    if not all(pieces):
        place = pieces.index("") + 1
        msg = f"Expected --labels to be names with commas between them, got an empty one at place {place}. Remove it."
        raise InputError(msg)
    return list(dict.fromkeys(pieces))


def image_files(paths: Sequence[Path]) -> list[Path]:
    """The files, and in place of a folder the images in it and below it, by name.

    Raises:
        InputError: a folder without an image.
    """
    files: list[Path] = []
    for path in paths:
        if not path.is_dir():
            files.append(path)
            continue
        inside = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
        if not inside:
            msg = f"Expected the folder {path} to hold images ({', '.join(SUFFIXES)}), got none. Check the path."
            raise InputError(msg)
        files += inside
    return files


def _note(unjudged: Sequence[str], unannotated: Sequence[str]) -> str:
    """What to keep in mind of names that were not in the training, and of labels that nobody annotated there."""
    notes = []
    if unjudged:
        notes.append(
            f"Not labels of this run: {_some(unjudged)} ({len(unjudged)} in all). They were never judged, and the "
            "threshold was not chosen for them: rank images by the probability, do not count on its value."
        )
    if unannotated:
        notes.append(
            f"Labels of this run that nobody annotated: {_some(unannotated)}. The threshold does not fit them."
        )
    return " ".join(notes)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def load_shape(path: Path) -> tuple[int, int, int]:
    """Height, width and channels of the images that a run's network wants."""
    _checkpoint(open_run(path), None)
    return _frozen(path)[2]


def _frozen(path: Path) -> tuple[dict[str, Tensor], tuple[str, ...], tuple[int, int, int]]:
    """What a run keeps besides its checkpoints: frozen tensors, label names, image shape."""
    from safetensors import SafetensorError, safe_open

    file = path / "frozen.safetensors"
    try:
        with safe_open(file, framework="pt") as frozen:
            about = frozen.metadata()
            tensors = {name: frozen.get_tensor(name) for name in frozen.keys()}  # noqa: SIM118  (not a mapping)
        height, width, channels = json.loads(about["image_shape"])
        return tensors, tuple(json.loads(about["label_names"])), (height, width, channels)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        msg = f"Expected {file} to be as the run wrote it, got {error}. Restore it from a copy."
        raise InputError(msg) from None
