"""Check a whole experiment before anything is read, built or written.

Names and arguments of every entry are checked against its signature; method, mods and strategy,
which cost nothing to make, are made; and combinations that do not work are refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from fedmlic import spec
from fedmlic.errors import InputError
from fedmlic.method import why_one_by_one

if TYPE_CHECKING:
    from fedmlic.experiment import Experiment, Runtime
    from fedmlic.method import Method
    from fedmlic.mod import Mod
    from strategies.strategy import Strategy


def check_experiment(experiment: Experiment, runtime: Runtime) -> None:
    """Refuse what cannot work.

    Raises:
        InputError: an entry's arguments are wrong, or entries and settings do not go together;
            all that is wrong at once.
    """
    wrong: list[str] = []
    for key in ("dataset", "partition", "regime", "model", "method", "strategy", "inference"):
        _note(wrong, key, getattr(experiment, key))
    for each in spec.parse_all(experiment.mods, "mods"):
        _note(wrong, "mods", str(each))
    if not wrong:
        method: Method = spec.build("method", experiment.method)
        strategy: Strategy = spec.build("strategy", experiment.strategy)
        wrong += _conflicts_of_mods(experiment, strategy)
        wrong += _conflicts(experiment, runtime, method, strategy)
    if wrong:
        raise InputError("\n".join(wrong))


def mods_of(experiment: Experiment, strategy: Strategy) -> dict[str, Mod]:
    """The mods of a run by their text, in order: those of the strategy, then the experiment's own."""
    return {text: spec.build("mods", text) for text in (*strategy.mods, *_named(experiment))}


def _named(experiment: Experiment) -> list[str]:
    """The texts of the experiment's own mods."""
    return [str(each) for each in spec.parse_all(experiment.mods, "mods")]


def _note(wrong: list[str], key: str, text: str) -> None:
    try:
        spec.check(key, text)
    except InputError as error:
        wrong.append(str(error))


def _conflicts(experiment: Experiment, runtime: Runtime, method: Method, strategy: Strategy) -> Iterator[str]:
    """What does not go together, a sentence each."""
    mods = mods_of(experiment, strategy)
    if experiment.num_rounds > 0:  # without rounds nothing trains, in stages or beside another rule
        refusing = [(experiment.method, method.refuses), (experiment.strategy, strategy.refuses)]
        for text, refuses in (*refusing, *((text, mod.refuses) for text, mod in mods.items())):
            reason = refuses(experiment) if refuses is not None else ""
            if reason:
                yield f"Expected the experiment to suit {text}, got another: {reason}."
        yield from _conflicts_of_training(experiment, runtime, method, mods)
    if experiment.features == "cached":
        reason = _needs_images(experiment, method)
        if reason:
            yield reason
    yield from _counts_unasked(experiment, method, mods)


def _conflicts_of_mods(experiment: Experiment, strategy: Strategy) -> Iterator[str]:
    """Mods that would act twice, that lack their rule, and those that a rule cannot bring."""
    brought: dict[object, str] = {}
    for text in strategy.mods:
        make = _factory(text)
        if make in brought:
            yield f"Expected every mod of strategy {experiment.strategy} once, got {brought[make]} and {text}."
        brought[make] = text
        mod: Mod = spec.build("mods", text)
        if mod.private is not None:
            yield (
                "Expected mods that keep tensors private to be named in mods, since hosts lay out the network before "
                f"they hear of a rule, got {text}, which {experiment.strategy} brings. Name it in mods."
            )
    seen: dict[object, str] = {}
    for text in _named(experiment):
        make = _factory(text)
        mod = spec.build("mods", text)
        if make in brought:
            yield (
                f"Expected mods without {spec.parse(text).name}, which {experiment.strategy} brings already as "
                f"{brought[make]}, got {text}. Leave it out of mods, and set its arguments with the rule's."
            )
        elif make in seen:
            yield f"Expected every mod once in mods, got {seen[make]} and {text}. Leave one out."
        elif mod.rule:
            yield (
                f"Expected strategy={mod.rule}() with {text}, which works beside that rule only, got "
                f"{experiment.strategy}. Use strategy='{mod.rule}()', which brings the mod, and leave it out of mods."
            )
        seen.setdefault(make, text)


def _factory(text: str) -> object:
    """What a mod's text calls, whatever name it calls it by."""
    return spec.factory("mods", spec.parse(text, "mods").name)


def _counts_unasked(experiment: Experiment, method: Method, mods: Mapping[str, Mod]) -> Iterator[str]:
    """What is counted of the clients' labels without leave, or by too few clients for anything to be told."""
    asks = [text for text, mod in mods.items() if mod.statistics is not None]
    if method.statistics is not None:
        asks.append(experiment.method)
    if asks and not experiment.allow_statistics:
        yield (
            f"Expected allow-statistics=true, since {', '.join(asks)} counts labels over all clients before the first "
            "round, which tells the server something of them, got false. Set it if the clients agree."
        )
    if any(phase.solution is not None for phase in method.phases) and not experiment.allow_statistics:
        yield (
            f"Expected allow-statistics=true, since {experiment.method} adds up numbers that clients compute "
            "from their images and labels, which tells the server something of them, got false. Set it if the clients "
            "agree."
        )
    if method.round_sums is not None and not experiment.allow_statistics:
        yield (
            f"Expected allow-statistics=true, since {experiment.method} adds up numbers of the clients' labels in "
            "every round, which tells the server something of them, got false. Set it if the clients agree."
        )
    yield from too_few_behind_sums(experiment, method, experiment.num_clients)


def too_few_behind_sums(experiment: Experiment, method: Method, num_clients: int) -> Iterator[str]:
    """Whether enough clients stand behind the sums of a method: those of every round, and those it is solved from.

    Args:
        experiment: the size of the cohort and the least number of clients.
        method: the experiment's.
        num_clients: in the federation; 0 while the partition has not found them yet.
    """
    least = experiment.statistics_min_clients
    if any(phase.solution is not None for phase in method.phases) and 0 < num_clients < least:
        yield (
            f"Expected at least {least} clients (statistics-min-clients), since fewer may not stand behind the sums of "
            f"{experiment.method}, got {num_clients}. Raise num-clients, or lower statistics-min-clients if the "
            "clients agree."
        )
    cohort = experiment.cohort_size or num_clients
    if method.round_sums is not None and 0 < cohort < least:
        yield (
            f"Expected a cohort of at least {least} clients (statistics-min-clients), since fewer may not stand behind "
            f"the sums of {experiment.method}, got {cohort}. Raise cohort-size, or lower statistics-min-clients if the "
            "clients agree."
        )


def _conflicts_of_training(
    experiment: Experiment, runtime: Runtime, method: Method, mods: Mapping[str, Mod]
) -> Iterator[str]:
    """What does not go together of how clients train: at once, or with other steps."""
    alone = why_one_by_one(method)
    if runtime.vectorize > 1 and alone:
        yield f"Expected method {experiment.method} to allow vectorize, got {alone}. Use vectorize=1."
    staged = [text for text, mod in mods.items() if mod.has_stages]
    for text, mod in mods.items():
        if mod.counts_steps and staged:
            yield (
                f"Expected all tensors to train in every step, since {text} counts steps, got {staged[0]}, which "
                "trains them in stages. Choose another strategy, or fedper() in place of fedrep()."
            )
        if mod.changes_steps and runtime.vectorize > 1:
            yield f"Expected vectorize to be 1, since {text} changes the steps of each client, got {runtime.vectorize}."
        if mod.changes_steps and any(objective is None for objective in _objectives(method)):
            yield (
                f"Expected method {experiment.method} to train by training.fit, since {text} changes its steps, got "
                "one with a training of its own. Choose another method or leave the mod out."
            )


def _needs_images(experiment: Experiment, method: Method) -> str:
    """Why feature maps cannot be used where they were asked for; empty where nothing is seen without data."""
    from fedmlic.features import obstacle_before_data, refusal  # imports torch

    try:
        reason = obstacle_before_data(experiment, method)
    except InputError as error:  # such as weights that are not there
        return str(error)
    return refusal(reason) if reason else ""


def _objectives(method: Method) -> list[object]:
    return [phase.objective for phase in method.phases] or [method.objective]
