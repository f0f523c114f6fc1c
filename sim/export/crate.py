"""A run as an RO-Crate: its files with hashes, and how they came about.

The crate follows RO-Crate 1.1 and the profile *Process Run Crate* 0.5: the run is one ``CreateAction``, whose
instrument is this program, whose objects are the settings and the data set, and whose results are the files of the
record. Client memory (``memory/``), which never leaves a client, locks and half-written files are not part of it.

Sources: https://www.researchobject.org/ro-crate/specification/1.1/,
https://www.researchobject.org/workflow-run-crate/profiles/process_run_crate/
"""

from __future__ import annotations

import datetime as dt
import shutil
from typing import TYPE_CHECKING, Any

from fedmlic import spec
from fedmlic.environment import here
from fedmlic.errors import InputError
from fedmlic.files import file_sha256
from fedmlic.record import open_run, read_json, write_json
from sim.export.facts import command_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from fedmlic.dataset import Dataset

METADATA = "ro-crate-metadata.json"
RUN_FOLDER = "run"
"""Folder of the crate that the run's files are copied to."""

CONTEXT = ["https://w3id.org/ro/crate/1.1/context", "https://w3id.org/ro/terms/workflow-run/context"]
CRATE_PROFILE = "https://w3id.org/ro/crate/1.1"
PROCESS_PROFILE = "https://w3id.org/ro/wfrun/process/0.5"

ACTION, DATA, LICENCE = "#run", "#dataset", "#data-licence"

FORMATS = {
    ".json": "application/json",
    ".jsonl": "application/jsonl",
    ".md": "text/markdown",
    ".onnx": "application/onnx",
    ".parquet": "application/vnd.apache.parquet",
    ".png": "image/png",
}

ABOUT = {
    "experiment.json": "the resolved settings and the identity of the experiment",
    "environment.json": "versions of software and the machine",
    "code.json": "hash of every Python file that decides the result",
    "data.json": "hashes of the images and labels, warnings",
    "events.jsonl": "everything that happened, in order; the source of every table",
    "frozen.safetensors": "tensors of the network that are never exchanged",
    "start.json": "whose model the run began with, where it was another run's",
    "result.json": "the metrics of the last model",
    "rounds.parquet": "one row per round",
    "clients.parquet": "one row per turn of a client",
    "hosts.parquet": "one row per host and round",
    "labels.parquet": "one row per label, split and evaluated round",
    "evaluations.parquet": "one row per evaluation on clients",
}

INPUTS = ("experiment.json",)
"""Files of a run that were there before it."""


def write_crate(run: Path, folder: Path, progress: Callable[[int, int], None] | None = None) -> dict[str, Any]:
    """Copy the files of a run below ``folder`` and describe these, and all that lie there already.

    Args:
        run: the run folder.
        folder: of the crate; it is there.
        progress: called with (files done, files in all).

    Returns:
        The crate's metadata, as written.

    Raises:
        InputError: not a run, or a checkpoint that is damaged.
    """
    opened = open_run(run)
    for number in opened.checkpoints():
        opened.load_checkpoint(number)
    copied = run_files(run)
    for done, file in enumerate(copied, 1):
        target = folder / RUN_FOLDER / file.relative_to(run)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
        if progress is not None:
            progress(done, len(copied))
    names = sorted(
        file.relative_to(folder).as_posix()
        for file in folder.rglob("*")
        if file.is_file() and file.name != METADATA and not file.name.startswith(".")
    )
    found = {"@context": CONTEXT, "@graph": _graph(run, folder, names)}
    write_json(folder / METADATA, found)
    return found


def run_files(run: Path) -> list[Path]:
    """The files of a run's record, by name.

    Raises:
        InputError: one is a link out of the folder.
    """
    from clients.opening import MEMORY_FOLDER

    found = []
    for file in sorted(run.rglob("*")):
        parts = file.relative_to(run).parts
        if not file.is_file() or parts[0] == MEMORY_FOLDER or any(part.startswith(".") for part in parts):
            continue
        if not file.resolve().is_relative_to(run.resolve()):
            msg = f"Expected the files of {run} to lie in it, got {file.name}, a link to elsewhere. Remove it."
            raise InputError(msg)
        found.append(file)
    return found


def _graph(run: Path, folder: Path, names: list[str]) -> list[dict[str, Any]]:
    settings = open_run(run).settings()[0]
    dataset: Dataset = spec.build("dataset", settings.dataset)
    content = str(read_json(run / "data.json").get("corpus", "")) if (run / "data.json").exists() else ""
    about = read_json(run / "environment.json")
    files = [_file(folder, name) for name in names]
    inputs = [name for name in names if name in {f"{RUN_FOLDER}/{each}" for each in INPUTS}]
    outputs = [name for name in names if name.startswith(f"{RUN_FOLDER}/") and name not in inputs]
    exported = [name for name in names if not name.startswith(f"{RUN_FOLDER}/")]
    now = dt.datetime.now(dt.UTC).replace(microsecond=0).isoformat()
    root = {
        "@id": "./",
        "@type": "Dataset",
        "name": f"FedMLIC run: {settings.method} on {settings.dataset}",
        "description": (
            f"Record of a federated multi-label image classification experiment: {settings.dataset} split by "
            f"{settings.partition}, annotated under {settings.regime}, trained by {settings.method} on "
            f"{settings.model}, merged by {settings.strategy}. Images and labels of the data set are not in it."
        ),
        "datePublished": now,
        "license": _to(LICENCE),
        "conformsTo": _to(PROCESS_PROFILE),
        "hasPart": _all(names),
        "mentions": _all([ACTION, *(["#export"] if exported else [])]),
        "about": _to(DATA),
    }
    descriptor = {
        "@id": METADATA,
        "@type": "CreativeWork",
        "conformsTo": _to(CRATE_PROFILE),
        "about": _to("./"),
    }
    profile = {"@id": PROCESS_PROFILE, "@type": "CreativeWork", "name": "Process Run Crate", "version": "0.5"}
    graph: list[dict[str, Any]] = [
        descriptor,
        root,
        profile,
        *_data_entities(dataset, content),
        *files,
        *_software(about, "#fedmlic"),
    ]
    graph.append(_action(run, command_of(settings), about, (inputs, outputs)))
    if exported:
        graph += _export_action(run, exported, now)
    return graph


def _data_entities(data: Dataset, content: str) -> list[dict[str, Any]]:
    licence = {
        "@id": LICENCE,
        "@type": "CreativeWork",
        "name": data.licence,
        "description": (
            f"Licence of the data set {data.name}, as its entry states it. No licence of the record itself is "
            "stated: whoever publishes it chooses one that is compatible."
        ),
    }
    dataset = {
        "@id": DATA,
        "@type": "CreativeWork",
        "name": data.name,
        "identifier": content or data.name,
        "license": _to(LICENCE),
        "description": "Images and labels; the identifier is a hash of both.",
    }
    return [licence, dataset]


def _software(about: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    packages: dict[str, str] = {"python": about["python"], **about["packages"]}
    used = {each: version for each, version in packages.items() if version != "absent" and each != "fedmlic"}
    program = {
        "@id": name,
        "@type": "SoftwareApplication",
        "name": "fedmlic",
        "softwareVersion": str(packages.get("fedmlic", "unknown")),
        "license": _to("http://spdx.org/licenses/Apache-2.0"),
        "operatingSystem": str(about["platform"]),
        "softwareRequirements": _all([f"{name}-{each}" for each in used]),
    }
    needed = [
        {
            "@id": f"{name}-{each}",
            "@type": "SoftwareApplication",
            "name": each,
            "softwareVersion": str(version),
        }
        for each, version in used.items()
    ]
    spdx = {"@id": "http://spdx.org/licenses/Apache-2.0", "@type": "CreativeWork", "name": "Apache License 2.0"}
    return [program, *([spdx] if name == "#fedmlic" else []), *needed]


def _action(run: Path, command: str, about: Mapping[str, Any], files: tuple[list[str], list[str]]) -> dict[str, Any]:
    inputs, outputs = files
    ended = [event for event in open_run(run).events() if event["event"] == "failed"]
    complete = (run / "result.json").exists()
    last = max((file.stat().st_mtime for file in run_files(run)), default=0.0)
    status = "CompletedActionStatus" if complete else "FailedActionStatus" if ended else "ActiveActionStatus"
    found = {
        "@id": ACTION,
        "@type": "CreateAction",
        "name": "Training and evaluation",
        "description": command,
        "instrument": _to("#fedmlic"),
        "object": _all([DATA, *inputs]),
        "result": _all(outputs),
        "startTime": _with_colon(str(about["started"])),
        "endTime": dt.datetime.fromtimestamp(last, dt.UTC).replace(microsecond=0).isoformat(),
        "actionStatus": f"http://schema.org/{status}",
    }
    if ended and not complete:
        found["error"] = str(ended[-1].get("reason", ""))
    return found


def _export_action(run: Path, exported: list[str], now: str) -> list[dict[str, Any]]:
    action = {
        "@id": "#export",
        "@type": "CreateAction",
        "name": "Export of a model",
        "description": "The model, its card and its thresholds; export.json says which model it is.",
        "instrument": _to("#fedmlic-export"),
        "object": _all([f"{RUN_FOLDER}/{file.relative_to(run).as_posix()}" for file in run_files(run)]),
        "result": _all(exported),
        "endTime": now,
    }
    return [action, *_software(here(), "#fedmlic-export")]


def _file(folder: Path, name: str) -> dict[str, Any]:
    file = folder / name
    suffix = file.suffix.lower()
    found: dict[str, Any] = {
        "@id": name,
        "@type": "File",
        "name": file.name,
        "contentSize": str(file.stat().st_size),
        "sha256": file_sha256(file),
        "encodingFormat": FORMATS.get(suffix, "application/octet-stream"),
    }
    described = ABOUT.get(file.name)
    if described and name.startswith(f"{RUN_FOLDER}/"):
        found["description"] = described
    elif "checkpoints/" in name:
        found["description"] = "model and state of the server after a round"
    return found


def _to(name: str) -> dict[str, str]:
    return {"@id": name}


def _all(names: Sequence[str]) -> dict[str, str] | list[dict[str, str]]:
    """References; a single one stands alone, as RO-Crate 1.1 recommends."""
    return _to(names[0]) if len(names) == 1 else [_to(name) for name in names]


def _with_colon(stamp: str) -> str:
    """A time zone as ISO 8601's extended format has it: +00:00 rather than +0000.

    >>> _with_colon("2026-01-02T03:04:05+0000")
    '2026-01-02T03:04:05+00:00'
    """
    return f"{stamp[:-2]}:{stamp[-2:]}" if len(stamp) > 5 and stamp[-5] in "+-" else stamp
