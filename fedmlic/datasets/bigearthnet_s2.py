"""BigEarthNet with Sentinel-2 images: patches of 1.2 km in ten European countries, labels of the CORINE Land Cover map.

Release 1.0 (590,326 patches, 43 classes) is a folder per patch, with a JSON file of labels; its official lists leave
out patches with seasonal snow, clouds or their shadows, and patches that have none of the 19 classes that the 43 are
grouped to. Release 2.0, also called reBEN (549,488 patches, 19 classes), has new labels, a new split by region, and
one table with the country of every patch. Bands are 16-bit GeoTIFF files, which are stored here as 8 bits.

Sources: Sumbul et al. 2019, "BigEarthNet: A Large-Scale Benchmark Archive for Remote Sensing Image Understanding"
(IGARSS); Sumbul et al. 2021, "BigEarthNet-MM" (IEEE GRSM), the 19 classes; Clasen et al. 2025, "reBEN" (IGARSS,
arXiv 2407.03653). The value that becomes white: TensorFlow Datasets, ``bigearthnet``. Deviation from it: values are
rounded, not cut.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import numpy as np
from pydantic import Field

from fedmlic.dataset import SPLITS, Dataset, Table
from fedmlic.errors import InputError, nearest
from fedmlic.files import digest, files_sha256
from fedmlic.formats.bigearthnet import (
    CLASSES_19,
    CLASSES_43,
    GROUP_OF,
    TILE,
    PatchLabels,
    PatchTable,
    folder_of_patch,
    read_patch_labels,
    read_patch_list,
    read_patch_table,
)
from fedmlic.images import from_pixels, stored_values
from fedmlic.labels import ABSENT, PRESENT
from fedmlic.problems import Problems, check_unique
from fedmlic.sources.options import ImageSize, Root
from fedmlic.sources.place import first_existing, source_root
from fedmlic.sources.rows import Rows, make_table

if TYPE_CHECKING:
    from numpy.typing import NDArray

VERSION = "1"

SIDES = {
    "B01": 20, "B02": 120, "B03": 120, "B04": 120, "B05": 60, "B06": 60, "B07": 60, "B08": 120, "B8A": 60, "B09": 20,
    "B11": 60, "B12": 60,
}  # fmt: skip
"""Bands of Sentinel-2, and the height and width of a patch in pixels of 60, 10 or 20 m."""

RGB = ("B04", "B03", "B02")

FOLDERS = {"v1": ("BigEarthNet-v1.0", "BigEarthNet-S2-v1.0", "."), "v2": ("BigEarthNet-S2",)}
TABLES = ("metadata.parquet", "metadata_for_patches_with_snow_cloud_or_shadow.parquet")
"""Of release 2.0: recommended patches, and those with snow, clouds or shadows."""

SNOW_LISTS = ("patches_with_seasonal_snow.csv",)
CLOUD_LISTS = ("patches_with_cloud_and_shadow.csv", "get_patches_with_cloud_and_shadow.csv")
"""Of release 1.0; the second is the name that the download page gives."""

NUM_V1 = {"train": 269695, "val": 123723, "test": 125866}
"""Lines of the official lists of release 1.0, counted in github.com/kai-tub/bigearthnet_common."""

NUM_V2 = ({"train": 237871, "val": 122342, "test": 119825}, {"train": 34673, "val": 17235, "test": 17542})
"""Rows of the two tables of release 2.0, counted in github.com/rsim-tu-berlin/bigearthnet-pipeline."""

POSITIVES_V2 = (
    (63758, 11142, 188025, 29588, 95605, 99598, 122709, 33181, 135928, 154941, 165780, 11882, 13894, 141150, 1316,
     20919, 1397, 63212, 61832),
    (3903, 978, 12617, 145, 4525, 3571, 16327, 25, 9551, 46596, 40172, 1809, 743, 24361, 35, 7229, 223, 26037, 8469),
)  # fmt: skip
"""Patches of each of the 19 classes in the two tables, counted there."""

BATCH = 256
"""Patches that one task of a thread looks at."""

Item = TypeVar("Item")
Seen = TypeVar("Seen")

Release = Literal["v1", "v2"]


@dataclass(frozen=True)
class _Options:
    release: Release
    classes: Literal[19, 43]
    bands: tuple[str, ...]
    max_value: int
    snow_and_clouds: Literal["drop", "keep"]
    missing: Literal["error", "drop"]
    owners: Literal["country", "tile", "none"]
    image_size: int


@dataclass(frozen=True)
class _Source:
    """Patches that are to be read, with their folders below that of the images.

    Attributes:
        names: of the patches, sorted.
        folders: relative paths.
        labels: int8 ``[patches, classes]``.
        splits: names.
        owners: country or tile of each, blank for none; empty where nobody owns a patch.
        files: annotation files, for the identity.
        annotations: hash of what other files said of the patches.
        report: what was left out.
    """

    names: list[str]
    folders: list[str]
    labels: NDArray[np.int8]
    splits: list[str]
    owners: list[str]
    files: list[Path]
    annotations: str = ""
    report: dict[str, int] = field(default_factory=dict)

    def take(self, keep: Sequence[bool] | NDArray[np.bool_], report: dict[str, int]) -> _Source:
        """Some of the patches, and more in the report."""
        rows = np.flatnonzero(np.asarray(keep, dtype=np.bool_))
        names, folders, splits, owners = (
            [texts[row] for row in rows.tolist()] if texts else []
            for texts in (self.names, self.folders, self.splits, self.owners)
        )
        report = {**self.report, **report}
        return _Source(names, folders, self.labels[rows], splits, owners, self.files, self.annotations, report)


def _each(look: Callable[[Item], Seen], items: Sequence[Item], workers: int = 8) -> Iterator[Seen]:
    """What ``look`` gives for every item, in order, by several threads: small files are mostly waiting."""
    parts = [items[start : start + BATCH] for start in range(0, len(items), BATCH)]
    with ThreadPoolExecutor(workers) as pool:
        for seen in pool.map(lambda part: [look(item) for item in part], parts):
            yield from seen


def _chosen_bands(bands: str | list[str]) -> tuple[str, ...]:
    if bands == "all":
        msg = (
            "Expected bands to be one or three bands, since a corpus stores images of 1 or 3 channels, got 'all'. "
            "Give three, such as ['B08', 'B04', 'B03'] (infrared) or ['B12', 'B8A', 'B04'] (short-wave infrared)."
        )
        raise InputError(msg)
    chosen = RGB if bands == "rgb" else tuple(bands)
    problems = Problems(f"Expected bands to be 'rgb' or a list of one or three different bands of {', '.join(SIDES)}")
    for place, band in enumerate(chosen):
        if band not in SIDES:
            problems.add(f"{band!r}. {nearest(band, SIDES)}")
        elif band in chosen[:place]:
            problems.add(f"{band!r} twice")
    if len(chosen) not in {1, 3}:
        problems.add(f"{len(chosen)} bands")
    problems.finish()
    return chosen


def _release(root: Path, release: Literal["auto", "v1", "v2"]) -> Release:
    if release != "auto":
        return release
    here = [known for known, folders in FOLDERS.items() if any((root / name).is_dir() for name in folders[:2])]
    if len(here) == 2:
        msg = f"Expected one release of BigEarthNet in {root}, got both. Give release='v1' or release='v2'."
        raise InputError(msg)
    return "v2" if here == ["v2"] or (not here and (root / TABLES[0]).exists()) else "v1"


def _patch_lists(root: Path, problems: Problems) -> tuple[dict[str, str], list[Path]]:
    """The split of every patch that the official lists of release 1.0 name, and the lists."""
    splits: dict[str, str] = {}
    files = []
    own = problems.within("Expected each patch to be in one of the lists of training, validation and test patches")
    for split in SPLITS:
        names = (f"{split}.csv", f"bigearthnet-{split}.csv", f"splits/{split}.csv")
        path = problems.attempt(first_existing, root, names, f"the list of {split} patches")
        if path is None:
            continue
        files.append(path)
        for name in read_patch_list(path, problems):
            if name in splits:
                own.add(f"{name} in {splits[name]} and in {split}")
            splits[name] = split
    return splits, files


def _excluded(root: Path, lists: Sequence[str], problems: Problems) -> tuple[set[str], list[Path]]:
    """Patches that one of the lists names, where it is there."""
    path = next((root / name for name in lists if (root / name).is_file()), None)
    return (set(), []) if path is None else (set(read_patch_list(path, problems)), [path])


def _tables(root: Path, *, both: bool, problems: Problems) -> tuple[list[PatchTable], list[Path]]:
    """The tables of release 2.0."""
    files = [root / name for name in (TABLES if both else TABLES[:1])]
    for file in files:
        if not file.is_file():
            problems.note(
                f"Expected the table of patches at {file}, got no such file. Download it (zenodo.org/records/10891137)."
            )
    tables = [read_patch_table(file, problems) for file in files if file.is_file()]
    return [table for table in tables if table is not None], files


def _on_disk(folder: Path, source: _Source, missing: str, problems: Problems) -> _Source:
    """The patches that have a folder; those without are an error or counted."""
    here = list(_each(lambda name: (folder / name).is_dir(), source.folders))
    if missing == "error" and not all(here):
        own = problems.within("Expected a folder for every patch (or give missing='drop')", complete=True)
        for name, there in zip(source.folders, here, strict=True):
            if not there:
                own.add(f"{folder / name}: no such folder")
    return source.take(here, {"missing_dropped": here.count(False)})


def _read_v1(root: Path, folder: Path, options: _Options, problems: Problems) -> _Source:
    listed, files = _patch_lists(root, problems)
    report = {"in_no_list": sum(path.name not in listed for path in folder.glob("S2*_MSIL2A_*"))}
    if options.snow_and_clouds == "drop":
        for what, lists in (("snow_dropped", SNOW_LISTS), ("cloud_dropped", CLOUD_LISTS)):
            names, more = _excluded(root, lists, problems)
            report[what] = sum(name in names for name in listed)
            listed = {name: split for name, split in listed.items() if name not in names}
            files += more
    order = sorted(listed)
    splits = [listed[name] for name in order]
    source = _Source(order, order, np.zeros((len(order), 0), dtype=np.int8), splits, [], files, report=report)
    source = _on_disk(folder, source, options.missing, problems)
    read = functools.partial(_read_json, folder, with_tile=options.owners == "tile")
    found = [_attempted(about, problems) for about in _each(read, source.names)]
    labels = _labels_v1(found, options)
    owners, more = _owners_v1(root, source, found, options, problems)
    said = hashlib.sha256()
    for name, about in zip(source.names, found, strict=True):
        said.update(f"{name} {about}\n".encode())
    source = replace(source, labels=labels, owners=owners, files=[*files, *more], annotations=said.hexdigest())
    # Patches whose labels could not be read stay until all faults are known.
    keep = np.array([bool(own.any()) or not about.names for own, about in zip(labels, found, strict=True)], dtype=bool)
    report = {"without_class_dropped": int((~keep).sum())}
    if options.owners == "country":
        report["without_country"] = sum(not owner for owner, kept in zip(owners, keep, strict=True) if kept)
    return source.take(keep, report)


def _read_json(folder: Path, name: str, *, with_tile: bool) -> PatchLabels | InputError:
    """The labels of a patch, or why there are none: threads raise nothing, so that all faults are listed."""
    try:
        return read_patch_labels(folder / name / f"{name}_labels_metadata.json", with_tile=with_tile)
    except InputError as error:
        return error


def _attempted(about: PatchLabels | InputError, problems: Problems) -> PatchLabels:
    if isinstance(about, PatchLabels):
        return about
    problems.take(about)
    return PatchLabels((), "")


def _labels_v1(found: Sequence[PatchLabels], options: _Options) -> NDArray[np.int8]:
    """int8 ``[patches, classes]``."""
    columns = CLASSES_43 if options.classes == 43 else CLASSES_19
    group = {name: name if options.classes == 43 else GROUP_OF[name] for name in CLASSES_43}
    place = {name: columns.index(own) for name, own in group.items() if own}
    labels = np.zeros((len(found), len(columns)), dtype=np.int8)
    for row, about in enumerate(found):
        labels[row, [place[name] for name in about.names if name in place]] = 1
    return labels


def _owners_v1(
    root: Path, source: _Source, found: Sequence[PatchLabels], options: _Options, problems: Problems
) -> tuple[list[str], list[Path]]:
    """Owners of the patches, and the files that name them."""
    if options.owners != "country":
        return [about.tile for about in found] if options.owners == "tile" else [], []
    tables, files = _tables(root, both=(root / TABLES[1]).is_file(), problems=problems)
    country = {former: name for table in tables for former, name in zip(table.former, table.countries, strict=True)}
    return [country.get(name, "") for name in source.names], files


def _read_v2(root: Path, folder: Path, options: _Options, problems: Problems) -> _Source:
    keep = options.snow_and_clouds == "keep"
    tables, files = _tables(root, both=keep, problems=problems)
    names = [name for table in tables for name in table.names]
    problems.attempt(check_unique, "Expected the tables of BigEarthNet 2.0 to name each patch once", names)
    folders = []
    for name in names:
        above = problems.attempt(folder_of_patch, name)
        folders.append(f"{above}/{name}" if above else name)
    owners = [country for table in tables for country in table.countries]
    if options.owners != "country":
        owners = [found.group(1) if (found := TILE.search(name)) else "" for name in names]
    labels = np.concatenate([np.zeros((0, len(CLASSES_19)), dtype=np.int8), *(table.labels for table in tables)])
    source = _Source(
        names, folders, labels, [split for table in tables for split in table.splits],
        [] if options.owners == "none" else owners, files,
    )  # fmt: skip
    if not keep and tables:
        snow = np.concatenate([table.snow for table in tables])
        cloud = np.concatenate([table.cloud for table in tables]) & ~snow
        source = source.take(~(snow | cloud), {"snow_dropped": int(snow.sum()), "cloud_dropped": int(cloud.sum())})
    return _on_disk(folder, source, options.missing, problems)


def _band_sha256(folder: Path, source: _Source, bands: Sequence[str], problems: Problems) -> str:
    """Hash of name, size and time of every band that is read; missing and empty ones are problems."""
    own = problems.within("Expected every band of every patch", complete=True)
    stamps = hashlib.sha256()
    files = [f"{below}/{name}" for below, name in zip(source.folders, source.names, strict=True)]
    for file, found in zip(files, _each(functools.partial(_stamps, folder, bands), files), strict=True):
        for band, stamp in zip(bands, found, strict=True):
            if not stamp or not stamp[0]:
                own.add(f"{folder / file}_{band}.tif: {'empty' if stamp else 'no such'} file")
        stamps.update(f"{file} {found}\n".encode())
    return stamps.hexdigest()


def _stamps(folder: Path, bands: Sequence[str], file: str) -> list[tuple[int, int] | None]:
    """Size and time of the bands of one patch; None for a file that is not there."""
    found: list[tuple[int, int] | None] = []
    for band in bands:
        try:
            about = (folder / f"{file}_{band}.tif").stat()
        except OSError:
            found.append(None)
        else:
            found.append((about.st_size, about.st_mtime_ns))
    return found


def _band(path: Path, band: str, max_value: int, size: int) -> NDArray[np.uint8]:
    """uint8 ``[size, size]``: 0 stays 0, ``max_value`` and more become 255."""
    try:
        values = stored_values(path)
    except InputError as error:
        msg = f"{path.name}: {error}"
        raise InputError(msg) from error
    side = SIDES[band]
    if values.shape != (side, side) or values.min() < 0:
        msg = (
            f"Expected {path.name} to hold {side} x {side} values from 0, got {values.shape[1]} x {values.shape[0]} "
            f"from {values.min()}. Download the patch again."
        )
        raise InputError(msg)
    eight = np.rint(np.minimum(values, max_value) * (255 / max_value)).astype(np.uint8)
    return from_pixels(eight, size, 1, "squash")[..., 0]


def _build(source: _Source, folder: Path) -> tuple[Table, NDArray[np.int64]]:
    """The table, and the row of the source of each of its rows."""
    splits = np.array([SPLITS.index(split) for split in source.splits], dtype=np.int64)
    labels = np.where(source.labels, PRESENT, ABSENT).astype(np.int8)
    sources = [str(folder / name) for name in source.folders]
    return make_table(Rows(source.names, splits, labels, sources, source.owners), source.report)


def _expected(options: _Options) -> dict[str, int]:
    """Published counts; none of images where some may be left out."""
    counts: dict[str, int] = {"labels": options.classes}
    if options.missing == "drop":
        return counts
    if options.release == "v1":
        return {**counts, **NUM_V1}
    parts = 2 if options.snow_and_clouds == "keep" else 1
    counts |= {split: sum(part[split] for part in NUM_V2[:parts]) for split in SPLITS}
    columns = zip(CLASSES_19, *POSITIVES_V2[:parts], strict=True)
    return {**counts, **{f"positives/{name}": sum(numbers) for name, *numbers in columns}}


def _checked_options(release: Release, options: dict[str, Any]) -> _Options:
    owners = options.pop("owners")
    if release == "v2" and options["classes"] == 43:
        msg = "Expected classes=19 with release 2.0 of BigEarthNet, whose labels have no others, got 43."
        raise InputError(msg)
    if owners == "auto":
        owners = "country" if release == "v2" else "tile"
    return _Options(release=release, owners=owners, **options)


def bigearthnet_s2(
    *,
    root: Root,
    release: Literal["auto", "v1", "v2"] = "auto",
    classes: Literal[19, 43] = 19,
    bands: Literal["rgb", "all"] | list[str] = "rgb",
    max_value: Annotated[int, Field(ge=1, le=65535)] = 2000,
    snow_and_clouds: Literal["drop", "keep"] = "drop",
    missing: Literal["error", "drop"] = "error",
    owners: Literal["auto", "country", "tile", "none"] = "auto",
    image_size: ImageSize = 120,
) -> Dataset:
    """BigEarthNet with images of Sentinel-2.

    Args:
        root: folder that holds ``BigEarthNet-S2`` and ``metadata.parquet`` (2.0), or ``BigEarthNet-v1.0`` and the
            lists ``train.csv``, ``val.csv`` and ``test.csv`` (1.0); ``~`` is your home.
        release: ``v1`` (1.0), ``v2`` (2.0, reBEN), or ``auto``: the one that is there.
        classes: 19, or the 43 that 1.0 was annotated with.
        bands: ``rgb`` (B04, B03, B02), or a list of one or three bands. ``all`` is refused: a corpus stores one or
            three channels.
        max_value: stored value (reflectance x 10,000) that becomes 255; larger ones do too.
        snow_and_clouds: ``drop`` leaves patches with seasonal snow, clouds or shadows out, as the authors recommend;
            ``keep`` reads the second table of 2.0 too, and takes the lists of 1.0 as they are.
        missing: patches without a folder: ``error`` lists them, ``drop`` counts them.
        owners: ``country``, the ``tile`` of the Sentinel-2 grid, ``none``, or ``auto``: the country in 2.0, the tile
            in 1.0, which names no countries (``country`` takes them from the tables of 2.0).
        image_size: height and width of stored images, pixels.

    Raises:
        InputError: files are missing, damaged or contradict each other; all problems at once.
    """
    chosen = _chosen_bands(bands)
    top = source_root("bigearthnet_s2", root, "BigEarthNet-S2 or BigEarthNet-v1.0")
    options = _checked_options(
        _release(top, release),
        {
            "classes": classes, "bands": chosen, "max_value": max_value, "snow_and_clouds": snow_and_clouds,
            "missing": missing, "owners": owners, "image_size": image_size,
        },
    )  # fmt: skip
    problems = Problems(f"Expected {top} to be a whole and correct BigEarthNet", complete=True)
    folder = problems.attempt(first_existing, top, FOLDERS[options.release], "the folder of patches")
    if folder is None:
        raise problems.error()
    source = (_read_v1 if options.release == "v1" else _read_v2)(top, folder, options, problems)
    stamps = _band_sha256(folder, source, chosen, problems)
    problems.finish()
    build = functools.cache(lambda: _build(source, folder))

    def image(row: int) -> NDArray[np.uint8]:
        place = build()[1][row]
        file = f"{source.folders[place]}/{source.names[place]}"
        return np.stack([_band(folder / f"{file}_{band}.tif", band, max_value, image_size) for band in chosen], axis=-1)

    names = CLASSES_43 if classes == 43 else CLASSES_19
    return Dataset(
        name="bigearthnet_s2",
        version=VERSION,
        identity={
            "options": [options.release, classes, snow_and_clouds, missing, options.owners],
            "pixels": [list(chosen), max_value, image_size],
            "annotations": [digest(files_sha256(top, source.files)), source.annotations],
            "images": stamps,
        },
        label_names=names,
        image_shape=(image_size, image_size, len(chosen)),
        table=lambda: build()[0],
        image=image,
        licence="Community Data License Agreement - Permissive, version 1.0",
        expected=_expected(options),
    )
