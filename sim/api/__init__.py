"""FedMLIC from Python: run, sweep, load, compare and draw, in notebooks and scripts.

::

    from sim import api

    study = api.sweep("quick", method=["bce()", "asl()"], seed=range(6), out="runs/asl")
    api.compare(study).pairs               # a pandas table with p-values
    api.plot_curves(study)                 # a matplotlib figure
    network = study.runs[0].network()      # a torch.nn.Module
    images = api.shard("quick", client=3)  # a torch.utils.data.Dataset

Settings are those of ``fedmlic run``, with underscores: ``num_rounds=5``. They come after a recipe, a TOML file or a
mapping, if any. Everything that is played lies in ordinary run folders, which the commands read and write too.

The module is ``sim.api`` and not ``fedmlic``: it plays whole federations, and what a device installs must not know
of that (the folders say where code runs).

>>> run = run("quick", num_rounds=1, num_clients=2, cohort_size=0, out="runs/one", engine="inprocess", progress=False)
>>> run
Run('runs/one', complete, round 1 of 1)
>>> run.settings["method"], list(run.rounds["round"])
('bce()', [1])
>>> run.predict(shard(run, client=0, stored=True)[:3][0].numpy()).shape
(3, 10)
"""

from __future__ import annotations

from sim.api.comparing import Compared, compare
from sim.api.federation import clients, shard
from sim.api.playing import resume, run, sweep
from sim.api.plots import plot_clients, plot_curves, plot_labels, plot_seeds
from sim.api.results import Run, Study, load, load_study

__all__ = [
    "Compared",
    "Run",
    "Study",
    "clients",
    "compare",
    "load",
    "load_study",
    "plot_clients",
    "plot_curves",
    "plot_labels",
    "plot_seeds",
    "resume",
    "run",
    "shard",
    "sweep",
]
