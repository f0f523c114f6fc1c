"""What is known of a run's model, gathered once for the card, the JSON files and the crate."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedmlic.counts import Counts
from fedmlic.environment import here
from fedmlic.experiment import Experiment
from fedmlic.metrics import Metrics, evaluate_apart, unannotated_columns
from fedmlic.record import jsonable, open_run, read_json
from fedmlic.resolved import resolved
from sim.predict import Predictor, model_title, resize_of
from sim.thresholds import RULES, Rule, Thresholds

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fedmlic.corpus import Corpus
    from fedmlic.images import Resize
    from fedmlic.record import RunFolder
    from sim.outcome import Scores

CLOSEST = ("CP", "CR", "CF1", "OP", "OR", "OF1", "macro-F1")
"""Metrics at a threshold, in the order of ``docs/metrics.md``."""


@dataclass(frozen=True)
class Facts:
    """Everything that an export says of its model.

    Attributes:
        settings: of the experiment as they were written, by dashed name.
        resolved: the same with every argument spelled out.
        command: how the run is started again.
        model: which of the run's models, in words.
        val_chose_round: whether validation images chose its round.
        about: which model it is for programs: identity of the experiment, round, client, inference.
        label_names: columns.
        image_shape: height, width, channels of stored images.
        resize: how a picture becomes a square.
        data: name, key, licence and sizes of the data set, as its manifest says.
        record: warnings and lists of labels of the run's ``data.json``.
        thresholds: of the model.
        test: metrics on test images at the fixed threshold; None without test images.
        test_at: by rule, the metrics on test images that depend on thresholds.
        run_environment: versions and machine that trained.
        environment: versions and machine that exported.
    """

    settings: Mapping[str, Any]
    resolved: Mapping[str, Any]
    command: str
    model: str
    val_chose_round: bool
    about: Mapping[str, Any]
    label_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    resize: Resize
    data: Mapping[str, Any]
    record: Mapping[str, Any]
    thresholds: Thresholds
    test: Metrics | None
    test_at: Mapping[Rule, Mapping[str, float]]
    run_environment: Mapping[str, Any]
    environment: Mapping[str, Any]

    def preprocessing(self) -> dict[str, Any]:
        """From an image file to the model's input, as ``preprocessing.json`` says it."""
        height, width, channels = self.image_shape
        return {
            "schema": 1,
            "kind": "preprocessing",
            "height": height,
            "width": width,
            "channels": channels,
            "colour": "RGB" if channels == 3 else "L",
            "dtype": "uint8",
            "layout": "NHWC",
            "upright": True,
            "resize": self.resize,
            "filter": "Pillow BILINEAR",
            "scaling": "inside the model",
        }


def gather(
    path: Path, predictor: Predictor, corpus: Corpus, thresholds: Thresholds, which: str, test: Scores | None
) -> Facts:
    """The facts of a run's model.

    Args:
        path: the run folder.
        predictor: the model.
        corpus: of the run.
        thresholds: of the model.
        which: ``best`` or ``last``, as it was asked for.
        test: scores of the test images; None without any.

    Raises:
        InputError: not a run.
    """
    folder = open_run(path)
    experiment, _ = folder.settings()
    record = folder.data()
    apart = unannotated_columns(predictor.label_names, record["unannotated_labels"])
    found, at = None, {}
    if test is not None:
        found = evaluate_apart(test.scores, test.labels, apart, experiment.threshold)
        for rule in RULES:
            predicted = test.scores >= thresholds.values(rule)
            metrics = Counts.of_predicted(predicted[:, ~apart], test.labels[:, ~apart]).metrics()
            at[rule] = {name: metrics[name] for name in CLOSEST}
    return Facts(
        settings={name.replace("_", "-"): value for name, value in experiment.model_dump().items()},
        resolved=resolved(experiment),
        command=command_of(experiment),
        model=model_in_words(folder, predictor.round, thresholds.about.get("client")),
        val_chose_round=_chose_round(folder, predictor, corpus, which),
        about=thresholds.about,
        label_names=predictor.label_names,
        image_shape=predictor.learner.task.image_shape,
        resize=resize_of(experiment),
        data=data_facts(corpus),
        record=record,
        thresholds=thresholds,
        test=found,
        test_at=at,
        run_environment=read_json(path / "environment.json"),
        environment=here(),
    )


def data_facts(corpus: Corpus) -> dict[str, Any]:
    """Name, licence and sizes of a corpus, as its manifest says."""
    return {
        "name": corpus.name,
        "key": corpus.key,
        "content": corpus.content,
        "licence": str(corpus.manifest.get("licence", "unknown")),
        "own": corpus.own,
        "images": {split: len(rows) for split, rows in corpus.splits.items()},
    }


def model_in_words(folder: RunFolder, round_number: int, client: int | None) -> str:
    """Which of a run's models: after which round, why that one, and whose."""
    whose = "" if client is None else f", with the tensors that client {client} keeps to itself"
    return model_title(folder, round_number, private=client is not None) + whose


def _chose_round(folder: RunFolder, predictor: Predictor, corpus: Corpus, which: str) -> bool:
    """Whether validation images chose the round; where clients keep tensors, their own held-out images do."""
    numbers = folder.checkpoints()
    best = folder.checkpoint_values(numbers[-1])["best_round"] if numbers else 0
    shared = not predictor.learner.resident.private_names
    return which == "best" and 0 < predictor.round == best and shared and bool(corpus.splits.get("val"))


def command_of(experiment: Experiment) -> str:
    """The command that plays an experiment again, with every setting that is not the default's."""
    default = Experiment().model_dump()
    changed = {name: value for name, value in experiment.model_dump().items() if value != default[name]}
    return shlex.join(["fedmlic", "run", *(f"{name.replace('_', '-')}={value}" for name, value in changed.items())])


def export_json(facts: Facts, parity: Mapping[str, Any]) -> dict[str, Any]:
    """The facts for programs, as ``export.json`` holds them."""
    per_label: list[dict[str, Any]] = []
    if facts.test is not None:
        table = facts.test.per_label
        hidden = set(facts.record["unannotated_labels"])
        per_label = [
            {
                "label": name,
                "ap": float(table.ap[column]),
                "num_present": int(table.num_present[column]),
                "num_known": int(table.num_known[column]),
                "annotated": name not in hidden,
            }
            for column, name in enumerate(facts.label_names)
        ]
    test = None if facts.test is None else {**facts.test.flat(), "at": {r: dict(v) for r, v in facts.test_at.items()}}
    found: dict[str, Any] = jsonable(
        {
            "schema": 1,
            "kind": "export",
            "model": facts.model,
            **facts.about,
            "experiment": facts.resolved,
            "command": facts.command,
            "data": facts.data,
            "unannotated_labels": facts.record["unannotated_labels"],
            "untrained_labels": facts.record["untrained_labels"],
            "test": test,
            "per_label": per_label,
            "parity": parity,
            "trained_with": facts.run_environment,
            "exported_with": facts.environment,
        }
    )
    return found


def without_home(text: str) -> str:
    """The text with the user's home folder as ``~``: cards are passed on."""
    try:
        home = str(Path.home())
    except RuntimeError:  # an id without a name, as in containers
        return text
    return text.replace(home, "~") if len(home) > 1 else text
