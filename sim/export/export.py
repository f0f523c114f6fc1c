"""``fedmlic export``: gather, write beside the target, compare, and only then move into place."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from fedmlic.errors import InputError
from fedmlic.files import sync
from fedmlic.pixel_scale import PIXEL_MEAN, PIXEL_STD
from fedmlic.record import open_run, write_bytes, write_json
from sim import thresholds as fitting
from sim.export.card import card
from sim.export.crate import write_crate
from sim.export.facts import Facts, export_json, gather
from sim.export.formats import need, write_onnx, write_program, write_weights
from sim.export.network import Sample, exported_program
from sim.outcome import corpus_of, predictor_of, score_split, thresholds_of

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from fedmlic.corpus import Corpus
    from sim.export.network import Parity
    from sim.outcome import Which

Format = Literal["onnx", "torch-export", "safetensors", "ro-crate"]

MODELS: tuple[Format, ...] = ("onnx", "torch-export", "safetensors")
"""Formats of a model."""

SAMPLE = 32
"""Real images that an exported model is compared on."""

Progress = Callable[[str], Callable[[int, int], None]]
"""From what is counted to what is called with (done, in all)."""


@dataclass(frozen=True)
class Choice:
    """Which model, and how its thresholds are fitted.

    Attributes:
        which: of the run's models.
        client: whose, where clients keep tensors to themselves.
        precision: target of the thresholds' rule ``precision``.
        min_entries: known present, and known absent, validation images that a label's own threshold needs.
    """

    which: Which = "best"
    client: int | None = None
    precision: float = fitting.DEFAULT_PRECISION
    min_entries: int = fitting.MIN_ENTRIES


def export(
    run: Path, targets: Mapping[Format, Path], choice: Choice | None = None, progress: Progress | None = None
) -> dict[str, Any]:
    """Export a run's model, or its record, into new folders.

    Args:
        run: the run folder.
        targets: by format, the folder to write; formats may share one.
        choice: which model, and its thresholds.
        progress: for long parts.

    Returns:
        What was written, as ``fedmlic export --json`` prints it.

    Raises:
        InputError: not a run, nothing to write, a folder that is not free, a model that cannot be written down or is
            not the run's when it is read back, a missing extra. Nothing is left then.
    """
    choice = choice or Choice()
    if not targets:
        msg = "Expected a format, got none. Give --onnx, --torch-export, --safetensors or --ro-crate with a folder."
        raise InputError(msg)
    open_run(run)
    folders = _folders(targets)
    for folder in folders:
        _check_free(folder, run)
    if "onnx" in targets:
        for package in ("onnx", "onnxscript", "onnxruntime"):
            need(package)
    model = _Model(run, choice, progress) if set(targets) & set(MODELS) else None
    written: list[dict[str, Any]] = []
    with _staged(list(folders)) as stages:
        for folder, formats in folders.items():
            stage = stages[folder]
            parity: dict[str, Any] = {}
            if model is not None:
                parity = model.write(stage, [name for name in formats if name in MODELS])
            if "ro-crate" in formats:
                write_crate(run, stage, None if progress is None else progress("copying the run's files"))
            files = sorted(file.relative_to(stage).as_posix() for file in stage.rglob("*") if file.is_file())
            written.append({"folder": str(folder), "formats": formats, "files": files, "parity": parity})
    about = {} if model is None else {"model": model.facts.model, **model.facts.about, "thresholds": model.summary()}
    return {"run": str(run.absolute()), **about, "written": written}


class _Model:
    """The chosen model with what is said of it."""

    def __init__(self, run: Path, choice: Choice, progress: Progress | None) -> None:
        corpus = corpus_of(run)
        self.predictor = predictor_of(run, choice.which, choice.client)
        self.sample = sample_of(corpus)
        self.expected = self.predictor.scores(self.sample.images)
        self.thresholds = thresholds_of(
            run,
            self.predictor,
            corpus,
            precision=choice.precision,
            min_entries=choice.min_entries,
            client=choice.client,
            progress=progress,
        )
        has_test = bool(corpus.splits.get("test", range(0)))
        counting = progress("scoring test images") if progress is not None and has_test else None
        test = score_split(self.predictor, corpus, "test", counting) if has_test else None
        self.facts: Facts = gather(run, self.predictor, corpus, self.thresholds, choice.which, test)
        self.settings = open_run(run).settings()[0].model_dump()
        self.program: ExportedProgram | None = None

    def write(self, stage: Path, formats: list[Format]) -> dict[str, Any]:
        """Write the model in these formats, and what is said of it; how far each is from the run's model."""
        if not formats:
            return {}
        facts, given = self.facts, (self.expected, self.sample)
        labels = {"schema": 1, "kind": "labels", "labels": list(facts.label_names)}
        found: dict[str, Parity] = {}
        if self.program is None and {"onnx", "torch-export"} & set(formats):
            self.program = exported_program(self.predictor)
        if self.program is not None and "onnx" in formats:
            metadata = {
                "labels": list(facts.label_names),
                "thresholds": {rule: self.thresholds.values(rule).tolist() for rule in fitting.RULES},
                "preprocessing": facts.preprocessing(),
                "model": facts.model,
                **{name: value for name, value in facts.about.items() if value is not None},
                "fedmlic": facts.environment["packages"]["fedmlic"],
            }
            found["onnx"] = write_onnx(stage, self.program, metadata, *given)
        if self.program is not None and "torch-export" in formats:
            found["torch-export"] = write_program(stage, self.program, *given)
        if "safetensors" in formats:
            config = {
                **facts.about,
                "experiment": self.settings,
                "labels": list(facts.label_names),
                "image_shape": list(facts.image_shape),
                "threshold": self.predictor.threshold,
                "pixels": {"mean": PIXEL_MEAN, "deviation": PIXEL_STD, "layout": "NCHW float32"},
            }
            found["safetensors"] = write_weights(stage, self.predictor, config, *given)
        parity = {name: each._asdict() for name, each in found.items()}
        write_json(stage / "labels.json", labels)
        write_json(stage / "thresholds.json", self.thresholds.to_json())
        write_json(stage / "preprocessing.json", facts.preprocessing())
        write_json(stage / "export.json", export_json(facts, parity))
        write_bytes(stage / "README.md", card(facts, parity).encode())
        return parity

    def summary(self) -> dict[str, Any]:
        """How many labels have a threshold of their own."""
        rules = self.thresholds.rules
        fitted_labels = {rule: sum(not each.why_fixed for each in rules[rule]) for rule in ("best-f1", "precision")}
        return {"num_images": self.thresholds.num_images, "num_labels": len(self.facts.label_names), **fitted_labels}


def sample_of(corpus: Corpus) -> Sample:
    """Images of the test split, spread over it; of validation, then training, where there are none.

    Raises:
        InputError: a data set without images.
    """
    for split in ("test", "val", "train"):
        rows = corpus.splits.get(split, range(0))
        if rows:
            chosen = np.unique(np.linspace(rows.start, rows.stop - 1, min(SAMPLE, len(rows))).astype(np.int64))
            return Sample(corpus.images.take(chosen), split)
    msg = f"Expected {corpus.name} to have images to compare the exported model on, got none. Export where there are."
    raise InputError(msg)


def _folders(targets: Mapping[Format, Path]) -> dict[Path, list[Format]]:
    """The formats of each folder, in the order given."""
    found: dict[Path, list[Format]] = {}
    for name, path in targets.items():
        found.setdefault(path.expanduser().absolute(), []).append(name)
    for folder in found:
        inside = [other for other in found if other != folder and other.is_relative_to(folder)]
        if inside:
            msg = f"Expected folders beside each other, got {inside[0]} inside {folder}. Choose the same, or others."
            raise InputError(msg)
    return found


def _check_free(folder: Path, run: Path) -> None:
    """Raise ``InputError`` unless a folder is new or empty, and outside the run."""
    if folder.is_relative_to(run.absolute()):
        msg = f"Expected a folder outside the run {run}, got {folder}. Choose another."
        raise InputError(msg)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        msg = (
            f"Expected {folder} to be a new or empty folder, got one with something in it. Choose another or empty it."
        )
        raise InputError(msg)


@contextmanager
def _staged(folders: list[Path]) -> Iterator[dict[Path, Path]]:
    """Folders to write into, which take their places when the block has ended without an error."""
    made: list[Path] = []
    stages: dict[Path, Path] = {}
    try:
        for folder in folders:
            missing = [each for each in folder.parents if not each.exists()]
            try:
                folder.parent.mkdir(parents=True, exist_ok=True)
                made += missing
                stage = folder.parent / f".{folder.name}.{os.getpid()}.tmp"
                stage.mkdir()
            except OSError as error:
                msg = f"Expected the folder {folder} to be makeable, got {error}. Choose another."
                raise InputError(msg) from None
            stages[folder] = stage
        yield stages
        for folder, stage in stages.items():
            stage.replace(folder)
            sync(folder.parent)
        made = []
    finally:
        for stage in stages.values():
            shutil.rmtree(stage, ignore_errors=True)
        for parent in made:
            if parent.is_dir() and not any(parent.iterdir()):
                parent.rmdir()
