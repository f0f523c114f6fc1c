"""The round loop: sample, send, gather, aggregate, evaluate, record, checkpoint.

Written once, against a ``Transport`` and a ``Record``; it knows neither what
carries the requests nor where the record lies.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch

from fedmlic import spec
from fedmlic.arrays import sha256
from fedmlic.counting import ABSENT_COUNTS, PRESENT_COUNTS, together_of
from fedmlic.errors import InputError, shown
from fedmlic.frequency import Frequencies
from fedmlic.histograms import ScoreHistograms
from fedmlic.holdout import largest_share
from fedmlic.method import stretch_of
from fedmlic.metrics import unannotated_columns, unannotated_values
from fedmlic.protocol import (
    BY_IMAGES,
    CLIENTS_BEHIND,
    IMAGES_BEHIND,
    ROUND_SUMS,
    SOLUTION_SUMS,
    STATISTICS,
    HostInfo,
    Reply,
    Request,
    Turn,
)
from fedmlic.sums import Declared
from fedmlic.update import LIMIT, Update, method_metrics, units_for
from strategies.server.balance import balance, hosts_of
from strategies.server.check import too_few_behind_sums
from strategies.server.cohort import Directory, sample_cohort
from strategies.server.costs import Costs
from strategies.server.introductions import other_versions, problem_of_host
from strategies.server.per_client import client_rows, own_values
from strategies.server.replies import REFUSED, Expected, RefusedError, not_finite, scores_of, shapes_of
from strategies.server.solver import Solver
from strategies.strategy import Round, State, Strategy, total_of

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from fedmlic.arrays import Layout
    from fedmlic.evaluation import Evaluation, Evaluator
    from fedmlic.experiment import Experiment
    from fedmlic.learner import Learner
    from strategies.server.transport import Transport


SHOWN_STATISTICS = 4096
"""Counted numbers that are written into the event log; larger tensors lie in the checkpoints only."""


class RunFailedError(RuntimeError):
    """A round could not be completed; the last checkpoint is kept."""


@dataclass(frozen=True)
class Progress:
    """Everything the loop needs to go on after a checkpoint.

    Attributes:
        round: rounds completed.
        state: of the strategy; ``flat`` is the whole model, also where a phase exchanges a part.
        best_round: the round with the best validation metric so far (0: none).
        best_value: its value.
        seconds: wall time spent in rounds so far.
        last: for each client that has had a turn that counted, the round of the last such.
        statistics: what was counted over all clients before the first round, by name.
    """

    round: int
    state: State
    best_round: int = 0
    best_value: float = -math.inf
    seconds: float = 0.0
    last: Mapping[int, int] = field(default_factory=dict)
    statistics: Mapping[str, Tensor] = field(default_factory=dict)


class Record(Protocol):
    """Where the loop writes down what happened."""

    def event(self, kind: str, values: Mapping[str, object]) -> None:
        """Append one event."""

    def add_events(self, kind: str, rows: Sequence[Mapping[str, object]]) -> None:
        """Append events of one kind at once."""

    def scores(self, progress: Progress, evaluation: Evaluation) -> None:
        """Keep the scores of evaluated images, if the run keeps those of this round."""

    def checkpoint(self, progress: Progress) -> None:
        """Keep what is needed to go on from here, atomically."""

    def resumable(self) -> tuple[int, ...]:
        """Rounds whose checkpoints are kept."""

    def client_metrics(self, number: int) -> Mapping[str, float]:
        """What clients found of the model after round ``number``, by name; empty where they were not asked."""


@dataclass(frozen=True)
class Outcome:
    """What a finished run amounts to.

    Attributes:
        progress: after the last round.
        metrics: of the final model.
        weights_sha256: the hash of the final global arrays.
    """

    progress: Progress
    metrics: dict[str, float]
    weights_sha256: str


class Rounds:
    """The round loop of one experiment.

    Args:
        experiment: what to do.
        learner: the method with its network, for the layout and for evaluation.
        strategy: what the server does with updates.
        transport: who plays clients.
        evaluator: scores the model on the server's images.
        record: where it is written down.
        on_turn: called for every client's turn as it ends (progress display).
        run: a name of the run that stays when it is resumed.
        present_counts: training images of all clients that are annotated as having each label, where that is known.
    """

    def __init__(
        self,
        experiment: Experiment,
        learner: Learner,
        strategy: Strategy,
        transport: Transport,
        evaluator: Evaluator,
        record: Record,
        on_turn: Callable[[int, Turn, int], None] | None = None,
        run: str = "",
        present_counts: Sequence[int] | None = None,
    ) -> None:
        self._run = run
        self._present_counts = present_counts
        self._experiment = experiment
        self._solver = Solver(learner, experiment)
        self._layout = learner.resident.layout
        self._method, self._network = learner.method, learner.resident.network
        self._personal = bool(learner.resident.private_names)
        self._mods = tuple(spec.build("mods", text) for text in strategy.mods) + learner.mods
        self._label_names = learner.task.label_names
        self._declared = Declared(experiment, self._mods, self._method.passes)
        self._strategy = strategy
        self._transport = transport
        self._evaluator = evaluator
        self._record = record
        self._on_turn = on_turn or _ignore
        self._costs: Costs
        self._num_hosts = 0
        self._unannotated: tuple[str, ...] | None = None
        self._frequencies: Frequencies | None = None
        self._warned: set[str] = set()

    def run(self, start: Progress) -> Outcome:
        """Play the remaining rounds after ``start`` and evaluate the final model on all clients.

        Raises:
            InputError: there are too few clients for the sums of the method.
            RunFailedError: fewer clients than ``min-replies`` asks for succeeded in a round, or a client did not
                count what is counted before round 1.
        """
        experiment = self._experiment
        hosts = self._admitted(self._transport.hosts())
        directory = Directory(hosts)
        # Known only now: how many clients the partition found, or how many devices there are.
        few = list(too_few_behind_sums(experiment, self._method, len(directory.clients)))
        if few:
            raise InputError("\n".join(few))
        self._costs, self._num_hosts = Costs(directory), len(hosts)
        self._write_versions(hosts)
        progress = self._count(start, directory)
        self._unannotated = unannotated_of(hosts, progress.statistics, experiment)
        self._frequencies = frequencies_of(self._present_counts, progress.statistics, experiment)
        metrics: dict[str, float] = {}
        if experiment.num_rounds == 0:
            metrics = self._untrained(progress)
        for number in range(start.round + 1, experiment.num_rounds + 1):
            progress, metrics = self._round(number, progress, directory)
        if self._personal:
            progress, metrics = self._chosen_by_clients(progress, metrics, directory)
        else:
            # Without metrics the run was resumed after the last round: only the final evaluation is missing.
            metrics = {**(metrics or self._scored(progress).values), **self._evaluate_clients(progress, directory)}
        return Outcome(progress, metrics, sha256(self._layout, progress.state.flat))

    def _untrained(self, first: Progress) -> dict[str, float]:
        """Evaluate the first model on the server, as round 0 of a run without rounds; nothing trains.

        Nothing is chosen on validation data, since there is one model.
        """
        if self._record.client_metrics(first.round):  # resumed from the checkpoint after these, which has the round
            return {}
        # Before what is written of it: a run that is interrupted cuts its log back to here.
        self._record.checkpoint(first)
        evaluation = self._evaluate_server(first)
        if evaluation is not None:
            self._record.scores(first, evaluation)
        self._write_round(first, [], evaluation, 0.0, {}, {})
        return dict(evaluation.values) if evaluation else {}

    def _chosen_by_clients(
        self, progress: Progress, metrics: dict[str, float], directory: Directory
    ) -> tuple[Progress, dict[str, float]]:
        """The last progress and what clients found of its model, also of a run resumed after its last round."""
        found = metrics or dict(self._record.client_metrics(progress.round))
        if found:
            return progress, found
        # Without held-out images, or a run of earlier versions, which evaluated after the last checkpoint.
        found = self._evaluate_clients(progress, directory)
        chosen = _with_best(progress, found, "client/mAP")
        if chosen is not progress:
            self._record.checkpoint(chosen)
        return chosen, found

    def _admitted(self, hosts: Sequence[HostInfo]) -> list[HostInfo]:
        """Hosts whose clients can be asked; devices that cannot are set aside.

        Raises:
            InputError: nobody is left, or clients of a host that is left are said otherwise by one that is not.
        """
        self._note_set_aside()
        problems = {info.host: problem_of_host(info, tuple(self._label_names)) for info in hosts}
        good = [info for info in hosts if not problems[info.host]]
        clients = {client for info in good for client in info.clients.tolist()}
        for info in hosts:
            problem = problems[info.host]
            if problem and (not good or clients & set(info.clients.tolist())):
                raise InputError(problem)
            if problem:
                self._record.event("set-aside", {"host": shown(info.host, 80), "reason": problem})
        return good

    def _note_set_aside(self) -> None:
        # Most transports only have hosts of this project's own making.
        set_aside = getattr(self._transport, "set_aside", list)
        for row in set_aside():
            self._record.event("set-aside", row)

    def _count(self, start: Progress, directory: Directory) -> Progress:
        """Ask all clients for the sums that the method or a mod needs, once; a resumed run has them already."""
        asked = [self._method.statistics, *(mod.statistics for mod in self._mods)]
        if start.round > 0 or start.statistics or not any(asked):
            return start
        clients = directory.clients.tolist()
        request = Request(
            kind="count",
            round=0,
            flat=start.state.flat,
            units=units_for(BY_IMAGES, directory.sizes.tolist(), len(self._label_names)),
            mods=self._strategy.mods,
        )
        played: dict[int, Turn] = {}
        replies = self._transport.play(request, clients, dict.fromkeys(clients, 1.0))
        expected = self._expected(request, clients, directory)
        total = total_of(self._agreeing(self._updates(expected, replies, played), played))
        failed = {turn.client for turn in played.values() if turn.error}
        missing = sorted((set(clients) - set([] if total is None else total.clients)) | failed)
        if total is None or missing:
            raise self._count_failed(missing, played)
        counted, events = withheld(total, self._experiment, together_of(asked))
        for event in events:
            self._record.event("statistics", event)
        progress = replace(start, statistics=counted)
        self._record.checkpoint(progress)
        return progress

    def _count_failed(self, missing: Sequence[int], played: Mapping[int, Turn]) -> RunFailedError:
        """The error that ends a run some of whose clients did not count, whatever ``min-replies``; notes the turns."""
        self._write_turns(0, list(played.values()))
        turns = [played.get(client, Turn(client, "")) for client in missing]
        reasons = [f"client {t.client}: {t.error.splitlines()[0] if t.error else 'no answer'}" for t in turns]
        msg = (
            "Expected every client to count its labels before round 1, since a count of some would pass for one of "
            f"all, got none of {len(missing)}: {'; '.join(reasons[:3])}. Mend the cause and start again; a device that "
            "cannot count can be left out with node-ids."
        )
        return RunFailedError(msg)

    def _enter(self, number: int, before: Progress) -> tuple[Progress, tuple[str, ...] | None]:
        """The progress at the start of a round, and the tensors it exchanges; a phase's first round begins a state."""
        stretch = stretch_of(self._method, number)
        chosen = None if stretch.phase.tensors is None else set(stretch.phase.tensors(self._network))
        names = None if chosen is None else tuple(name for name in self._layout.names if name in chosen)
        part = self._layout if names is None else self._layout.only(names)
        if number == stretch.first_round:
            state = self._strategy.init(self._layout.gather(before.state.flat, part), part)
            shared = {**state.shared, **self._no_round_sums()}
            before = replace(before, state=replace(state, flat=before.state.flat, shared=shared))
        return before, names

    def _no_round_sums(self) -> dict[str, Tensor]:
        """What clients get in place of the method's sums of the round before, where there was none."""
        declared = self._method.round_sums
        zeros = {} if declared is None else declared(self._network, len(self._label_names))
        return {ROUND_SUMS + name: tensor for name, tensor in zeros.items()}

    def _with_round_sums(self, before: State, after: State, sums: Mapping[str, Tensor]) -> tuple[State, dict[str, int]]:
        """The rule's next state with what clients get beside the model, and how many numbers of it are withheld."""
        counted, few = enough_behind(sums, self._experiment)
        # The rule may have replaced all that it shares; where nobody answered, the old sums stay.
        old = {name: before.shared[name] for name in self._no_round_sums()}
        return replace(after, shared={**after.shared, **old, **counted}), few

    def _round(self, number: int, before: Progress, directory: Directory) -> tuple[Progress, dict[str, float]]:
        started = time.perf_counter()
        experiment = self._experiment
        before, names = self._enter(number, before)
        cohort = sample_cohort(
            directory,
            size=experiment.cohort_size,
            how=experiment.cohort,
            seed=experiment.seed,
            round_number=number,
        )
        request = self._request(number, before, names, cohort, directory)
        played: dict[int, Turn] = {}
        costs = self._costs.of(cohort)
        replies = self._transport.play(request, list(costs), costs)
        part = request.layout(self._layout)
        here = Round(number, len(directory.clients), len(cohort), part, experiment.seed, before.statistics)
        inner = replace(before.state, flat=self._layout.gather(before.state.flat, part), metrics={})
        sums: dict[str, float] = {}
        tensors: dict[str, Tensor] = {}
        updates = self._updates(self._expected(request, cohort, directory), replies, played)
        state = self._merged(inner, _noted(updates, sums, tensors), here)
        state, few = self._with_round_sums(before.state, state, _named(tensors, ROUND_SUMS))
        state, hidden = self._solver.kept(before.state, state, request.solved, tensors)
        turns = list(played.values())
        self._note_set_aside()
        self._require_enough(number, turns, len(cohort))
        self._require_finite(number, state, part, turns)
        state = replace(state, flat=self._layout.scatter(state.flat, part, before.state.flat))
        state = self._solver.solved(number, state, request.solved)
        few |= hidden
        self._costs.learn(turns)
        train_seconds = time.perf_counter() - started

        played_now = {turn.client: number for turn in turns if not turn.error}
        progress = replace(before, round=number, state=state, last={**before.last, **played_now})
        evaluation = self._evaluate_server(progress)
        if evaluation is not None:
            progress = _with_best(progress, evaluation.values)
            self._record.scores(progress, evaluation)
        personal = self._evaluate_clients(progress, directory) if self._clients_due(number) else {}
        if self._personal and personal:
            progress = _with_best(progress, personal, "client/mAP")
        progress = replace(progress, seconds=before.seconds + time.perf_counter() - started)
        self._write_round(progress, turns, evaluation, train_seconds, sums, few)
        self._warn(number, sums)
        self._record.checkpoint(progress)
        last = dict(personal) if self._personal and number == experiment.num_rounds else {}
        return progress, dict(evaluation.values) if evaluation else last

    def _clients_due(self, number: int) -> bool:
        """Whether clients evaluate within the round; after the last one they do where that chooses the best round."""
        if number == self._experiment.num_rounds:
            return self._personal
        every = self._experiment.evaluate_clients_every
        return bool(every) and number % every == 0

    def _request(
        self, number: int, before: Progress, names: tuple[str, ...] | None, cohort: list[int], directory: Directory
    ) -> Request:
        """What the round's clients are asked to do."""
        sizes = directory.sizes_of(cohort).tolist()
        shared = self._shared(before)
        return Request(
            kind="train",
            round=number,
            flat=before.state.flat,
            units=units_for(self._strategy.weighting, sizes, len(directory.label_names)),
            weighting=self._strategy.weighting,
            each=self._strategy.needs == "each",
            tensors=names,
            shared=shared,
            mods=self._strategy.mods,
            last=self._last(before, cohort),
            run=self._run,
            needed=self._record.resumable() if self._remembers else (),
            solved=self._solver.sums(number, shared),
        )

    @property
    def _remembers(self) -> bool:
        """Whether clients keep tensors from turn to turn."""
        return self._personal or self._method.remembers or any(mod.remembers for mod in self._mods)

    def _last(self, progress: Progress, clients: Sequence[int]) -> dict[int, int]:
        if not self._remembers:
            return {}
        return {client: progress.last[client] for client in clients if client in progress.last}

    @staticmethod
    def _shared(progress: Progress) -> dict[str, Tensor]:
        return {**progress.state.shared, **{STATISTICS + n: tensor for n, tensor in progress.statistics.items()}}

    def _expected(self, request: Request, clients: Sequence[int], directory: Directory) -> Expected:
        """What is known of the answers before they come."""
        sizes = dict(zip(clients, directory.sizes_of(clients).tolist(), strict=True))
        layout = request.layout(self._layout)
        share = largest_share(self._experiment.holdout_fraction, self._experiment.holdout_by)
        return Expected(request, layout, sizes, share, self._declared, self._strategy.metrics, request.solved)

    def _updates(self, expected: Expected, replies: Iterable[Reply], turns: dict[int, Turn]) -> Iterator[Update]:
        """Pass updates on as they come, and note the turns beside them.

        A client whose worker died is played again; its later turn is the one that counts. An update
        that cannot be right is the failed turn of its clients; a sum of nobody is nobody's.
        """
        for reply in replies:
            for turn in reply.turns:
                if turn.client in expected.sizes:
                    self._note(expected, turn, turns)
            for update in reply.updates:
                if not update.clients and not expected.request.each:
                    continue
                try:
                    expected.update(update, exact=False)
                except RefusedError as error:
                    hosts = {turn.client: turn.host for turn in (*turns.values(), *reply.turns)}
                    asked = [client for client in dict.fromkeys(update.clients) if client in expected.sizes]
                    for client in set(asked) - expected.counted:
                        reason = f"{REFUSED}: {error}"
                        self._note(expected, Turn(client, hosts.get(client, ""), error=reason), turns)
                    if not asked:
                        self._record.event("warning", {"text": f"{REFUSED}: an update of no client that was asked."})
                    continue
                expected.counted.update(update.clients)
                yield update

    def _note(self, expected: Expected, turn: Turn, turns: dict[int, Turn]) -> None:
        turns[turn.client] = turn
        self._on_turn(expected.request.round, turn, len(expected.sizes))

    def _merged(self, state: State, updates: Iterable[Update], here: Round) -> State:
        """What the rule makes of the updates; an error of its own, which ends the run, says which it had got last."""
        given: list[int] = []

        def handed() -> Iterator[Update]:
            for update in updates:
                given[:] = update.clients[:8]
                yield update

        try:
            return self._strategy.aggregate(state, handed(), here)
        except Exception as error:
            error.add_note(f"{self._experiment.strategy}, round {here.number}, after the update of clients {given}")
            raise

    @staticmethod
    def _agreeing(updates: Iterable[Update], turns: dict[int, Turn]) -> Iterator[Update]:
        """The updates that hold the same sums beside the model as most clients' do; the others' turns have failed."""
        groups: dict[object, list[Update]] = {}
        for update in updates:
            groups.setdefault(shapes_of(update), []).append(update)
        ranked = sorted(
            groups.values(),
            key=lambda group: (-sum(len(u.clients) for u in group), min(client for u in group for client in u.clients)),
        )
        for client in (client for group in ranked[1:] for update in group for client in update.clients):
            reason = f"{REFUSED}: Expected the same sums as others sent, got other names, types or shapes."
            turns[client] = replace(turns.get(client, Turn(client, "")), error=reason)
        return iter(ranked[0] if ranked else ())

    def _require_finite(self, number: int, state: State, part: Layout, turns: Sequence[Turn]) -> None:
        """A model with NaN in it can never recover, nor one that no client may send any more.

        The round fails, and the checkpoint before it is the last.
        """
        wrong = not_finite([*part.views(state.flat), *state.memory.items(), *state.shared.items()])
        wrong = wrong or [name for name, view in part.views(state.flat) if bool((view.abs() > LIMIT).any())]
        if not wrong:
            return
        self._write_turns(number, list(turns))
        counted = sorted(turn.client for turn in turns if not turn.error)
        msg = (
            f"Expected round {number} to lead to a model of numbers within {LIMIT:g}, got NaN, infinity or larger ones "
            f"in {shown(wrong[:5])} when "
            f"{self._experiment.strategy} merged the updates of clients {shown(counted[:20])}, each of them within its "
            "bounds. The model of the round before is kept. Lower the rule's rate or the learning rate in a new run."
        )
        raise RunFailedError(msg)

    def _require_enough(self, number: int, turns: list[Turn], asked: int) -> None:
        failed = [turn for turn in turns if turn.error]
        succeeded = len(turns) - len(failed)
        # 0.07 * 100 is a little more than 7 in binary.
        needed = max(1, math.ceil(self._experiment.min_replies * asked - 1e-9))
        if succeeded >= needed:
            return
        self._write_turns(number, turns)
        reasons = "; ".join(f"client {turn.client}: {turn.error.splitlines()[0]}" for turn in failed[:3])
        msg = (
            f"Expected at least {needed} of {asked} clients to succeed in round {number}, got {succeeded}. "
            f"{reasons or 'No client answered.'} Lower min-replies to go on with fewer, or mend the cause "
            "and resume."
        )
        raise RunFailedError(msg)

    def _evaluate_server(self, progress: Progress) -> Evaluation | None:
        if self._personal:
            return None  # no client predicts with this model alone
        last = progress.round == self._experiment.num_rounds
        if last or progress.round % self._experiment.evaluate_every == 0:
            return self._scored(progress)
        return None

    def _scored(self, progress: Progress) -> Evaluation:
        return self._evaluator.score(progress.state.flat, self._unannotated or (), self._frequencies)

    def _evaluate_clients(self, progress: Progress, directory: Directory) -> dict[str, float]:
        """Have every client score the model on its held-out images, if any are held out; merge exactly."""
        if self._experiment.holdout_fraction == 0:
            return {}
        request = Request(
            kind="evaluate",
            round=progress.round,
            flat=progress.state.flat,
            mods=self._strategy.mods,
            last=self._last(progress, directory.clients.tolist()),
            run=self._run,
        )
        played: dict[int, Turn] = {}
        seen, new = (
            self._pooled(request, [c for c in directory.clients.tolist() if (c in progress.last) is took_part], played)
            for took_part in (True, False)
        )
        pooled = new if seen is None else seen if new is None else seen + new
        turns = list(played.values())
        turns.sort(key=lambda turn: turn.client)  # a mean must not depend on who answered first
        found = own_values(turns, self._experiment.client_min_entries)
        values = {f"client/mAP/{name}": value for name, value in found.items()}
        self._record.add_events("client-evaluation", client_rows(progress.round, turns, progress.last))
        apart = unannotated_columns(self._label_names, self._unannotated)
        for side, histograms in (("client", pooled), ("client/new", new)):
            if histograms is not None:
                values.update({f"{side}/{name}": value for name, value in pooled_metrics(histograms, apart).items()})
        values["client/new/num-clients"] = float(sum(turn.client not in progress.last for turn in turns))
        failed = sum(bool(turn.error) for turn in turns)
        self._record.event(
            "clients-evaluated", {"round": progress.round, "num-clients": len(turns), "num-failed": failed, **values}
        )
        return values

    def _pooled(self, request: Request, clients: list[int], played: dict[int, Turn]) -> ScoreHistograms | None:
        """The scores of these clients' held-out images together; their turns are noted in ``played``."""
        pooled: ScoreHistograms | None = None
        for reply in self._transport.play(request, clients, dict.fromkeys(clients, 1.0)) if clients else ():
            turns, part = self._judged(reply, set(clients))
            played.update({turn.client: turn for turn in turns})
            if part is not None:
                pooled = part if pooled is None else pooled + part
        return pooled

    def _judged(self, reply: Reply, asked: set[int]) -> tuple[list[Turn], ScoreHistograms | None]:
        """The turns and scores of an evaluation, without those that cannot be right."""
        everything = Expected(Request("evaluate", 0, torch.zeros(0)), self._layout, {}, declared=self._declared)
        turns = []
        for turn in (turn for turn in reply.turns if turn.client in asked):
            try:
                if turn.metrics:
                    everything.metrics(turn)
            except RefusedError as error:
                turns.append(Turn(turn.client, turn.host, error=f"{REFUSED}: {error}"))
            else:
                turns.append(turn)
        try:
            return turns, scores_of(reply, self._layout.num_labels) if reply.evaluation else None
        except RefusedError as error:
            self._record.event("warning", {"text": f"{REFUSED}: scores of clients {sorted(asked)[:8]}: {error}"})
            return [Turn(turn.client, turn.host, error=f"{REFUSED}: {error}") for turn in turns], None

    def _write_round(
        self,
        progress: Progress,
        turns: list[Turn],
        evaluation: Evaluation | None,
        train_seconds: float,
        sums: Mapping[str, float],
        few: Mapping[str, int],
    ) -> None:
        self._write_turns(progress.round, turns)
        rows = [{"round": progress.round, **row} for row in hosts_of(turns, train_seconds)]
        self._record.add_events("host", rows)
        good = sorted((turn for turn in turns if not turn.error), key=lambda turn: turn.client)
        if evaluation is not None:
            for split, metrics in evaluation.splits.items():
                table = {name: np.asarray(column).tolist() for name, column in asdict(metrics.per_label).items()}
                names: dict[str, list[object]] = {"label": list(self._label_names)}
                if self._unannotated is not None:
                    names["annotated"] = (~unannotated_columns(self._label_names, self._unannotated)).tolist()
                if self._frequencies is not None:
                    names["train_present"] = self._frequencies.present.tolist()
                self._record.event("labels", {"round": progress.round, "split": split, **names, **table})
        self._record.event(
            "round",
            {
                "round": progress.round,
                "time": round(time.time(), 3),
                "seconds": round(progress.seconds, 3),
                "train-seconds": round(train_seconds, 3),
                "num-clients": len(turns),
                "num-failed": len(turns) - len(good),
                "num-images": sum(turn.num_images for turn in good),
                "loss": sum(turn.loss for turn in good) / max(len(good), 1) if turns else math.nan,
                "bytes-down": sum(turn.bytes_down for turn in good),
                "bytes-up": sum(turn.bytes_up for turn in good),
                **{f"method/{name}": sums[name] for name in sorted(sums)},
                **{f"withheld/{_plain(name)}": count for name, count in sorted(few.items())},
                **{f"strategy/{name}": value for name, value in sorted(progress.state.metrics.items())},
                "best-round": progress.best_round,
                **(balance(turns, train_seconds, min(self._num_hosts, len(turns))) if turns else {}),
                **(evaluation.values if evaluation else {}),
            },
        )

    def _warn(self, number: int, sums: Mapping[str, float]) -> None:
        """What the method warns of after a round; a sentence that was said before is not said again."""
        text = "" if self._method.warns is None else self._method.warns(sums)
        if text and text not in self._warned:
            self._warned.add(text)
            self._record.event("warning", {"text": f"round {number}: {text}"})

    def _write_versions(self, hosts: Sequence[HostInfo]) -> None:
        """What hosts in environments of their own compute with; the server's is in environment.json."""
        rows = [{"host": info.host, **info.versions} for info in hosts if info.versions]
        self._record.add_events("versions", [row | _differing(row) for row in rows])

    def _write_turns(self, number: int, turns: list[Turn]) -> None:
        rows = [{"round": number, **written(turn)} for turn in sorted(turns, key=lambda turn: turn.client)]
        self._record.add_events("client", rows)


def _differing(versions: Mapping[str, str]) -> dict[str, str]:
    """What of a host's versions is not the server's, for the record."""
    others = other_versions({name: found for name, found in versions.items() if name != "host"})
    return {"differs": others} if others else {}


def unannotated_of(
    hosts: Sequence[HostInfo], statistics: Mapping[str, Tensor], experiment: Experiment
) -> tuple[str, ...] | None:
    """Labels that no client of the federation annotates, as far as the server knows.

    A simulation's hosts say so. Devices do not; there the server knows if a method or a mod counted
    every label's present and absent entries over all clients and no number was withheld.

    Returns:
        None where the server does not know.
    """
    names = hosts[0].label_names
    reported = [set(host.unannotated) for host in hosts if host.unannotated is not None]
    if len(reported) == len(hosts):
        everywhere = set.intersection(*reported)
        return tuple(name for name in names if name in everywhere)
    exact = experiment.statistics_min_clients == experiment.statistics_min_images == 1
    if not exact or not {PRESENT_COUNTS, ABSENT_COUNTS} <= statistics.keys():
        return None
    counted = (statistics[PRESENT_COUNTS] + statistics[ABSENT_COUNTS]).tolist()
    return tuple(name for name, count in zip(names, counted, strict=True) if count == 0)


def frequencies_of(
    present_counts: Sequence[int] | None, statistics: Mapping[str, Tensor], experiment: Experiment
) -> Frequencies | None:
    """How often labels are annotated as present in training, as far as the server knows.

    Args:
        present_counts: of a simulation, which knows the whole federation; None elsewhere.
        statistics: what was counted over all clients before the first round.
        experiment: for the bounds of groups, and whether numbers of statistics may be withheld.

    Returns:
        None where the server does not know.
    """
    exact = experiment.statistics_min_clients == experiment.statistics_min_images == 1
    if present_counts is not None:
        counts = np.asarray(present_counts, dtype=np.int64)
    elif exact and PRESENT_COUNTS in statistics:
        counts = statistics[PRESENT_COUNTS].cpu().numpy()
    else:
        return None
    return Frequencies(counts, experiment.tail_below, experiment.head_above)


def pooled_metrics(histograms: ScoreHistograms, unannotated: NDArray[np.bool_]) -> dict[str, float]:
    """Metrics of held-out images over the annotated labels; of the others apart, where any can be judged.

    Args:
        histograms: of all labels.
        unannotated: bool ``[labels]``, the labels that nobody annotates.
    """
    parts = [ScoreHistograms(histograms.present[c], histograms.absent[c]) for c in (~unannotated, unannotated)]
    found = parts[0].metrics()
    if parts[1].evaluable.any():
        found |= unannotated_values(parts[1].metrics(), int(unannotated.sum()))
    return found


def written(turn: Turn) -> dict[str, object]:
    """A turn as the record shows it: its fields with dashes, without metrics, an error only if there is one."""
    digits = {"started": 3, "seconds": 4}
    values: dict[str, object] = {}
    for each in fields(turn):
        value = getattr(turn, each.name)
        if each.name == "metrics" or (each.name == "error" and not value):
            continue
        values[each.name.replace("_", "-")] = round(value, digits[each.name]) if each.name in digits else value
    return values


def withheld(
    total: Update, experiment: Experiment, together: Iterable[frozenset[str]] = ()
) -> tuple[dict[str, Tensor], list[dict[str, object]]]:
    """What was counted, with 0 in place of every number that too few clients or images stand behind.

    Args:
        total: the sum over all clients.
        experiment: the least numbers of clients and images.
        together: groups of names whose numbers of a label stand or fall together (``fedmlic.counting.Counted``).

    Returns:
        The tensors by name (int64, or float64), and for each an event that says how much was withheld.

    Raises:
        InputError: nothing is left of one of them.
    """
    events: list[dict[str, object]] = []
    sums = {name: total.extra_sum(name) for name in total.extras}
    counted, few = enough_behind(sums, experiment, together)
    for name in counted:
        if few[name] and few[name] == int((sums[name + CLIENTS_BEHIND] > 0).sum()):
            msg = (
                f"Expected at least {experiment.statistics_min_clients} clients and {experiment.statistics_min_images} "
                f"images behind numbers of {name}, and behind others from which they follow, got fewer behind every "
                "one. Lower statistics-min-clients or statistics-min-images if the clients agree."
            )
            raise InputError(msg)
        values = counted[name].flatten()
        shown = {"values": values.tolist()} if values.numel() <= SHOWN_STATISTICS else {}
        about = {"name": name, "shape": list(counted[name].shape), "num-withheld": few[name]}
        events.append({**about, "num-clients": len(total.clients), **shown})
    return counted, events


def enough_behind(
    sums: Mapping[str, Tensor], experiment: Experiment, together: Iterable[frozenset[str]] = ()
) -> tuple[dict[str, Tensor], dict[str, int]]:
    """Named sums with 0 in place of every number that too few clients or images stand behind.

    Args:
        sums: by name, and beside each what stands behind its numbers.
        experiment: the least numbers of clients and images.
        together: groups of names whose numbers of a label stand or fall together.

    Returns:
        The sums without what stands behind them, and how many numbers of each are withheld.

    Raises:
        InputError: a sum of a group has something else than the labels along an axis.
    """
    somebody, told = {}, {}
    for name in (name for name in sums if not name.endswith((CLIENTS_BEHIND, IMAGES_BEHIND))):
        clients, images = sums[name + CLIENTS_BEHIND], sums[name + IMAGES_BEHIND]
        somebody[name] = clients > 0
        told[name] = (clients >= experiment.statistics_min_clients) & (images >= experiment.statistics_min_images)
    for group in together:
        names = sorted(group & told.keys())
        hidden = _labels_with_few(names, somebody, told)
        for name in names:
            for axis in range(told[name].ndim):
                told[name] = told[name] & ~hidden.view([-1 if each == axis else 1 for each in range(told[name].ndim)])
    counted = {name: torch.where(told[name], sums[name], 0) for name in told}
    return counted, {name: int((somebody[name] & ~told[name]).sum()) for name in told}


def _labels_with_few(names: Sequence[str], somebody: Mapping[str, Tensor], told: Mapping[str, Tensor]) -> Tensor:
    """Which labels' own number in one of these sums has somebody behind it, but too few: bool ``[labels]``."""
    sizes = {size for name in names for size in told[name].shape}
    if len(sizes) > 1:
        shapes = ", ".join(f"{name} {list(told[name].shape)}" for name in names)
        msg = (
            f"Expected sums that stand or fall together to have labels along every axis, got {shapes}. Leave out of "
            "together (fedmlic.counting.Counted) what has something else there."
        )
        raise InputError(msg)
    labels = torch.arange(max(sizes, default=0))
    hidden = torch.zeros(len(labels), dtype=torch.bool)
    for name in names:
        own = (labels,) * told[name].ndim
        hidden |= (somebody[name] & ~told[name])[own]
    return hidden


def _noted(updates: Iterable[Update], sums: dict[str, float], tensors: dict[str, Tensor]) -> Iterator[Update]:
    """Pass updates on and add up what the method counted; the terms are such that their order does not show.

    Args:
        updates: as they come.
        sums: filled with the method's metrics.
        tensors: filled with the method's sums of the round and for a solution, and what stands behind them.
    """
    for update in updates:
        for name, value in method_metrics(update.metrics).items():
            sums[name] = sums.get(name, 0.0) + value
        for name in update.extras:
            if name.startswith((ROUND_SUMS, SOLUTION_SUMS)):  # read now: a rule may add the next update to this one
                tensors[name] = tensors.get(name, 0) + update.extra_sum(name).cpu()
        yield update


def _named(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _plain(name: str) -> str:
    return name.removeprefix(ROUND_SUMS).removeprefix(SOLUTION_SUMS)


def _ignore(round_number: int, turn: Turn, total: int) -> None:
    """Show no progress."""


def _with_best(progress: Progress, values: Mapping[str, float], metric: str = "server/val/mAP") -> Progress:
    """Note a better validation mAP; the test split is never looked at."""
    value = values.get(metric, math.nan)
    if value > progress.best_value:
        return replace(progress, best_round=progress.round, best_value=value)
    return progress
