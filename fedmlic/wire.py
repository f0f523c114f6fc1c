"""Requests and replies as Flower's records: the only place of the language that knows Flower.

One message carries a model out (float32) and one carries a sum back (float64);
everything else in them is small. Arrays travel as ``ArrayRecord`` (bare numbers,
never a pickle), numbers with names as ``MetricRecord``, the rest as ``ConfigRecord``.
The model and the sums that are unpacked lie where the message lies and are only read;
whoever wants to change them copies them first. Unpacking is strict:
a part that is missing, unknown, of another type or of another shape is a
``WireError``, so that nothing unexpected enters a sum, and nothing but the fields
below ever leaves a device.

Both sides also say which code they run (``code_digest``), because Flower can run
old client code in silence when its service was started beside another copy.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
import os
import traceback
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeVar, get_args

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from fedmlic import code
from fedmlic.errors import InputError
from fedmlic.protocol import HostInfo, Kind, Reply, Request, Turn
from fedmlic.update import RowWeight, SharedWeight, Units, Update, Weighting

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fedmlic.arrays import Layout

VERSION: Final = 2
"""Raised whenever the records change; both sides must have the same."""

PACKAGES: Final = ("fedmlic", "clients")
"""Packages whose code decides what a client computes."""

WORK_FOLDER: Final = "FEDMLIC_WORK_FOLDER"
"""Environment variable: where relative paths start."""

RAW: Final = "fedmlic.raw"
"""How arrays are serialised: their numbers and nothing else, little-endian, in C order."""

STALE_HINT: Final = (
    "Flower imports packages from the folder in which its SuperLink was started: stop it and start it from a folder "
    "without fedmlic, clients, strategies or sim in it."
)

_COUNTS = ("num_images", "num_annotations", "num_steps")
_Scalar = TypeVar("_Scalar", bool, int, float, str)


class WireError(ValueError):
    """A message that does not follow the protocol."""


class RemoteError(RuntimeError):
    """What the other side says went wrong there.

    Args:
        kind: the name of the exception's type.
        text: its message.
        simulated: whether the other side is part of a simulation on this machine.
    """

    def __init__(self, kind: str, text: str, *, simulated: bool) -> None:
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
        }
    )
    return RecordDict({"introduction": about, "hosted": _arrays({"clients": info.clients, "sizes": info.sizes})})


def unpack_introduction(content: RecordDict) -> Introduction:
    """The answer to a query.

    Raises:
        RemoteError: the node says what went wrong there.
        WireError: it does not follow the protocol.
    """
    _raise_failure(content)
    _check_names("introduction", content, {"introduction", "hosted"})
    about = _fields(content, "introduction", {"version", "code", "num-hosts", "host", "label-names"})
    _check_version(about)
    hosted = _record(content, "hosted", ArrayRecord)
    _check_names("hosted clients", hosted, {"clients", "sizes"})
    clients = _array(hosted, "clients", np.int64, (None,))
    sizes = _array(hosted, "sizes", np.int64, clients.shape)
    names = tuple(_texts(about, "label-names"))
    info = HostInfo(_scalar(about, "host", str), clients, sizes, names)
    return Introduction(info, _scalar(about, "num-hosts", int), _scalar(about, "code", str))


# --- Requests --------------------------------------------------------------------------


def pack_model(flat: torch.Tensor, *, copy: bool = True) -> ArrayRecord:
    """The global model, float32 ``[layout.size]``; made once a round and put into every message.

    Args:
        flat: the model.
        copy: False leaves the numbers where they are, for Flower's simulation: they must stay
            what they are until the message has been pickled.
    """
    return _arrays({"flat": flat.detach().cpu().numpy()}, copy=copy)


def pack_request(request: Request, clients: Sequence[int], layout: Layout, model: ArrayRecord) -> RecordDict:
    """A request to play ``clients``.

    Args:
        request: the round's work; ``model`` is sent in place of its ``flat``.
        clients: who is to be played, in this order.
        layout: of the exchanged tensors.
        model: ``pack_model(request.flat)``.
    """
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
        }
    )
    played = _arrays({"clients": np.asarray(clients, dtype=np.int64)})
    return RecordDict({"request": about, "played": played, "model": model})


def unpack_request(content: RecordDict, layout: Layout) -> tuple[Request, list[int]]:
    """The request and the clients it names.

    Raises:
        WireError: it does not follow the protocol, or it is for another network.
    """
    _check_names("request", content, {"request", "played", "model"})
    fields = {"version", "layout", "kind", "round", "units", "shared-weight", "row-weight", "each"}
    about = _fields(content, "request", fields)
    _check_version(about)
    _check_layout(about, layout)
    model = _record(content, "model", ArrayRecord)
    _check_names("model", model, {"flat"})
    weighting = Weighting(_choice(about, "shared-weight", SharedWeight), _choice(about, "row-weight", RowWeight))
    request = Request(
        kind=_choice(about, "kind", Kind),
        round=_scalar(about, "round", int),
        flat=_tensor(_array(model, "flat", np.float32, (layout.size,))),
        units=_units(about),
        weighting=weighting,
        each=_scalar(about, "each", bool),
    )
    played = _record(content, "played", ArrayRecord)
    _check_names("played clients", played, {"clients"})
    return request, [int(client) for client in _array(played, "clients", np.int64, (None,))]


# --- Replies ---------------------------------------------------------------------------


def pack_reply(reply: Reply, layout: Layout, *, copy: bool = True) -> RecordDict:
    """What playing some clients gave.

    Args:
        reply: it.
        layout: of the exchanged tensors.
        copy: False leaves sums where they are, as in ``pack_model``.
    """
    about = ConfigRecord({"version": VERSION, "layout": layout_digest(layout), "num-updates": len(reply.updates)})
    content = RecordDict({"reply": about})
    turns, texts = _pack_turns(reply.turns)
    content["turns"], content["turn-texts"] = turns, texts
    content["evaluation"] = _arrays(reply.evaluation)
    for number, update in enumerate(reply.updates):
        _pack_update(content, f"update-{number}", update, copy=copy)
    return content


def unpack_reply(content: RecordDict, layout: Layout) -> Reply:
    """What a host answered.

    Raises:
        RemoteError: the node says what went wrong there.
        WireError: it does not follow the protocol, or it is for another network.
    """
    _raise_failure(content)
    about = _fields(content, "reply", {"version", "layout", "num-updates"})
    _check_version(about)
    _check_layout(about, layout)
    num_updates = _scalar(about, "num-updates", int)
    if num_updates > len(content):
        _fail("the number of updates", "to be that of the parts", num_updates)
    stems = [f"update-{number}" for number in range(num_updates)]
    parts = {f"{stem}{part}" for stem in stems for part in ("", "-about", "-metrics")}
    _check_names("reply", content, {"reply", "turns", "turn-texts", "evaluation", *parts})
    evaluation = _record(content, "evaluation", ArrayRecord)
    return Reply(
        turns=_unpack_turns(content),
        updates=tuple(_unpack_update(content, stem, layout) for stem in stems),
        evaluation={name: _array(evaluation, name, np.int64, None) for name in evaluation},
    )


def _pack_turns(turns: Sequence[Turn]) -> tuple[ArrayRecord, ConfigRecord]:
    """Turns as columns; their metrics as (turn, name, value) triples, since names differ."""
    triples = [(row, name, value) for row, turn in enumerate(turns) for name, value in turn.metrics.items()]
    arrays = {
        "clients": np.array([turn.client for turn in turns], dtype=np.int64),
        "counts": np.array([[getattr(turn, n) for n in _COUNTS] for turn in turns], dtype=np.int64).reshape(-1, 3),
        "numbers": np.array([[turn.started, turn.seconds, turn.loss] for turn in turns], dtype=np.float64).reshape(
            -1, 3
        ),
        "metric-turns": np.array([row for row, _, _ in triples], dtype=np.int64),
        "metric-values": np.array([value for _, _, value in triples], dtype=np.float64),
    }
    texts = {
        "hosts": [turn.host for turn in turns],
        "errors": [turn.error for turn in turns],
        "metric-names": [name for _, name, _ in triples],
    }
    return _arrays(arrays), ConfigRecord(dict(texts))


def _unpack_turns(content: RecordDict) -> tuple[Turn, ...]:
    record = _record(content, "turns", ArrayRecord)
    _check_names("turns", record, {"clients", "counts", "numbers", "metric-turns", "metric-values"})
    clients = _array(record, "clients", np.int64, (None,))
    counts = _array(record, "counts", np.int64, (len(clients), len(_COUNTS)))
    numbers = _array(record, "numbers", np.float64, (len(clients), 3))
    rows = _array(record, "metric-turns", np.int64, (None,))
    values = _array(record, "metric-values", np.float64, rows.shape)
    texts = _fields(content, "turn-texts", {"hosts", "errors", "metric-names"})
    hosts, errors = _texts(texts, "hosts", len(clients)), _texts(texts, "errors", len(clients))
    names = _texts(texts, "metric-names", len(rows))
    if len(rows) and (rows.min() < 0 or rows.max() >= len(clients)):
        _fail("metrics of turns", f"to belong to one of {len(clients)} turns", rows.max())
    metrics: list[dict[str, float]] = [{} for _ in clients]
    for row, name, value in zip(rows.tolist(), names, values.tolist(), strict=True):
        metrics[row][name] = value
    return tuple(
        Turn(
            client=int(clients[row]),
            host=hosts[row],
            started=float(numbers[row, 0]),
            seconds=float(numbers[row, 1]),
            loss=float(numbers[row, 2]),
            metrics=metrics[row],
            error=errors[row],
            **{name: int(count) for name, count in zip(_COUNTS, counts[row], strict=True)},
        )
        for row in range(len(clients))
    )


def _pack_update(content: RecordDict, stem: str, update: Update, *, copy: bool) -> None:
    arrays = {
        "sums": update.sums.detach().cpu().numpy(),
        "row-weights": update.row_weights.numpy(),
        "clients": np.array(update.clients, dtype=np.int64),
        "annotations": update.annotations.numpy(),
    }
    content[stem] = _arrays(arrays, copy=copy)
    content[f"{stem}-about"] = ConfigRecord(
        {"units": list(update.units), "weight": update.weight, "num-images": update.num_images}
    )
    content[f"{stem}-metrics"] = MetricRecord({name: float(value) for name, value in update.metrics.items()})


def _unpack_update(content: RecordDict, stem: str, layout: Layout) -> Update:
    record = _record(content, stem, ArrayRecord)
    _check_names(stem, record, {"sums", "row-weights", "clients", "annotations"})
    about = _fields(content, f"{stem}-about", {"units", "weight", "num-images"})
    metrics = _record(content, f"{stem}-metrics", MetricRecord)
    return Update(
        layout=layout,
        units=_units(about),
        sums=_tensor(_array(record, "sums", np.float64, (layout.size,))),
        weight=_scalar(about, "weight", float),
        row_weights=torch.from_numpy(_array(record, "row-weights", np.float64, (layout.num_labels,)).copy()),
        clients=[int(client) for client in _array(record, "clients", np.int64, (None,))],
        num_images=_scalar(about, "num-images", int),
        annotations=torch.from_numpy(_array(record, "annotations", np.int64, (layout.num_labels,)).copy()),
        metrics={name: _scalar(metrics, name, float) for name in metrics},
    )


# --- Failures --------------------------------------------------------------------------


def pack_failure(error: BaseException, *, simulated: bool) -> RecordDict:
    """An answer in place of any other: what went wrong; from a device one line, without a traceback."""
    text = str(error) if simulated else first_line(str(error))
    if simulated and not isinstance(error, InputError):
        text += "\n" + "".join(traceback.format_exception(error)).strip()
    return RecordDict({"failure": ConfigRecord({"kind": type(error).__name__, "text": text, "simulated": simulated})})


def first_line(text: str) -> str:
    r"""The first line of a message: later ones may list files or hold a traceback.

    >>> first_line("ValueError: 3 problems:\n  /data/anna.png")
    'ValueError: 3 problems:'
    """
    return text.strip().split("\n", maxsplit=1)[0]


def _raise_failure(content: RecordDict) -> None:
    if "failure" in content:
        about = _fields(content, "failure", {"kind", "text", "simulated"})
        simulated = _scalar(about, "simulated", bool)
        raise RemoteError(_scalar(about, "kind", str), _scalar(about, "text", str), simulated=simulated)


# --- Parts of records ------------------------------------------------------------------


def _arrays(arrays: Mapping[str, NDArray[Any]], *, copy: bool = True) -> ArrayRecord:
    record = ArrayRecord()
    for name, array in arrays.items():
        raw = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
        packed = Array(dtype=raw.dtype.str, shape=array.shape, stype=RAW, data=b"")
        # Bytes are copied into a pickle and out of it again; NumPy's memory stays where it is, for Ray to move.
        packed.data = raw.tobytes() if copy else raw.reshape(-1).view(np.uint8)  # type: ignore[assignment]
        record[name] = packed
    return record


def _fail(what: str, expected: str, got: object) -> NoReturn:
    msg = f"Expected {what} {expected}, got {got}. Both sides must run the same version of this project."
    raise WireError(msg)


def _check_names(what: str, found: Iterable[str], expected: set[str]) -> None:
    got = set(found)
    if got != expected:
        _fail(f"the parts of {what}", f"to be {sorted(expected)}", f"{sorted(got)}")


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
        _fail("arrays", f"to include {name!r}", sorted(record))
    packed, kind = record[name], np.dtype(dtype).newbyteorder("<")
    if (packed.stype, packed.dtype) != (RAW, kind.str):
        _fail(f"the array {name!r}", f"to be {RAW} of {kind.str}", f"{packed.stype} of {packed.dtype}")
    if len(packed.data) != math.prod(packed.shape) * kind.itemsize or min(packed.shape, default=0) < 0:
        _fail(f"the array {name!r}", f"to have the bytes of shape {packed.shape}", len(packed.data))
    if shape is not None:
        fits = len(shape) == len(packed.shape) and all(
            want in (None, have) for want, have in zip(shape, packed.shape, strict=True)
        )
        if not fits:
            _fail(f"the array {name!r}", f"to have shape {shape}", packed.shape)
    return np.frombuffer(packed.data, kind).reshape(packed.shape)


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


def _choice(fields: Mapping[str, object], name: str, literal: Any) -> Any:  # noqa: ANN401  (one of a Literal's values)
    value = fields[name]
    if value not in get_args(literal):
        _fail(f"the field {name!r}", f"to be one of {list(get_args(literal))}", repr(value))
    return value


def _units(fields: Mapping[str, object]) -> Units:
    values = fields["units"]
    if not isinstance(values, list) or len(values) != 2 or any(type(value) is not float for value in values):
        _fail("the field 'units'", "to be two numbers", repr(values))
    return Units(*values)


def _check_version(fields: Mapping[str, object]) -> None:
    if fields["version"] != VERSION:
        _fail("the protocol version", f"to be {VERSION}", fields["version"])


def _check_layout(fields: Mapping[str, object], layout: Layout) -> None:
    if fields["layout"] != layout_digest(layout):
        msg = (
            f"Expected both sides to have one network ({layout_digest(layout)}), got {fields['layout']}. Give the "
            "server and every device the same label-names, image size and channels."
        )
        raise WireError(msg)
