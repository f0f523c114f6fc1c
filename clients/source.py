"""Where a Flower node's data come from: the one place that tells a simulation from a device.

Flower gives every node a small configuration. In a simulation it holds only
``partition-id`` and ``num-partitions``; the node can then play any client of the
experiment's federation, which lies on this machine. A device says with ``data``
which of its own images it trains on, and is one client. Its own paths, device and
threads are its own business: those in the run's configuration are the server's.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from clients.host import Host
from clients.memory import ClientMemory, FolderMemory, FolderRest
from clients.opening import MEMORY_FOLDER, learner_for, memory_in, open_host
from fedmlic import spec, wire
from fedmlic.corpus import home as default_home
from fedmlic.corpus import open_corpus
from fedmlic.errors import InputError, nearest
from fedmlic.experiment import Experiment, Runtime, home_of, split_settings
from fedmlic.federation import local_federation
from fedmlic.process import prepare, progress_lines

Setting = bool | int | float | str

NODE_KEYS = {
    "partition-id": "given by Flower in a simulation; else this device's client id if client is not set",
    "num-partitions": "given by Flower in a simulation",
    "data": "this device's own data set, such as folder(root='/data')",
    "client": "this device's client id: 0, 1, ...",
    "home": "folder for prepared images (default: $FEDMLIC_HOME or the user's cache)",
    "device": "auto, cpu, cuda or cuda:N",
    "threads": "torch threads",
    "code-digest": "the only code that may run here (docs/deployment.md); printed by 'fedmlic supernode --digest'",
    "allow-statistics": "false: no counts, sums of a round and moments of features leave, whatever the experiment says",
    "allow-plugins": "code from outside the catalogues that a run may use here, such as 'my_lab.methods.*'",
    "allow-files": "folders below which a run may name files of this device, such as weights, separated by commas",
    "audit-log": "file in which every message and what was sent in answer is noted (docs/nodes.md)",
    "error-paths": "whether the one line that is sent of an error may name files",
    "tracebacks": "whether errors are sent with their traceback, which may show file names",
}
"""What ``--node-config`` of a SuperNode may hold."""


@dataclass(frozen=True)
class Node:
    """A host that is ready to play, and what the server should know of its node.

    Attributes:
        host: plays the clients.
        num_hosts: nodes of the simulation, 0 on a device.
        discreet: whether errors leave the node without their traceback.
        rest: where a device keeps the part of the model that is not exchanged at present.
        plugins: patterns of the names from outside the catalogues that a run may use here.
        folders: below which a run may name files here.
        paths: whether the one line that is sent of an error may name files.
    """

    host: Host
    num_hosts: int
    discreet: bool
    rest: FolderRest | None = None
    plugins: tuple[str, ...] = ("*",)
    folders: tuple[str, ...] = ("*",)
    paths: bool = False


def is_device(node_config: Mapping[str, Setting]) -> bool:
    """Whether the node has images of its own.

    Raises:
        InputError: unknown keys, or neither a device's nor a simulation's.
    """
    for key in node_config:
        if key not in NODE_KEYS:
            msg = f"Expected --node-config to hold keys of a node, got {key!r}. {nearest(key, NODE_KEYS)}"
            raise InputError(msg)
    if "data" in node_config:
        return True
    if {"partition-id", "num-partitions"} <= node_config.keys():
        return False
    msg = (
        f"Expected --node-config to name this device's images, got {dict(node_config)}. "
        'Start the SuperNode with --node-config "client=0 data=\'folder(root=\\"/data\\")\'".'
    )
    raise InputError(msg)


def node_name(node_config: Mapping[str, Setting]) -> str:
    """How records call the node: the same in every run, whatever node id Flower drew."""
    if is_device(node_config):
        return f"device-{client_id(node_config)}"
    return f"node-{_integer(node_config, 'partition-id')}"


def client_id(node_config: Mapping[str, Setting]) -> int:
    """The client that a device is: ``client``, or its ``partition-id``."""
    for key in ("client", "partition-id"):
        if key in node_config:
            return _integer(node_config, key)
    msg = "Expected --node-config to hold this device's client id, got none. Add client=0, client=1, ..."
    raise InputError(msg)


def allows_statistics(node_config: Mapping[str, Setting]) -> bool:
    """Whether this device's owner leaves it to the experiment if statistics of labels and features may be sent.

    Raises:
        InputError: the key is neither true nor false.
    """
    value = node_config.get("allow-statistics", True)
    if isinstance(value, bool):
        return value
    msg = f"Expected allow-statistics of --node-config to be true or false, got {value!r}."
    raise InputError(msg)


def open_node(run_config: Mapping[str, Setting], node_config: Mapping[str, Setting]) -> Node:
    """Open the data (preparing them once, under a lock) and build the network.

    Args:
        run_config: the run's settings, as Flower carries them.
        node_config: the node's settings.

    Raises:
        InputError: settings or data that a person has to correct.
    """
    experiment, runtime = split_settings(run_config)
    if is_device(node_config):
        return _open_device(experiment, node_config)
    return _open_simulation(experiment, runtime, node_config)


def _open_simulation(experiment: Experiment, runtime: Runtime, node_config: Mapping[str, Setting]) -> Node:
    wire.enter_work_folder()
    num_hosts = _integer(node_config, "num-partitions")
    in_run = str(Path(runtime.out).expanduser() / MEMORY_FOLDER) if runtime.out else ""
    memory = memory_in(in_run) if in_run else kept_in(home_of(runtime), experiment)
    host = open_host(node_name(node_config), experiment, runtime, own_sums=True, memory=memory)
    return Node(host, num_hosts, discreet=False)


def _open_device(experiment: Experiment, node_config: Mapping[str, Setting]) -> Node:
    client, asked = client_id(node_config), experiment
    plugins, folders = _listed(node_config, "allow-plugins"), _listed(node_config, "allow-files")
    _check_plugins(experiment, plugins)
    if not allows_statistics(node_config):
        experiment = experiment.model_copy(update={"allow_statistics": False})
    prepare(_integer(node_config, "threads") if "threads" in node_config else 1)
    home = Path(str(node_config["home"])).expanduser() if "home" in node_config else None
    corpus = open_corpus(spec.build("dataset", str(node_config["data"])), home, **experiment.reading())
    names = [name.strip() for name in experiment.label_names.split(",")] if experiment.label_names else None
    federation = local_federation(
        corpus,
        label_names=names or corpus.label_names,
        holdout_fraction=experiment.holdout_fraction,
        holdout_by=experiment.holdout_by,
        seed=experiment.seed,
        client=client,
    )
    here = Runtime(device=str(node_config.get("device", "auto")), home=str(home or ""))
    with spec.allowing(plugins, folders):
        learner = learner_for(experiment, here, federation, progress_lines("features", _say))
    memory = kept_in(home, asked)
    host = Host(node_name(node_config), experiment, federation, learner, memory=memory, on_link=True)
    discreet = node_config.get("tracebacks") is not True
    rest = FolderRest((home or default_home()) / "memory" / host.name)
    return Node(host, 0, discreet=discreet, rest=rest, plugins=plugins, folders=folders, paths=shows_paths(node_config))


def shows_paths(node_config: Mapping[str, Setting]) -> bool:
    """Whether what a device sends of its errors may name files."""
    return node_config.get("error-paths") is True or node_config.get("tracebacks") is True


def _listed(node_config: Mapping[str, Setting], key: str) -> tuple[str, ...]:
    """What this device's owner allows under a key, separated by commas; nothing by default."""
    return tuple(each.strip() for each in str(node_config.get(key, "")).split(",") if each.strip())


def _check_plugins(experiment: Experiment, plugins: tuple[str, ...]) -> None:
    """Make sure that a run names no code from outside the catalogues but what this device's owner allows.

    Raises:
        InputError: it does; nothing of it was imported.
    """
    for key in ("model", "method", "mods", "inference"):
        refused = spec.not_allowed(key, getattr(experiment, key), plugins)
        if refused:
            raise spec.refusal(key, refused, plugins)


def kept_in(home: Path | None, experiment: Experiment) -> Callable[[str], ClientMemory]:
    """Client memory of every run in a folder of its own below ``home``, named by the run and its experiment's identity.

    A run's name is the server's word; with the identity in it, another experiment does not get this one's memory, and
    a run that goes on with another setting of what is only watched (``evaluate-every``) finds its own.

    Args:
        home: of the node; None for the default.
        experiment: as the server sent it, whatever this device changes of it.
    """
    base, identity = (home or default_home()) / "memory", experiment.identity()
    return lambda run: FolderMemory(base / hashlib.sha256(f"{run}\n{identity}".encode()).hexdigest()[:32])


def _say(text: str) -> None:
    sys.stdout.write(f"fedmlic: {text}\n")
    sys.stdout.flush()


def _integer(node_config: Mapping[str, Setting], key: str) -> int:
    value = node_config[key]
    if type(value) is not int or value < 0:
        msg = f"Expected {key} of --node-config to be 0, 1, ..., got {value!r}."
        raise InputError(msg)
    return value
