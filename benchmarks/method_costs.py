"""What every method costs beside ``bce()``: time of a local step, numbers and bytes exchanged, as a Markdown table.

One process, one thread (or one GPU). A method and ``bce()`` on the same backbone train the same client in turns,
again and again; printed is the median of the ratios within a repeat, so that a machine that is busy for a while
disturbs times but hardly ratios. What a method does once in a turn (a look at all images, say) is part of the turn.
Turns are those of a late round, in which nothing is still warming up; of a method in phases there is a row for each.
Where the server tells clients apart or leads through stages (``SITUATIONS``), there is a row for each kind of turn.
Features that a process keeps from turn to turn are dropped before each: in a run the next turn is of other images.
Numbers and bytes are counted by the functions of ``fedmlic describe``.

A method that does not run with its defaults on the backbone is measured as its recipe in ``sim/recipes/methods`` has
it, beside ``bce()`` on the recipe's model. What cannot be measured is a row that says why.

    uv run python benchmarks/method_costs.py --out docs/methods/README.md
    uv run python benchmarks/method_costs.py --only fedlgt --out docs/methods/README.md
    uv run python benchmarks/method_costs.py --labels 80 --only bce fedlgt --repeats 3

``--out`` replaces what lies between the page's two marks, or writes a file of its own where there is none. With
``--only`` the lines of all other methods stay as they are, and a line below the caption says when and where the new
ones were measured; a table of other work (labels, images, repeats, ...) is refused.
"""

from __future__ import annotations

import argparse
import re
import statistics
import sys
import time
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
import torch
from measure import ROOT, machine

from clients.host import counts_of, round_sums_of
from fedmlic import spec
from fedmlic.diffusion import KeptFeatures
from fedmlic.errors import InputError, nearest
from fedmlic.experiment import Experiment
from fedmlic.labels import ABSENT, PRESENT, UNKNOWN
from fedmlic.learner import Learner, build_learner, choose_device
from fedmlic.method import Local, Stretch, Trained, stretch_of
from fedmlic.methods import fedcorr, fednoro
from fedmlic.process import prepare
from fedmlic.protocol import CLIENTS_BEHIND, IMAGES_BEHIND, STATISTICS
from fedmlic.shard import Shard
from sim.reports.exchange import exchange

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fedmlic.federation import Federation

BEGIN, END = "<!-- costs: written by benchmarks/method_costs.py -->", "<!-- end of costs -->"
RECIPES = ROOT / "sim" / "recipes" / "methods"
ROUNDS = 100
KNOWN, PRESENT_SHARE = 0.5, 0.2
SEED = 0
HEAD = (
    "| method | step | turn | trained | exchanged | bytes down | bytes up | remarks |",
    "|---|---|---|---|---|---|---|---|",
)


class Work(NamedTuple):
    """What is measured with.

    Attributes:
        model: the backbone.
        labels: how many.
        side: of square images in three colours.
        steps: batches of a turn.
        batch: images of each.
        repeats: pairs of turns.
        device: where networks are.
    """

    model: str
    labels: int
    side: int
    steps: int
    batch: int
    repeats: int
    device: torch.device


class Situation(NamedTuple):
    """What the server says of a client, where a turn depends on it.

    Attributes:
        name: for the table; empty where there is one situation only.
        told: what the server shares beside statistics and sums, by name.
    """

    name: str = ""
    told: Mapping[str, torch.Tensor] = MappingProxyType({})


def named(*clients: int) -> torch.Tensor:
    """The ids of noisy clients as a server sends them; the client that is measured is 0."""
    return torch.tensor(clients, dtype=torch.int64)


SITUATIONS = {
    "fednoro": (
        Situation("before the verdict"),
        Situation("after it, a noisy client", {fednoro.NOISY: named(0), fednoro.SINCE: torch.tensor(11)}),
        Situation("after it, another client", {fednoro.NOISY: named(), fednoro.SINCE: torch.tensor(11)}),
    ),
    "fedcorr": tuple(
        Situation(name, {fedcorr.NOISY: noisy, fedcorr.STAGE: torch.tensor(stage), fedcorr.LIMIT: torch.tensor(0.1)})
        for name, stage, noisy in (
            ("stage 1, a noisy client", 1, named(0)),
            ("stage 1, another client", 1, named()),
            ("stages 2 and 3", 2, named()),
        )
    ),
}
"""Kinds of turns of methods whose turns depend on what the rule of their name shares, as its defaults have it."""


class Row(NamedTuple):
    """One line of the table.

    Attributes:
        name: of the method, with the rounds of the phase and the kind of turn.
        step: time of a step in those of ``bce()``; None where no step is taken.
        turn: likewise, of a whole turn.
        counted: what ``exchange`` counted of the phase; None where it could not be.
        note: the text and model where they are not the defaults, or why something is missing.
    """

    name: str
    step: float | None
    turn: float | None
    counted: Mapping[str, int] | None
    note: str


class Pixels:
    """Images in memory, as a shard reads them."""

    as_maps = False

    def __init__(self, pixels: np.ndarray[Any, np.dtype[np.uint8]]) -> None:
        self._pixels = pixels

    def take(self, rows: np.ndarray[Any, np.dtype[np.int64]]) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """The images of some rows."""
        return self._pixels[rows]


def client(work: Work) -> Shard:
    """Random images; half of the entries annotated, a fifth of these present."""
    rng = np.random.default_rng(SEED)
    count = work.steps * work.batch
    labels = np.where(rng.random((count, work.labels)) < PRESENT_SHARE, PRESENT, ABSENT).astype(np.int8)
    labels[rng.random(labels.shape) >= KNOWN] = UNKNOWN
    images = Pixels(rng.integers(0, 255, (count, work.side, work.side, 3)).astype(np.uint8))
    names = tuple(f"label {number}" for number in range(work.labels))
    rows, nothing = np.arange(count), np.zeros(0, dtype=np.int64)
    return Shard(0, names, cast("Any", images), rows, labels, nothing, labels[:0])


@dataclass
class Player:
    """Plays turns of one method in one round, each from the same weights.

    Attributes:
        experiment: with the method.
        learner: of it.
        shard: the client's.
        stretch: the phase that is measured.
        number: of the round.
        told: what the server shares beside statistics and sums.
    """

    experiment: Experiment
    learner: Learner
    shard: Shard
    stretch: Stretch
    number: int
    told: Mapping[str, torch.Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        counted = counts_of(self.shard, [self.learner.method.statistics])
        told = {name: tensor for name, tensor in counted.items() if not name.endswith((CLIENTS_BEHIND, IMAGES_BEHIND))}
        self.shared = {f"{STATISTICS}{name}": tensor.to(self.learner.device) for name, tensor in told.items()}
        self.shared |= self._sums({})
        self.shared |= {name: tensor.to(self.learner.device) for name, tensor in self.told.items()}
        self.memory: dict[str, torch.Tensor] = {}
        self._start = self.learner.resident.flat.clone()
        self._incoming = self.learner.build_network(self.experiment).to(self.learner.device).eval()
        self._incoming.requires_grad_(requires_grad=False)

    def warm_up(self) -> None:
        """A turn that nobody times; what it leaves is what later ones find."""
        local = self._local(self.number - 1)
        self._train(local)
        if self.stretch.phase.solution is None:  # who has sent the sums for a solution has nothing left to do
            self.memory = dict(local.memory)
        self.shared |= self._sums(local.round_sums)

    def seconds(self) -> tuple[float, int]:
        """What a turn takes, and its steps."""
        local = self._local(self.number)
        kept = getattr(self.learner.resident.network, "kept", None)
        if isinstance(kept, KeptFeatures):
            kept.clear()
        self._wait()
        began = time.perf_counter()
        trained = self._train(local)
        self._wait()
        return time.perf_counter() - began, trained.num_steps

    def _train(self, local: Local) -> Trained:
        resident, phase = self.learner.resident, self.stretch.phase
        resident.load(self._start)
        resident.train_only(None if phase.tensors is None else set(phase.tensors(resident.network)))
        return phase.train(resident, self.shard, local)

    def _local(self, number: int) -> Local:
        return Local(
            self.experiment,
            number,
            self.shard.client,
            self.learner.device,
            lambda: self._incoming,
            self._start,
            self.learner.resident.layout,
            self.stretch.phase.objective,
            self.shared,
            dict(self.memory),
        )

    def _sums(self, filled: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        found = round_sums_of(self.shard, self.learner, filled)
        return {name: each for name, each in found.items() if not name.endswith((CLIENTS_BEHIND, IMAGES_BEHIND))}

    def _wait(self) -> None:
        if self.learner.device.type == "cuda":
            torch.cuda.synchronize()


def recipe_of(name: str) -> dict[str, str]:
    """Method and model of a method's recipe; nothing where there is none."""
    path = RECIPES / f"{name}.toml"
    if not path.is_file():
        return {}
    found = tomllib.loads(path.read_text(encoding="utf-8"))
    return {key: found[key] for key in ("method", "model") if key in found}


def candidates(name: str, work: Work) -> Iterator[tuple[dict[str, str], str]]:
    """Ways to set a method up, the plainest first, and what the table says of each."""
    yield {"method": f"{name}()", "model": work.model}, ""
    recipe = recipe_of(name)
    if recipe:
        settings = {"method": recipe["method"], "model": recipe.get("model", work.model)}
        beside = f", on `{settings['model']}`" if "model" in recipe else ""
        yield settings, f"`{settings['method']}`{beside}"


def rows_of(name: str, work: Work) -> list[Row]:
    """The lines of one method."""
    reasons = []
    for settings, note in candidates(name, work):
        try:
            return measured(name, work, settings, note)
        except InputError as error:
            reasons.append(str(error).splitlines()[0].replace("|", "/"))
    return [Row(name, None, None, None, f"not measured: {reasons[-1]}")]


def measured(name: str, work: Work, settings: Mapping[str, str], note: str) -> list[Row]:
    """The lines of one method that is set up in one way; a line for each phase."""
    experiment = experiment_of(work, settings)
    shard = client(work)
    counted = counted_of(experiment, shard, work)
    plain = player(experiment.model_copy(update={"method": "bce()"}), shard, work, ROUNDS)
    rows = []
    for phase in counted:
        rounds = "" if len(counted) == 1 else f"rounds {phase['first_round']}-{phase['last_round']}"
        for situation in SITUATIONS.get(name, (Situation(),)):
            one = player(experiment, shard, work, phase["last_round"], situation.told)
            step, turn = compared(one, plain, work.repeats)
            title = ", ".join(filter(None, (name, rounds, situation.name)))
            missing = "" if step is not None else "no steps: sums for the server to solve with"
            rows.append(Row(title, step, turn, phase, "; ".join(filter(None, (note, missing)))))
    return rows


def experiment_of(work: Work, settings: Mapping[str, str]) -> Experiment:
    """One local epoch, so that a turn sees every image once."""
    return Experiment(
        **settings, batch_size=work.batch, local_epochs=1, num_rounds=ROUNDS, allow_statistics=True, seed=SEED
    )


def counted_of(experiment: Experiment, shard: Shard, work: Work) -> list[dict[str, int]]:
    """Phases of the method with what a client receives and sends in a round of each."""
    shape = (work.side, work.side, 3)
    stand_in = SimpleNamespace(
        label_names=shard.label_names,
        clients=range(1),
        corpus=SimpleNamespace(image_shape=shape),
        shard=lambda _number: shard,
    )
    found = exchange(experiment, cast("Federation", stand_in))
    if "error" in found:
        raise InputError(found["error"])
    phases: list[dict[str, int]] = found["phases"]
    return phases


def player(
    experiment: Experiment,
    shard: Shard,
    work: Work,
    number: int,
    told: Mapping[str, torch.Tensor] = MappingProxyType({}),
) -> Player:
    """Ready to play turns of a round, in which the server tells something beside statistics and sums."""
    learner = build_learner(experiment, shard.label_names, (work.side, work.side, 3), work.device)
    made = Player(experiment, learner, shard, stretch_of(learner.method, number), number, told)
    made.warm_up()
    return made


def compared(one: Player, plain: Player, repeats: int) -> tuple[float | None, float | None]:
    """Medians of the ratios of a step and of a turn to those of ``plain``."""
    steps, turns = [], []
    for number in range(repeats):
        pair = (one, plain) if number % 2 else (plain, one)
        taken = {id(each): each.seconds() for each in pair}
        (mine, my_steps), (other, other_steps) = taken[id(one)], taken[id(plain)]
        turns.append(mine / other)
        if my_steps:
            steps.append((mine / my_steps) / (other / other_steps))
    return (statistics.median(steps) if steps else None), statistics.median(turns)


def line(row: Row) -> str:
    """A row in Markdown."""
    ratios = ["-" if value is None else f"{value:.2f}" for value in (row.step, row.turn)]
    counted = row.counted
    if counted is None:
        numbers = ["-"] * 4
    else:
        numbers = [f"{counted[key]:,}" for key in ("trained", "exchanged", "bytes_down", "bytes_up")]
    name, _, rounds = row.name.partition(",")
    return f"| {' | '.join([f'[{name}]({name}.md)' + (',' + rounds) * bool(rounds), *ratios, *numbers, row.note])} |"


def described(work: Work) -> str:
    """What is measured, in words."""
    return (
        f"`{work.model}`, {work.labels} labels, images of {work.side} x {work.side} in colour, batches of "
        f"{work.batch}, turns of {work.steps * work.batch} images, medians of {work.repeats}"
    )


def surroundings(work: Work) -> str:
    """Where it is measured, in words."""
    here = machine()
    where = torch.cuda.get_device_name() if work.device.type == "cuda" else here["processor"]
    return f"{where}, one thread, PyTorch {torch.__version__}, load before {here['load_before']}."


class Measured(NamedTuple):
    """A table as it stands on a page.

    Attributes:
        work: ``described``.
        where: ``surroundings`` of the lines that were measured together.
        later: of a method that was measured by itself, its ``surroundings``.
        lines: of each method, in Markdown.
    """

    work: str
    where: str
    later: dict[str, str]
    lines: dict[str, list[str]]

    def table(self) -> str:
        """In Markdown, methods in the order of the catalogue, others behind them."""
        places = {name: place for place, name in enumerate(spec.entries("method"))}
        names = sorted(self.lines, key=lambda name: (places.get(name, len(places)), name))
        later = [f"- `{name}` by itself: {self.later[name]}" for name in names if name in self.later]
        head = [f"{self.work}; {self.where}", "", *later, *([""] if later else []), *HEAD]
        return "\n".join([*head, *(each for name in names for each in self.lines[name])])


def standing(page: str) -> Measured | None:
    """The table between a page's marks; None where there is none.

    Raises:
        InputError: it is not one of this program's, or has other columns.
    """
    inside = page.partition(BEGIN)[2].partition(END)[0].strip()
    if not inside:
        return None
    before, head, rows = inside.partition("\n".join(HEAD))
    work, _, where = before.partition("\n")[0].partition("; ")
    later = dict(re.findall(r"^- `([^`]+)` by itself: (.+)$", before, re.MULTILINE))
    lines: dict[str, list[str]] = {}
    for each in rows.strip().splitlines():
        name = re.match(r"\| \[([^\]]+)\]", each)
        lines.setdefault(name[1] if name else "", []).append(each)
    if not head or not where or "" in lines:
        msg = "Expected the table between the marks to be one of this program, got another. Measure all methods once."
        raise InputError(msg)
    return Measured(work, where, later, lines)


def merged(page: str, new: Measured) -> Measured:
    """The page's table with the lines of some methods measured anew.

    Raises:
        InputError: the table is of other work, whose numbers do not stand beside these.
    """
    old = standing(page)
    if old is None:
        return new
    if old.work != new.work:
        msg = (
            f"Expected the work of the page's table, {old.work}, got {new.work}. Leave out the options that change it, "
            "or write to another file."
        )
        raise InputError(msg)
    later = old.later | dict.fromkeys(new.lines, new.where)
    return Measured(old.work, old.where, later, old.lines | new.lines)


def chosen(only: list[str]) -> list[str]:
    """The methods to measure.

    Raises:
        InputError: one is neither in the catalogue nor a dotted name.
    """
    known = list(spec.entries("method"))
    for name in only:
        if name not in known and "." not in name:
            msg = f"Expected --only to name methods, got {name!r}. {nearest(name, known)}"
            raise InputError(msg)
    return only or known


def written(text: str, table: str) -> str:
    """The page with the table between its marks.

    Raises:
        InputError: it has not both marks, in order.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        msg = (
            f"Expected a page with the lines {BEGIN!r} and {END!r}, got one without. Add them where the table belongs."
        )
        raise InputError(msg)
    return f"{before}{BEGIN}\n{table}\n{END}{after}"


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=[], help="names of methods; all of the catalogue")
    parser.add_argument("--model", default="small_cnn()", help="the backbone")
    parser.add_argument("--labels", type=int, default=20)
    parser.add_argument("--side", type=int, default=32, help="of images")
    parser.add_argument("--steps", type=int, default=4, help="batches of a turn")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=11, help="pairs of turns")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, help="a page with the two marks, or a new file")
    return parser.parse_args()


def main() -> None:
    """Measure all methods, print the table, and put it where it belongs."""
    asked = parsed()
    prepare(1)
    try:
        work = Work(
            asked.model, asked.labels, asked.side, asked.steps, asked.batch, asked.repeats, choose_device(asked.device)
        )
        page = asked.out.read_text(encoding="utf-8") if asked.out and asked.out.exists() else f"{BEGIN}\n{END}\n"
        written(page, "")  # a page that will not take the table is refused before anything is measured
        found = Measured(described(work), surroundings(work), {}, {})
        if asked.only:
            merged(page, found)
        for name in chosen(asked.only):
            print(f"{name} ...", file=sys.stderr)
            found.lines[name] = [line(row) for row in rows_of(name, work)]
    except InputError as error:
        sys.exit(str(error))
    print(found.table())
    if asked.out:
        whole = merged(page, found) if asked.only else found
        asked.out.write_text(written(page, whole.table()), encoding="utf-8")


if __name__ == "__main__":
    main()
