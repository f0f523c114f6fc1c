"""Requests and replies as Flower's records: the only place of the language that knows Flower.

One message carries a model out (float32) and one carries a sum back (float64, from devices in fewer bytes:
``fedmlic.packing``), or, from a device whose mods made something else of its change, that change (float32, packed), of
which the server makes the sum; everything else in them is small. Arrays travel as ``ArrayRecord`` (bare numbers, never
a pickle), numbers with names as ``MetricRecord``, the rest as ``ConfigRecord``.
The model, the sums and the change that are unpacked lie where the message lies and are only read;
they must be copied before they are changed. Unpacking is strict:
a part that is missing, unknown, of another type or of another shape is a
``WireError``, so that nothing unexpected enters a sum, and nothing but the fields
below ever leaves a device.

Both sides also say which code they run (``code_digest``), because Flower can run
old client code in silence when its service was started beside another copy, and on
which versions of Flower, Python, torch and NumPy (``versions``), because Flower lets
a node of another version take part.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
import os
import platform
import re
import traceback
import warnings
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, NoReturn, ParamSpec, Protocol, TypeVar, get_args

import flwr
import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from fedmlic import code, spec
from fedmlic.errors import InputError, shown
from fedmlic.packing import RAW, pack, unpack
from fedmlic.protocol import HostInfo, Kind, Reply, Request, Turn
from fedmlic.update import RowWeight, SharedWeight, Units, Update, Weighting

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fedmlic.arrays import Layout

VERSION: Final = 8
"""Raised whenever the records change; both sides must have the same."""

PACKAGES: Final = ("fedmlic", "clients")
"""Packages whose code decides what a client computes."""

WORK_FOLDER: Final = "FEDMLIC_WORK_FOLDER"
"""Environment variable: where relative paths start."""

STALE_HINT: Final = (
    "Flower imports packages from the folder in which its SuperLink was started: stop it and start it from a folder "
    "without fedmlic, clients, strategies or sim in it."
)

_VERSION_TEXT = re.compile(r"[0-9A-Za-z.+!_-]{1,64}")

MOST_DIMENSIONS: Final = 8
"""Of an array in a message."""

MOST_NAMES: Final = 256
"""Named numbers or tensors beside a model: shared tensors, further sums, metrics of a turn or an update."""

MOST_LETTERS: Final = 256
"""Of such a name."""

MOST_BESIDE: Final = 1 << 20
"""Numbers of a tensor beside a model, where the model itself is smaller."""

MOST_SUMS: Final = 1 << 28
"""Numbers of a tensor of sums that a client sends, second moments of features among them."""

MOST_ERROR: Final = 2000
"""Characters of the other side's error text that are kept; the rest is dropped before anything is done with it."""

_TURN: Final = {kind: tuple(f.name for f in fields(Turn) if f.type == kind) for kind in ("int", "float", "str")}
"""The names of a turn's plain fields by their type; they travel as columns."""

_Scalar = TypeVar("_Scalar", bool, int, float, str)
_Read = TypeVar("_Read")
_Given = ParamSpec("_Given")


class WireError(ValueError):
    """A message that does not follow the protocol."""


def _strictly(read: Callable[_Given, _Read]) -> Callable[_Given, _Read]:
    """Whatever a message makes its reader raise is a ``WireError``: nobody else's handler must know NumPy's errors."""

    @wraps(read)
    def reads(*args: _Given.args, **kwargs: _Given.kwargs) -> _Read:
        try:
            return read(*args, **kwargs)
        except (WireError, RemoteError):
            raise
        except Exception as error:
            msg = f"Expected a message that follows the protocol, got one that cannot be read: {shown(error)}."
            raise WireError(msg) from error

    return reads


class RemoteError(RuntimeError):
    """What the other side says went wrong there.

    Args:
        kind: the name of the exception's type.
        text: its message.
        simulated: whether the other side is part of a simulation on this machine.
    """

    def __init__(self, kind: str, text: str, *, simulated: bool) -> None:
        kind, text = shown(kind, 100), shown(text, MOST_ERROR, lines=simulated)
        super().__init__(f"{kind}: {text}")
        self.kind = kind
        self.text = text
        self.simulated = simulated


@dataclass(frozen=True)
class Introduction:
    """What a Flower node answers to a query.

    Attributes:
        info: what it hosts.
        num_hosts: nodes of its simulation, 0 on a device.
        code: ``code_digest`` of what it runs.
    """

    info: HostInfo
    num_hosts: int
    code: str

    @property
    def simulated(self) -> bool:
        """Whether it can play any client because there are no devices."""
        return self.num_hosts > 0


# --- Which code ------------------------------------------------------------------------


@cache
def code_digest() -> str:
    """Hash of the Python files of ``PACKAGES`` as this process finds them."""
    files: dict[str, str] = {}
    for name in PACKAGES:
        files |= code.package_files(name, package_folder(name))
    return code.digest(files)


def versions() -> dict[str, str]:
    """Versions of what this process computes with; that of torch also says for which accelerator it was built."""
    return {
        "flwr": flwr.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
    }


def minor(version: str) -> str:
    """The part of a version that decides whether two Flowers work together.

    >>> minor("1.42.0")
    '1.42'
    """
    return ".".join(version.split(".")[:2])


def package_folder(name: str) -> Path:
    """Where this process would import the package ``name`` from.

    Raises:
        InputError: nowhere, or not from a folder.
    """
    found = importlib.util.find_spec(name)
    places = list(found.submodule_search_locations or []) if found else []
    if not places:
        msg = f"Expected the package {name} of this project to be importable, got none. Install the project."
        raise InputError(msg)
    return Path(places[0])


def check_packages(beside: str, names: Iterable[str] = PACKAGES) -> None:
    """Make sure that packages with these common names are ours.

    Args:
        beside: ``__file__`` of a module in one of this project's packages.
        names: packages that must lie in the same folder.

    Raises:
        InputError: one of them comes from somewhere else.
    """
    root = Path(beside).resolve().parent.parent
    for name in names:
        folder = package_folder(name).resolve()
        if folder.parent != root:
            msg = (
                f"Expected the package {name} to come from {root}, got the one in {folder.parent}. "
                "Start from a folder without that name in it, and look at PYTHONPATH."
            )
            raise InputError(msg)


def enter_work_folder() -> None:
    """Go to the folder that ``FEDMLIC_WORK_FOLDER`` names, if it is set.

    ``fedmlic run --engine flower`` starts Flower's processes in an empty folder; relative
    paths in the experiment mean the one where the user typed the command.
    """
    folder = os.environ.get(WORK_FOLDER)
    if folder:
        os.chdir(folder)


def layout_digest(layout: Layout) -> str:
    """Hash of the names and shapes of the exchanged tensors."""
    about = [layout.names, layout.shapes, layout.num_labels, layout.num_row_tensors, layout.moments]
    return hashlib.sha256(json.dumps(about).encode()).hexdigest()[:16]


# --- Who is there ----------------------------------------------------------------------


def pack_introduction(introduction: Introduction) -> RecordDict:
    """An answer to a query."""
    info = introduction.info
    about = ConfigRecord(
        {
            "version": VERSION,
            "code": introduction.code,
            "num-hosts": introduction.num_hosts,
            "host": info.host,
            "label-names": list(info.label_names),
            "knows-unannotated": info.unannotated is not None,
            "unannotated": list(info.unannotated or ()),
            "image-shape": list(info.image_shape),
        }
    )
    hosted = _arrays({"clients": info.clients, "sizes": info.sizes})
    return RecordDict({"introduction": about, "hosted": hosted, "versions": ConfigRecord(dict(info.versions))})


@_strictly
def unpack_introduction(content: RecordDict) -> Introduction:
    """The answer to a query.

    Raises:
        RemoteError: the node says what went wrong there.
        WireError: it does not follow the protocol.
    """
    _raise_failure(content)
    _check_version(content, "introduction")
    _check_names("introduction", content, {"introduction", "hosted", "versions"})
    expected = {"version", "code", "num-hosts", "host", "label-names", "knows-unannotated", "unannotated"}
    about = _fields(content, "introduction", {*expected, "image-shape"})
    hosted = _record(content, "hosted", ArrayRecord)
    _check_names("hosted clients", hosted, {"clients", "sizes"})
    clients = _array(hosted, "clients", np.int64, (None,))
    sizes = _array(hosted, "sizes", np.int64, clients.shape)
    names = tuple(_texts(about, "label-names"))
    apart = tuple(_texts(about, "unannotated"))
    if not set(apart) <= set(names):
        _fail("the field 'unannotated'", "to name labels of 'label-names'", sorted(set(apart) - set(names))[:5])
    known_apart = apart if _scalar(about, "knows-unannotated", bool) else None
    height, width, channels = _integers(about, "image-shape")
    info = HostInfo(
        _scalar(about, "host", str),
        clients,
        sizes,
        names,
        _unpack_versions(content),
        known_apart,
        (height, width, channels),
    )
    return Introduction(info, _scalar(about, "num-hosts", int), _scalar(about, "code", str))


def _unpack_versions(content: RecordDict) -> dict[str, str]:
    found = _fields(content, "versions", set(versions()))
    stated = {name: _scalar(found, name, str) for name in sorted(found)}
    for name, version in stated.items():
        if not _VERSION_TEXT.fullmatch(version):
            _fail(f"the version of {name}", "to be that of a package", repr(version)[:80])
    return stated


# --- Requests --------------------------------------------------------------------------


class Model(NamedTuple):
    """A round's model on its way; made once a round and put into every message.

    Attributes:
        arrays: the tensors that are exchanged in this round.
        rest: all others, for nodes that do not have them yet; None if everything is exchanged.
        digest: of ``rest``; empty if there is none.
    """

    arrays: ArrayRecord
    rest: ArrayRecord | None = None
    digest: str = ""


class RestMissingError(WireError):
    """This node does not have the part of the model that the request leaves out; it must be sent again whole."""


class Rest(Protocol):
    """Where a node keeps the part of the model that is not exchanged at present."""

    def recall(self, digest: str) -> torch.Tensor | None:
        """The vector of that digest, or None."""

    def keep(self, digest: str, values: torch.Tensor) -> None:
        """Keep a vector in place of the one before."""


def pack_model(request: Request, layout: Layout, *, copy: bool = True, whole: bool = False) -> Model:
    """The global model of a request.

    Args:
        request: the round's work.
        layout: of all exchanged tensors.
        copy: False leaves the numbers where they are, for Flower's simulation: they must stay
            what they are until the message has been pickled.
        whole: send all tensors, also those that are not exchanged in this round.
    """
    part = request.layout(layout)
    # For an evaluation the whole model is sent, for a count none of it.
    if whole or request.tensors is None or request.kind != "train":
        flat = request.flat if request.kind != "count" else request.flat[:0]
        return Model(_arrays({"flat": flat.detach().cpu().numpy()}, copy=copy))
    rest = layout.gather(request.flat, _others(layout, part)).detach().cpu()
    flat = layout.gather(request.flat, part).detach().cpu()
    digest = hashlib.sha256(rest.numpy().tobytes()).hexdigest()
    return Model(_arrays({"flat": flat.numpy()}), _arrays({"flat": rest.numpy()}), digest)


def _others(layout: Layout, part: Layout) -> Layout:
    return layout.only(set(layout.names) - set(part.names))


def pack_request(
    request: Request, clients: Sequence[int], layout: Layout, model: Model, *, with_rest: bool = True
) -> RecordDict:
    """A request to play ``clients``.

    Args:
        request: the round's work; ``model`` is sent in place of its ``flat``.
        clients: who is to be played, in this order.
        layout: of all exchanged tensors.
        model: ``pack_model(request, layout)``.
        with_rest: whether tensors that are not exchanged go along; False for a node that has them.
    """
    chosen = set(clients)
    last = {client: number for client, number in request.last.items() if client in chosen}
    about = ConfigRecord(
        {
            "version": VERSION,
            "layout": layout_digest(layout),
            "kind": request.kind,
            "round": request.round,
            "units": list(request.units),
            "shared-weight": request.weighting.shared,
            "row-weight": request.weighting.rows,
            "each": request.each,
            "all-tensors": request.tensors is None,
            "tensors": list(request.tensors or ()),
            "rest": model.digest,
            "mods": list(request.mods),
            "run": request.run,
            "needed": list(request.needed),
            "token": request.token,
        }
    )
    numbers = {
        "clients": np.asarray(clients, dtype=np.int64),
        "last": np.array([last.get(client, 0) for client in clients], dtype=np.int64),
    }
    content = RecordDict({"request": about, "played": _arrays(numbers), "model": model.arrays})
    content["shared"] = _arrays({name: tensor.detach().cpu().numpy() for name, tensor in request.shared.items()})
    content["rest"] = model.rest if with_rest and model.rest is not None else ArrayRecord()
    return content


@_strictly
def unpack_request(
    content: RecordDict, layout: Layout, rest: Rest | None = None, plugins: Sequence[str] = ()
) -> tuple[Request, list[int]]:
    """The request and the clients it names.

    Args:
        content: the message.
        layout: of all exchanged tensors.
        rest: where this node keeps what is not exchanged at present; given the run's name it is
            asked only where a request leaves something out.
        plugins: patterns of the names from outside the catalogue that the server's rule may use here.

    Raises:
        WireError: it does not follow the protocol, or it is for another network.
        RestMissingError: it leaves out tensors that this node does not have.
    """
    _check_version(content, "request")
    _check_names("request", content, {"request", "played", "model", "shared", "rest"})
    about = _fields(content, "request", _REQUEST)
    _check_layout(about, layout)
    tensors = None if _scalar(about, "all-tensors", bool) else tuple(_texts(about, "tensors"))
    mods = tuple(_texts(about, "mods"))
    refused = [name for text in mods for name in spec.not_allowed("mods", text, plugins)]
    if refused:
        _fail("the mods of a server's rule", "to be of the catalogue or of those that allow-plugins names", refused[:8])
    played = _record(content, "played", ArrayRecord)
    _check_names("played clients", played, {"clients", "last"})
    clients = _array(played, "clients", np.int64, (None,)).tolist()
    last = _array(played, "last", np.int64, (len(clients),)).tolist()
    request = Request(
        kind=_choice(about, "kind", Kind),
        round=_scalar(about, "round", int),
        flat=torch.zeros(0),
        units=_units(about),
        weighting=Weighting(_choice(about, "shared-weight", SharedWeight), _choice(about, "row-weight", RowWeight)),
        each=_scalar(about, "each", bool),
        tensors=tensors,
        shared=_named_tensors(content, "shared", (np.float32, np.float64, np.int64), layout),
        mods=mods,
        last={client: number for client, number in zip(clients, last, strict=True) if number},
        run=_scalar(about, "run", str),
        needed=tuple(_integers(about, "needed")),
        token=_scalar(about, "token", str),
    )
    try:
        return replace(request, flat=_unpack_flat(content, about, request, layout, rest)), clients
    except InputError as error:
        raise WireError(str(error)) from error


_REQUEST: Final = {
    *("version", "layout", "kind", "round", "units", "shared-weight", "row-weight", "each"),
    *("all-tensors", "tensors", "rest", "mods", "run", "needed", "token"),
}
"""Fields of a request."""


def _unpack_flat(
    content: RecordDict, about: Mapping[str, object], request: Request, layout: Layout, store: Rest | None
) -> torch.Tensor:
    """The whole model, put together from what was sent and what this node has."""
    model = _record(content, "model", ArrayRecord)
    _check_names("model", model, {"flat"})
    digest = _scalar(about, "rest", str)
    part = request.layout(layout)  # names of another network are refused, whether or not all was sent
    if not digest:
        size = 0 if request.kind == "count" else layout.size
        return _tensor(_array(model, "flat", np.float32, (size,)))
    others = _others(layout, part)
    sent = _record(content, "rest", ArrayRecord)
    if "flat" in sent:
        values = _tensor(_array(sent, "flat", np.float32, (others.size,)))
        if hashlib.sha256(values.numpy().tobytes()).hexdigest() != digest:
            _fail("the rest of the model", "to have the digest that the request states", "another")
        if store is not None:
            store.keep(digest, values)
    else:
        found = store.recall(digest) if store is not None else None
        if found is None or found.shape != (others.size,):
            msg = "Expected this node to have the tensors that are not exchanged at present, got none. Send them again."
            raise RestMissingError(msg)
        values = found
    flat = layout.scatter(values, others, torch.zeros(layout.size))
    return layout.scatter(_tensor(_array(model, "flat", np.float32, (part.size,))), part, flat)


# --- Replies ---------------------------------------------------------------------------


def pack_reply(reply: Reply, layout: Layout, *, copy: bool = True) -> RecordDict:
    """What playing some clients gave.

    Args:
        reply: it.
        layout: of the tensors that were asked for (``Request.layout``).
        copy: False leaves sums where they are, as in ``pack_model``.
    """
    about = ConfigRecord(
        {
            "version": VERSION,
            "layout": layout_digest(layout),
            "num-updates": len(reply.updates),
            "token": reply.token,
        }
    )
    content = RecordDict({"reply": about})
    turns, texts = _pack_turns(reply.turns)
    content["turns"], content["turn-texts"] = turns, texts
    content["evaluation"] = _arrays(reply.evaluation)
    for number, update in enumerate(reply.updates):
        _pack_update(content, f"update-{number}", update, copy=copy)
    return content


@_strictly
def unpack_reply(content: RecordDict, layout: Layout, most_clients: int | None = None) -> Reply:
    """What a host answered: its form only; ``strategies.server.replies`` checks what it says.

    An update that came as a change has no sums yet (``Update.add_up``).

    Args:
        content: the message.
        layout: of the tensors that were asked for (``Request.layout``).
        most_clients: that were asked; None for any number.

    Raises:
        RemoteError: the node says what went wrong there.
        WireError: it does not follow the protocol, or it is for another network.
    """
    _raise_failure(content)
    _check_version(content, "reply")
    about = _fields(content, "reply", {"version", "layout", "num-updates", "token"})
    _check_layout(about, layout)
    num_updates = _scalar(about, "num-updates", int)
    if not 0 <= num_updates <= len(content):
        _fail("the number of updates", "to be that of the parts", num_updates)
    stems = [f"update-{number}" for number in range(num_updates)]
    parts = {f"{stem}{part}" for stem in stems for part in ("", "-about", "-metrics", "-extras")}
    _check_names("reply", content, {"reply", "turns", "turn-texts", "evaluation", *parts})
    evaluation = _record(content, "evaluation", ArrayRecord)
    _check_amount("arrays of an evaluation", evaluation)
    return Reply(
        turns=_unpack_turns(content, most_clients),
        updates=tuple(_unpack_update(content, stem, layout, most_clients) for stem in stems),
        evaluation={name: _array(evaluation, name, np.int64, None) for name in evaluation},
        token=_scalar(about, "token", str),
    )


def _pack_turns(turns: Sequence[Turn]) -> tuple[ArrayRecord, ConfigRecord]:
    """Turns as columns; their metrics as (turn, name, value) triples, since names differ."""
    triples = [(row, name, value) for row, turn in enumerate(turns) for name, value in turn.metrics.items()]
    arrays = {
        "counts": _column(turns, _TURN["int"], np.int64),
        "numbers": _column(turns, _TURN["float"], np.float64),
        "metric-turns": np.array([row for row, _, _ in triples], dtype=np.int64),
        "metric-values": np.array([value for _, _, value in triples], dtype=np.float64),
    }
    texts = {name: [getattr(turn, name) for turn in turns] for name in _TURN["str"]}
    return _arrays(arrays), ConfigRecord({**texts, "metric-names": [name for _, name, _ in triples]})


def _column(turns: Sequence[Turn], names: tuple[str, ...], dtype: type[Any]) -> NDArray[Any]:
    values = [[getattr(turn, name) for name in names] for turn in turns]
    return np.array(values, dtype=dtype).reshape(len(turns), len(names))


def _unpack_turns(content: RecordDict, most: int | None) -> tuple[Turn, ...]:
    record = _record(content, "turns", ArrayRecord)
    _check_names("turns", record, {"counts", "numbers", "metric-turns", "metric-values"})
    counts = _array(record, "counts", np.int64, (None, len(_TURN["int"])))
    _check_most("turns", len(counts), most)
    numbers = _array(record, "numbers", np.float64, (len(counts), len(_TURN["float"])))
    rows = _array(record, "metric-turns", np.int64, (None,))
    _check_most("metrics of turns", len(rows), MOST_NAMES * len(counts))
    values = _array(record, "metric-values", np.float64, rows.shape)
    texts = _fields(content, "turn-texts", {*_TURN["str"], "metric-names"})
    columns = {name: _texts(texts, name, len(counts)) for name in _TURN["str"]}
    names = _texts(texts, "metric-names", len(rows))
    _check_letters("metrics of turns", names)
    if len(rows) and (rows.min() < 0 or rows.max() >= len(counts)):
        _fail("metrics of turns", f"to belong to one of {len(counts)} turns", rows.max())
    metrics: list[dict[str, float]] = [{} for _ in counts]
    for row, name, value in zip(rows.tolist(), names, values.tolist(), strict=True):
        metrics[row][name] = value
    found = []
    for row, (whole, floating) in enumerate(zip(counts.tolist(), numbers.tolist(), strict=True)):
        plain: dict[str, Any] = {
            **dict(zip(_TURN["int"], whole, strict=True)),
            **dict(zip(_TURN["float"], floating, strict=True)),
            **{name: column[row] for name, column in columns.items()},
        }
        found.append(Turn(**plain, metrics=metrics[row]))
    return tuple(found)


def _pack_update(content: RecordDict, stem: str, update: Update, *, copy: bool) -> None:
    # Inside a machine bytes cost nothing, and sums need not be made again.
    name, numbers = ("change", update.change) if copy and update.change is not None else ("sums", update.sums)
    arrays = {
        name: numbers.detach().cpu().numpy(),
        "row-weights": update.row_weights.numpy(),
        "clients": np.array(update.clients, dtype=np.int64),
        "annotations": update.annotations.numpy(),
    }
    content[stem] = _arrays(arrays, copy=copy, packed={name} if copy else ())
    content[f"{stem}-extras"] = _arrays({n: tensor.detach().cpu().numpy() for n, tensor in update.extras.items()})
    content[f"{stem}-about"] = ConfigRecord(
        {"units": list(update.units), "weight": update.weight, "num-images": update.num_images}
    )
    content[f"{stem}-metrics"] = MetricRecord({name: float(value) for name, value in update.metrics.items()})


def _unpack_update(content: RecordDict, stem: str, layout: Layout, most: int | None) -> Update:
    record = _record(content, stem, ArrayRecord)
    name = "change" if "change" in record else "sums"
    _check_names(stem, record, {name, "row-weights", "clients", "annotations"})
    about = _fields(content, f"{stem}-about", {"units", "weight", "num-images"})
    metrics = _record(content, f"{stem}-metrics", MetricRecord)
    _check_amount("metrics of an update", metrics)
    clients = _array(record, "clients", np.int64, (None,))
    _check_most("clients of an update", len(clients), most)
    if name == "change" and len(clients) != 1:
        _fail("an update that is a change", "to be of one client", len(clients))
    dtype = np.float32 if name == "change" else np.float64
    numbers = _tensor(_array(_unpacked(record, name, dtype, layout.size), name, dtype, (layout.size,)))
    beside = _named_tensors(content, f"{stem}-extras", (np.float64, np.int64), layout, MOST_SUMS)
    return Update(
        layout=layout,
        units=_units(about),
        sums=torch.zeros(0, dtype=torch.float64) if name == "change" else numbers,
        weight=_scalar(about, "weight", float),
        row_weights=torch.from_numpy(_array(record, "row-weights", np.float64, (layout.num_labels,)).copy()),
        clients=clients.tolist(),
        num_images=_scalar(about, "num-images", int),
        annotations=torch.from_numpy(_array(record, "annotations", np.int64, (layout.num_labels,)).copy()),
        metrics={each: _scalar(metrics, each, float) for each in metrics},
        extras={each: sums.clone() for each, sums in beside.items()},
        change=numbers if name == "change" else None,
    )


# --- Failures --------------------------------------------------------------------------


def pack_failure(error: BaseException, *, simulated: bool, paths: bool = False) -> RecordDict:
    """An answer in place of any other: what went wrong; from a device one line, without a traceback.

    Args:
        error: what was raised.
        simulated: whether this is a node of a simulation.
        paths: whether a device's line may name files.
    """
    text = str(error) if simulated else discreet(str(error), paths=paths)
    if simulated and not isinstance(error, InputError):
        text += "\n" + "".join(traceback.format_exception(error)).strip()
    return RecordDict({"failure": ConfigRecord({"kind": type(error).__name__, "text": text, "simulated": simulated})})


def first_line(text: str) -> str:
    r"""The first line of a message: later ones may list files or hold a traceback.

    >>> first_line("ValueError: 3 problems:\n  /data/anna.png")
    'ValueError: 3 problems:'
    """
    return text.strip().split("\n", maxsplit=1)[0]


_SUFFIXES = (
    "7z|arw|avi|avif|bif|bmp|bz2|cfg|ckpt|cr2|csv|czi|dcm|dicom|dng|docx?|feather|gif|gz|h5|hdf5?|heic|heif|ico|ini|j2k|"
    "jfif|jp2|jpe?g|json|jsonl|jxl|lif|lock|mha|mhd|mkv|mov|mp4|mpe?g|mrxs|ndpi|nef|nii|npy|npz|nrrd|orf|parquet|pdf|"
    "pickle|pkl|png|pptx?|pth?|py|rar|raw|rtf|rw2|safetensors|scn|sqlite3?|svg|svs|tar|tfrecords?|tga|tgz|tiff?|tmp|toml|"
    "tsv|txt|vms|webm|webp|wmv|xlsx?|xml|xz|ya?ml|zip|zst"
)
_SUFFIX = rf"\.(?i:{_SUFFIXES})(?![^\W_])"
_SLASH = r"[/\\](?=\S)|(?<=\S)[/\\]"
_NAME = re.compile(rf"{_SLASH}|\S{_SUFFIX}")
"""What shows that words are the name of a file or folder."""

_QUOTED = re.compile(r"""(?<!\S)(['"])(.*?)(?<!\\)\1(?=$|[\s.,;:)\]}>])""")
_BETWEEN = re.compile(
    r"(^\w*(?:Error|Exception|Exit|Interrupt|Warning): |\bExpected |,? got:? "
    r"| to (?:be|contain|exist|have|hold|name) |['\"]?<path>['\"]?|\bdocs/[\w/]+\.md\b)"
)
"""Words of messages that are in no name, and names that are hidden already."""

_ROOT = re.compile(r"(?:(?<=^)|(?<=[\s'\"(\[{<=:,;`]))(?:[A-Za-z]:)?(?:~[\w.-]*|\.{1,2}|[A-Za-z]\w*:/)?[/\\](?=\S)")
_LAST_SUFFIX = re.compile(rf".*\S{_SUFFIX}(?:[\w-]|\.(?=\w))*")


def discreet(text: str, *, paths: bool = False) -> str:
    r"""What leaves a device of an error: its first line, at most 500 characters, and no name of a file.

    Names may have blanks and quotes in them, and nothing says where such a name begins and ends. So everything is
    hidden that could be part of one: a whole text in quotes, and else all between two places that are in no name
    (``Expected ``, ``, got ``, `` to be ``). A name without a slash and without a usual suffix is not seen.

    Args:
        text: the message.
        paths: leave names of files in it.

    >>> discreet("FileNotFoundError: no '/data/ward 3/anna.png' and no /data/b.csv\n  in line 3")
    "FileNotFoundError: no '<path>' and no <path>"
    >>> discreet("Expected Anna Maria Muster.png to be an image, got a text.")
    'Expected <path> to be an image, got a text.'
    """
    line = first_line(text)[:MOST_ERROR]
    if not paths:
        line = _QUOTED.sub(lambda found: f"{found[1]}<path>{found[1]}" if _NAME.search(found[2]) else found[0], line)
        line = "".join(_without_names(piece) for piece in _BETWEEN.split(line))
    return shown(line, 500)


def _without_names(piece: str) -> str:
    """A part of a message without names: hidden from the first path's root, or its beginning, to the last suffix."""
    if _BETWEEN.fullmatch(piece):
        return "<path>" if piece.startswith("docs/") else piece
    first = _NAME.search(piece)
    if first is None:
        return piece
    root = _ROOT.search(piece)
    begin = root.start() if root and root.start() <= first.start() else len(piece) - len(piece.lstrip())
    suffix = _LAST_SUFFIX.match(piece)
    rest = piece[suffix.end() :] if suffix else piece
    return f"{piece[:begin]}<path>{rest if suffix and not re.search(_SLASH, rest) else ''}"


def _raise_failure(content: RecordDict) -> None:
    if "failure" in content:
        about = _fields(content, "failure", {"kind", "text", "simulated"})
        simulated = _scalar(about, "simulated", bool)
        raise RemoteError(_scalar(about, "kind", str), _scalar(about, "text", str), simulated=simulated)


# --- For audit logs --------------------------------------------------------------------


def described(content: RecordDict) -> dict[str, Any]:
    """The bytes of a message, and the names in its records with the bytes of each record; for any message."""
    records: dict[str, Any] = {}
    total = 0
    for name, record in list(content.items())[:MOST_NAMES]:
        num_bytes = _num_bytes(record)
        total += num_bytes
        names = [shown(key, 100) for key in list(record)[:MOST_NAMES]]
        records[shown(name, 100)] = {"bytes": num_bytes, "names": names}
    return {"bytes": total, "records": records}


def _num_bytes(record: ArrayRecord | MetricRecord | ConfigRecord) -> int:
    """Of names and values; Flower's own count fails at empty lists."""
    if isinstance(record, ArrayRecord):
        return record.count_bytes()
    return sum(len(name.encode()) + _value_bytes(value) for name, value in record.items())


def _value_bytes(value: object) -> int:
    if isinstance(value, list):
        return sum(map(_value_bytes, value))
    return len(value) if isinstance(value, bytes) else len(value.encode()) if isinstance(value, str) else 8


def about_request(content: RecordDict) -> dict[str, Any]:
    """Kind, round, run and clients of a request, as far as any message has them."""
    found: dict[str, Any] = {}
    about, played = content.get("request"), content.get("played")
    if isinstance(about, ConfigRecord):
        found = {f"request-{key}": shown(about[key], 100) for key in ("kind", "round", "run") if key in about}
    if isinstance(played, ArrayRecord) and "clients" in played:
        found["num-clients"] = int(np.prod(played["clients"].shape[:1]))
    return found


def failure_in(content: RecordDict) -> str:
    """What an answer says went wrong, or nothing."""
    about = content.get("failure")
    return f"{about.get('kind')!s}: {about.get('text')!s}" if isinstance(about, ConfigRecord) else ""


# --- Parts of records ------------------------------------------------------------------


def _arrays(arrays: Mapping[str, NDArray[Any]], *, copy: bool = True, packed: Container[str] = ()) -> ArrayRecord:
    record = ArrayRecord()
    for name, array in arrays.items():
        raw = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
        if name in packed:
            form, data = pack(raw)
            record[name] = Array(dtype=raw.dtype.str, shape=array.shape, stype=form, data=data)
            continue
        each = Array(dtype=raw.dtype.str, shape=array.shape, stype=RAW, data=b"")
        # Bytes are copied into a pickle and out of it again; NumPy's memory stays where it is, for Ray to move.
        each.data = raw.tobytes() if copy else raw.reshape(-1).view(np.uint8)  # type: ignore[assignment]
        record[name] = each
    return record


def _fail(what: str, expected: str, got: object) -> NoReturn:
    msg = f"Expected {shown(what)} {expected}, got {shown(got)}. Both sides must run the same version of this project."
    raise WireError(msg)


def _check_names(what: str, found: Iterable[str], expected: set[str]) -> None:
    got = set(found)
    if got != expected:
        _fail(f"the parts of {what}", f"to be {sorted(expected)}", f"{[shown(name, 40) for name in sorted(got)[:9]]}")


def _check_most(what: str, number: int, most: int | None) -> None:
    if most is not None and number > most:
        _fail(f"the number of {what}", f"to be at most {most}", number)


def _check_letters(what: str, names: Iterable[str]) -> None:
    longest = max((len(name) for name in names), default=0)
    if longest > MOST_LETTERS:
        _fail(f"the names of {what}", f"to have at most {MOST_LETTERS} characters", longest)


def _check_amount(what: str, record: Mapping[str, object]) -> None:
    """Named things beside the model: not too many, and no name as long as a book."""
    _check_most(what, len(record), MOST_NAMES)
    _check_letters(what, record)


def _record(content: RecordDict, name: str, kind: type[Any]) -> Any:  # noqa: ANN401  (the caller names the kind)
    found = content.get(name)
    if not isinstance(found, kind):
        _fail(f"the part {name!r}", f"to be a {kind.__name__}", type(found).__name__)
    return found


def _fields(content: RecordDict, name: str, expected: set[str]) -> Mapping[str, object]:
    found: Mapping[str, object] = _record(content, name, ConfigRecord)
    _check_names(name, found, expected)
    return found


def _array(record: ArrayRecord, name: str, dtype: type[Any], shape: tuple[int | None, ...] | None) -> Any:  # noqa: ANN401  (an array of the type asked for)
    """An array of exactly this type and shape, not to be written to; None in a shape stands for any length."""
    if name not in record:
        _fail("arrays", f"to include {name!r}", sorted(record)[:20])
    packed, kind = record[name], np.dtype(dtype).newbyteorder("<")
    if (packed.stype, packed.dtype) != (RAW, kind.str):
        _fail(f"the array {name!r}", f"to be {RAW} of {kind.str}", f"{packed.stype} of {packed.dtype}")
    if len(packed.shape) > MOST_DIMENSIONS:
        _fail(f"the array {name!r}", f"to have at most {MOST_DIMENSIONS} dimensions", len(packed.shape))
    if len(packed.data) != math.prod(packed.shape) * kind.itemsize or min(packed.shape, default=0) < 0:
        _fail(f"the array {name!r}", f"to have the bytes of shape {packed.shape}", len(packed.data))
    if shape is not None:
        fits = len(shape) == len(packed.shape) and all(
            want in (None, have) for want, have in zip(shape, packed.shape, strict=True)
        )
        if not fits:
            _fail(f"the array {name!r}", f"to have shape {shape}", packed.shape)
    return np.frombuffer(packed.data, kind).reshape(packed.shape)


def _unpacked(record: ArrayRecord, name: str, dtype: type[Any], count: int) -> ArrayRecord:
    """The record with one of its arrays as plain numbers of this type, if it came packed."""
    if name not in record or record[name].stype == RAW:
        return record
    each = record[name]
    data = unpack(each.stype, each.data, count, np.dtype(dtype).itemsize)
    if data is None:
        _fail(f"the array {name!r}", f"to be {RAW} or to hold {count} packed numbers", each.stype)
    return ArrayRecord({name: Array(dtype=each.dtype, shape=each.shape, stype=RAW, data=data)})


def _named_tensors(
    content: RecordDict, name: str, dtypes: Sequence[type[Any]], layout: Layout, beside: int = MOST_BESIDE
) -> dict[str, torch.Tensor]:
    """The arrays of a record, of any shape and one of these types, as tensors that nobody writes to.

    One may have as many numbers as the model, as there are pairs of labels, or ``beside``.
    """
    record = _record(content, name, ArrayRecord)
    _check_amount("tensors beside the model", record)
    most = max(layout.size, layout.num_labels**2, beside)
    kinds = {np.dtype(dtype).newbyteorder("<").str: dtype for dtype in dtypes}
    found = {}
    for each in record:
        if record[each].dtype not in kinds:
            _fail(f"the array {each!r}", f"to be one of {sorted(kinds)}", record[each].dtype)
        if max((abs(side) for side in record[each].shape), default=0) > most:
            _fail(f"the array {each!r}", f"to have sides of at most {most}", max(record[each].shape))
        _check_most(f"numbers in the array {each!r}", math.prod(record[each].shape), most)
        found[each] = _tensor(_array(record, each, kinds[record[each].dtype], None))
    return found


def _tensor(array: NDArray[Any]) -> torch.Tensor:
    """The array as a tensor that nobody writes to."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that nobody may
        return torch.from_numpy(array)


def _scalar(fields: Mapping[str, object], name: str, kind: type[_Scalar]) -> _Scalar:
    value = fields[name]
    if type(value) is not kind:
        _fail(f"the field {name!r}", f"to be a {kind.__name__}", repr(value))
    return value


def _texts(fields: Mapping[str, object], name: str, count: int | None = None) -> list[str]:
    values = fields[name]
    if not isinstance(values, list) or any(type(value) is not str for value in values):
        _fail(f"the field {name!r}", "to be a list of texts", repr(values)[:80])
    if count is not None and len(values) != count:
        _fail(f"the field {name!r}", f"to have {count} entries", len(values))
    return values


def _integers(fields: Mapping[str, object], name: str) -> list[int]:
    values = fields[name]
    if not isinstance(values, list) or any(type(value) is not int for value in values):
        _fail(f"the field {name!r}", "to be a list of integers", repr(values)[:80])
    return values


def _choice(fields: Mapping[str, object], name: str, literal: Any) -> Any:  # noqa: ANN401  (one of a Literal's values)
    value = fields[name]
    if value not in get_args(literal):
        _fail(f"the field {name!r}", f"to be one of {list(get_args(literal))}", repr(value))
    return value


def _units(fields: Mapping[str, object]) -> Units:
    values = fields["units"]
    if not isinstance(values, list) or len(values) != 3 or any(type(value) is not float for value in values):
        _fail("the field 'units'", "to be three numbers", repr(values))
    if any(math.frexp(value)[0] != 0.5 for value in values):
        _fail("the field 'units'", "to be powers of two", repr(values))
    return Units(*values)


def _check_version(content: RecordDict, name: str) -> None:
    """Before anything else is looked at: records of another version have other parts and fields."""
    found: Mapping[str, object] = _record(content, name, ConfigRecord)
    if found.get("version") != VERSION:
        _fail("the protocol version", f"to be {VERSION}", repr(found.get("version"))[:80])


def _check_layout(fields: Mapping[str, object], layout: Layout) -> None:
    if fields["layout"] != layout_digest(layout):
        other = shown(fields["layout"], 40)
        msg = (
            f"Expected both sides to have one network ({layout_digest(layout)}), got {other}. Give the "
            "server and every device the same label-names, image size and channels."
        )
        raise WireError(msg)
