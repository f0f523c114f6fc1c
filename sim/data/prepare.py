"""Prepare a data set: name it, verify a download, build its corpus.

A data set is named as in a configuration, but in pieces: the entry's name, ``--root`` for the
folder it is read from, and its other parameters as key=value.
"""

from __future__ import annotations

import inspect
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self

import numpy as np

from fedmlic import spec
from fedmlic.corpus import Corpus, load_corpus, open_corpus
from fedmlic.dataset import SPLITS, Dataset
from fedmlic.errors import InputError
from fedmlic.labels import ABSENT, PRESENT, STATES, UNCERTAIN, UNKNOWN
from sim.console import duration, progress_bars, say

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from rich.console import Console
    from rich.progress import Progress

    from fedmlic.stores import LabelStore

    Watch = Callable[[int, int], None]

LINE_S = 5.0
"""Seconds between two lines of progress where there is no terminal."""

MAX_COUNTS = 5
"""Published counts of labels that are named one by one where they differ."""

BLOCK_ENTRIES = 1 << 23
"""Entries of a label matrix that are counted at a time."""


PLACE_OF = {state: place for place, state in enumerate(STATES.values())}
"""Where each state stands in arrays of counts."""


class Source(NamedTuple):
    """A data set as it was asked for.

    Attributes:
        spec: what a configuration calls it.
        root: the folder it is read from; ``None`` where it is read from none.
    """

    spec: spec.Spec
    root: Path | None


def read_source(name: str, root: Path | None, options: Mapping[str, Any]) -> Source:
    """Put the pieces of a command together.

    Args:
        name: an entry of the catalogue of data sets, alone or with arguments.
        root: what ``--root`` says.
        options: parameters of the entry; dashes or underscores.

    Raises:
        InputError: unknown name or option (the nearest is named), or no such folder.
    """
    parsed = spec.parse(name, "NAME")
    parameters = inspect.signature(spec.factory("dataset", parsed.name)).parameters
    arguments = {**parsed.arguments, **{key.strip().replace("-", "_"): value for key, value in options.items()}}
    key = next((key for key in ("root", "path") if key in parameters), None)
    if root is not None:
        if key is None:
            msg = (
                f"Expected no --root, got {str(root)!r}: data set {parsed.name} reads nothing from disk. Leave it out."
            )
            raise InputError(msg)
        arguments[key] = str(root)
    if key is not None and key not in arguments and parameters[key].default is inspect.Parameter.empty:
        msg = f"Expected --root to say where data set {parsed.name} lies, got nothing. Give --root FOLDER."
        raise InputError(msg)
    place = Path(str(arguments[key])).expanduser() if key is not None and key in arguments else None
    if key == "root" and place is not None and not place.exists():
        msg = f"Expected --root to be a folder, got {str(arguments[key])!r}, which does not exist. Correct the path."
        raise InputError(msg)
    return Source(spec.Spec(parsed.name, arguments), place)


def build_dataset(source: Source) -> Dataset:
    """The data set behind a source.

    Raises:
        InputError: wrong options, or anything wrong with its files.
    """
    dataset: Dataset = spec.build("dataset", str(source.spec))
    return dataset


# Progress


class Counting:
    """Progress over images: a live bar on a terminal, a plain line every few seconds elsewhere.

    Args:
        console: of stderr.
        what: beginning of the line, such as ``"building coco2014"``.
        unit: what is counted.
    """

    def __init__(self, console: Console, what: str, unit: str = "images") -> None:
        self._console = console
        self._what = what
        self._unit = unit
        self._bar: Progress | None = None
        self._started: tuple[float, int] | None = None
        self._said_s = 0.0

    def __enter__(self) -> Self:
        self._began_s = time.monotonic()
        if self._console.is_terminal:
            self._bar = progress_bars(self._console, transient=True)
            self._bar.start()
            self._task = self._bar.add_task(self._what, total=None, note="reading tables")
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, done: int, total: int) -> None:
        """So many images of so many are done."""
        now = time.monotonic()
        if self._started is None:
            # The first call tells of one block, or of all that an earlier build has left.
            self._started = (now, done)
        seconds, images = now - self._started[0], done - self._started[1]
        note = (
            f"{images / seconds:,.0f} {self._unit}/s, {duration((total - done) * seconds / images)} left"
            if images
            else ""
        )
        if self._bar is not None:
            self._bar.update(self._task, completed=done, total=total, note=note)
        elif done == total or now - self._said_s > LINE_S:
            self._said_s = now
            text = f"{self._what}: {done:,}/{total:,}" + (f" ({note})" if note and done < total else "")
            say(self._console, text)


class Countings:
    """Progress over one thing after another; each begins where the one before ends.

    Args:
        console: of stderr.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._open: Counting | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._open is not None:
            self._open.__exit__()
            self._open = None

    def __call__(self, what: str) -> Counting:
        """What is counted next."""
        self.__exit__()
        self._open = Counting(self._console, what, "files" if "files" in what else "images")
        return self._open.__enter__()


# Import


def import_data(
    source: Source,
    watch: Watch | None = None,
    out: Path | None = None,
    workers: int | None = None,
    bad_files: Literal["fail", "skip"] = "fail",
    max_bad_fraction: float = 0.01,
) -> dict[str, Any]:
    """Build the corpus of a data set, or find it built, and say what it holds.

    Raises:
        InputError: anything wrong with the data set; what was drawn until then is kept.
    """
    dataset = build_dataset(source)
    corpus = _build_kept(
        dataset,
        progress=watch,
        workers=workers,
        out=out,
        bad_files=bad_files,
        max_bad_fraction=max_bad_fraction,
    )
    return corpus_summary(corpus, dataset.expected)


def _build_kept(dataset: Dataset, **options: Any) -> Corpus:  # noqa: ANN401  (those of open_corpus)
    """Open or build a corpus; after bad files, keep what was drawn and say so."""
    try:
        return open_corpus(dataset, **options, keep_failed=True)
    except InputError as error:
        notes = getattr(error, "__notes__", [])
        raise InputError("\n".join([str(error), *notes])) from error


def corpus_summary(corpus: Corpus, expected: Mapping[str, int] | None = None) -> dict[str, Any]:
    """JSON values: what a corpus holds, what was left out of it, and what deviates from published counts."""
    counts = state_counts(corpus)
    total = counts.sum(axis=(0, 2))
    report = corpus.manifest["report"]
    splits = {split: len(rows) for split, rows in corpus.splits.items()}
    positives = dict(zip(corpus.label_names, counts[:, 0].sum(axis=0).tolist(), strict=True))
    bad = report.get("bad_files", {"count": 0, "images": {}})
    warnings = [
        *source_warnings(report),
        *deviations(expected or {}, splits, positives),
        *blank_splits(splits, dict(zip(SPLITS, counts[:, 0].sum(axis=1).tolist(), strict=True))),
        # A server's own set may hold nothing to train on.
        *(untrained_warnings(corpus.label_names, counts[0, 0], counts[2, 0]) if splits["train"] else []),
    ]
    return {
        "corpus": str(corpus.path.absolute()),
        "dataset": f"corpus(path={str(corpus.path.absolute())!r})",
        "name": corpus.name,
        "version": corpus.manifest["version"],
        "key": corpus.key,
        "licence": corpus.manifest["licence"],
        "image_shape": list(corpus.image_shape),
        "storage": corpus.images.storage,
        "num_images": corpus.num_images,
        "num_labels": len(corpus.label_names),
        **{f"num_{state}": int(count) for state, count in zip(STATES, total, strict=True)},
        "num_owners": len(np.unique(corpus.owners[corpus.owners >= 0])),
        "num_objects": 0 if corpus.objects is None else len(corpus.objects.row),
        "num_bad_files": bad["count"],
        "num_duplicates": report.get("duplicates", {}).get("images", 0),
        "splits": splits,
        "bad_files": [{"image": image, "problem": problem} for image, problem in bad["images"].items()],
        "warnings": warnings,
        "report": report,
    }


def state_counts(corpus: Corpus) -> NDArray[np.int64]:
    """int64 ``[splits, states, labels]``: entries in each state, states in the order of ``STATES``."""
    spans = [corpus.splits[split] for split in SPLITS]
    return np.stack([_count_states(corpus.labels, rows) for rows in spans])


def _count_states(labels: LabelStore, rows: range) -> NDArray[np.int64]:
    counts = np.zeros((len(STATES), labels.num_labels), dtype=np.int64)
    for block in row_blocks(rows, labels.num_labels):
        entries = labels.take(block)
        counts[PLACE_OF[ABSENT]] += len(entries)
        # Most data sets know every label of every image: do not look for what is not there.
        others = (PRESENT, UNKNOWN, UNCERTAIN) if entries.min(initial=0) < 0 else (PRESENT,)
        for state in others:
            found = np.count_nonzero(entries == state, axis=0)
            counts[PLACE_OF[state]] += found
            counts[PLACE_OF[ABSENT]] -= found
    return counts


def row_blocks(rows: range, num_labels: int) -> Iterator[NDArray[np.int64]]:
    """Runs of rows whose label matrix has about ``BLOCK_ENTRIES`` entries."""
    step = max(1, BLOCK_ENTRIES // max(1, num_labels))
    for start in range(rows.start, rows.stop, step):
        yield np.arange(start, min(start + step, rows.stop))


def deviations(expected: Mapping[str, int], splits: Mapping[str, int], positives: Mapping[str, int]) -> list[str]:
    """One line per published count that differs, a few for those of labels; a subset is legitimate, so they warn."""
    lines: list[str] = []
    differing: list[str] = []
    unknown: list[str] = []
    for what, count in expected.items():
        kind, _, label = what.partition("/")
        if what in SPLITS:
            found, noun = splits.get(what, 0), f"images in {what}"
        elif what == "labels":
            found, noun = len(positives), "labels"
        elif kind == "positives" and label in positives:
            if positives[label] != count:
                differing.append(f"images with {label!r}: {positives[label]:,} here, {count:,} published")
            continue
        else:
            unknown.append(f"published count {what!r} ({count:,}) cannot be compared")
            continue
        if found != count:
            lines.append(f"{noun}: {found:,} here, {count:,} published")
    lines += differing[:MAX_COUNTS]
    if len(differing) > MAX_COUNTS:
        lines.append(f"images with a label: {len(differing) - MAX_COUNTS} more labels differ from the published counts")
    lines += unknown if len(unknown) <= MAX_COUNTS else [f"{len(unknown)} published counts cannot be compared"]
    return lines


def blank_splits(splits: Mapping[str, int], present: Mapping[str, int]) -> list[str]:
    """One line per split with images on which no label at all is known to be present.

    Args:
        splits: images of each.
        present: entries of each that say present.
    """
    return [
        f"no label is present on any of the {count:,} {split} images as annotated: mAP is undefined there"
        if split != "train"
        else f"no label is present on any of the {count:,} train images as annotated: nothing can be learned from them"
        for split, count in splits.items()
        if count and not present[split]
    ]


def duplicate_warnings(duplicates: Mapping[str, Any] | None) -> list[str]:
    """One line if stored pixels repeat, and whether test images were trained on."""
    if not duplicates or not duplicates["images"]:
        return []
    across = duplicates["groups_across_splits"]
    more = f"; {across:,} of the groups span splits" if across else ""
    return [f"{duplicates['images']:,} images in {duplicates['groups']:,} groups have equal pixels{more}"]


def source_warnings(report: Mapping[str, Any]) -> list[str]:
    """What a corpus's report gives cause to warn of: images left out, the data set's own warnings, equal images."""
    bad = report.get("bad_files", {"count": 0})["count"]
    noun, was = ("image", "was") if bad == 1 else ("images", "were")
    left_out = [f"{bad:,} {noun} could not be read and {was} left out"] if bad else []
    return [*left_out, *report.get("warnings", ()), *duplicate_warnings(report.get("duplicates"))]


def untrained_labels(
    label_names: Sequence[str], trained: NDArray[np.integer[Any]], tested: NDArray[np.integer[Any]]
) -> list[str]:
    """Labels that no training image is known to have but some test image has.

    Args:
        label_names: in order.
        trained: integers ``[labels]``, training images on which each is known to be present.
        tested: integers ``[labels]``, the same on test images.
    """
    return [label_names[label] for label in np.flatnonzero((trained == 0) & (tested > 0)).tolist()]


def untrained_warnings(
    label_names: Sequence[str],
    trained: NDArray[np.integer[Any]],
    tested: NDArray[np.integer[Any]],
    unannotated: Sequence[str] = (),
) -> list[str]:
    """One line that names ``untrained_labels``, but for those that nobody annotates at all."""
    found = [name for name in untrained_labels(label_names, trained, tested) if name not in set(unannotated)]
    if not found:
        return []
    line = (
        f"{len(found)} of {len(label_names)} labels are present on test images but on no training image as annotated: "
        f"{_some(found)}. No model can learn them, and they count in test mAP"
    )
    return [line]


def unannotated_warnings(label_names: Sequence[str], unannotated: Sequence[str]) -> list[str]:
    """One line that names the labels that nobody annotates, and says where they count."""
    if not unannotated:
        return []
    line = (
        f"{len(unannotated)} of {len(label_names)} labels are annotated on no training image: {_some(unannotated)}. "
        "No mAP counts them but mAP/unannotated, which is theirs alone"
    )
    return [line]


def _some(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:8])) + (", ..." if len(names) > 8 else "")


# Finding a corpus


def find_corpus(
    name: str, root: Path | None, options: Mapping[str, Any], workers: int | None, console: Console
) -> Corpus:
    """The corpus that a command names: a folder, or a data set whose corpus is built if it is not there.

    Raises:
        InputError: neither; or anything wrong with the one it is.
    """
    path = Path(name).expanduser()
    is_path = "(" not in name and ("/" in name or os.sep in name)
    if root is None and (is_path or (path / "manifest.json").is_file()):
        if options:
            msg = f"Expected no options with a corpus folder, got {sorted(options)}. It is described as it was built."
            raise InputError(msg)
        return load_corpus(path)
    source = read_source(name, root, options)
    with Counting(console, f"building {source.spec.name}") as watch:
        return _build_kept(build_dataset(source), progress=watch, workers=workers)
