"""The floor: a plain PyTorch loop over clients, in one process or in several.

Every process keeps one network and a share of the clients' images in memory. A round loads
the global state dict into it for every client, trains, and adds the result key by key; with
several processes each sends its sum back through a pipe.
"""

from __future__ import annotations

import argparse
import multiprocessing
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from common import Clock, State, network_of, order_of, to_tensors, train
from workloads import WORKLOADS, read


class Player:
    """Trains a share of the clients one after another."""

    def __init__(self, name: str, path: str, clients: list[int], device: str) -> None:
        torch.set_num_threads(1)
        data = read(Path(path))
        self._workload = WORKLOADS[name]
        self._device = device
        self._network = network_of(name, data.labels.shape[1]).to(device)
        self._shards = {client: to_tensors(data, client, device) for client in clients}

    def play(self, state: State, round_number: int) -> tuple[State, float]:
        """The weighted sum of the clients' trained state dicts, and the weight."""
        total: State = {}
        weight = 0.0
        for client, (images, labels) in self._shards.items():
            self._network.load_state_dict(state)
            order = order_of(client, round_number, len(images)).to(self._device)
            train(self._network, images, labels, self._workload.batch_size, order)
            for key, value in self._network.state_dict().items():
                part = value.double() * len(images) if not value.is_floating_point() else value * len(images)
                total[key] = total[key] + part if key in total else part
            weight += len(images)
        return total, weight

    def state(self) -> State:
        """The network's state."""
        return {key: value.clone() for key, value in self._network.state_dict().items()}


def serve(pipe: Connection, name: str, path: str, clients: list[int], device: str) -> None:
    """A process: answer every state with a sum, until there is none."""
    player = Player(name, path, clients, device)
    pipe.send("ready")
    while True:
        message = pipe.recv()
        if message is None:
            return
        total, weight = player.play({k: torch.from_numpy(v) for k, v in message[0].items()}, message[1])
        pipe.send(({key: value.cpu().numpy() for key, value in total.items()}, weight))


def mean(sums: list[tuple[State, float]], like: State) -> State:
    """The weighted mean, in the types of the network."""
    weight = sum(part for _, part in sums)
    return {key: (sum(part[key] for part, _ in sums) / weight).to(like[key].dtype) for key in like}


def main() -> None:
    """Play the rounds."""
    parser = argparse.ArgumentParser()
    for name in ("workload", "data", "log"):
        parser.add_argument(name)
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    clock = Clock(options.log)
    shares = range(read(Path(options.data)).num_clients)
    if options.processes == 1:
        alone = Player(options.workload, options.data, list(shares), options.device)
        state = alone.state()
        clock.say("first-client")
        for number in range(1, options.rounds + 1):
            state = mean([alone.play(state, number)], state)
            clock.say("round")
        return
    context = multiprocessing.get_context("spawn")
    pipes = []
    for place in range(options.processes):
        ours, theirs = context.Pipe()
        clients = list(shares)[place :: options.processes]
        arguments = (theirs, options.workload, options.data, clients, options.device)
        context.Process(target=serve, args=arguments, daemon=True).start()
        pipes.append(ours)
    network = network_of(options.workload, read(Path(options.data)).labels.shape[1])
    state = {key: value.clone() for key, value in network.state_dict().items()}
    for pipe in pipes:
        pipe.recv()
    clock.say("first-client")
    for number in range(1, options.rounds + 1):
        for pipe in pipes:
            pipe.send(({key: value.numpy() for key, value in state.items()}, number))
        answers = [pipe.recv() for pipe in pipes]
        state = mean([({k: torch.from_numpy(v) for k, v in part.items()}, weight) for part, weight in answers], state)
        clock.say("round")
    for pipe in pipes:
        pipe.send(None)


if __name__ == "__main__":
    main()
