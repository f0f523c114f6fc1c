"""Label images with the model of a run."""

from __future__ import annotations

import inspect
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from fedmlic import spec
from fedmlic.errors import InputError
from fedmlic.experiment import Experiment, split_settings
from fedmlic.record import MODEL, RunFolder, open_run, read_frozen

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from fedmlic.images import Resize
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

        from fedmlic.pixel_scale import to_float

        network = self.learner.resident.network.eval()
        predict = self.learner.inference.of(self.ask or partial(self.learner.method.predict, network))
        with torch.inference_mode():
            blocks = [images[start : start + AT_ONCE] for start in range(0, len(images), AT_ONCE)]
            found = [predict(to_float(block, self.learner.device)).float().cpu().numpy() for block in blocks]
        return np.concatenate(found)

    def uncertainty(self, images: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        """How sure the network is of stored images, float32 ``[images]`` by name; empty where a method does not say."""
        import torch

        from fedmlic.pixel_scale import to_float

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

    folder = open_run(path)
    number = _checkpoint(folder, round_number)
    tensors, values = folder.load_checkpoint(number)
    frozen_tensors, label_names, image_shape = read_frozen(path)
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
        return best if best and best in numbers else numbers[-1]
    if wanted not in numbers:
        msg = f"Expected round to be one of the kept checkpoints {numbers}, got {wanted}."
        raise InputError(msg)
    return wanted


@dataclass(frozen=True)
class Prediction:
    """What a model says of image files; they are read and labelled block by block as the entries are drawn.

    Attributes:
        about: of which model and at which thresholds, as ``fedmlic predict --json`` prints it.
        label_names: what is asked for, in the order of ``Entry.scores``.
        num_files: image files.
        entries: one per image that can be read, in the order of the files.
        problems: file and what is wrong with it; filled as the entries are drawn.
    """

    about: dict[str, Any]
    label_names: tuple[str, ...]
    num_files: int
    entries: Iterator[Entry]
    problems: list[tuple[Path, str]]


@dataclass(frozen=True)
class Entry:
    """What a model says of one image file.

    Attributes:
        file: the image.
        scores: float32 ``[labels]``, probabilities.
        thresholds: float32 ``[labels]``; a label is predicted at or above.
        uncertainty: numbers by name; empty where the method says nothing of the kind.
    """

    file: Path
    scores: NDArray[np.float32]
    thresholds: NDArray[np.float32]
    uncertainty: Mapping[str, float]

    def present(self, names: Sequence[str]) -> list[str]:
        """The predicted labels, the most probable first."""
        return [names[i] for i in self.order() if self.scores[i] >= self.thresholds[i]]

    def order(self) -> NDArray[np.int64]:
        """Columns from the most to the least probable."""
        return np.argsort(-self.scores, kind="stable")

    def to_json(self, names: Sequence[str]) -> dict[str, Any]:
        """As ``fedmlic predict --json`` prints it."""
        labels = [{"label": names[i], "probability": float(self.scores[i])} for i in self.order()]
        found = {"image": str(self.file), "present": self.present(names), "labels": labels}
        return {**found, "uncertainty": dict(self.uncertainty)} if self.uncertainty else found


def start_prediction(
    path: Path,
    images: Sequence[Path],
    round_number: int | None = None,
    client: int | None = None,
    labels: str | None = None,
    inference: str | None = None,
    *,
    thresholds: Callable[[Predictor], NDArray[np.float32]] | None = None,
    bad_files: Literal["fail", "skip"] = "fail",
    progress: Callable[[int, int], None] | None = None,
) -> Prediction:
    """Open a model, list the image files, and be ready to label them.

    Args:
        path: the run folder.
        images: image files, and folders of such.
        round_number: a kept round; None for the best.
        client: whose model, where clients keep tensors to themselves.
        labels: names to ask for instead of the labels of the training, with commas between them; a
            name given twice is asked for once.
        inference: how the network is asked; None for the run's own way.
        thresholds: gives float32 ``[labels]`` for the labels of the training; None for the run's threshold.
        bad_files: ``fail`` names all unreadable files, ``skip`` leaves them out and lists them.
        progress: called with (files done, files in all).

    Raises:
        InputError: as ``load_predictor``; a folder without images, an empty name, or a run that cannot be asked
            about names. Drawing the entries: unreadable images (all of them, with ``skip``).
    """
    names = None if labels is None else asked_names(labels)
    files = image_files(images)
    shape = load_shape(path)
    predictor = load_predictor(path, round_number, client, inference)
    chosen = np.full(len(predictor.label_names), predictor.threshold, np.float32)
    own: dict[str, Any] = {}
    if thresholds is not None:
        chosen = thresholds(predictor)
        own = {"thresholds": dict(zip(predictor.label_names, chosen.tolist(), strict=True))}
    folder = open_run(path)
    experiment = folder.settings()[0]
    asked: dict[str, Any] = {}
    if names is not None:
        unjudged = [name for name in names if name not in set(predictor.label_names)]
        unannotated = [name for name in names if name in set(folder.data()["unannotated_labels"])]
        asked = {"asked": names, "unjudged": unjudged, "unannotated": unannotated, "note": _note(unjudged, unannotated)}
        known = dict(zip(predictor.label_names, chosen.tolist(), strict=True))
        chosen = np.array([known.get(name, predictor.threshold) for name in names], np.float32)
        predictor = predictor.asked(names, experiment.method)
    about = {
        "run": str(path.absolute()),
        "round": predictor.round,
        "model": model_title(folder, predictor.round, private=bool(predictor.learner.resident.private_names)),
        "threshold": predictor.threshold,
        **own,
        "inference": inference or experiment.inference,
        **asked,
    }
    problems: list[tuple[Path, str]] = []
    reading = _Reading(files, shape, resize_of(experiment), skip=bad_files == "skip", problems=problems)
    entries = _entries(predictor, chosen, reading, progress)
    return Prediction(about, predictor.label_names, len(files), entries, problems)


@dataclass(frozen=True)
class _Reading:
    files: Sequence[Path]
    shape: tuple[int, int, int]
    resize: Resize
    skip: bool
    problems: list[tuple[Path, str]]


def _entries(
    predictor: Predictor,
    thresholds: NDArray[np.float32],
    reading: _Reading,
    progress: Callable[[int, int], None] | None,
) -> Iterator[Entry]:
    """Entries block by block; after a file that cannot be read, the others are only looked at, unless it is skipped."""
    from concurrent.futures import ThreadPoolExecutor

    from fedmlic.corpus import num_cores
    from fedmlic.images import read_image, unreadable

    files, problems = reading.files, reading.problems
    with ThreadPoolExecutor(num_cores()) as threads:
        for start in range(0, len(files), AT_ONCE):
            block = files[start : start + AT_ONCE]
            found = list(threads.map(lambda file: read_image(file, reading.shape, reading.resize), block))
            problems += [(file, each) for file, each in zip(block, found, strict=True) if isinstance(each, str)]
            images = [each for each in found if not isinstance(each, str)]
            if images and (reading.skip or not problems):
                stored = np.stack(images)
                readable = [file for file, each in zip(block, found, strict=True) if not isinstance(each, str)]
                scores, unsure = predictor.scores(stored), predictor.uncertainty(stored)
                for place, file in enumerate(readable):
                    said = {name: float(values[place]) for name, values in unsure.items()}
                    yield Entry(file, scores[place], thresholds, said)
            if progress is not None:
                progress(min(start + AT_ONCE, len(files)), len(files))
    if problems and (not reading.skip or len(problems) == len(files)):
        raise unreadable(len(files), [f"{file}: {problem}" for file, problem in problems])


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
    found = start_prediction(path, images, round_number, client, labels, inference)
    return {**found.about, "images": [entry.to_json(found.label_names) for entry in found.entries]}


def resize_of(experiment: Experiment) -> Resize:
    """How the experiment's data set makes squares of pictures; ``squash`` where it has no such parameter.

    Raises:
        InputError: no such data set, or no such way.
    """
    name, arguments = spec.parse(experiment.dataset, "dataset")
    parameter = inspect.signature(spec.factory("dataset", name)).parameters.get("resize")
    if parameter is None:
        return "squash"
    choices: dict[object, Resize] = {"squash": "squash", "crop": "crop", "pad": "pad"}
    wanted = arguments.get("resize", parameter.default)
    if wanted not in choices:
        msg = f"Expected resize of {experiment.dataset} to be one of {', '.join(map(str, choices))}, got {wanted!r}."
        raise InputError(msg)
    return choices[wanted]


def model_title(folder: RunFolder, number: int, *, private: bool) -> str:
    """Which of a run's models the one after round ``number`` is, in words.

    Args:
        folder: of the run.
        number: the round.
        private: whether clients keep tensors to themselves; then their held-out images choose the best round.
    """
    images = "clients' held-out images" if private else "validation"
    newest = folder.checkpoints()[-1]
    best = int(folder.checkpoint_values(newest)["best_round"])
    last = folder.settings()[0].num_rounds
    if last == 0:
        return "as it begins, which never trained"
    which = [f"best on {images}"] * (number == best) + ["the last round"] * (number == last)
    if number == newest != last:
        which.append("the last so far")
    if not best:
        which.append(f"none was chosen on {images}")
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
    return read_frozen(path)[2]
