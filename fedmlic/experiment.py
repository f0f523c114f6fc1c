"""The whole configuration as one model, checked once, with good errors.

The same keys work in the command (``key=value``), in recipes (TOML) and in
``[tool.flwr.app.config]``; dashes there, underscores here. ``Experiment`` holds
what decides the result; ``Runtime`` holds where and how fast it is computed.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from fedmlic import spec
from fedmlic.augmentation import CHANGES, changes_of
from fedmlic.errors import InputError, nearest
from fedmlic.holdout import HoldoutBy

Fraction = Annotated[float, Field(ge=0, le=1)]
DEFAULT_DATASET = (
    "multidigits(num_train=12000, num_val=600, num_test=1000, image_size=24, max_glyphs=3, "
    "glyph_size=[0.45, 0.55], contrast=0.8, rotation=5)"
)
DEFAULT_METHOD = "fedlgt(layers=1, dropout=0.0, known_fraction_max=0.25)"
"""Where neither a recipe nor a setting says otherwise (``docs/default_experiment.md``)."""

LATER_FIELDS = (
    "mods",
    "single_client",
    "allow_statistics",
    "statistics_min_clients",
    "statistics_min_images",
    "features",
    "inference",
    "holdout_by",
    "start",
)
"""Settings that older runs do not have: their defaults do not count, so that old identities hold."""

Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]


class Reading(TypedDict):
    """Arguments of ``fedmlic.corpus.open_corpus`` that an experiment decides."""

    bad_files: Literal["fail", "skip"]
    max_bad_fraction: float


class Experiment(BaseModel):
    """Everything that decides the result of a run.

    Each key is one sentence of the experiment: *dataset* split by *partition*, annotated
    under *regime*, trained by *method* on *model*, merged by *strategy*, evaluated by *inference*.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    dataset: str = Field(DEFAULT_DATASET, description="the images and their complete labels")
    partition: str = Field("dirichlet(alpha=1.0)", description="which client holds which image")
    regime: str = Field("label_subset(labels_per_client=5)", description="which labels a client sees")
    model: str = Field("small_cnn()", description="the backbone")
    method: str = Field(DEFAULT_METHOD, description="what a client does")
    strategy: str = Field("labelwise()", description="how the server merges")
    inference: str = Field("plain()", description="how a network is asked when it is evaluated")
    mods: str = Field("", description="what is added to a client's turn: mods separated by commas, in order")
    num_clients: Count = Field(20, description="clients in the federation (0: as many as the partition finds)")
    num_rounds: Count = Field(12, description="rounds (0: nothing trains, the first model is evaluated)")
    cohort_size: Count = Field(6, description="clients per round (0: all)")
    cohort: Literal["uniform", "size"] = Field(
        "uniform", description="sampling: uniform, or by number of images (with weights by images, size counts twice)"
    )
    local_epochs: Positive = Field(4, description="passes over a client's images per round")
    local_steps: Count = Field(0, description="optimiser steps per round instead of epochs (0: use epochs)")
    batch_size: Positive = Field(16, description="images per step")
    optimizer: Literal["sgd", "adam", "adamw"] = Field("adam", description="local optimiser, fresh each round")
    learning_rate: Annotated[float, Field(gt=0)] = Field(1e-3, description="local learning rate")
    schedule: Literal["constant", "cosine", "one_cycle"] = Field("constant", description="learning rate over rounds")
    momentum: Annotated[float, Field(ge=0, lt=1)] = Field(0.0, description="of sgd")
    weight_decay: Annotated[float, Field(ge=0)] = Field(0.0, description="of the optimiser")
    clip_norm: Annotated[float, Field(ge=0)] = Field(10.0, description="gradient norm limit (0: none)")
    precision: Literal["float32", "bfloat16"] = Field("float32", description="of local training (bfloat16: autocast)")
    augmentation: str = Field(
        "none", description="random changes of training images, joined by +: " + ", ".join(CHANGES)
    )
    features: Literal["auto", "cached", "computed"] = Field(
        "auto",
        description="of a backbone that does not train: computed once and kept (auto: where it can be), or every time",
    )
    holdout_fraction: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.1, description="of a client's images, kept for federated evaluation"
    )
    holdout_by: HoldoutBy = Field(
        "image", description="what is kept: single images, or whole owners, so that none is on both sides (patients)"
    )
    evaluate_every: Positive = Field(1, description="rounds between evaluations on the server (the last always)")
    evaluate_clients_every: Count = Field(0, description="rounds between evaluations on all clients (0: at the end)")
    client_min_entries: Positive = Field(
        5, description="present and absent held-out images a label needs to count in a client's own mAP"
    )
    threshold: Fraction = Field(0.5, description="probability above which a label counts as predicted")
    tail_below: Count = Field(
        20, description="labels with fewer positive training annotations are tail (server/mAP/tail)"
    )
    head_above: Count = Field(100, description="labels with more positive training annotations are head")
    min_replies: Fraction = Field(0.5, description="share of the cohort that must succeed, else the run stops")
    allow_statistics: bool = Field(
        default=False,
        description="let methods and mods count over all clients before round 1 (tells the server of labels)",
    )
    statistics_min_clients: Positive = Field(5, description="clients that must stand behind every counted number")
    statistics_min_images: Positive = Field(10, description="images that must stand behind every counted number")
    label_names: str = Field("", description="comma-separated label space of a deployment (empty: the data set's)")
    bad_files: Literal["fail", "skip"] = Field("fail", description="unreadable images: an error, or left out, recorded")
    max_bad_fraction: Fraction = Field(0.01, description="with bad-files=skip: the share of images that is too many")
    single_client: Annotated[str, Field(pattern=r"^(pooled|[0-9]+)?$")] = Field(
        "", description="train one client instead of all: pooled (all images together) or a client's number"
    )
    start: str = Field(
        "",
        description="a complete run whose model begins this one, rows of labels by name: RUN (its best), RUN@last or "
        "RUN@ROUND (empty: initial weights)",
    )
    seed: Count = Field(0, description="of every random stream")

    @field_validator("dataset", "partition", "regime", "model", "method", "strategy", "inference")
    @classmethod
    def _known_entry(cls, text: str, info: Any) -> str:  # noqa: ANN401  (pydantic's ValidationInfo)
        name = spec.parse(text, info.field_name).name
        if "." not in name and not spec.is_entry(info.field_name, name):
            known = nearest(name, spec.entries(info.field_name))
            msg = f"Expected {info.field_name} to name an entry of its catalogue, got {name!r}. {known}"
            raise InputError(msg)
        return text

    @field_validator("augmentation")
    @classmethod
    def _known_changes(cls, text: str) -> str:
        changes_of(text)
        return text

    @field_validator("mods", mode="before")
    @classmethod
    def _one_text(cls, value: object) -> object:
        """A list of mods, as TOML and JSON may hold, as one text."""
        return (
            ", ".join(value) if isinstance(value, (list, tuple)) and all(isinstance(v, str) for v in value) else value
        )

    @field_validator("mods")
    @classmethod
    def _known_mods(cls, text: str) -> str:
        for name, _ in spec.parse_all(text, "mods"):
            if "." not in name and not spec.is_entry("mods", name):
                known = nearest(name, spec.entries("mods"))
                msg = f"Expected mods to name entries of their catalogue, got {name!r}. {known}"
                raise InputError(msg)
        return text

    @field_validator("start")
    @classmethod
    def _absolute(cls, text: str) -> str:
        """From anywhere the same folder: runs are resumed and servers started elsewhere."""
        try:
            return str(Path(text).expanduser().absolute()) if text else ""
        except RuntimeError as error:  # ~somebody
            msg = f"Expected start to be the folder of a run, got {text!r}: {error}. Write the whole path."
            raise InputError(msg) from None

    @field_validator("label_names")
    @classmethod
    def _composed_letters(cls, text: str) -> str:
        """Labels are compared with those of data sets, whose names are in Unicode's form NFC."""
        return unicodedata.normalize("NFC", text)

    @model_validator(mode="after")
    def _cohort_fits(self) -> Experiment:
        if self.num_clients and self.cohort_size > self.num_clients:
            msg = (
                f"Expected cohort-size to be at most num-clients ({self.num_clients}), got {self.cohort_size}. "
                "Lower it, or use 0 for all clients."
            )
            raise InputError(msg)
        return self

    @model_validator(mode="after")
    def _groups_are_apart(self) -> Experiment:
        if self.head_above < self.tail_below - 1:
            msg = (
                f"Expected head-above to be at least {self.tail_below - 1}, one less than tail-below, got "
                f"{self.head_above}: a label could be head and tail. Raise it."
            )
            raise InputError(msg)
        return self

    def reading(self) -> Reading:
        """What happens to images that cannot be read, as arguments of ``open_corpus``."""
        return {"bad_files": self.bad_files, "max_bad_fraction": self.max_bad_fraction}

    def identity(self) -> str:
        """A hash of everything that decides the weights; two runs with equal identity may share them."""
        # Checkpoints name their corpus, so images left out show there.
        neutral = {"evaluate_every", "evaluate_clients_every", "client_min_entries", "threshold"}
        neutral |= {"tail_below", "head_above"}
        fields = self.model_dump(exclude={*neutral, "bad_files", "max_bad_fraction"})
        for name in LATER_FIELDS:
            if fields[name] == type(self).model_fields[name].default:
                del fields[name]
        return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


class Runtime(BaseModel):
    """Where and how fast a run is computed.

    Engine and workers change nothing in the weights. Another ``device``, another number of
    ``threads`` in one process, ``vectorize`` and ``channels-last`` round differently.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    engine: Literal["auto", "processes", "ray", "inprocess", "flower"] = Field(
        "auto", description="what carries the rounds (auto: processes, or ray with ray-address or gpus-per-worker)"
    )
    workers: Count = Field(0, description="worker processes (0: one per core, at most one per cohort client)")
    gpus_per_worker: Annotated[float, Field(ge=0)] = Field(0.0, description="share of a GPU each worker gets")
    ray_address: str = Field("", description="a Ray cluster to use, host:port (empty: none)")
    vectorize: Positive = Field(1, description="clients that a worker trains at once (1: one after another)")
    channels_last: bool = Field(default=False, description="weights of convolutions in channels-last order (GPUs)")
    threads: Positive = Field(1, description="torch threads per worker and in the server")
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")
    keep_checkpoints: Positive = Field(2, description="last checkpoints to keep, besides the best")
    keep_scores: Literal["none", "last", "best", "every"] = Field(
        "none", description="scores of test and validation images to keep: of which evaluated rounds' models"
    )
    round_timeout: Annotated[float, Field(gt=0)] = Field(3600.0, description="seconds to wait for a round's replies")
    node_timeout: Annotated[float, Field(gt=0)] = Field(120.0, description="seconds to wait for enough hosts")
    min_hosts: Positive = Field(1, description="Flower nodes to wait for before the first round")
    node_ids: str = Field(
        "", description="Flower node of each client, 0=NODE, 1=NODE (empty: who claims an id first keeps it)"
    )
    most_client_images: Positive = Field(
        10_000_000, description="images that a device may announce, else it is set aside"
    )
    strict_versions: bool = Field(
        default=False, description="set devices aside whose Flower, Python, torch or NumPy is another version"
    )
    audit_log: str = Field("", description="file for the server's audit log of devices (empty: in the run folder)")
    out: str = Field("", description="run folder (empty: runs/DATE-TIME)")
    home: str = Field("", description="folder of corpora and federations (empty: $FEDMLIC_HOME or the user's cache)")


def home_of(runtime: Runtime) -> Path | None:
    """The folder of corpora and federations, or None for the default."""
    return Path(runtime.home).expanduser() if runtime.home else None


def split_settings(settings: Mapping[str, Any]) -> tuple[Experiment, Runtime]:
    """Check settings whose keys may have dashes and whose values may be text.

    Raises:
        InputError: unknown key (names the nearest), or values out of range, all at once.
    """
    values = {key.replace("-", "_"): value for key, value in settings.items()}
    known = {**Experiment.model_fields, **Runtime.model_fields}
    unknown = [key for key in values if key not in known]
    if unknown:
        names = [name.replace("_", "-") for name in known]
        hints = "; ".join(f"{key.replace('_', '-')!r}: {nearest(key.replace('_', '-'), names)}" for key in unknown)
        msg = f"Expected settings to be keys of an experiment, got {hints}"
        raise InputError(msg)
    try:
        experiment = Experiment(**{k: v for k, v in values.items() if k in Experiment.model_fields})
        runtime = Runtime(**{k: v for k, v in values.items() if k in Runtime.model_fields})
    except ValidationError as error:
        raise InputError(explain(error)) from None
    return experiment, runtime


def explain(error: ValidationError) -> str:
    """Pydantic's findings in this project's words."""
    lines = []
    for item in error.errors():
        key = ".".join(str(part) for part in item["loc"]).replace("_", "-")
        cause = item.get("ctx", {}).get("error")
        if isinstance(cause, InputError):
            lines.append(str(cause))
        else:
            rule = item["msg"].removeprefix("Input ").lower()
            lines.append(f"Expected {key}: {rule}, got {item['input']!r}.")
    return " ".join(lines)


def flower_config(experiment: Experiment, runtime: Runtime) -> dict[str, bool | int | float | str]:
    """All settings as flat dashed keys, as Flower's run configuration wants them."""
    return {key.replace("_", "-"): value for key, value in {**experiment.model_dump(), **runtime.model_dump()}.items()}
