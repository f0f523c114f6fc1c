"""Open what a host needs: the images, the federation, the network.

Every engine comes here, in whatever process it plays clients: workers, Ray actors, Flower's
simulated nodes, and devices with images of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from clients.host import Host
from clients.memory import ClientMemory, FolderMemory, check_shared
from fedmlic import spec
from fedmlic.corpus import load_corpus, open_corpus
from fedmlic.errors import InputError
from fedmlic.experiment import home_of
from fedmlic.features import features_of
from fedmlic.federation import build_federation
from fedmlic.learner import build_learner, choose_device, label_space
from fedmlic.process import prepare

if TYPE_CHECKING:
    from torch import Tensor

    from fedmlic.corpus import Corpus
    from fedmlic.experiment import Experiment, Runtime
    from fedmlic.federation import Federation
    from fedmlic.learner import Learner

MEMORY_FOLDER = "memory"
"""Where clients of a simulation keep tensors, in the run folder."""


def images_of(
    experiment: Experiment,
    runtime: Runtime,
    path: str = "",
    progress: Callable[[int, int], None] | None = None,
) -> Corpus:
    """The experiment's corpus: the folder ``path`` where it is there, else the data set's, built first if need be.

    Args:
        experiment: names the data set.
        runtime: where corpora are kept.
        path: a corpus folder that the server has opened, so that a worker on the same disk need
            not ask the data set again; empty for none.
        progress: called with (images done, images in all) while it is built.
    """
    if path and Path(path).is_dir():
        return load_corpus(Path(path))
    dataset = spec.build("dataset", experiment.dataset)
    return open_corpus(dataset, home_of(runtime), progress=progress, **experiment.reading())


def open_federation(experiment: Experiment, runtime: Runtime, corpus: Corpus) -> Federation:
    """The experiment's federation over its corpus, built first if it is not there; one client of it if so asked."""
    federation = build_federation(
        corpus,
        partition=experiment.partition,
        regime=experiment.regime,
        num_clients=experiment.num_clients,
        seed=experiment.seed,
        holdout_fraction=experiment.holdout_fraction,
        holdout_by=experiment.holdout_by,
        home=home_of(runtime),
    )
    return federation.single(experiment.single_client) if experiment.single_client else federation


def learner_for(
    experiment: Experiment,
    runtime: Runtime,
    federation: Federation,
    progress: Callable[[int, int], None] | None = None,
) -> Learner:
    """The network that a host trains the clients of ``federation`` in.

    Where its backbone does not train, the feature maps of all images are opened, computed first if they
    are not there.

    Args:
        experiment: what is trained.
        runtime: where and how fast; where feature maps are kept.
        federation: whose images.
        progress: called with (images done, images in all) while feature maps are computed.
    """
    device = choose_device(runtime.device)
    return build_learner(
        experiment,
        federation.label_names,
        federation.corpus.image_shape,
        device,
        channels_last=runtime.channels_last,
        features=features_of(experiment, federation.corpus, device, home_of(runtime), progress),
    )


def open_host(
    name: str,
    experiment: Experiment,
    runtime: Runtime,
    *,
    corpus_path: str = "",
    label_names: tuple[str, ...] | None = None,
    sums: Tensor | None = None,
    own_sums: bool = False,
    memory: Callable[[str], ClientMemory] | None = None,
) -> Host:
    """A host for any client of the experiment's federation, in the process that calls this.

    Args:
        name: how records call it.
        experiment: what to do.
        runtime: where and how fast.
        corpus_path: see ``images_of``.
        label_names: the label space that the server sees; None to trust this machine's.
        sums: where to keep a round's sum.
        own_sums: keep the sums of all rounds in one place that lives as long as the host: memory
            that is new for every request has to be cleared by the system first.
        memory: where clients keep tensors.

    Raises:
        InputError: settings or data that a person has to correct, or another label space here.
    """
    prepare(runtime.threads)
    corpus = images_of(experiment, runtime, corpus_path)
    here = label_space(experiment, corpus)
    if label_names is not None and here != label_names:
        msg = f"Expected {name} to see the labels {label_names[:5]}, got {here[:5]}. Use the same data set everywhere."
        raise InputError(msg)
    federation = open_federation(experiment, runtime, corpus)
    learner = learner_for(experiment, runtime, federation)
    if own_sums:
        sums = torch.zeros(learner.resident.layout.size, dtype=torch.float64)
    return Host(name, experiment, federation, learner, vectorize=runtime.vectorize, sums=sums, memory=memory)


def memory_in(folder: str, mark: str = "") -> Callable[[str], ClientMemory] | None:
    """Client memory in one folder, whatever the run; None where ``folder`` is empty.

    Args:
        folder: of the run.
        mark: a file in it by which another machine knows that it sees the same folder.

    Raises:
        InputError: this machine does not see the mark.
    """
    if not folder:
        return None
    if mark:
        check_shared(Path(folder), mark)
    held = FolderMemory(Path(folder))
    return lambda run: held  # noqa: ARG005  (the folder is the run's)
