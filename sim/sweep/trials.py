"""The trials of a search of ranges: what Optuna proposes, and the journal from which it goes on.

Trials of a row come in waves of ``trials-at-once``. A wave is proposed when all trials before it have ended, and the
sampler of trial n begins with a seed of its own. So what is proposed follows from the scores alone: neither the number
of processes nor an interruption changes it.

``STUDY/trials.jsonl`` is Optuna's journal: a line of JSON per operation, no pickled objects.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedmlic.errors import InputError, installing
from fedmlic.seeds import stream
from sim.sweep.search import Range, Search, Settings

if TYPE_CHECKING:
    import optuna

FILE = "trials.jsonl"

RANDOM_TRIALS = 4
"""Least trials of a row that are drawn at random; the first wave always is."""


def check_optuna() -> None:
    """Refuse ranges where Optuna is not installed.

    Raises:
        InputError: it is not.
    """
    try:
        import optuna  # noqa: F401
    except ImportError:
        msg = (
            "Expected the package optuna to be installed for a search of ranges, got none. "
            f"Run: {installing('search')}. Or give lists of values."
        )
        raise InputError(msg) from None


class Trials:
    """The trials of all rows of a study.

    Args:
        search: with a range.
        journal: file that keeps them, which nobody else writes; ``None`` to keep nothing.

    Raises:
        InputError: Optuna is not installed, or the file is no journal of it.
    """

    def __init__(self, search: Search, journal: Path | None) -> None:
        check_optuna()
        import optuna

        self._search = search
        self._optuna = optuna
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._storage = _storage(journal) if journal else optuna.storages.InMemoryStorage()
        self._spaces = {key: _distribution(tried) for key, tried in search.settings.items()}
        self._studies: dict[str, optuna.Study] = {}

    def proposed(self, row: str, scores: Sequence[float]) -> list[Settings]:
        """Everything proposed for a row by now, in order; at least one trial more than have ended.

        Args:
            row: identity of the row.
            scores: of its first trials, in order; NaN for one that failed. All that were proposed before, if any.
        """
        study = self._study(row)
        trials = study.get_trials(deepcopy=False)
        for trial, score in zip(trials, scores, strict=False):
            if not trial.state.is_finished():
                failed = math.isnan(score)
                state = self._optuna.trial.TrialState.FAIL if failed else None
                study.tell(trial.number, None if failed else score, state=state)
        wave = self._search.trials_at_once
        wanted = max(len(trials), len(scores) + 1)
        for number in range(len(trials), min(-(-wanted // wave) * wave, self._search.trials)):
            self._propose(study, number)
        found = study.get_trials(deepcopy=False)[: self._search.trials]
        return [self._settings(trial.params) for trial in found]

    def _propose(self, study: optuna.Study, number: int) -> None:
        """Add trial ``number``, in one line of the journal; ``ask`` would write one per setting."""
        draft = self._optuna.create_study(sampler=self._sampler(number), direction="maximize")
        draft.add_trials(study.get_trials(deepcopy=False))
        params = draft.ask(self._spaces).params
        state = self._optuna.trial.TrialState.RUNNING
        study.add_trial(self._optuna.trial.create_trial(state=state, params=params, distributions=self._spaces))

    def _study(self, row: str) -> optuna.Study:
        if row not in self._studies:
            name = f"{row}-{self._search.digest()}"
            self._studies[row] = self._optuna.create_study(
                study_name=name, storage=self._storage, direction="maximize", load_if_exists=True
            )
        return self._studies[row]

    def _sampler(self, number: int) -> optuna.samplers.TPESampler:
        """The sampler of trial ``number``, equal for all rows: their random trials are the same."""
        seed = int(stream(self._search.sampler_seed, "trial", number).integers(2**31))
        startup = max(RANDOM_TRIALS, self._search.trials_at_once)
        return self._optuna.samplers.TPESampler(n_startup_trials=startup, constant_liar=True, seed=seed)

    def _settings(self, params: dict[str, Any]) -> Settings:
        found = {}
        for key, tried in self._search.settings.items():
            found[key] = params[key] if isinstance(tried, Range) else tried[params[key]]
        return found


def _distribution(tried: Range | Sequence[Any]) -> optuna.distributions.BaseDistribution:
    """What Optuna draws from; of a list the place, since its values may be lists."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if not isinstance(tried, Range):
        return CategoricalDistribution(range(len(tried)))
    if tried.is_whole:
        return IntDistribution(int(tried.low), int(tried.high), log=tried.log, step=int(tried.step or 1))
    return FloatDistribution(float(tried.low), float(tried.high), log=tried.log, step=tried.step)


def _storage(journal: Path) -> optuna.storages.JournalStorage:
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

    class Held(JournalFileOpenLock):
        """The study's own lock is held, which ends with its process; a lock file would stay after a kill."""

        def acquire(self) -> bool:
            return True

        def release(self) -> None:
            pass

    _cut_broken_line(journal)
    try:
        return JournalStorage(JournalFileBackend(str(journal), Held(str(journal))))
    except (ValueError, KeyError, TypeError) as error:
        msg = f"Expected {journal} to be Optuna's journal of this study, got an error: {error}. Move the file away."
        raise InputError(msg) from None


def _cut_broken_line(journal: Path) -> None:
    """Cut off a last line that a machine did not write to its end; what it said is proposed or told again."""
    if journal.is_file():
        written = journal.read_bytes()
        whole = written[: written.rfind(b"\n") + 1]
        if len(whole) < len(written):
            with journal.open("r+b") as file:
                file.truncate(len(whole))
