"""Label images with the model of a run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedmlic.errors import InputError
from fedmlic.record import RunFolder, open_run

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from fedmlic.learner import Learner


@dataclass(frozen=True)
class Predictor:
    """A trained network ready to label images.

    Attributes:
        learner: the method with the run's weights.
        label_names: column names.
        round: the checkpoint's round.
        threshold: probability above which a label counts as predicted.
    """

    learner: Learner
    label_names: tuple[str, ...]
    round: int
    threshold: float

    def scores(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Probabilities float32 ``[images, labels]`` of uint8 ``[images, height, width, channels]``."""
        import torch

        from fedmlic.training import to_float

        network = self.learner.resident.network.eval()
        with torch.inference_mode():
            batch = to_float(images, self.learner.device)
            return self.learner.method.predict(network, batch).float().cpu().numpy()


def load_predictor(path: Path, round_number: int | None = None, client: int | None = None) -> Predictor:
    """The network of a run at its best checkpoint on validation (or the last, or a given round).

    Args:
        path: the run folder.
        round_number: a kept round; None for the best.
        client: where clients keep tensors to themselves (a personal head), whose.

    Raises:
        InputError: not a run, no checkpoint yet, a damaged or foreign one, or a client that is
            missing, not wanted, or has not had a turn.
    """
    from fedmlic.learner import build_learner
    from strategies.server.server import MODEL

    folder = open_run(path)
    number = _checkpoint(folder, round_number)
    tensors, values = folder.load_checkpoint(number)
    frozen_tensors, label_names, image_shape = _frozen(path)
    experiment, _ = folder.settings()
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
    path: Path, images: Sequence[Path], round_number: int | None = None, client: int | None = None
) -> dict[str, Any]:
    """Labels with probabilities for image files, as ``fedmlic predict --json`` prints them."""
    from fedmlic.images import read_images

    stored = read_images(images, load_shape(path))
    predictor = load_predictor(path, round_number, client)
    scores = predictor.scores(stored)
    found = []
    for file, row in zip(images, scores, strict=True):
        order = np.argsort(-row, kind="stable")
        labels = [{"label": predictor.label_names[i], "probability": float(row[i])} for i in order]
        present = [entry["label"] for entry in labels if float(str(entry["probability"])) >= predictor.threshold]
        found.append({"image": str(file), "present": present, "labels": labels})
    return {"run": str(path.absolute()), "round": predictor.round, "threshold": predictor.threshold, "images": found}


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
