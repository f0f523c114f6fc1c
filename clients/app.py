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

from clients import approval, audit
from clients.source import Node, is_device, node_name, open_node, shows_paths
from fedmlic import spec, wire
from fedmlic.errors import InputError
from fedmlic.protocol import Reply, Request, Turn

app = ClientApp()

_log = logging.getLogger("fedmlic")
_nodes: dict[str, Node] = {}


@app.query()
def query(message: Message, context: Context) -> Message:
    """Say which clients this node can play, and what it runs on."""
    try:
        here = node_of(context)
        info = replace(here.host.info(), versions=wire.versions())
        introduction = wire.Introduction(info, here.num_hosts, wire.code_digest())
        answer = wire.pack_introduction(introduction)
    except Exception as error:  # noqa: BLE001  (whatever it is, the server should hear of it)
        _log.exception("The query failed.")
        answer = _failure(error, context)
    return _reply("query", message, answer, context)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train the clients that the message names."""
    return _reply("train", message, answer_to(message.content, context), context)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Evaluate the model on the held-out images of the clients that the message names."""
    return _reply("evaluate", message, answer_to(message.content, context), context)


def _reply(kind: str, message: Message, answer: RecordDict, context: Context) -> Message:
    """The answer, once it is in the device's audit log."""
    try:
        audit.note(kind, message.content, answer, context)
    except InputError as error:
        _log.exception("The answer is not sent.")
        answer = _failure(error, context)
    return Message(answer, reply_to=message)


def answer_to(content: RecordDict, context: Context) -> RecordDict:
    """Play the clients of a request; a failure in or around a turn is part of the answer."""
    try:
        here = node_of(context)
        request, clients = wire.unpack_request(content, here.host.layout, here.rest, here.plugins)
        device = here.host.device
        shared = {name: tensor.to(device) for name, tensor in request.shared.items()}
        reply = play(here, replace(request, flat=request.flat.to(device), shared=shared), clients)
        # In a simulation the reply is pickled before this process does anything else.
        reply = replace(reply, token=request.token)
        return wire.pack_reply(reply, request.layout(here.host.layout), copy=here.num_hosts == 0)
    except Exception as error:  # noqa: BLE001  (whatever it is, the server should hear of it)
        _log.exception("The request failed.")
        return _failure(error, context)


def play(here: Node, request: Request, clients: list[int]) -> Reply:
    """Play ``clients`` and keep their tracebacks here if the node is discreet."""
    here.host.collect()  # forget what a broken-off message left behind
    with spec.allowing(here.plugins, here.folders):
        reply = here.host.play(request, clients)
    if not here.discreet:
        return reply
    return replace(reply, turns=tuple(_discreet(turn, paths=here.paths) for turn in reply.turns))


def _discreet(turn: Turn, *, paths: bool) -> Turn:
    if not turn.error:
        return turn
    _log.error("Client %d failed: %s", turn.client, turn.error)
    return replace(turn, error=wire.discreet(turn.error, paths=paths))


def _failure(error: Exception, context: Context) -> RecordDict:
    node = context.node_config
    simulated = "num-partitions" in node and "data" not in node
    return wire.pack_failure(error, simulated=simulated, paths=shows_paths(node))


def node_of(context: Context) -> Node:
    """What this process hosts for the run; opened for its first message, kept until another run comes."""
    node = dict(context.node_config)
    if approval.KEY in node:
        approval.check_own_code(node[approval.KEY])
    name = node_name(node)
    if not is_device(node):
        # Flower lets any actor answer for any simulated node; they differ in nothing but their name.
        del node["partition-id"]
    key = json.dumps([context.run_id, context.run_config, node], sort_keys=True)
    if key not in _nodes:
        wire.check_packages(__file__, ["fedmlic"])
        _nodes.clear()
        _nodes[key] = open_node(context.run_config, context.node_config)
    here = _nodes[key]
    here.host.name = name
    return here
