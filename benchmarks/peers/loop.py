"""The floor: a plain PyTorch loop over clients, in one process or in several.

Every process keeps one network and a share of the clients' images in memory. A round loads
the global state dict into it for every client, trains, and adds the result key by key; with
several processes each sends its sum back through a pipe.
"""

from __future__ import annotations

import multiprocessing
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import torch
from common import Clock, State, network_of, order_of, read_options, to_tensors, train
from workloads import Data, read, workload_of


class Part(NamedTuple):
    """What a process gives for a round.

    Attributes:
        total: weighted sum of the clients' trained state dicts.
        weight: images trained on.
        clients: how many.
        loss: sum of the clients' mean losses.
    """

    total: State
    weight: float
    clients: int
    loss: float


class Player:
    """Trains a share of the clients one after another."""

    def __init__(self, name: str, path: str, clients: list[int], device: str) -> None:
        torch.set_num_threads(1)
        data = read(Path(path))
        self._batch_size = workload_of(name).batch_size
        self._device = device
        self._network = network_of(name, data.labels.shape[1]).to(device)
        self._shards = {client: to_tensors(data, client, device) for client in clients}

    def play(self, state: State, round_number: int) -> Part:
        """Train every client from ``state``."""
        state = {key: value.to(self._device) for key, value in state.items()}
        total: State = {}
        weight = loss = 0.0
        for client, (images, labels) in self._shards.items():
            self._network.load_state_dict(state)
            order = order_of(client, round_number, len(images)).to(self._device)
            loss += train(self._network, images, labels, self._batch_size, order)
            for key, value in self._network.state_dict().items():
                part = value.double() * len(images) if not value.is_floating_point() else value * len(images)
                total[key] = total[key] + part if key in total else part
            weight += len(images)
        return Part(total, weight, len(self._shards), loss)

    def state(self) -> State:
        """The network's state."""
        return {key: value.clone() for key, value in self._network.state_dict().items()}


def serve(pipe: Connection, name: str, path: str, clients: list[int], device: str) -> None:
    """A process: answer every state with a sum, until there is none."""
    player = Player(name, path, clients, device)
    pipe.send(None)
    while True:
        message = pipe.recv()
        if message is None:
            return
        part = player.play({key: torch.from_numpy(value) for key, value in message[0].items()}, message[1])
        pipe.send(part._replace(total={key: value.cpu().numpy() for key, value in part.total.items()}))


def mean(parts: list[Part], like: State) -> State:
    """The weighted mean, in the types of the network."""
    weight = sum(part.weight for part in parts)
    return {key: (sum(part.total[key] for part in parts) / weight).to(like[key].dtype) for key in like}


def note(clock: Clock, parts: list[Part]) -> None:
    """Say that a round ended."""
    clients = sum(part.clients for part in parts)
    images = sum(part.weight for part in parts)
    clock.say("round", clients=clients, images=images, loss=sum(part.loss for part in parts) / clients)


def alone(name: str, path: str, log: str, rounds: int, device: str) -> None:
    """All clients in this process."""
    player = Player(name, path, list(range(read(Path(path)).num_clients)), device)
    state, clock = player.state(), Clock(log)
    clock.say("first-client")
    for number in range(1, rounds + 1):
        parts = [player.play(state, number)]
        state = mean(parts, state)
        note(clock, parts)


def shares(data: Data, num_parts: int) -> list[list[int]]:
    """Clients of each process: the largest first, each to whoever has the fewest images so far."""
    sizes = (data.client_ptr[1:] - data.client_ptr[:-1]).tolist()
    parts: list[list[int]] = [[] for _ in range(num_parts)]
    loads = [0] * num_parts
    for client in sorted(range(data.num_clients), key=lambda number: -sizes[number]):
        place = loads.index(min(loads))
        parts[place].append(client)
        loads[place] += sizes[client]
    return parts


def together(name: str, path: str, log: str, rounds: int, devices: list[str]) -> None:
    """A share of the clients in each of several processes."""
    context = multiprocessing.get_context("spawn")
    data, pipes = read(Path(path)), []
    for share, device in zip(shares(data, len(devices)), devices, strict=True):
        ours, theirs = context.Pipe()
        context.Process(target=serve, args=(theirs, name, path, share, device), daemon=True).start()
        pipes.append(ours)
    network = network_of(name, data.labels.shape[1])
    state, clock = {key: value.clone() for key, value in network.state_dict().items()}, Clock(log)
    for pipe in pipes:
        pipe.recv()
    clock.say("first-client")
    for number in range(1, rounds + 1):
        message = ({key: value.numpy() for key, value in state.items()}, number)
        for pipe in pipes:
            pipe.send(message)
        parts: list[Part] = [pipe.recv() for pipe in pipes]
        parts = [part._replace(total={k: torch.from_numpy(v) for k, v in part.total.items()}) for part in parts]
        state = mean(parts, state)
        note(clock, parts)
    for pipe in pipes:
        pipe.send(None)


def main() -> None:
    """Play the rounds."""
    options = read_options()
    job = (options.workload, options.data, options.log, options.rounds)
    if options.processes == 1:
        alone(*job, options.device)
        return
    devices = [options.device] * options.processes
    if options.device == "cuda":
        devices = [f"cuda:{place % torch.cuda.device_count()}" for place in range(options.processes)]
    together(*job, devices)


if __name__ == "__main__":
    main()
