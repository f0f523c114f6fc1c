"""The JSON that commands print, as a contract: one model per command, and the tables of a run.

Every ``--json`` output says in ``schema`` which of these it follows, as ``NAME/VERSION``. A version rises with every
change that a reader could notice but a new field. ``docs/schemas/`` holds the same as JSON Schema (draft 2020-12);
``python -m sim.schemas docs/schemas`` writes it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from fedmlic.tables import SCHEMAS

DRAFT = "https://json-schema.org/draft/2020-12/schema"

Number = float | None
"""A number that may be undefined."""

Cell = str | bool | int | float | None
Row = dict[str, Cell]
Metrics = dict[str, Number]
Counts = dict[str, int]

METRICS = Field(description="metrics by name, see docs/metrics.md; null where one is undefined")
WARNINGS = Field(description="sentences that a person should read")


class Part(BaseModel):
    """A part of an output; nothing may stand in it that is not named here."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Output(Part):
    """What a command prints with ``--json``."""

    number: ClassVar[int] = 1
    """Version of the schema."""

    tag: str = Field(alias="schema", description="name and version of this schema")


# --- Runs -----------------------------------------------------------------------------------


class Result(Part):
    """``result.json``: what a complete run amounts to."""

    run: str = Field(description="folder of the run")
    rounds: int = Field(description="rounds played; the last model is the one after them")
    best_round: int = Field(description="the round that is best on validation images; 0 if none was chosen")
    metrics: Metrics = Field(description="of the last model")
    best_metrics: Metrics = Field({}, description="of the model after best_round, as far as it was evaluated")
    weights_sha256: str = Field(description="hash of the last global model")
    seconds: float = Field(description="wall time spent in rounds")
    num_values: int = Field(description="numbers in the exchanged tensors")


class Failure(Part):
    """A run of a study that failed."""

    label: str
    run: str
    reason: str


class Study(Part):
    """What a sweep found."""

    study: str = Field(description="folder of the study")
    table: list[Row] = Field(description="a row per run, as table.csv has it; metrics of the last model")
    failed: list[Failure]


class RunOutput(Output, Result):
    """``fedmlic run --json`` and ``fedmlic resume --json``: a complete run."""

    warnings: list[str] = WARNINGS
    references: Study | None = Field(None, description="with --references: what they reached")


class Model(Part):
    """One of a run's models."""

    round: int
    metrics: Metrics = METRICS


class Models(Part):
    """The models that a run is spoken of by; null where there is none."""

    last: Model | None = Field(description="after the last evaluated round")
    best: Model | None = Field(description="after the round that is best on validation images")


class Balance(Part):
    """How evenly the work lay; empty before the first round."""

    idle_share: float = Field(0.0, description="median share of a round in which hosts waited")
    slowest_client: int = Field(-1, description="the client that was the slowest of its round most often")
    slowest_in_rounds: int = 0
    slowest_seconds: float = 0.0


class LabelColumns(Part):
    """The table of labels of one split in one round, a list over labels per column."""

    round: int
    split: str
    label: list[str]
    annotated: list[bool] | None = None
    train_present: list[int] | None = None
    ap: list[Number]
    precision: list[Number]
    recall: list[Number]
    f1: list[Number]
    num_present: list[int]
    num_known: list[int]


class ShowOutput(Output):
    """``fedmlic show --json``: a run's record, read back."""

    run: str
    status: Literal["complete", "failed", "interrupted or running"]
    reason: str
    experiment: dict[str, Cell] = Field(description="settings that decide the result, by name with underscores")
    runtime: dict[str, Cell] = Field(description="settings that say where and how fast")
    rounds: list[Row] = Field(description="rows of rounds.parquet")
    checkpoint: int | None = Field(description="the last round that has one")
    best_round: int | None
    models: Models
    clients_evaluated: Row = Field(description="the last row of evaluations.parquet; empty without")
    client_evaluations: list[Row] = Field(description="rows of client-evaluations.parquet of the same round")
    labels: dict[str, LabelColumns] = Field(description="by split, of the last evaluated round")
    failures: list[Row] = Field(description="rows of clients.parquet with an error")
    warnings: list[str] = WARNINGS
    untrained_labels: list[str]
    unannotated_labels: list[str]
    client_names: list[str]
    present_counts: list[int] | None = Field(description="training images annotated as having each label")
    corpus: str = Field("", description="hash of the corpus' content")
    federation: str = Field("", description="hash of what clients hold")
    balance: Balance
    result: Result | None


class Ranked(Part):
    """A label of an image."""

    label: str
    probability: float


class Predicted(Part):
    """Labels of one image."""

    image: str
    present: list[str] = Field(description="labels at or above the threshold")
    labels: list[Ranked] = Field(description="all labels, most probable first")
    uncertainty: dict[str, float] | None = Field(None, description="how sure the network is, by the method's names")


class UnreadImage(Part):
    """A file that could not be read."""

    image: str
    problem: str


class PredictOutput(Output):
    """``fedmlic predict --json`` and ``--out``: labels of images."""

    run: str
    round: int
    model: str = Field(description="which of the run's models it is, in words")
    threshold: float
    thresholds: dict[str, float] | None = Field(None, description="with --thresholds: by label of the training")
    inference: str
    asked: list[str] | None = Field(None, description="with --labels: names asked for")
    unjudged: list[str] | None = Field(None, description="those of them that are no labels of the run")
    unannotated: list[str] | None = Field(None, description="those of them that nobody annotated")
    note: str | None = None
    images: list[Predicted]
    num_bad_files: int = Field(0, description="files that could not be read, with bad-files=skip")
    bad_files: list[UnreadImage] = Field([], description="which, and why")


# --- Federations ----------------------------------------------------------------------------


class Spread(Part):
    """How a number differs between clients."""

    mean: Number
    min: Number
    p05: Number
    p25: Number
    median: Number
    p75: Number
    p95: Number
    max: Number
    undefined: int = Field(description="clients where it does not exist")


class Distance(Part):
    """A mean over pairs of clients."""

    mean: Number
    pairs: int
    sampled: bool


class FederationSummary(Part):
    """Numbers of a whole federation, see docs/achieved_skew.md."""

    num_clients: int
    num_labels: int
    num_images: int
    num_holdout_images: int
    num_annotations: int
    known_fraction: Number
    num_positives: int
    num_true_known: int
    num_true_positives: int
    prevalence: Number
    num_checkable: int
    num_wrong: int
    wrong_fraction: Number
    empty_fraction: Number
    size_gini: Number
    pairwise_js_true: Distance
    pairwise_js_known: Distance
    budget: int
    clients_without_annotation: int
    labels_without_annotation: int
    clients: dict[str, Spread]


class FederationOf(Part):
    """What a federation was made of."""

    model_config = ConfigDict(extra="allow", strict=True)

    key: str
    identity: dict[str, Any] = Field(description="settings that decide who holds what")
    num_clients: int
    num_images: int
    images_left_out: int
    notes: dict[str, Any] = Field(description="of the partition and the regime")


class Phase(Part):
    """Rounds in which the same tensors are exchanged; bytes of one client in one round."""

    first_round: int
    last_round: int
    trained: int
    exchanged: int
    bytes_down: int
    bytes_up: int


class Parameters(Part):
    """Of the network."""

    all: int
    trained: int
    frozen: int
    private: int


class Exchange(Part):
    """What clients send and get; ``error`` alone where the network cannot be built."""

    parameters: Parameters | None = None
    phases: list[Phase] | None = None
    bytes_up_before: int | None = None
    error: str | None = None


class DescribeOutput(Output):
    """``fedmlic describe --json``: who holds which images and labels."""

    federation: FederationOf
    warnings: list[str] = WARNINGS
    untrained_labels: list[str]
    unannotated_labels: list[str]
    summary: FederationSummary
    labels: list[Row]
    clients: list[Row] | None = Field(None, description="missing above 1,000 clients")
    cells: dict[str, list[list[int]]] | None = Field(description="[clients][labels] by name; null above 50,000 pairs")
    arrays: dict[str, str] = Field(description="files that hold the same in full")
    exchange: Exchange | None = None
    files: list[str] = Field(description="with --out: what was written")


# --- Catalogues -----------------------------------------------------------------------------


class Entry(Part):
    """An entry of a catalogue."""

    name: str
    summary: str
    arguments: dict[str, str | None] = Field(description="default as text by keyword; null if it must be given")
    meanings: dict[str, str]
    page: str
    traits: dict[str, bool | str] = Field(description="of a method that was asked for by name")


class Setting(Part):
    """A setting of an experiment."""

    default: Cell
    about: str


class ListOutput(Output):
    """``fedmlic list --json``: entries by catalogue, and a setting that was asked for by its name."""

    model_config = ConfigDict(extra="allow", strict=True)

    __pydantic_extra__: dict[str, list[Entry] | Setting]


# --- Studies --------------------------------------------------------------------------------


class SweepOutput(Output, Study):
    """``fedmlic sweep --json``: a study that was played."""


class DryRunOutput(Output):
    """``fedmlic sweep --dry-run --json``: what a study will take."""

    runs_left: int
    seconds: Number
    bytes: Number
    bytes_free: int
    at_once: int


class Compared(Part):
    """A row of a comparison."""

    label: str
    reference: bool
    mean: Number
    std: Number
    values: dict[str, Number] = Field(description="the metric by seed")
    chosen: dict[str, str] = Field(description="settings chosen on validation images")


class ComparedPair(Part):
    """Two rows compared over seeds, first minus second."""

    first: str
    second: str
    num_seeds: int
    mean: Number
    low: Number
    high: Number
    p: Number
    smallest_p: Number
    improvement: Number
    p_holm: Number


class CompareOutput(Output):
    """``fedmlic compare --json``: rows over seeds, and their differences."""

    metric: str
    model: str = Field(description="which of the runs' models, in words")
    by: list[str]
    test: Literal["permutation", "wilcoxon"]
    rows: list[Compared]
    pairs: list[ComparedPair]
    best: str = Field(description="the row that is better than all others by its corrected p-value; else empty")
    notes: list[str]


# --- Data sets ------------------------------------------------------------------------------


class BadFile(Part):
    """An image that could not be read."""

    image: str
    problem: str


class Corpus(Part):
    """What a corpus holds."""

    corpus: str = Field(description="its folder")
    dataset: str = Field(description="as a setting of an experiment")
    name: str
    version: str
    key: str
    licence: str
    image_shape: list[int] = Field(description="height, width, channels")
    storage: str
    num_images: int
    num_labels: int
    num_present: int
    num_absent: int
    num_unknown: int
    num_uncertain: int
    num_owners: int
    num_objects: int
    num_bad_files: int
    num_duplicates: int
    splits: Counts
    bad_files: list[BadFile]
    warnings: list[str] = WARNINGS
    report: dict[str, Any] = Field(description="what reading the source brought to light")


class ImportOutput(Output, Corpus):
    """``fedmlic data import --json``: the corpus that was built or found."""


class CheckOutput(Output):
    """``fedmlic data check --json``: whether a download is sound; counts only where its tables can be read."""

    dataset: str
    ok: bool
    num_problems: int
    num_missing: int
    num_undecodable: int
    num_duplicates: int | None = None
    num_images: int | None = None
    num_labels: int | None = None
    num_present: int | None = None
    num_absent: int | None = None
    num_unknown: int | None = None
    num_uncertain: int | None = None
    num_owners: int | None = None
    splits: Counts | None = None
    published: dict[str, Any] | None = None
    extra_files: int | None = None
    modes: Counts = Field(description="images by Pillow's mode")
    exif_turned: int
    several_frames: int
    problems: list[str]
    warnings: list[str] = WARNINGS


class Cardinality(Part):
    """Present labels per image."""

    mean: Number
    max: int
    without_positives: int
    histogram: dict[str, list[int]] = Field(description="images with 0, 1, ... present labels, by split")


class LabelPair(Part):
    """Two labels, and their correlation over images that know both."""

    labels: list[str]
    phi: float
    images_with_both: int


class Owners(Part):
    """Who took the images, where that is known."""

    owners: int
    images_without_owner: int
    images_per_owner: dict[str, float] | None = None


class DataDescribeOutput(Output, Corpus):
    """``fedmlic data describe --json``: counts, co-occurrence and owners of a corpus."""

    states: dict[str, Counts] = Field(description="entries in each state, by split")
    cardinality: Cardinality
    labels: list[Row]
    pairs: list[LabelPair] = Field(description="with the highest correlation")
    avoiding: list[LabelPair] = Field(description="with the lowest")
    owners: Owners
    files: list[str] = Field(description="with --out: what was written")


class VerifyOutput(Output):
    """``fedmlic data verify --json``: whether files are what was written."""

    folder: str
    ok: bool
    files: int
    bytes: int
    seconds: float
    hashes_added: bool
    damaged_images: list[str]
    problems: list[str]


class FeaturesOutput(Output):
    """``fedmlic data features --json``: feature maps that were computed or found."""

    features: str
    key: str
    corpus: str
    model: str
    shape: list[int]
    bytes: int
    computed: int
    seconds: float
    images_per_s: float


# --- Reports, exports -----------------------------------------------------------------------


class ReportOutput(Output):
    """``fedmlic report --json``: a page, and the tables behind its figures."""

    page: str = Field(description="path of index.html")
    bytes: int = Field(description="size of the page")
    tables: list[str] = Field(description="CSV files, relative to the page's folder")
    runs: int
    rows: list[str] = Field(description="label of each group of runs that differ in the seed alone")
    model: str = Field(description="which of a run's models is asked for scores: best or last")
    problems: list[str] = Field(description="what could not be shown, and why")


class ParityOfFormat(Part):
    """How a written model compares with the run's own."""

    num_images: int
    split: str
    largest: float = Field(description="largest difference of a probability")
    tolerance: float


class Exported(Part):
    """A folder that was written."""

    folder: str
    formats: list[str]
    files: list[str]
    parity: dict[str, ParityOfFormat]


class ThresholdSummary(Part):
    """How many labels have a fitted threshold."""

    num_images: int = Field(description="validation images")
    num_labels: int
    best_f1: int = Field(alias="best-f1")
    precision: int


class ExportOutput(Output):
    """``fedmlic export --json``: what was written of a run."""

    run: str
    model: str | None = Field(None, description="which of the run's models it is, in words")
    identity: str | None = Field(None, description="of the experiment")
    round: int | None = None
    client: int | None = None
    inference: str | None = None
    thresholds: ThresholdSummary | None = None
    written: list[Exported]


# --- Deployment -----------------------------------------------------------------------------


class FindingPart(Part):
    """One thing that was looked at."""

    about: str
    verdict: Literal["ok", "warning", "problem"]
    text: str
    remedy: str
    values: dict[str, Any] = Field(description="the numbers behind the text")


class DoctorOutput(Output):
    """``fedmlic doctor --json``: whether a device or a server is ready."""

    ok: bool = Field(True, description="no finding is a problem")
    findings: list[FindingPart] = []
    constraints: str | None = Field(None, description="with --constraints: the file that was written")
    packages: int | None = Field(None, description="with --constraints: lines in it")


class NodeRow(Part):
    """A node that a SuperLink knows."""

    node: str
    name: str
    status: str
    since: str = Field(description="UTC")
    registered: str = Field(description="UTC")


class HostRow(Part):
    """What a run saw of a host."""

    host: str
    last_round: int
    turns: int
    failed: int
    error: str = Field(description="the last one")


class NodesOutput(Output):
    """``fedmlic nodes --json``: who is there, and what a run saw of them."""

    nodes: list[NodeRow]
    run: list[HostRow]


class KitOutput(Output):
    """``fedmlic kit --json``: what was made for a server and its devices."""

    kit: str
    devices: list[str]
    made: list[str]
    kept: list[str]
    removed: list[str]
    notes: list[str]
    digest: str = Field(description="SHA-256 of the code that devices approve")


class Step(Part):
    """A step of a rehearsal."""

    step: str
    ok: bool | None = Field(description="null where it was left out")
    seen: list[str]
    seconds: float


class RehearseOutput(Output):
    """``fedmlic rehearse --json``: how a kit does on this machine."""

    ok: bool
    seconds: float
    steps: list[Step]
    folder: str | None = Field(None, description="with --keep: logs, states and runs, without private keys")


OUTPUTS: dict[str, type[Output]] = {
    "run": RunOutput,
    "show": ShowOutput,
    "predict": PredictOutput,
    "describe": DescribeOutput,
    "list": ListOutput,
    "sweep": SweepOutput,
    "sweep-dry-run": DryRunOutput,
    "compare": CompareOutput,
    "report": ReportOutput,
    "export": ExportOutput,
    "doctor": DoctorOutput,
    "nodes": NodesOutput,
    "kit": KitOutput,
    "rehearse": RehearseOutput,
    "data-import": ImportOutput,
    "data-check": CheckOutput,
    "data-describe": DataDescribeOutput,
    "data-verify": VerifyOutput,
    "data-features": FeaturesOutput,
}
"""The schema of each command's output, by the command's words."""


def tag(name: str) -> str:
    """What an output says of itself.

    >>> tag("run")
    'run/1'
    """
    return f"{name}/{OUTPUTS[name].number}"


def check_output(found: dict[str, Any]) -> Output:
    """An output as its model.

    Args:
        found: a JSON object that a command printed.

    Raises:
        ValueError: it names no schema of this version, or does not follow it.
    """
    name = str(found.get("schema", "")).partition("/")[0]
    if name not in OUTPUTS or found["schema"] != tag(name):
        msg = f"Expected a schema of this version ({', '.join(map(tag, OUTPUTS))}), got {found.get('schema')!r}."
        raise ValueError(msg)
    return OUTPUTS[name].model_validate(found)


def json_schemas() -> dict[str, dict[str, Any]]:
    """Every schema as JSON Schema by file name, and ``tables.json``, which names the columns of a run's tables."""
    found = {}
    for name, model in OUTPUTS.items():
        schema = TypeAdapter(model).json_schema(by_alias=True)
        schema["properties"]["schema"]["const"] = tag(name)
        found[f"{name}.json"] = {"$schema": DRAFT, **schema, "title": tag(name)}
    return {**found, "tables.json": tables()}


def tables() -> dict[str, Any]:
    """The tables of a run folder: their columns, types, units, and what may be missing."""
    about = (
        "Columns of a run's Parquet files; docs/record.md says what each means. A name that ends in * stands for all "
        "columns that begin so. nullable: a number may be missing (NaN; an integer column is float64 then). optional: "
        "the column may be missing. The version stands in the file's metadata under the key fedmlic."
    )
    return {
        "title": "tables of a run",
        "description": about,
        "tables": {
            f"{name}.parquet": {
                "version": schema.version,
                "event": schema.event,
                "columns": [
                    {
                        "name": column.name,
                        "dtype": column.dtype,
                        "unit": column.unit,
                        "nullable": column.nullable,
                        "optional": column.optional,
                    }
                    for column in schema.columns
                ],
            }
            for name, schema in SCHEMAS.items()
        },
    }


def text_of(schema: dict[str, Any]) -> str:
    """A schema as its file holds it."""
    return json.dumps(schema, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    for file, content in json_schemas().items():
        (Path(sys.argv[1]) / file).write_text(text_of(content), encoding="utf-8")
