"""From a corpus, a partition and a regime to one shard per client: built once, memory-mapped by all.

``build_federation`` deals out the training images of a corpus, lets every
client's annotators write down their labels, and stores the result under
``<home>/federations/<key>``, where the key is a hash of everything that decides
the content. Every process of an experiment opens that folder in milliseconds.
It holds, as plain arrays, each client's rows of the corpus, what was annotated,
and counts for the report (``fedmlic.statistics``). The truth of the training
images stays in the corpus; a ``Shard`` has no way to it.

``local_federation`` is the same type for a real device: one client, its own
images, its own labels.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import itertools
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fedmlic import code, holdout, spec
from fedmlic import corpus as corpora
from fedmlic.corpus import LabelStore, open_labels, write_labels
from fedmlic.dataset import NO_OWNER, Objects
from fedmlic.errors import InputError, nearest
from fedmlic.files import file_sha256, locked, sync
from fedmlic.labels import ABSENT, PRESENT, STATES, UNCERTAIN, UNKNOWN, check_labels, known
from fedmlic.partition import Partition, Partitioner, Population
from fedmlic.regime import Assignment, Regime, looks_of, prepared
from fedmlic.seeds import stream, text_keys
from fedmlic.shard import OwnImages, Shard
from fedmlic.spec import Spec, build, factory, parse
from fedmlic.statistics import Tallies, tally
from fedmlic.stores import DamagedError, WrittenFiles, check_seal, check_unreadable, readable, seal

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fedmlic.corpus import Corpus
    from fedmlic.holdout import HoldoutBy

SCHEMA = "fedmlic-federation"
SCHEMA_VERSION = 3
"""Raised whenever its files are written in another way."""

TRAIN = "train"
"""The split that is dealt out. Clients never hold validation or test images."""

JUDGED = ("test", "val")
"""Splits of the server in the order of preference for what is judged."""

_BLOCK = 1 << 14
"""Rows of labels that are checked or compressed at once."""


class _Array:
    """A label matrix in memory with the one method of a ``LabelStore`` that shards need."""

    def __init__(self, labels: NDArray[np.int8]) -> None:
        self._labels = labels

    def take(self, rows: NDArray[np.int64]) -> NDArray[np.int8]:
        return self._labels[rows]


class Holdings(NamedTuple):
    """Images of all clients, client after client.

    Attributes:
        client_ptr: int64 ``[clients + 1]``.
        rows: int64 ``[images]``, rows of the corpus, ascending within a client.
        labels: their observed labels, in the same order.
    """

    client_ptr: NDArray[np.int64]
    rows: NDArray[np.int64]
    labels: LabelStore | _Array

    def of(self, index: int) -> tuple[NDArray[np.int64], NDArray[np.int8]]:
        """Rows and observed labels of the client at ``index``, as ordinary arrays."""
        start, stop = (int(bound) for bound in self.client_ptr[index : index + 2])
        return np.array(self.rows[start:stop]), self.labels.take(np.arange(start, stop))


POOLED = "pooled"
"""The value of ``single-client`` that puts all clients' images together."""


@dataclass(frozen=True)
class Federation:
    """All clients of one experiment (or the one client of a device).

    Attributes:
        corpus: the images, and the truth that only the server's evaluation may read.
        manifest: what was built, with the partition's notes; JSON values.
        label_names: column names, in order.
        clients: the client ids it holds: 0 to ``num_clients - 1``, or the id of a device.
        training: images that clients train on.
        holdout: images that clients only evaluate on.
        path: its folder, ``None`` on a device.
        whole: the federation that this is one client of (``single``), else ``None``.
    """

    corpus: Corpus
    manifest: Mapping[str, Any]
    label_names: tuple[str, ...]
    clients: range
    training: Holdings
    holdout: Holdings
    path: Path | None = None
    whole: Federation | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the path, never the maps: each process opens the files itself."""
        if self.whole is not None:
            return Federation.single, (self.whole, self.manifest["single_client"])
        if self.path is None:
            return Federation, tuple(getattr(self, field.name) for field in fields(self))
        return open_federation, (self.path, self.corpus)

    @property
    def num_clients(self) -> int:
        """How many clients there are."""
        return len(self.clients)

    @property
    def client_names(self) -> tuple[str, ...]:
        """Name of each client where clients are owners that have names; else empty."""
        return tuple(self.manifest.get("client_names", ()))

    @property
    def unannotated_labels(self) -> tuple[str, ...] | None:
        """Labels of which no training image of any client has a known entry, in order.

        None on a device, which does not know what the others annotate.
        """
        found = self.manifest.get("unannotated_labels")
        return None if found is None else tuple(found)

    @functools.cached_property
    def sizes(self) -> NDArray[np.int64]:
        """int64 ``[clients]``: training images per client."""
        return np.diff(self.training.client_ptr)

    @functools.cached_property
    def label_counts(self) -> NDArray[np.int64]:
        """int64 ``[clients, labels]``: known annotations among the training images."""
        if self.path is None:
            return np.asarray(known(self.training.of(0)[1]).sum(axis=0, keepdims=True, dtype=np.int64))
        return np.asarray(_load(self._files, "tallies.known"), dtype=np.int64)

    @functools.cached_property
    def positive_counts(self) -> NDArray[np.int64]:
        """int64 ``[clients, labels]``: annotations that say present among the training images."""
        if self.path is None:
            return np.asarray((self.training.of(0)[1] == PRESENT).sum(axis=0, keepdims=True, dtype=np.int64))
        return np.asarray(_load(self._files, "tallies.positives"), dtype=np.int64)

    def single(self, which: str) -> Federation:
        """One client instead of all: the reference of training without a federation.

        Args:
            which: ``pooled``, all clients' images with the labels that each of them sees, as client 0; or a
                client's number: that client alone.

        Raises:
            InputError: there is no such client.
        """
        manifest = {**self.manifest, "single_client": which}
        if which == POOLED:
            manifest.pop("client_names", None)
            every = np.array([0, self.training.client_ptr[-1]]), np.array([0, self.holdout.client_ptr[-1]])
            training, holdout = self.training._replace(client_ptr=every[0]), self.holdout._replace(client_ptr=every[1])
            return Federation(self.corpus, manifest, self.label_names, range(1), training, holdout, whole=self)
        if not which.isdecimal() or int(which) not in self.clients:
            msg = f"Expected single-client to be pooled or a client from 0 to {self.num_clients - 1}, got {which!r}."
            raise InputError(msg)
        client = int(which)
        parts = []
        for held in (self.training, self.holdout):
            rows, labels = held.of(client - self.clients.start)
            parts.append(Holdings(np.array([0, len(rows)]), rows, _Array(labels)))
        return Federation(
            self.corpus, manifest, self.label_names, range(client, client + 1), parts[0], parts[1], whole=self
        )

    @functools.cached_property
    def _files(self) -> WrittenFiles:
        return WrittenFiles(self.path or Path(), self.manifest.get("files", {}))

    @property
    def content(self) -> str:
        """Hash of what clients hold: equal for equal rows and labels, whatever code dealt them out; "" on a device."""
        if self.whole is not None:
            return code.digest({"whole": self.whole.content, "single_client": self.manifest["single_client"]})
        files = self.manifest.get("files", {})
        held = {name: about["sha256"] for name, about in files.items() if not name.startswith("tallies.")}
        return code.digest({**held, "corpus": self.corpus.content}) if files else ""

    def tallies(self) -> Tallies:
        """The counts behind the report on what was achieved.

        Raises:
            InputError: on a device, where the truth is not known.
        """
        if self.path is None:
            msg = "Expected a built federation for the statistics, got a device's own images, whose truth is unknown."
            raise InputError(msg)
        return Tallies(
            **{field.name: _widened(_load(self._files, f"tallies.{field.name}")) for field in fields(Tallies)}
        )

    def shard(self, client: int) -> Shard:
        """What ``client`` holds.

        Raises:
            InputError: there is no such client.
        """
        if client not in self.clients:
            last = self.clients.stop - 1
            msg = f"Expected client to be {self.clients.start} to {last}, got {client}."
            raise InputError(msg)
        index = client - self.clients.start
        rows, labels = self.training.of(index)
        holdout_rows, holdout_labels = self.holdout.of(index)
        images = OwnImages(self.corpus.images, rows, holdout_rows)
        return Shard(client, self.label_names, images, rows, labels, holdout_rows, holdout_labels)


class _Plan(NamedTuple):
    """Settings as they are hashed, and what they stand for."""

    identity: dict[str, Any]
    partitioner: Partitioner
    regime: Regime


def build_federation(
    corpus: Corpus,
    *,
    partition: str,
    regime: str,
    num_clients: int,
    seed: int,
    holdout_fraction: float,
    holdout_by: HoldoutBy = "image",
    home: Path | None = None,
) -> Federation:
    """Open the federation of these settings, building it first if it does not exist.

    Args:
        corpus: the data set; its train split is dealt out.
        partition: for example ``"dirichlet(alpha=0.3)"``.
        regime: for example ``"single_positive()"``.
        num_clients: 1 or more; 0 stands for every owner under ``natural``.
        seed: 0 or more.
        holdout_fraction: share in [0, 1) of each client's images that it evaluates on
            and never trains on, rounded; one training image always remains.
        holdout_by: whether single images are held out, whoever owns them, or all images of some of
            the client's owners (``fedmlic.holdout``).
        home: where federations are kept; ``$FEDMLIC_HOME`` by default.

    Raises:
        InputError: bad settings, an impossible partition, a regime that breaks its
            contract, or a damaged folder in the way. Nothing is written then.
    """
    plan = _plan(corpus, partition, regime, num_clients, seed, holdout_fraction, holdout_by)
    base = (home or corpora.home()) / "federations"
    key = federation_key(plan.identity)
    if (base / key).exists():
        return open_federation(base / key, corpus)
    with ExitStack() as held:
        try:
            held.enter_context(locked(base, key))
        except OSError as error:
            msg = f"Expected {base} to be writable, got: {error}. Set FEDMLIC_HOME to a folder of yours."
            raise InputError(msg) from error
        # Another process may have built it while this one waited.
        if not (base / key).exists():
            _build(corpus, plan, base / key)
    return open_federation(base / key, corpus)


def _plan(
    corpus: Corpus,
    partition: str,
    regime: str,
    num_clients: int,
    seed: int,
    holdout_fraction: float,
    holdout_by: HoldoutBy,
) -> _Plan:
    _check_settings(num_clients, seed, holdout_fraction)
    identity = {
        "schema": SCHEMA,
        "schema_version": SCHEMA_VERSION,
        "corpus": corpus.key,
        "partition": canonical("partition", partition),
        "regime": canonical("regime", regime),
        "code": code.digest(code.files_behind(__name__, *modules_behind(partition, regime))),
        "num_clients": num_clients,
        "seed": seed,
        "holdout_fraction": float(holdout_fraction),
    }
    if holdout_by != "image":  # without it, the key of a federation stays what it was
        identity["holdout_by"] = holdout_by
    made = build("regime", regime)
    said = _identities(made)
    if said:  # without it, the key of a federation stays what it was
        identity["regime_identities"] = said
    return _Plan(identity, build("partition", partition), made)


def _identities(regime: Regime) -> list[dict[str, Any]]:
    """What a regime and its parts, in their order, depend on beside text and code, where they say so."""
    own = [] if regime.identity is None else [dict(regime.identity())]
    return [*own, *(said for text in regime.parts for said in _identities(build("regime", text)))]


def _check_settings(num_clients: int, seed: int, holdout_fraction: float) -> None:
    if num_clients < 0:
        msg = f"Expected num-clients to be 1 or more (or 0 for every owner), got {num_clients}."
        raise InputError(msg)
    if seed < 0:
        msg = f"Expected seed to be 0 or more, got {seed}."
        raise InputError(msg)
    if not 0 <= holdout_fraction < 1:
        msg = f"Expected holdout-fraction to be at least 0 and below 1, got {holdout_fraction}."
        raise InputError(msg)


def canonical(key: str, text: str) -> str:
    """The text of a catalogue entry with every default spelled out.

    >>> canonical("partition", "dirichlet(alpha=1)")
    "dirichlet(alpha=1.0, key='rarest', min_images=8)"
    """
    spec = parse(text, key)
    made = build(key, text)  # wrong names and values are explained there
    parameters = inspect.signature(_factory(key, text)).parameters.values()
    arguments = {p.name: spec.arguments.get(p.name, p.default) for p in parameters}
    if isinstance(made, Regime) and made.parts:
        arguments["regimes"] = [canonical(key, part) for part in made.parts]
    # An int given for a float means the same number.
    floats = {p.name for p in parameters if isinstance(p.default, float) and isinstance(arguments[p.name], int)}
    return str(Spec(spec.name, {n: float(v) if n in floats else v for n, v in arguments.items()}))


def modules_behind(partition: str, regime: str) -> list[str]:
    """Modules of a partition, a regime and all regimes it is made of.

    Whoever edits one must not get yesterday's labels. An edit counts once the edited module is imported, not before.
    """
    return [*spec.modules("partition", partition), *_modules_of_regime(regime)]


def _modules_of_regime(text: str) -> list[str]:
    parts = build("regime", text).parts
    return [*spec.modules("regime", text), *(module for part in parts for module in _modules_of_regime(part))]


def _factory(key: str, text: str) -> Callable[..., Any]:
    return factory(key, parse(text, key).name)


def federation_key(identity: Mapping[str, Any]) -> str:
    """12 hexadecimal digits: the hash of everything that decides a federation's content."""
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _train_split(corpus: Corpus) -> range:
    rows = corpus.splits.get(TRAIN, range(0))
    if not len(rows):
        msg = f"Expected data set {corpus.name} to have training images, got none in its split {TRAIN!r}."
        raise InputError(msg)
    return rows


def _image_keys(corpus: Corpus, rows: range) -> NDArray[np.uint64]:
    return text_keys(corpus.image_ids[rows.start : rows.stop])


def _held_out(
    corpus: Corpus,
    rows: NDArray[np.int64],
    sizes: NDArray[np.int64],
    image_keys: NDArray[np.uint64],
    chosen: tuple[float, HoldoutBy, int],
) -> NDArray[np.bool_]:
    """Bool ``[images]``, client after client: those that clients only evaluate on.

    Args:
        corpus: the data set.
        rows: of the corpus, client after client.
        sizes: images of each client.
        image_keys: of the rows.
        chosen: fraction, what is held out as a whole, and the seed.

    Raises:
        InputError: owners are asked for, and no image has one.
    """
    fraction, by, seed = chosen
    if by == "image" or not fraction:
        return holdout.by_image(image_keys, sizes, fraction, seed)
    owners = corpus.owners[rows]
    if (owners == NO_OWNER).all():
        msg = (
            f"Expected data set {corpus.name} to say whose its training images are for holdout-by=owner, got no owner. "
            "Give the data set its owners, or set holdout-by=image."
        )
        raise InputError(msg)
    return holdout.by_owner(image_keys, holdout.Owned(owners, corpus.owner_names), sizes, fraction, seed)


class _Annotated(NamedTuple):
    """What all annotators did, client after client.

    Attributes:
        observed: int8 ``[images, labels]``.
        budget: int64 ``[clients, labels]``, looks at entries of training images; ``None`` where
            every entry that is not unknown cost one.
    """

    observed: NDArray[np.int8]
    budget: NDArray[np.int64] | None


def _assignments(everyone: Assignment, client_ptr: NDArray[np.int64]) -> Iterator[Assignment]:
    """One assignment per client, cut out of that of all together."""
    objects = everyone.objects
    starts = [] if objects is None else np.searchsorted(objects.row, client_ptr).tolist()
    for client, (first, last) in enumerate(itertools.pairwise(client_ptr.tolist())):
        here = None
        if objects is not None:
            own = slice(starts[client], starts[client + 1])
            here = Objects(objects.row[own] - first, objects.label[own], objects.box[own], objects.area[own])
        labels, keys = everyone.labels[first:last], everyone.image_keys[first:last]
        yield replace(everyone, labels=labels, image_keys=keys, objects=here, client=client)


def _annotate(
    everyone: Assignment, client_ptr: NDArray[np.int64], held_out: NDArray[np.bool_], plan: _Plan
) -> _Annotated:
    """Let every client's annotators write down their labels."""
    truth = everyone.labels
    observed = np.empty_like(truth)
    truth.flags.writeable = False  # a regime that writes on its input is stopped here
    regime = prepared(plan.regime, everyone)
    budget = None if regime.looks is None else np.zeros((len(client_ptr) - 1, truth.shape[1]), dtype=np.int64)
    for assignment in _assignments(everyone, client_ptr):
        seen = regime.annotate(assignment)
        if seen.dtype != np.int8 or seen.shape != assignment.labels.shape:
            msg = (
                f"Expected regime {plan.identity['regime']} to return int8 {list(assignment.labels.shape)}, "
                f"got {seen.dtype} {list(seen.shape)}. Return one state per entry of assignment.labels."
            )
            raise InputError(msg)
        images = slice(client_ptr[assignment.client], client_ptr[assignment.client + 1])
        observed[images] = seen
        if budget is not None:
            budget[assignment.client] = looks_of(regime, assignment, seen)[~held_out[images]].sum(axis=0)
    _check_observed(truth, observed, plan)
    return _Annotated(observed, budget)


def _check_observed(truth: NDArray[np.int8], observed: NDArray[np.int8], plan: _Plan) -> None:
    """Raise ``InputError`` where a regime did what it does not declare; a few rows in memory at a time."""
    num_wrong = num_uncertain = 0
    for start in range(0, len(truth), _BLOCK):
        before, after = truth[start : start + _BLOCK], observed[start : start + _BLOCK]
        check_labels(after)
        changed = after != before
        num_wrong += int(np.count_nonzero(changed & known(after)))
        num_uncertain += int(np.count_nonzero(changed & (after == UNCERTAIN)))
    regime, name = plan.regime, plan.identity["regime"]
    if num_wrong and not regime.adds_wrong:
        msg = (
            f"Expected regime {name} to keep known entries as they are, got {num_wrong} that differ "
            "from the data set. Declare Regime(..., adds_wrong=True) if that is meant."
        )
        raise InputError(msg)
    if num_uncertain and not regime.adds_uncertain:
        msg = (
            f"Expected regime {name} to make no entry uncertain, got {num_uncertain}. "
            "Declare Regime(..., adds_uncertain=True) if that is meant."
        )
        raise InputError(msg)


def _build(corpus: Corpus, plan: _Plan, target: Path) -> None:
    """Deal, annotate, hold out, count; then write everything and move it into place. Call under the lock."""
    identity, split = plan.identity, _train_split(corpus)
    train_rows = np.arange(split.start, split.stop)
    population = _population(corpus, split)
    dealt = plan.partitioner(population, identity["num_clients"], stream(identity["seed"], "partition"))
    _check_dealt(dealt, len(split), identity)
    everyone = _everyone(corpus, population, dealt, identity["seed"])
    del population  # of 50,000 clients with 1,628 labels, every copy of the labels is half a gigabyte
    chosen = identity["holdout_fraction"], identity.get("holdout_by", "image"), identity["seed"]
    held_out = _held_out(corpus, train_rows[dealt.rows], dealt.sizes, everyone.image_keys, chosen)
    observed, budget = _annotate(everyone, dealt.client_ptr, held_out, plan)
    num_held = np.add.reduceat(held_out, dealt.client_ptr[:-1], dtype=np.int64)
    parts = {"train": ~held_out, "holdout": held_out}
    sizes = {"train": dealt.sizes - num_held, "holdout": num_held}
    arrays = {f"{name}.client_ptr": np.concatenate(([0], np.cumsum(sizes[name]))) for name in parts}
    arrays |= {f"{name}.rows": train_rows[dealt.rows[mask]] for name, mask in parts.items()}
    labels = {name: observed[mask] for name, mask in parts.items()}
    del observed
    truth = everyone.labels[~held_out]
    del everyone
    tallies = tally(truth, labels["train"], arrays["train.client_ptr"], num_held)
    if budget is not None:
        tallies = replace(tallies, budget=budget)
    del truth
    unannotated = [corpus.label_names[label] for label in np.flatnonzero(~tallies.known.any(axis=0)).tolist()]
    arrays |= {f"tallies.{field.name}": _narrow(getattr(tallies, field.name)) for field in fields(Tallies)}
    del tallies
    about = {
        "num_clients": dealt.num_clients,
        "num_images": len(dealt.rows),
        "images_left_out": len(split) - len(dealt.rows),
        "notes": dict(dealt.notes),
        **({"client_names": list(dealt.client_names)} if dealt.client_names else {}),
        **({"warnings": list(dealt.warnings)} if dealt.warnings else {}),
        "unannotated_labels": unannotated,
        "label_names": list(corpus.label_names),
        "corpus": {"name": corpus.name, "key": corpus.key},
    }
    _write(target, arrays, labels, {"key": target.name, "identity": identity, **about})


def _population(corpus: Corpus, split: range) -> Population:
    rows = np.arange(split.start, split.stop)
    objects = None if corpus.objects is None else corpus.objects.take(rows)
    owners = np.array(corpus.owners[split.start : split.stop])
    names = tuple(corpus.owner_names)
    return Population(corpus.labels.take(rows), owners, objects, corpus.label_names, corpus.parents, names)


def _everyone(corpus: Corpus, population: Population, dealt: Partition, seed: int) -> Assignment:
    """All dealt images as one assignment, client after client."""
    objects = None if population.objects is None else population.objects.take(dealt.rows)
    keys = _image_keys(corpus, _train_split(corpus))[dealt.rows]
    size = corpus.image_shape[:2]
    judged = functools.cache(lambda: _judged(corpus))
    labels = population.labels[dealt.rows]
    return Assignment(labels, keys, objects, 0, seed, corpus.label_names, size, judged=judged)


def _judged(corpus: Corpus) -> NDArray[np.int64]:
    """int64 ``[labels]``: the smaller of each label's numbers of present and absent entries that the server judges."""
    held = (corpus.splits.get(split, range(0)) for split in JUDGED)
    rows = next((rows for rows in held if len(rows)), range(0))
    counts = np.zeros((2, corpus.labels.num_labels), dtype=np.int64)
    for start in range(rows.start, rows.stop, _BLOCK):
        block = corpus.labels.take(np.arange(start, min(start + _BLOCK, rows.stop)))
        counts += [np.count_nonzero(block == state, axis=0) for state in (PRESENT, ABSENT)]
    return np.asarray(counts.min(axis=0)) if len(rows) else counts[0, :0]


def _check_dealt(dealt: Partition, num_images: int, identity: Mapping[str, Any]) -> None:
    dealt.check(num_images)
    asked = identity["num_clients"]
    if asked not in {0, dealt.num_clients}:
        msg = f"Expected partition {identity['partition']} to make {asked} clients, got {dealt.num_clients}."
        raise InputError(msg)


def _narrow(counts: NDArray[Any]) -> NDArray[Any]:
    """Counts in the smallest unsigned type: 41,000 clients x 1,628 labels are half a gigabyte as int64."""
    if counts.ndim < 2:
        return counts
    return counts.astype(np.min_scalar_type(int(counts.max(initial=0))))


def _widened(stored: NDArray[Any]) -> NDArray[Any]:
    """Stored counts as int32: a client's counts times 100 fit, and half the memory of int64."""
    return stored.astype(np.int32) if stored.dtype.kind == "u" else stored


def _write(
    target: Path, arrays: Mapping[str, NDArray[Any]], labels: Mapping[str, NDArray[np.int8]], manifest: dict[str, Any]
) -> None:
    part = target.with_name(f".{target.name}.tmp")
    shutil.rmtree(part, ignore_errors=True)  # of a build that was killed: the lock is ours
    part.mkdir()
    try:
        for name, array in arrays.items():
            np.save(part / f"{name}.npy", array, allow_pickle=False)
        for name, matrix in labels.items():
            _write_labels(part, name, matrix)
        for file in part.iterdir():
            sync(file)
        files = {
            file.name: {"bytes": file.stat().st_size, "sha256": file_sha256(file)} for file in sorted(part.iterdir())
        }
        # As it will be read: a note's numbers may be a tuple's.
        manifest = json.loads(json.dumps({**manifest, "files": files}))
        text = json.dumps({**manifest, "sha256": seal(manifest)}, indent=1, ensure_ascii=False)
        (part / "manifest.json").write_text(text, encoding="utf-8")
        sync(part / "manifest.json")
        sync(part)
        part.rename(target)
        sync(target.parent)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _write_labels(folder: Path, name: str, labels: NDArray[np.int8]) -> None:
    """Dense or compressed, whichever is smaller: a compressed entry takes three bytes."""
    counts = np.zeros(len(STATES), dtype=np.int64)
    blocks = [labels[start : start + _BLOCK] for start in range(0, len(labels), _BLOCK)] or [labels]
    for block in blocks:
        counts += [np.count_nonzero(block == state) for state in STATES.values()]
    dense = 3 * counts.max() < 2 * counts.sum()
    stem, num_labels = f"{name}.labels", labels.shape[1]
    if dense:
        write_labels(folder, stem, labels, num_labels, max_dense_labels=num_labels)
    else:
        write_labels(folder, stem, iter(blocks), num_labels)


def open_federation(path: Path, corpus: Corpus) -> Federation:
    """Open an existing federation folder over the corpus that it was built from.

    Every file is compared with its hash, the labels when this process first reads them.

    Raises:
        InputError: the folder is missing, incomplete or damaged, or of another corpus.
    """
    try:
        manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
        _check_manifest(path, manifest)
        num_clients = int(manifest["num_clients"])
        files = WrittenFiles(path, manifest["files"])
        training, holdout = (_open_holdings(files, name, num_clients) for name in ("train", "holdout"))
    except DamagedError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        check_unreadable(path, error)
        msg = (
            f"Expected {path} to be a complete federation, got: {error or type(error).__name__}. "
            "Delete that folder to have it built again."
        )
        raise DamagedError(msg) from error
    if manifest["corpus"]["key"] != corpus.key:
        msg = (
            f"Expected {path} to be opened with its corpus {manifest['corpus']['key']}, got {corpus.key}. "
            "Build the federation from this corpus instead."
        )
        raise InputError(msg)
    return Federation(corpus, manifest, tuple(manifest["label_names"]), range(num_clients), training, holdout, path)


def _check_manifest(path: Path, manifest: Mapping[str, Any]) -> None:
    identity = manifest["identity"]
    if (identity["schema"], identity["schema_version"]) != (SCHEMA, SCHEMA_VERSION):
        msg = f"schema {identity['schema']} {identity['schema_version']}, not {SCHEMA} {SCHEMA_VERSION}"
        raise ValueError(msg)
    if federation_key(identity) != path.name:
        msg = f"its manifest describes federation {federation_key(identity)}"
        raise ValueError(msg)
    for name, about in manifest["files"].items():
        found = (path / name).stat().st_size
        if found != about["bytes"]:
            msg = f"{name} has {found} bytes where {about['bytes']} were written"
            raise ValueError(msg)
    check_seal(manifest)


def _open_holdings(files: WrittenFiles, name: str, num_clients: int) -> Holdings:
    client_ptr, rows = _load(files, f"{name}.client_ptr"), _load(files, f"{name}.rows")
    files.check(f"{name}.labels.json")
    labels = open_labels(files.folder, f"{name}.labels", files)
    found = (len(client_ptr) - 1, len(rows), len(labels))
    expected = (num_clients, int(client_ptr[-1]), int(client_ptr[-1]))
    if found != expected:
        msg = f"{name} has clients, rows and labels {found} where {expected} were written"
        raise ValueError(msg)
    return Holdings(client_ptr, rows, labels)


def _load(files: WrittenFiles, name: str) -> NDArray[Any]:
    files.check(f"{name}.npy")
    with readable(files.folder / f"{name}.npy"):
        mapped: NDArray[Any] = np.load(files.folder / f"{name}.npy", mmap_mode="r")
    # Plain arrays over the map: slices of the subclass are slow to make by the thousand.
    return np.asarray(mapped)


def local_federation(
    corpus: Corpus,
    *,
    label_names: Sequence[str],
    holdout_fraction: float,
    seed: int,
    client: int = 0,
    holdout_by: HoldoutBy = "image",
) -> Federation:
    """The one client of a device: its own training images, with the labels as its annotators wrote them.

    Args:
        corpus: the device's own images.
        label_names: the federation's labels, in the order that every client uses. Those
            that this device does not annotate are unknown on all its images.
        holdout_fraction: share in [0, 1) of the images that is kept for evaluation.
        seed: the experiment's seed, 0 or more.
        client: this device's id in the federation.
        holdout_by: whether single images are kept, or all images of some owners.

    Raises:
        InputError: the device has a label that the federation does not know, no training
            images, or no owners where whole owners are to be kept.
    """
    _check_settings(1, seed, holdout_fraction)
    rows = _train_split(corpus)
    labels = _mapped(corpus, label_names, rows)
    every, chosen = np.arange(rows.start, rows.stop), (holdout_fraction, holdout_by, seed)
    held_out = _held_out(corpus, every, np.array([len(rows)]), _image_keys(corpus, rows), chosen)
    training, holdout = (
        Holdings(np.array([0, mask.sum()]), np.flatnonzero(mask) + rows.start, _Array(labels[mask]))
        for mask in (~held_out, held_out)
    )
    manifest = {"corpus": {"name": corpus.name, "key": corpus.key}, "num_clients": 1, "label_names": list(label_names)}
    return Federation(corpus, manifest, tuple(label_names), range(client, client + 1), training, holdout)


def _mapped(corpus: Corpus, label_names: Sequence[str], rows: range) -> NDArray[np.int8]:
    """int8 ``[images, labels]``: the corpus's columns where the federation has them."""
    column_of = {name: column for column, name in enumerate(label_names)}
    foreign = [name for name in corpus.label_names if name not in column_of]
    if foreign:
        hints = " ".join(f"{name!r}: {nearest(name, label_names)}" for name in foreign[:3])
        msg = (
            f"Expected labels of data set {corpus.name} to be among the federation's, got {len(foreign)} others: "
            f"{', '.join(map(repr, foreign[:10]))}. {hints} Rename or remove those columns."
        )
        raise InputError(msg)
    labels = np.full((len(rows), len(label_names)), UNKNOWN, dtype=np.int8)
    labels[:, [column_of[name] for name in corpus.label_names]] = corpus.labels.take(np.arange(rows.start, rows.stop))
    return labels
