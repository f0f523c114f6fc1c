"""The round loop: sample, send, gather, aggregate, evaluate, record, checkpoint.

Written once, against a ``Transport`` and a ``Record``; it knows neither what
carries the requests nor where the record lies.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Protocol

import numpy as np

from fedmlic.arrays import sha256
from fedmlic.histograms import ScoreHistograms
from fedmlic.metrics import across_clients
from fedmlic.protocol import Reply, Request, Turn
from fedmlic.update import Update, method_metrics, units_for
from strategies.server.balance import balance, hosts_of
from strategies.server.cohort import Directory, sample_cohort
from strategies.server.costs import Costs
from strategies.strategy import State, Strategy

if TYPE_CHECKING:
    from fedmlic.evaluation import Evaluation, Evaluator
    from fedmlic.experiment import Experiment
    from fedmlic.learner import Learner
    from strategies.server.transport import Transport


class RunFailedError(RuntimeError):
    """A round could not be completed; the last checkpoint is kept."""


@dataclass(frozen=True)
class Progress:
    """Everything the loop needs to go on after a checkpoint.

    Attributes:
        round: rounds completed.
        state: of the strategy.
        best_round: the round with the best validation metric so far (0: none).
        best_value: its value.
        seconds: wall time spent in rounds so far.
    """

    round: int
    state: State
    best_round: int = 0
    best_value: float = -math.inf
    seconds: float = 0.0


class Record(Protocol):
    """Where the loop writes down what happened."""

    def event(self, kind: str, values: Mapping[str, object]) -> None:
        """Append one event."""

    def add_events(self, kind: str, rows: Sequence[Mapping[str, object]]) -> None:
        """Append events of one kind at once."""

    def checkpoint(self, progress: Progress) -> None:
        """Keep what is needed to go on from here, atomically."""


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
    ) -> None:
        self._experiment = experiment
        self._layout = learner.resident.layout
        self._label_names = learner.task.label_names
        self._strategy = strategy
        self._transport = transport
        self._evaluator = evaluator
        self._record = record
        self._on_turn = on_turn or _ignore
        self._costs: Costs
        self._num_hosts = 0

    def run(self, start: Progress) -> Outcome:
        """Play the remaining rounds after ``start`` and evaluate the final model on all clients.

        Raises:
            RunFailedError: fewer clients than ``min-replies`` asks for succeeded in a round.
        """
        experiment = self._experiment
        hosts = self._transport.hosts()
        directory = Directory(hosts)
        self._costs, self._num_hosts = Costs(directory), len(hosts)
        progress = start
        metrics: dict[str, float] = {}
        for number in range(start.round + 1, experiment.num_rounds + 1):
            progress, metrics = self._round(number, progress, directory)
        if not metrics:
            # Resumed after the last round: only the final evaluation is missing.
            metrics = self._evaluator.score(progress.state.flat).values
        metrics = {**metrics, **self._evaluate_clients(progress, directory)}
        return Outcome(progress, metrics, sha256(self._layout, progress.state.flat))

    def _round(self, number: int, before: Progress, directory: Directory) -> tuple[Progress, dict[str, float]]:
        started = time.perf_counter()
        experiment = self._experiment
        cohort = sample_cohort(
            directory,
            size=experiment.cohort_size,
            how=experiment.cohort,
            seed=experiment.seed,
            round_number=number,
        )
        sizes = directory.sizes_of(cohort).tolist()
        request = Request(
            kind="train",
            round=number,
            flat=before.state.flat,
            units=units_for(self._strategy.weighting, sizes, len(directory.label_names)),
            weighting=self._strategy.weighting,
            each=self._strategy.needs == "each",
        )
        played: dict[int, Turn] = {}
        costs = self._costs.of(cohort)
        replies = self._transport.play(request, list(costs), costs)
        sums: dict[str, float] = {}
        updates = self._updates(number, replies, played, len(cohort))
        state = self._strategy.aggregate(before.state, _noted(updates, sums))
        turns = list(played.values())
        self._require_enough(number, turns, len(cohort))
        self._costs.learn(turns)
        train_seconds = time.perf_counter() - started

        progress = replace(before, round=number, state=state)
        evaluation = self._evaluate_server(progress)
        if evaluation is not None:
            progress = _with_best(progress, evaluation.values)
        progress = replace(progress, seconds=before.seconds + time.perf_counter() - started)
        self._write_round(progress, turns, evaluation, train_seconds, sums)
        values = dict(evaluation.values) if evaluation else {}
        every = experiment.evaluate_clients_every
        if every and number % every == 0 and number < experiment.num_rounds:
            self._evaluate_clients(progress, directory)
        self._record.checkpoint(progress)
        return progress, values

    def _updates(self, number: int, replies: Iterable[Reply], turns: dict[int, Turn], total: int) -> Iterator[Update]:
        """Pass updates on as they come, and note the turns beside them.

        A client whose worker died is played again; its later turn is the one that counts.
        """
        for reply in replies:
            for turn in reply.turns:
                turns[turn.client] = turn
                self._on_turn(number, turn, total)
            yield from reply.updates

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
        last = progress.round == self._experiment.num_rounds
        if last or progress.round % self._experiment.evaluate_every == 0:
            return self._evaluator.score(progress.state.flat)
        return None

    def _evaluate_clients(self, progress: Progress, directory: Directory) -> dict[str, float]:
        """Have every client score the model on its held-out images, if any are held out; merge exactly."""
        if self._experiment.holdout_fraction == 0:
            return {}
        clients = directory.clients.tolist()
        request = Request(kind="evaluate", round=progress.round, flat=progress.state.flat)
        costs = dict.fromkeys(clients, 1.0)
        pooled: ScoreHistograms | None = None
        played: dict[int, Turn] = {}
        for reply in self._transport.play(request, clients, costs):
            played.update({turn.client: turn for turn in reply.turns})
            if reply.evaluation:
                part = ScoreHistograms.from_arrays(reply.evaluation)
                pooled = part if pooled is None else pooled + part
        turns = list(played.values())
        turns.sort(key=lambda turn: turn.client)  # a mean must not depend on who answered first
        found = across_clients([turn.metrics for turn in turns if turn.metrics], self._experiment.client_min_entries)
        values = {f"client/mAP/{name}": value for name, value in found.items()}
        if pooled is not None:
            values.update({f"client/{name}": value for name, value in pooled.metrics().items()})
        failed = sum(bool(turn.error) for turn in turns)
        self._record.event(
            "clients-evaluated", {"round": progress.round, "num-clients": len(turns), "num-failed": failed, **values}
        )
        return values

    def _write_round(
        self,
        progress: Progress,
        turns: list[Turn],
        evaluation: Evaluation | None,
        train_seconds: float,
        sums: Mapping[str, float],
    ) -> None:
        self._write_turns(progress.round, turns)
        rows = [{"round": progress.round, **row} for row in hosts_of(turns, train_seconds)]
        self._record.add_events("host", rows)
        good = sorted((turn for turn in turns if not turn.error), key=lambda turn: turn.client)
        if evaluation is not None:
            for split, metrics in evaluation.splits.items():
                table = {name: np.asarray(column).tolist() for name, column in asdict(metrics.per_label).items()}
                names = {"label": list(self._label_names)}
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
                "loss": sum(turn.loss for turn in good) / max(len(good), 1),
                **{f"method/{name}": sums[name] for name in sorted(sums)},
                "best-round": progress.best_round,
                **balance(turns, train_seconds, min(self._num_hosts, len(turns))),
                **(evaluation.values if evaluation else {}),
            },
        )

    def _write_turns(self, number: int, turns: list[Turn]) -> None:
        rows = []
        for turn in sorted(turns, key=lambda turn: turn.client):
            values: dict[str, object] = {
                "round": number,
                "client": turn.client,
                "host": turn.host,
                "started": round(turn.started, 3),
                "seconds": round(turn.seconds, 4),
                "num-images": turn.num_images,
                "num-annotations": turn.num_annotations,
                "num-steps": turn.num_steps,
                "loss": turn.loss,
            }
            if turn.error:
                values["error"] = turn.error
            rows.append(values)
        self._record.add_events("client", rows)


def _noted(updates: Iterable[Update], sums: dict[str, float]) -> Iterator[Update]:
    """Pass updates on and add up what the method counted; the terms are such that their order does not show."""
    for update in updates:
        for name, value in method_metrics(update.metrics).items():
            sums[name] = sums.get(name, 0.0) + value
        yield update


def _ignore(round_number: int, turn: Turn, total: int) -> None:
    """Show no progress."""


def _with_best(progress: Progress, values: Mapping[str, float]) -> Progress:
    """Note a better validation mAP; the test split is never looked at."""
    value = values.get("server/val/mAP", math.nan)
    if value > progress.best_value:
        return replace(progress, best_round=progress.round, best_value=value)
    return progress
