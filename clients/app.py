"""The ClientApp: what a Flower node does with a message.

A process keeps its host, with the network in memory, from one message to the
next (a simulation's Ray actor does; a SuperNode starts a fresh process for each
message and finds its images prepared on disk). Whatever goes wrong becomes an
answer: no message kills the node, and from a device no traceback leaves.
"""

from __future__ import annotations

import json
import logging
from dataclasses import replace

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from clients.source import Seat, is_device, node_name, open_seat
from fedmlic import wire
from fedmlic.protocol import Reply, Request, Turn

app = ClientApp()

_log = logging.getLogger("fedmlic")
_seats: dict[str, Seat] = {}


@app.query()
def query(message: Message, context: Context) -> Message:
    """Say which clients this node can play, and what it runs on."""
    try:
        seat = seat_of(context)
        info = replace(seat.host.info(), versions=wire.versions())
        introduction = wire.Introduction(info, seat.num_hosts, wire.code_digest())
        answer = wire.pack_introduction(introduction)
    except Exception as error:  # noqa: BLE001  (whatever it is, the server should hear of it)
        _log.exception("The query failed.")
        answer = _failure(error, context)
    return Message(answer, reply_to=message)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train the clients that the message names."""
    return Message(answer_to(message.content, context), reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Evaluate the model on the held-out images of the clients that the message names."""
    return Message(answer_to(message.content, context), reply_to=message)


def answer_to(content: RecordDict, context: Context) -> RecordDict:
    """Play the clients of a request; a failure in or around a turn is part of the answer."""
    try:
        seat = seat_of(context)
        request, clients = wire.unpack_request(content, seat.learner.resident.layout)
        reply = play(seat, replace(request, flat=request.flat.to(seat.learner.device)), clients)
        # In a simulation the reply is pickled before this process does anything else.
        return wire.pack_reply(reply, seat.learner.resident.layout, copy=seat.num_hosts == 0)
    except Exception as error:  # noqa: BLE001  (whatever it is, the server should hear of it)
        _log.exception("The request failed.")
        return _failure(error, context)


def play(seat: Seat, request: Request, clients: list[int]) -> Reply:
    """Play ``clients`` and keep their tracebacks here if the node is discreet."""
    seat.host.collect()  # forget what a broken-off message left behind
    reply = seat.host.play(request, clients)
    return replace(reply, turns=tuple(_discreet(turn) for turn in reply.turns)) if seat.discreet else reply


def _discreet(turn: Turn) -> Turn:
    if not turn.error:
        return turn
    _log.error("Client %d failed: %s", turn.client, turn.error)
    return replace(turn, error=wire.first_line(turn.error))


def _failure(error: Exception, context: Context) -> RecordDict:
    keys = context.node_config.keys()
    return wire.pack_failure(error, simulated="num-partitions" in keys and "data" not in keys)


def seat_of(context: Context) -> Seat:
    """This process's seat for the run; opened for its first message, kept until another run comes."""
    node = dict(context.node_config)
    name = node_name(node)
    if not is_device(node):
        # Flower lets any actor answer for any simulated node; they differ in nothing but their name.
        del node["partition-id"]
    key = json.dumps([context.run_id, context.run_config, node], sort_keys=True)
    if key not in _seats:
        wire.check_packages(__file__, ["fedmlic"])
        _seats.clear()
        _seats[key] = open_seat(context.run_config, context.node_config)
    seat = _seats[key]
    seat.host.name = name
    return seat
