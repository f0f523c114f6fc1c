"""What an experiment's network holds and what its clients receive and send, before anything is trained.

Bytes are those that a run records (``bytes-down``, ``bytes-up``), without headers: the same functions of the host
count them, on a turn that changes nothing. They do not depend on the numbers that are sent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from clients.host import counts_of, num_bytes_of, passed_on, round_sums_of, solution_sums_of
from fedmlic import spec
from fedmlic.errors import InputError
from fedmlic.learner import build_learner
from fedmlic.method import Local, Stretch, Trained, stretch_of
from fedmlic.protocol import CLIENTS_BEHIND, IMAGES_BEHIND, STATISTICS
from sim.console import TextTable
from strategies.server.check import mods_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from fedmlic.experiment import Experiment
    from fedmlic.federation import Federation
    from fedmlic.learner import Learner
    from fedmlic.mod import Mod
    from fedmlic.shard import Shard
    from strategies.strategy import Strategy


def exchange(experiment: Experiment, federation: Federation) -> dict[str, Any]:
    """Build the network and count.

    Args:
        experiment: method, model, mods and strategy.
        federation: for the label names, the size of images, and one client's shard, which mods may look at.

    Returns:
        JSON values. ``parameters``: ``all`` of the network, ``trained`` by a client at some time,
        ``frozen``, ``private`` (trained, but never sent). ``phases``, one or more: ``first_round``,
        ``last_round``, ``trained`` parameters, ``exchanged`` numbers (statistics of norms included),
        ``bytes_down`` and ``bytes_up`` of one client in one round. ``bytes_up_before``: what a client
        sends before round 1. If the network cannot be built, or a mod cannot be asked: ``error`` alone.
    """
    try:
        return _counted(experiment, federation)
    except InputError as error:  # whoever looks at the data need not have the weights
        return {"error": str(error)}


def _counted(experiment: Experiment, federation: Federation) -> dict[str, Any]:
    learner = build_learner(experiment, federation.label_names, federation.corpus.image_shape)
    strategy: Strategy = spec.build("strategy", experiment.strategy)
    mods = tuple(mods_of(experiment, strategy).values())
    shard = federation.shard(int(next(iter(federation.clients))))
    counted = counts_of(shard, [learner.method.statistics, *(mod.statistics for mod in mods)])
    added = round_sums_of(shard, learner, {})
    sent_again = {f"{STATISTICS}{n}": t for n, t in counted.items() if not n.endswith((CLIENTS_BEHIND, IMAGES_BEHIND))}
    sent_again |= {n: t for n, t in added.items() if not n.endswith((CLIENTS_BEHIND, IMAGES_BEHIND))}
    stretches = _stretches(experiment, learner)
    ends = [after.first_round - 1 for after in stretches[1:]]
    phases = [
        {"first_round": stretch.first_round, "last_round": end}
        | _phase(experiment, learner, strategy, mods, shard, stretch, sent_again)
        for stretch, end in zip(stretches, [*ends, experiment.num_rounds], strict=True)
    ]
    return {"parameters": _parameters(learner), "phases": phases, "bytes_up_before": num_bytes_of(counted)}


def _stretches(experiment: Experiment, learner: Learner) -> list[Stretch]:
    """The phases that the experiment's rounds reach."""
    rounds = (stretch_of(learner.method, number) for number in range(1, experiment.num_rounds + 1))
    return list({stretch.number: stretch for stretch in rounds}.values())


def _parameters(learner: Learner) -> dict[str, int]:
    parameters = dict(learner.resident.network.named_parameters())
    trained = {name: p.numel() for name, p in parameters.items() if p.requires_grad}
    every = sum(p.numel() for p in parameters.values())
    private = sum(count for name, count in trained.items() if name in learner.resident.private_names)
    return {
        "all": every,
        "trained": sum(trained.values()),
        "frozen": every - sum(trained.values()),
        "private": private,
    }


def _phase(
    experiment: Experiment,
    learner: Learner,
    strategy: Strategy,
    mods: Sequence[Mod],
    shard: Shard,
    stretch: Stretch,
    statistics: Mapping[str, Tensor],
) -> dict[str, int]:
    resident = learner.resident
    chosen = None if stretch.phase.tensors is None else {*stretch.phase.tensors(resident.network)}
    layout = resident.layout
    part = layout if chosen is None else layout.only(name for name in layout.names if name in chosen)
    start = layout.gather(resident.flat.clone(), part)
    shared = {**strategy.init(start.clone(), part).shared, **statistics}
    local = Local(
        experiment,
        stretch.first_round,
        shard.client,
        learner.device,
        lambda: resident.network,
        resident.flat.clone(),
        part,
        stretch.phase.objective,
        shared,
    )
    resident.train_only(chosen)
    hooks = [mod.begin(resident, shard, local) for mod in mods]
    num_bytes = 4 * part.num_values
    extras: dict[str, Tensor] = {}
    if hooks:
        _, num_bytes, extras = passed_on(hooks, part, start, start.clone(), Trained(0.0, 1, {}))
    extras |= round_sums_of(shard, learner, {})
    if stretch.phase.solution is not None:
        zeros = stretch.phase.solution.sums(resident.network, shared)
        extras |= solution_sums_of(shard, zeros, zeros)
    trained = sum(parameter.numel() for parameter in resident.parameters)
    resident.train_only(None)
    return {
        "trained": trained,
        "exchanged": part.num_values,
        "bytes_down": 4 * part.num_values + num_bytes_of(shared),
        "bytes_up": num_bytes + num_bytes_of(extras),
    }


def table(found: Mapping[str, Any]) -> TextTable:
    """What ``exchange`` returned, two columns."""
    shown = TextTable("Network and messages of a client", "", "", show_header=False)
    if "error" in found:
        shown.add_row("not counted", found["error"])
        return shown
    names = {"all": "parameters", "trained": "trained", "frozen": "frozen", "private": "trained, kept on the client"}
    for key, name in names.items():
        if found["parameters"][key] or key != "private":
            shown.add_row(name, f"{found['parameters'][key]:,}")
    if found["bytes_up_before"]:
        shown.add_row("sends before round 1", size(found["bytes_up_before"]))
    several = len(found["phases"]) > 1
    for phase in found["phases"]:
        begin = f"rounds {phase['first_round']}-{phase['last_round']}: " if several else ""
        if several:
            shown.add_row(f"{begin}trained", f"{phase['trained']:,}")
        shown.add_row(f"{begin}exchanged per round", f"{phase['exchanged']:,} numbers")
        shown.add_row(f"{begin}receives per round", size(phase["bytes_down"]))
        shown.add_row(f"{begin}sends per round", size(phase["bytes_up"]))
    return shown


def size(num_bytes: int) -> str:
    """Bytes, and a short form of many.

    >>> size(999), size(1_234_567)
    ('999 bytes', '1,234,567 bytes (1.2 MB)')
    """
    units = ((10**9, "GB"), (10**6, "MB"), (10**3, "kB"))
    short = next((f" ({num_bytes / unit:.1f} {name})" for unit, name in units if num_bytes >= unit), "")
    return f"{num_bytes:,} bytes{short}"
