"""The round loop's transport over Flower: one message per node and round.

Nodes are asked once what they host; from then on their names and client ids
decide everything and Flower's random node ids nothing. A simulated node can play
any client, so clients are dealt by cost, and what a node could not answer is dealt
once more to the nodes that could. A device is one client: if it is silent, that
client has failed this round and is asked again in the next. Every wait is bounded.

Flower lets anybody take part whose key is known; here one that introduces itself wrongly
(another minor version of Flower, other code, a claimed id, impossible numbers) is set aside
with a warning, and the record says so. Other differences between a node's versions and the server's are
warned about, and every node's versions are in the record.
"""

from __future__ import annotations

import gc
import logging
import secrets
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Final

import torch
from flwr.app import Message, MessageType, RecordDict

from fedmlic import spec, wire
from fedmlic.errors import InputError, shown
from fedmlic.holdout import largest_share
from fedmlic.protocol import HostInfo, Reply, Request, Turn
from fedmlic.sums import Declared
from fedmlic.update import Update
from strategies.server.check import mods_of
from strategies.server.cohort import deal
from strategies.server.introductions import Admission, other_versions
from strategies.server.replies import REFUSED, Expected, RefusedError, Shapes, shapes_of

if TYPE_CHECKING:
    from flwr.serverapp import Grid

    from fedmlic.arrays import Layout
    from fedmlic.audit import AuditLog
    from fedmlic.experiment import Experiment, Runtime
    from fedmlic.method import Method
    from strategies.strategy import Strategy

FIRST_PAUSE_S: Final = 0.05
LONGEST_PAUSE_S: Final = 1.0
"""Between two looks for replies over a network; the pause grows by half while nothing comes."""

LOOK_S: Final = 0.02
"""Between two looks for replies in a simulation, where looking is a lookup in a dictionary."""

GRACE_S: Final = 10.0
"""How long others may still appear after every node that is there has failed."""

MOST_SHAPES: Final = 4
"""Sums of a round that do not agree in what they hold beside the model; a further one takes the place of the least."""

PULL_AT_ONCE: Final = 8
"""Replies fetched together: bounds the memory in which finished updates wait."""

_log = logging.getLogger("fedmlic")

Answer = tuple[str, RecordDict | str]
"""Whom a message went to, and the content of the reply or the reason why there is none."""


class _Exchange:
    """Messages under way and the answers to them.

    Args:
        grid: Flower's connection.
        timeout: seconds after which a message is given up.
        simulated: whether looking for replies costs next to nothing.
    """

    def __init__(self, grid: Grid, timeout: float, *, simulated: bool = False) -> None:
        self._grid = grid
        self._timeout = timeout
        self._first, self._longest = (LOOK_S, LOOK_S) if simulated else (FIRST_PAUSE_S, LONGEST_PAUSE_S)
        self._waiting: dict[str, tuple[str, float]] = {}
        self._refused: list[str] = []

    @property
    def waiting(self) -> int:
        """Messages without an answer so far."""
        return len(self._waiting) + len(self._refused)

    def send(self, messages: Mapping[str, Message]) -> None:
        """Push all messages at once, so that arrays they share are uploaded once."""
        pushed = {message_id for message_id in self._grid.push_messages(list(messages.values())) if message_id}
        deadline = time.monotonic() + self._timeout
        for name, message in messages.items():
            # Flower refuses messages to nodes that are gone; its two grids tell so in different ways.
            if message.metadata.message_id in pushed:
                self._waiting[message.metadata.message_id] = (name, deadline)
            else:
                self._refused.append(name)

    def receive(self) -> list[Answer]:
        """The answers that are there by now."""
        answers: list[Answer] = [(name, "it is not connected") for name in self._refused]
        self._refused = []
        ids = list(self._waiting)
        for start in range(0, len(ids), PULL_AT_ONCE):
            for reply in self._grid.pull_messages(ids[start : start + PULL_AT_ONCE]):
                asked = self._waiting.pop(reply.metadata.reply_to_message_id, None)
                if asked is not None:
                    answers.append((asked[0], _reason(reply) if reply.has_error() else reply.content))
        now = time.monotonic()
        late = [message_id for message_id, (_, deadline) in self._waiting.items() if now > deadline]
        answers += [(self._waiting.pop(message_id)[0], f"no answer within {self._timeout:g} s") for message_id in late]
        return answers

    def until_answered(self) -> Iterator[Answer]:
        """All answers as they come."""
        pause = self._first
        while self.waiting:
            answers = self.receive()
            yield from answers
            if self.waiting:
                pause = self._first if answers else min(pause * 1.5, self._longest)
                time.sleep(pause)


def _reason(reply: Message) -> str:
    return f"Flower's error {reply.error.code}: {shown(wire.first_line(reply.error.reason or 'no reason given'), 500)}"


class FlowerTransport:
    """A transport that sends Flower messages.

    Args:
        grid: Flower's connection, as the ServerApp gets it.
        experiment: for the number of clients a round needs.
        runtime: time limits and the number of hosts to wait for.

    Attributes:
        layout: of the exchanged tensors; to be set before the first ``play``.
        audit: where messages to devices and their answers are noted; None: nowhere.
    """

    layout: Layout
    audit: AuditLog | None = None

    def __init__(self, grid: Grid, experiment: Experiment, runtime: Runtime) -> None:
        self._grid = grid
        self._experiment = experiment
        self._runtime = runtime
        self._min_hosts = max(runtime.min_hosts, experiment.cohort_size)
        self._admission = Admission.of(grid, experiment, runtime)
        self._news: list[dict[str, object]] = []
        self._nodes: dict[str, int] = {}
        self._infos: dict[str, HostInfo] = {}
        self._strangers: set[int] = set()
        self._simulated = False
        self._sums: torch.Tensor | None = None
        self._rest = ""
        self._having: set[int] = set()
        self._without_rest: list[str] = []

    def hosts(self) -> list[HostInfo]:
        """Ask every node once what it hosts, until enough have answered.

        In a simulation that is all its nodes; else ``min-hosts``, and at least the cohort.
        Asked again, it repeats what it knows.

        Raises:
            InputError: too few within ``node-timeout`` (nodes that ``introductions`` refuses do not
                count), or bad input that a simulated node found.
        """
        if not self._infos:
            self._introduce()
        return [self._infos[name] for name in sorted(self._infos)]

    def play(
        self, request: Request, clients: Sequence[int], costs: Mapping[int, float] | None = None
    ) -> Iterator[Reply]:
        """Send every node its share of ``clients`` and yield what comes back, as it comes."""
        if not self._simulated:
            self._find_returned()
        request = replace(request, token=f"{request.kind}-{request.round}-{secrets.token_hex(8)}")
        replies = self._replies(request, clients, costs or {})
        yield from self._singles(replies) if request.each else self._total(request, replies)

    def _expected(self, request: Request, clients: Iterable[int]) -> Expected:
        """What is known of the answers before they come."""
        sizes = {
            client: size
            for info in self._infos.values()
            for client, size in zip(info.clients.tolist(), info.sizes.tolist(), strict=True)
        }
        return Expected(
            request,
            request.layout(self.layout),
            {client: sizes[client] for client in clients},
            largest_share(self._experiment.holdout_fraction, self._experiment.holdout_by),
            *self._promised,
            solved=request.solved,
            everything=self.layout,
        )

    @cached_property
    def _promised(self) -> tuple[Declared, Mapping[str, tuple[float, float]]]:
        """What the mods and the method of the experiment add beside the model, and which metrics its rule reads."""
        strategy: Strategy = spec.build("strategy", self._experiment.strategy)
        method: Method = spec.build("method", self._experiment.method)
        mods = tuple(mods_of(self._experiment, strategy).values())
        return Declared(self._experiment, mods, method.passes), strategy.metrics

    @property
    def label_names(self) -> tuple[str, ...] | None:
        """The run's labels, where they are known: a device with others is set aside."""
        return self._admission.label_names

    @label_names.setter
    def label_names(self, names: Sequence[str]) -> None:
        self._admission.label_names = tuple(names)

    @property
    def image_shape(self) -> tuple[int, int, int] | None:
        """Height, width and channels of the run's images, where they are known: a device with others is set aside."""
        return self._admission.image_shape

    @image_shape.setter
    def image_shape(self, shape: tuple[int, int, int]) -> None:
        self._admission.image_shape = shape

    def set_aside(self) -> list[dict[str, object]]:
        """``node`` and ``reason`` of every node that was set aside since the last call."""
        news, self._news = self._news, []
        return news

    def close(self) -> None:
        """Nothing to let go of: the connection is Flower's."""

    def _replies(self, request: Request, clients: Sequence[int], costs: Mapping[int, float]) -> Iterator[Reply]:
        """What the nodes answer, and last the clients that nobody could play."""
        model = wire.pack_model(request, self.layout, copy=not self._simulated, whole=self._simulated)
        if model.digest != self._rest:
            self._rest, self._having = model.digest, set()
        lost: dict[int, Turn] = {}
        answered: set[str] = set()
        expected = self._expected(request, clients)
        shares = self._shares(clients, costs)
        yield from self._try(expected, model, shares, lost, answered)
        without = {host: shares[host] for host in self._without_rest}
        if without:
            yield from self._try(expected, model, without, lost, answered)
        again, hosts = (list(lost), sorted(answered or self._infos)) if self._simulated else ([], [])
        for start in range(0, len(again), max(len(hosts), 1)):
            # One by one, so that a client that kills its worker takes no other along.
            replace_dead_actors()
            batch = {host: [client] for host, client in zip(hosts, again[start : start + len(hosts)], strict=False)}
            yield from self._try(expected, model, batch, lost, answered)
        if lost:
            replace_dead_actors()
            yield Reply(tuple(lost.values()))

    def _total(self, request: Request, replies: Iterable[Reply]) -> Iterator[Reply]:
        """Replies without their sums, and last the sum of these, in memory that is used again in the next round.

        Sums that hold other things beside the model than most do are refused: they cannot be added. Of ``MOST_SHAPES``
        kinds that came before, a further one takes the place of that with the fewest clients, the oldest of several: so
        a few nodes that send things of their own first shut out nobody but themselves.
        """
        if self._sums is None:
            self._sums = torch.zeros(self.layout.size, dtype=torch.float64)
        totals: dict[Shapes, Update] = {}
        hosts: dict[int, str] = {}
        for reply in replies:
            hosts.update({turn.client: turn.host for turn in reply.turns})
            yield replace(reply, updates=())
            for update in reply.updates:
                shapes = shapes_of(update)
                if shapes not in totals:
                    memory = None if totals else self._sums
                    if len(totals) == MOST_SHAPES:
                        least = min(totals, key=lambda each: len(totals[each].clients))
                        yield self._disagreeing(hosts, totals[least].clients)
                        memory = totals.pop(least).sums
                    totals[shapes] = Update.zero(request.layout(self.layout), request.units, buffer=memory)
                totals[shapes].merge(update)
        ranked = sorted(totals.values(), key=lambda total: (-len(total.clients), min(total.clients)))
        for fewer in ranked[1:]:
            yield self._disagreeing(hosts, fewer.clients)
        yield from (Reply((), (total,)) for total in ranked[:1])

    @staticmethod
    def _disagreeing(hosts: Mapping[int, str], clients: Iterable[int]) -> Reply:
        reason = f"{REFUSED}: Expected the same sums beside the model as others sent, got other names, types or shapes."
        return Reply(tuple(Turn(client, hosts[client], error=reason) for client in clients))

    @staticmethod
    def _singles(replies: Iterable[Reply]) -> Iterator[Reply]:
        """Replies with updates in memory of their own instead of Flower's messages."""
        for reply in replies:
            yield replace(reply, updates=tuple(replace(each, sums=each.sums.clone()) for each in reply.updates))

    def _shares(self, clients: Sequence[int], expected: Mapping[int, float]) -> dict[str, list[int]]:
        """Who plays whom."""
        costs = {client: expected.get(client, 1.0) for client in clients}
        able = {name: None if self._simulated else set(info.clients.tolist()) for name, info in self._infos.items()}
        return deal(clients, costs, able)

    def _try(
        self,
        expected: Expected,
        model: wire.Model,
        shares: Mapping[str, list[int]],
        lost: dict[int, Turn],
        answered: set[str],
    ) -> Iterator[Reply]:
        """Send one message per host and yield the replies; keep note of who answered and whom that leaves lost."""
        request = expected.request
        exchange = _Exchange(self._grid, self._runtime.round_timeout, simulated=self._simulated)
        self._without_rest = []
        messages = {host: self._message(request, host, share, model) for host, share in shares.items()}
        self._note_sent(messages)
        exchange.send(messages)
        for host, answer in exchange.until_answered():
            reply = self._read(expected, host, shares[host], answer)
            self._note_answer(request, host, answer, reply)
            if isinstance(reply, str):
                lost.update({c: Turn(c, host, error=reply) for c in shares[host]})
                continue
            expected.counted.update(client for update in reply.updates for client in update.clients)
            answered.add(host)
            self._having.add(self._nodes[host])
            for client in shares[host]:
                lost.pop(client, None)
            yield reply

    def _note_sent(self, messages: Mapping[str, Message]) -> None:
        if self.audit is None or self._simulated:
            return
        for host, message in messages.items():
            about = {"host": host, "node": str(self._nodes[host]), **wire.about_request(message.content)}
            self.audit.write({"event": "sent", **about, "out": wire.described(message.content)})

    def _note_answer(self, request: Request, host: str, answer: RecordDict | str, reply: Reply | str) -> None:
        if self.audit is None or self._simulated:
            return
        self.audit.write(
            {
                "event": "answered",
                "host": host,
                "node": str(self._nodes[host]),
                "request-kind": request.kind,
                "request-round": request.round,
                "in": {} if isinstance(answer, str) else wire.described(answer),
                "outcome": shown(wire.first_line(reply), 500) if isinstance(reply, str) else "accepted",
            }
        )

    def _message(self, request: Request, host: str, share: list[int], model: wire.Model) -> Message:
        with_rest = self._nodes[host] not in self._having
        content = wire.pack_request(request, share, self.layout, model, with_rest=with_rest)
        kind = MessageType.EVALUATE if request.kind == "evaluate" else MessageType.TRAIN
        return Message(content, self._nodes[host], kind, ttl=self._runtime.round_timeout, group_id=str(request.round))

    def _read(self, expected: Expected, host: str, share: list[int], answer: RecordDict | str) -> Reply | str:
        """A host's reply, or why it does not count."""
        if isinstance(answer, str):
            return f"NodeFailed: {host}: {answer}"
        try:
            reply = wire.unpack_reply(answer, expected.layout, len(share))
            return expected.reply(reply, host, share)
        except (wire.WireError, RefusedError) as error:
            return f"{REFUSED}: {host}: {error}"
        except wire.RemoteError as error:
            if error.kind == wire.RestMissingError.__name__:
                self._having.discard(self._nodes[host])
                self._without_rest.append(host)
            return f"NodeFailed: {host}: {error}"

    # --- who is there -----------------------------------------------------------------

    def _introduce(self) -> None:
        found, problems = self._query(self._are_enough)
        if not self._are_enough(found):
            reasons = " ".join(problems[:8]) or "No other node has connected."
            msg = (
                f"Expected {self._needed(found)} nodes within {self._runtime.node_timeout:g} s, got {len(found)}. "
                f"{reasons} Start SuperNodes, raise node-timeout, or lower min-hosts and cohort-size."
            )
            raise InputError(msg)
        _warn(problems)
        for node, who in found.items():
            self._nodes[who.info.host], self._infos[who.info.host] = node, who.info
            _warn([text] if (text := _difference(who.info)) else [])
        self._simulated = any(who.simulated for who in found.values())

    def _query(
        self, enough: Callable[[Mapping[int, wire.Introduction]], bool], skip: set[int] | None = None
    ) -> tuple[dict[int, wire.Introduction], list[str]]:
        """Ask all nodes but those in ``skip`` as they appear, until ``enough`` have answered or time is up.

        Returns:
            Those that may take part, and why others may not; these are also noted for the record.
        """
        exchange = _Exchange(self._grid, self._runtime.node_timeout)
        asked = set(skip or ())
        answered = _Answered()
        started = last_news = time.monotonic()
        while time.monotonic() - started < self._runtime.node_timeout:
            new = sorted(set(self._grid.get_node_ids()) - asked)
            if new:
                exchange.send({str(node): self._question(node) for node in new})
                asked.update(new)
            answers = exchange.receive()
            for node, answer in answers:
                self._note(int(node), answer, answered)
            here = answered.of_one_kind()
            simulation = self._admission.simulated
            if answered.fatal and (simulation or (simulation is None and not here and not exchange.waiting)):
                raise answered.fatal
            if not exchange.waiting and enough(here):
                break
            last_news = time.monotonic() if new or answers else last_news
            if answered.problems and not here and not exchange.waiting and time.monotonic() - last_news > GRACE_S:
                break
            time.sleep(4 * FIRST_PAUSE_S)
        return self._sorted(answered)

    def _question(self, node: int) -> Message:
        return Message(RecordDict(), node, MessageType.QUERY, ttl=self._runtime.node_timeout)

    def _note(self, node: int, answer: RecordDict | str, answered: _Answered) -> None:
        """Sort an answer; bad input in a simulation may end the run, as every other node will find it too."""
        if isinstance(answer, str):
            answered.problems[node] = f"A node failed: {answer}. {wire.STALE_HINT}"
            return
        try:
            who = wire.unpack_introduction(answer)
        except wire.RemoteError as error:
            if error.simulated and answered.fatal is None:
                answered.fatal = InputError(error.text) if error.kind == InputError.__name__ else error
            answered.problems[node] = f"A node failed: {shown(error, 1000)}"
        except wire.WireError as error:
            answered.problems[node] = f"A node does not follow the protocol: {error}"
        else:
            problem = self._admission.problem(node, who) or self._claimed(who, answered)
            if problem:
                answered.problems[node] = problem
            else:
                answered.found[node] = who

    def _claimed(self, who: wire.Introduction, answered: _Answered) -> str:
        """Why a node cannot be the client that it says it is: an earlier one is."""
        name = who.info.host
        if any(other.info.host == name for other in answered.found.values()):
            return (
                f"Expected every device to be another client, got two {name}; the first to claim it keeps it. Give "
                "each SuperNode its own client=, and list their nodes in node-ids."
            )
        return ""

    def _sorted(self, answered: _Answered) -> tuple[dict[int, wire.Introduction], list[str]]:
        """Those of one kind, and the problems of all others, which are noted for the record."""
        here = answered.of_one_kind()
        problems = dict(answered.problems)
        for node, who in answered.found.items():
            if node not in here:
                problems[node] = self._admission.of_another_kind(who)
        self._put_aside(problems)
        return here, list(problems.values())

    def _put_aside(self, problems: Mapping[int, str]) -> None:
        self._news += [{"node": str(node), "reason": shown(reason, 2000)} for node, reason in problems.items()]

    def _are_enough(self, found: Mapping[int, wire.Introduction]) -> bool:
        return len(found) >= self._needed(found)

    def _needed(self, found: Mapping[int, wire.Introduction]) -> int:
        return max((who.num_hosts for who in found.values() if who.simulated), default=self._min_hosts)

    def _find_returned(self) -> None:
        """A device that came back under another node id takes its place again."""
        present = set(self._grid.get_node_ids())
        known = set(self._nodes.values())
        missing = {name for name, node in self._nodes.items() if node not in present}
        if not missing or not present - known - self._strangers:
            return
        found, problems = self._query(lambda _: True, skip=known | self._strangers)
        _warn(problems)
        for node, who in found.items():
            name = who.info.host
            if name not in missing or who.simulated:
                continue
            before = self._infos[name].sizes.tolist()
            if who.info.sizes.tolist() != before:
                reason = f"Expected {name} to have the {before[0]} images that it announced, got {who.info.sizes[0]}."
                self._put_aside({node: reason})
                _warn([reason])
                continue
            self._nodes[name] = node
        self._strangers |= present - set(self._nodes.values())


@dataclass
class _Answered:
    """What nodes answered so far.

    Attributes:
        found: nodes that introduced themselves well, in the order of their answers.
        problems: why others cannot take part, by node.
        fatal: what a simulated node found wrong with the settings.
    """

    found: dict[int, wire.Introduction] = field(default_factory=dict)
    problems: dict[int, str] = field(default_factory=dict)
    fatal: InputError | wire.RemoteError | None = None

    def of_one_kind(self) -> dict[int, wire.Introduction]:
        """The devices, or the simulated nodes where there is no device: one node cannot make a simulation of them."""
        devices = {node: who for node, who in self.found.items() if not who.simulated}
        return devices or dict(self.found)


def _difference(info: HostInfo) -> str:
    """What a node computes with in other versions than the server, or nothing."""
    others = other_versions(info.versions)
    if not others:
        return ""
    return (
        f"{info.host} runs other versions than the server (in brackets): {others}. The run goes on; its last "
        "digits may depend on them. strict-versions=true would set such devices aside."
    )


def _warn(problems: Iterable[str]) -> None:
    for problem in problems:
        _log.warning("%s", problem)


def replace_dead_actors() -> int:
    """Put new Ray actors in the place of dead ones, if Flower's simulation runs in this process.

    Flower (1.41 and 1.42) hands a dead actor back to its pool, which gives it out first ever after,
    and has no way to ask for another. Call it while no message is under way.

    Returns:
        How many were replaced.
    """
    module = sys.modules.get("flwr.simulation.ray_transport.ray_actor")
    if module is None:
        return 0
    pools = [found for found in gc.get_objects() if type(found) is module.BasicActorPool]
    count = 0
    for pool in pools:
        for place, actor in enumerate(pool.pool):
            try:
                module.ray.get(actor.__ray_ready__.remote())
            except module.ray.exceptions.RayActorError:
                pool.pool[place] = pool.create_actor_fn()
                count += 1
    return count
