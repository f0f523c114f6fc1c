"""Who may take part: what a node says of itself is checked before it counts.

A node that is refused is set aside, with the reason in the record, and the others go on. Only what
every node of a simulation would say too ends a run: it lies on this machine.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from fedmlic import wire
from fedmlic.errors import InputError, shown
from strategies.server.replies import MOST_IMAGES

if TYPE_CHECKING:
    from fedmlic.experiment import Experiment, Runtime
    from fedmlic.protocol import HostInfo

MOST_CLIENTS: Final = 1 << 24
"""Clients that a host may name, and numbers of hosts and of labels."""

LARGEST_ID: Final = 1 << 40
"""A client's id is below it."""

MOST_LETTERS: Final = 1000
"""Of a label's name."""


def simulated_by(grid: object) -> bool | None:
    """Whether Flower's connection is that of a simulation; None where its type does not say."""
    return {"InMemoryGrid": True, "HttpGrid": False, "GrpcGrid": False}.get(type(grid).__name__)


def listed_nodes(text: str) -> dict[int, int]:
    """Node ids by client id, from ``0=6213..., 1=1781...``.

    Raises:
        InputError: another text, or a client or node that is named twice.

    >>> listed_nodes("0=12, 3=15")
    {0: 12, 3: 15}
    """
    pairs = [part.strip() for part in text.split(",") if part.strip()]
    found = [re.fullmatch(r"(\d{1,19})\s*=\s*(\d{1,20})", pair) for pair in pairs]
    listed = {int(match[1]): int(match[2]) for match in found if match}
    if len(listed) != len(pairs) or len(set(listed.values())) != len(pairs):
        msg = f"Expected node-ids to look like '0=NODE, 1=NODE', each client and node once, got {shown(text)!r}."
        raise InputError(msg)
    return listed


def problem_of_shape(info: HostInfo, image_shape: tuple[int, int, int] | None) -> str:
    """Why a host's images do not fit the run's, or nothing.

    A network that pools over the whole image takes any size, so that the shapes of its tensors do not tell.

    Args:
        info: what it says of itself.
        image_shape: height, width and channels of the run's images, where they are known.
    """
    if image_shape is None or info.image_shape == image_shape:
        return ""
    return (
        f"Expected {shown(info.host, 80)} to have images of the run's height, width and channels {image_shape}, got "
        f"{shown(info.image_shape)}. Set image_size and channels in data of its node config as in the run's dataset."
    )


def problem_of_host(info: HostInfo, label_names: tuple[str, ...] | None, most_images: int = MOST_IMAGES) -> str:
    """Why a host's clients cannot be asked, or nothing.

    Args:
        info: what it says of itself.
        label_names: the label space of the run, where it is known.
        most_images: that a client may have.
    """
    host = shown(info.host, 80)
    clients, sizes = info.clients, info.sizes
    if not 0 < len(clients) <= MOST_CLIENTS or len(sizes) != len(clients):
        return f"Expected {host} to name 1 to {MOST_CLIENTS} clients and their images, got {len(clients)}."
    if clients.min() < 0 or clients.max() >= LARGEST_ID or (clients[1:] <= clients[:-1]).any():
        return f"Expected {host} to name clients 0, 1, ... in ascending order, got {shown(clients[:8].tolist())}."
    if sizes.min() < 0 or sizes.max() > most_images:
        wrong = sizes[(sizes < 0) | (sizes > most_images)]
        return (
            f"Expected {host} to announce 0 to {most_images} images a client, got {shown(wrong[:8].tolist())}. "
            "Raise most-client-images if that is right."
        )
    names = info.label_names
    if label_names is not None and names != label_names:
        mine, other = (shown(list(each)[:8]) for each in (label_names, names))
        return f"Expected {host} to have the run's labels {mine}, got {other}. Set label-names to those of all devices."
    if not names or len(names) > MOST_CLIENTS or max(map(len, names)) > MOST_LETTERS or len(set(names)) != len(names):
        return (
            f"Expected {host} to name distinct labels of at most {MOST_LETTERS} letters, got {shown(list(names)[:8])}."
        )
    return ""


def other_versions(versions: Mapping[str, str]) -> str:
    """What a node computes with in other versions than this server (in brackets), or nothing.

    >>> other_versions(wire.versions() | {"torch": "1.0"})  # doctest: +ELLIPSIS
    'torch 1.0 (...)'
    """
    own = wire.versions()
    return ", ".join(f"{name} {found} ({own[name]})" for name, found in versions.items() if found != own[name])


@dataclass
class Admission:
    """What is known of the nodes before they introduce themselves.

    Attributes:
        simulated: whether this is a simulation; None where only the nodes can tell.
        label_names: the run's labels, where known.
        most_images: that a device may have.
        listed: node ids by client id, where the owner of the server names them.
        strict: whether a device with any other version than the server's is set aside.
        image_shape: height, width and channels of the run's images, where known.
    """

    simulated: bool | None
    label_names: tuple[str, ...] | None
    most_images: int
    listed: Mapping[int, int]
    strict: bool = False
    image_shape: tuple[int, int, int] | None = None

    @staticmethod
    def of(grid: object, experiment: Experiment, runtime: Runtime) -> Admission:
        """As the settings say."""
        names = tuple(name.strip() for name in experiment.label_names.split(",")) if experiment.label_names else None
        return Admission(
            simulated_by(grid),
            names,
            runtime.most_client_images,
            listed_nodes(runtime.node_ids),
            runtime.strict_versions,
        )

    def problem(self, node: int, who: wire.Introduction) -> str:
        """Why a node cannot take part, or nothing."""
        host, own = shown(who.info.host, 80), wire.versions()["flwr"]
        other = who.info.versions["flwr"]
        if wire.minor(own) != wire.minor(other):
            return (
                f"Expected {host} to run Flower {wire.minor(own)} as the server does ({own}), got {other}. "
                f"Install flwr=={own} there and start the node again."
            )
        if who.code != wire.code_digest():
            return (
                f"Expected {host} to run the server's code ({wire.code_digest()}), got {shown(who.code, 80)}. "
                f"{wire.STALE_HINT}"
            )
        different = other_versions(who.info.versions) if self.strict else ""
        if different:
            return (
                f"Expected {host} to run the server's versions (in brackets), as strict-versions asks, got {different}"
                ". Install those there (fedmlic doctor --constraints writes them down) and start the node again."
            )
        if self.simulated is not None and who.simulated is not self.simulated:
            return self.of_another_kind(who)
        found = self._problem_of_name(node, who) or problem_of_host(who.info, self._labels(who), self._most(who))
        return found or problem_of_shape(who.info, None if who.simulated else self.image_shape)

    @staticmethod
    def of_another_kind(who: wire.Introduction) -> str:
        """What is wrong with a simulated node among devices, or a device in a simulation."""
        host = shown(who.info.host, 80)
        if who.simulated:
            return (
                f"Expected {host} to be a device with images of its own, got a node of a simulation. Start it with "
                "data= and client= in --node-config, without partition-id and num-partitions."
            )
        return f"Expected {host} to be a node of this simulation, got a device. Connect it to a SuperLink of devices."

    def _labels(self, who: wire.Introduction) -> tuple[str, ...] | None:
        return None if who.simulated else self.label_names

    def _most(self, who: wire.Introduction) -> int:
        return MOST_IMAGES if who.simulated else self.most_images

    def _problem_of_name(self, node: int, who: wire.Introduction) -> str:
        """A device is one client and is called by its id; a simulated node is called by its number."""
        info, host = who.info, shown(who.info.host, 80)
        if who.simulated:
            names = re.fullmatch(r"node-(\d{1,9})", info.host)
            sound = names is not None and int(names[1]) < who.num_hosts <= MOST_CLIENTS
            wrong = f"Expected a simulated node to be one of {who.num_hosts}, node-0, node-1, ..., got {host!r}."
            return "" if sound else wrong
        if who.num_hosts != 0 or len(info.clients) != 1 or info.host != f"device-{info.clients[0]}":
            return f"Expected a device to be one client and to be called device-ID by it, got {host!r}."
        if len(info.sizes) == 1 and info.sizes[0] == 0:
            return f"Expected {host} to have images to train on, got none."
        if info.unannotated is not None:
            return f"Expected {host} to name no labels that nobody annotates, which a device cannot know, got some."
        if self.listed and self.listed.get(int(info.clients[0])) != node:
            return (
                f"Expected {host} to be one of the nodes that node-ids lists, got node {node}. Add "
                f"{info.clients[0]}={node} there if it is."
            )
        return ""
