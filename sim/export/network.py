"""The chosen model as one network: from stored bytes to probabilities, everything in between inside."""

from __future__ import annotations

import copy
import logging
import warnings
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from fedmlic.errors import InputError
from fedmlic.pixel_scale import to_float

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray
    from torch.export import ExportedProgram

    from fedmlic.learner import Learner
    from sim.predict import Predictor

INPUT, OUTPUT = "images", "probabilities"
"""Names of the network's input and output."""

TOLERANCE = 1e-4
"""Largest difference of a probability between an exported model and the run's own that passes."""

BATCHES = (1, 3)
"""Sizes of the first batches in which parity is checked; what is left is one more batch."""


class Scorer(nn.Module):
    """A learner's network with the scaling of bytes, the method's read-out and the run's inference.

    Args:
        learner: with the weights loaded.
    """

    def __init__(self, learner: Learner) -> None:
        super().__init__()
        self.network = copy.deepcopy(learner.resident.network).eval()
        for tensor in (*self.network.parameters(), *self.network.buffers()):
            # A resident network's tensors are views of one vector, which would be written once for each of them.
            tensor.data = tensor.detach().clone()
            tensor.requires_grad_(False)
        self._predict = learner.inference.of(partial(learner.method.predict, self.network))

    def forward(self, images: Tensor) -> Tensor:
        """Probabilities float32 ``[n, labels]`` of stored images uint8 ``[n, height, width, channels]``."""
        return self._predict(to_float(images)).float()


class Parity(NamedTuple):
    """How well an exported model gives the run's probabilities.

    Attributes:
        num_images: stored images that both were asked about.
        split: of the data set that they are from.
        largest: largest difference of a probability.
        tolerance: what passes.
    """

    num_images: int
    split: str
    largest: float
    tolerance: float


def exported_program(predictor: Predictor) -> ExportedProgram:
    """The model as a graph of torch operators, for any number of images.

    Raises:
        InputError: the method or the inference does something that cannot be written down as a graph.
    """
    scorer = Scorer(predictor.learner).eval()
    height, width, channels = predictor.learner.task.image_shape
    images = torch.zeros(3, height, width, channels, dtype=torch.uint8)
    shapes = ({0: torch.export.Dim("n", min=1)},)
    reasons = []
    # The first way is quick; the second also follows Python that asks for the number of images.
    for strict in (False, True):
        try:
            with quiet(), torch.no_grad():
                return torch.export.export(scorer, (images,), dynamic_shapes=shapes, strict=strict)
        except Exception as error:  # noqa: BLE001  (torch raises exceptions of every type for what it cannot trace)
            reasons.append(_first_line(error))
    msg = (
        f"Expected a model that torch.export can write down as a graph, got one of which it says: {reasons[0]} "
        "Export this run with --safetensors, which needs fedmlic to be read."
    )
    raise InputError(msg)


def check_parity(
    what: str, run: Callable[[NDArray[np.uint8]], NDArray[np.float32]], expected: NDArray[np.float32], sample: Sample
) -> Parity:
    """Compare what an exported model says of real images with what the run's own says.

    Args:
        what: is compared, for messages.
        run: uint8 ``[n, height, width, channels]`` to float32 ``[n, labels]``, of the exported model.
        expected: float32 ``[images, labels]``, of the run's.
        sample: the images.

    Raises:
        InputError: another shape, something that is no number, or a difference above ``TOLERANCE``.
    """
    found, start = [], 0
    for size in (*BATCHES, len(sample.images)):
        if start < len(sample.images):
            found.append(run(np.ascontiguousarray(sample.images[start : start + size])))
            start += size
    scores = np.concatenate(found)
    same_shape = scores.shape == expected.shape
    largest = float(np.abs(scores - expected).max()) if same_shape else float("nan")
    if not largest <= TOLERANCE:
        got = f"a difference of {largest:.2g}" if same_shape else f"{list(scores.shape)} numbers"
        msg = (
            f"Expected the {what} to give the run's probabilities {list(expected.shape)} within {TOLERANCE:g} on "
            f"{len(sample.images)} {sample.split} images, got {got}. Export this run with --safetensors."
        )
        raise InputError(msg)
    return Parity(len(sample.images), sample.split, largest, TOLERANCE)


class Sample(NamedTuple):
    """Stored images that exports are checked with.

    Attributes:
        images: uint8 ``[n, height, width, channels]``.
        split: of the data set that they are from.
    """

    images: NDArray[np.uint8]
    split: str


@contextmanager
def quiet() -> Iterator[None]:
    """While a model is traced: what torch's exporters warn of concerns their own code."""
    noisy = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [each.level for each in noisy]
    for each in noisy:
        each.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for each, level in zip(noisy, levels, strict=True):
            each.setLevel(level)


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0] if text else ''}".strip()
