"""Compute the feature maps of a backbone that does not train, ahead of a run that uses them."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from clients.opening import images_of
from fedmlic import spec
from fedmlic.errors import InputError
from fedmlic.experiment import home_of
from fedmlic.features import MAPS, FeatureMaps, features_of, obstacle_before_data, refusal
from fedmlic.learner import build_network, choose_device
from fedmlic.method import Task
from fedmlic.process import prepare

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from fedmlic.corpus import Corpus
    from fedmlic.experiment import Experiment, Runtime
    from fedmlic.method import Method
    from fedmlic.model import Model

    Watch = Callable[[int, int], None]

STAND_INS = ("label", "other")
"""Labels of images that have none; words that all kinds of label vectors know."""


def compute(
    experiment: Experiment, runtime: Runtime, watching: Callable[[str], AbstractContextManager[Watch]]
) -> dict[str, Any]:
    """Open or compute the feature maps that a run with these settings uses.

    Args:
        experiment: the run's; only data set, model, method and seed count.
        runtime: where the maps are kept, and the device that computes them.
        watching: gives a place that is told of progress, from what is done.

    Returns:
        JSON values.

    Raises:
        InputError: the maps cannot be used, with the reason; or what a run would say.
    """
    experiment = experiment.model_copy(update={"features": "cached"})
    method: Method = spec.build("method", experiment.method)
    reason = obstacle_before_data(experiment, method)
    if reason:
        raise InputError(refusal(reason))
    prepare(runtime.threads)
    with watching("building images") as watch:
        corpus = images_of(experiment, runtime, progress=watch)
    found = _opened(experiment, runtime, corpus, method, watching)
    report = found.manifest["report"]
    return {
        "features": str(found.folder.absolute()),
        "key": found.key,
        "corpus": str(corpus.path),
        "model": str(spec.parse(experiment.model, "model")),
        "shape": list(found.shape),
        "bytes": found.manifest["files"][MAPS]["bytes"],
        "computed": report["computed"],
        "seconds": report["seconds"],
        "images_per_s": round(report["computed"] / max(report["seconds"], 1e-3), 1),
    }


def _network(experiment: Experiment, corpus: Corpus) -> nn.Module:
    """The run's network, but for its labels: what initial weights a backbone gets does not depend on them.

    A device may have one label or none, where some label vectors need two (``etf``, ``shuffled``).
    """
    given = tuple(name.strip() for name in experiment.label_names.split(",") if name.strip())
    names = given or tuple(corpus.label_names)
    model: Model = spec.build("model", experiment.model)
    task = Task(names or STAND_INS, corpus.image_shape, model, experiment.seed)
    try:
        return build_network(experiment, task)[1]
    except InputError as error:
        if len(names) != 1:
            raise
        try:
            return build_network(experiment, replace(task, label_names=STAND_INS))[1]
        except InputError:
            raise error from None  # it was not about the number of labels


def _opened(
    experiment: Experiment,
    runtime: Runtime,
    corpus: Corpus,
    method: Method,
    watching: Callable[[str], AbstractContextManager[Watch]],
) -> FeatureMaps:
    network = _network(experiment, corpus)
    with watching("computing features") as watch:
        maps = features_of(experiment, corpus, choose_device(runtime.device), home_of(runtime), watch)(method, network)
    assert maps is not None  # noqa: S101  (they were asked for: otherwise the reason was raised)
    return maps
