"""Rules with their mods against plain loops in float64, on two clients small enough to check by hand."""

from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from flwr import app as flwr
from flwr.clientapp.mod import fixedclipping_mod
from flwr.serverapp.strategy import FedAvg
from flwr.supercore.task_identity import TaskIdentity
from torch import nn

from clients.host import Host, passed_on, private_of
from clients.memory import FolderMemory
from fedmlic import spec
from fedmlic.arrays import Resident
from fedmlic.errors import InputError
from fedmlic.experiment import Experiment
from fedmlic.learner import Learner, pooled_moments
from fedmlic.losses import mean_binary_cross_entropy
from fedmlic.method import Method, Objective, Task, Trained
from fedmlic.mod import Hooks
from fedmlic.mods.int8 import quantised
from fedmlic.optimiser import accumulated
from fedmlic.pixel_scale import to_float
from fedmlic.protocol import Request
from fedmlic.shard import Shard
from fedmlic.training import trainer
from fedmlic.update import Update, units_for
from strategies.strategy import Round, State

NAMES = ("one", "two")
RATE = 0.3


class Pixels:
    """Images in memory."""

    def __init__(self, pixels):
        self.pixels = pixels

    def take(self, rows):
        return self.pixels[rows]


def clients(sizes=(3, 5), seed=0, held_out=0):
    rng = np.random.default_rng(seed)
    shards = []
    for client, count in enumerate(sizes):
        pixels = rng.integers(0, 256, (count + held_out, 2, 2, 1), dtype=np.uint8)
        labels = rng.integers(0, 2, (count + held_out, 2)).astype(np.int8)
        rows, held = np.split(np.arange(count + held_out), [count])
        shards.append(Shard(client, NAMES, Pixels(pixels), rows, labels[rows], held, labels[held]))
    return shards


class Federation:
    """What a host asks of a federation."""

    unannotated_labels = ()

    def __init__(self, shards):
        self._shards = shards
        self.clients = range(len(shards))
        self.sizes = np.array([shard.num_images for shard in shards])
        self.label_names = NAMES

    def shard(self, client):
        return self._shards[client]


def linear():
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    with torch.no_grad():
        network[1].weight.copy_(torch.linspace(-0.3, 0.4, 8).view(2, 4))
        network[1].bias.copy_(torch.tensor([0.1, -0.2]))
    return network


HEAD = ("1.weight", "1.bias")
"""The tensors of ``linear`` with one row per label."""


class Given(Learner):
    """Builds its method's network again, which no text of an experiment names."""

    def build_network(self, experiment):
        del experiment
        return self.method.build(self.task)


def play(
    tmp_path, shards, strategy="fedavg()", mods="", rounds=3, participants=None, make=linear, rows=HEAD, **settings
):
    """Play rounds of full-batch steps; the models after each, and what the last round's turns said."""
    values = {"optimizer": "sgd", "learning_rate": RATE, "clip_norm": 0.0, "batch_size": 100, "local_epochs": 2}
    experiment = Experiment(mods=mods, num_clients=len(shards), cohort_size=0, **{**values, **settings})
    objective = Objective(lambda network, images, labels: mean_binary_cross_entropy(network(images), labels))
    scores = []

    def predict(network, images):
        scores.append(torch.sigmoid(network(images)))
        return scores[-1]

    method = Method(
        lambda task: make(),  # noqa: ARG005
        trainer(objective),
        predict,
        label_rows=lambda network: rows,  # noqa: ARG005
        objective=objective,
    )
    own = tuple(spec.build_all("mods", mods))
    network = make()
    private = [name for mod in own if mod.private for name in mod.private(network, method)]
    resident = Resident(network, num_labels=2, label_rows=rows, private=private, moments=pooled_moments(network))
    task = Task(NAMES, (2, 2, 1), None, 0)
    learner = Given(method, resident, task, torch.device("cpu"), own)
    host = Host("h", experiment, Federation(shards), learner, memory=lambda run: FolderMemory(tmp_path / run))
    rule = spec.build("strategy", strategy)
    layout = resident.layout
    state, last, models = rule.init(resident.flat.clone(), layout), {}, []
    for number in range(1, rounds + 1):
        cohort = [shard.client for shard in shards] if participants is None else participants(number)
        sizes = [shards[client].num_images for client in cohort]
        request = Request(
            kind="train",
            round=number,
            flat=state.flat,
            units=units_for(rule.weighting, sizes, 2),
            weighting=rule.weighting,
            each=rule.needs == "each",
            shared=state.shared,
            mods=rule.mods,
            last=dict(last),
        )
        reply = host.play(request, cohort)
        assert [turn.error for turn in reply.turns] == [""] * len(cohort)
        state = rule.aggregate(state, iter(reply.updates), Round(number, len(shards), len(cohort), layout))
        last.update(dict.fromkeys(cohort, number))
        models.append(layout.unpack(state.flat))
    return SimpleNamespace(
        models=models, turns=reply.turns, state=state, layout=layout, host=host, last=last, scores=scores
    )


# --- plain loops --------------------------------------------------------------------------


def vector(model):
    return torch.cat([model["1.weight"].double().flatten(), model["1.bias"].double().flatten()])


def gradient(weights, shard, rows=slice(None)):
    """Of the mean log-loss over images and labels, by hand: (p - y) x / (images * labels)."""
    images = to_float(shard.images.take(shard.rows)).double().flatten(1)[rows]
    labels = torch.from_numpy(shard.labels).double()[rows]
    matrix, bias = weights[:8].view(2, 4), weights[8:]
    error = (torch.sigmoid(images @ matrix.T + bias) - labels) / labels.numel()
    return torch.cat([(error.T @ images).flatten(), error.sum(dim=0)])


def start():
    network = linear()
    return torch.cat([network[1].weight.detach().double().flatten(), network[1].bias.detach().double()])


def descend(weights, shard, steps, rate=RATE, extra=lambda _: 0.0, momentum=0.0):
    velocity = torch.zeros_like(weights)
    for _ in range(steps):
        velocity = momentum * velocity + gradient(weights, shard) + extra(weights)
        weights = weights - rate * velocity
    return weights


def close(model, weights, tolerance=2e-6):
    assert torch.allclose(vector(model), weights, atol=tolerance, rtol=0)


def test_fedavg(tmp_path):
    shards, weights = clients(), start()
    played = play(tmp_path, shards)

    for model in played.models:
        local = [descend(weights, shard, 2) for shard in shards]
        weights = (3 * local[0] + 5 * local[1]) / 8
        close(model, weights)


def test_fedprox(tmp_path):
    shards, weights, mu = clients(), start(), 0.7
    played = play(tmp_path, shards, f"fedprox(mu={mu})")

    for model in played.models:
        origin = weights
        local = [descend(weights, shard, 2, extra=lambda w, o=origin: mu * (w - o)) for shard in shards]
        weights = (3 * local[0] + 5 * local[1]) / 8
        close(model, weights)


@pytest.mark.parametrize("rule", ["fedprox(mu=0.0)", "fedavg()"])
@pytest.mark.parametrize("mods", ["proximal(mu=0.0)", "top_k(fraction=1.0)", "clip(norm=1000.0)", "moon(mu=0.0)", ""])
def test_what_adds_nothing_changes_no_bit(tmp_path, rule, mods):
    plain = play(tmp_path / "plain", clients())
    other = play(tmp_path / "other", clients(), rule, mods)

    assert torch.equal(plain.state.flat, other.state.flat)


@pytest.mark.parametrize("option", [1, 2])
@pytest.mark.parametrize("everybody", [True, False])
def test_scaffold(tmp_path, option, everybody):
    shards, weights, rate = clients(sizes=(3, 5, 4)), start(), 0.8
    cohort_of = (lambda number: [0, 1, 2]) if everybody else (lambda number: [[0, 1], [1, 2], [0, 2]][number - 1])  # noqa: ARG005
    played = play(
        tmp_path, shards, f"scaffold(option={option}, server_rate={rate})", participants=cohort_of, local_epochs=3
    )

    server, own = torch.zeros_like(weights), [torch.zeros_like(weights) for _ in shards]
    for number, model in enumerate(played.models, 1):
        changes, moves = [], []
        for client in cohort_of(number):
            drift = server - own[client]
            local = descend(weights, shards[client], 3, extra=lambda _, d=drift: d)
            new = (
                gradient(weights, shards[client])
                if option == 1
                else own[client] - server + (weights - local) / (3 * RATE)
            )
            changes.append(new - own[client])
            moves.append(local - weights)
            own[client] = new
        weights = weights + rate * sum(moves) / len(moves)
        server = server + sum(changes) / len(shards)
        close(model, weights)


def test_scaffold_with_everybody_and_one_step_is_gradient_descent(tmp_path):
    shards, weights = clients(sizes=(4, 4)), start()
    played = play(tmp_path, shards, "scaffold()", local_epochs=1, rounds=5)

    for model in played.models:
        weights = weights - RATE * (gradient(weights, shards[0]) + gradient(weights, shards[1])) / 2
        close(model, weights)


@pytest.mark.parametrize("correct", ["gradient", "step"])
def test_scaffold_with_momentum(tmp_path, correct):
    """Three full-batch steps with momentum; control variates as option 2 makes them from what the steps did."""
    shards, weights, momentum = clients(sizes=(3, 5)), start(), 0.9
    played = play(tmp_path, shards, f"scaffold(correct={correct!r})", local_epochs=3, momentum=momentum)

    server, own = torch.zeros_like(weights), [torch.zeros_like(weights) for _ in shards]
    # With constant gradients, 3 steps move by 1 + (1 + m) + (1 + m + m^2) gradients.
    length = 3 + 2 * momentum + momentum**2 if correct == "gradient" else 3
    for model in played.models:
        news, models = [], []
        for client, shard in enumerate(shards):
            drift, local, velocity = server - own[client], weights, torch.zeros_like(weights)
            for _ in range(3):
                inside, outside = (drift, 0 * drift) if correct == "gradient" else (0 * drift, drift)
                velocity = momentum * velocity + gradient(local, shard) + inside
                local = local - RATE * (velocity + outside)
            news.append(own[client] - server + (weights - local) / (length * RATE))
            models.append(local)
        server = server + sum(new - old for new, old in zip(news, own, strict=True)) / len(shards)
        own, weights = news, sum(models) / len(models)
        close(model, weights, 5e-6)


def test_scaffold_cannot_take_whole_gradients_off_after_a_step():
    with pytest.raises(InputError, match="Expected correct of scaffold to be 'gradient' with option=1"):
        spec.build("mods", "scaffold(option=1, correct='step')")


def test_feddyn(tmp_path):
    shards, weights, alpha = clients(sizes=(3, 5, 4)), start(), 0.4
    cohort_of = lambda number: [[0, 1, 2], [1, 2], [0, 2]][number - 1]  # noqa: E731
    played = play(tmp_path, shards, f"feddyn(alpha={alpha})", participants=cohort_of)

    server, own = torch.zeros_like(weights), [torch.zeros_like(weights) for _ in shards]
    for number, model in enumerate(played.models, 1):
        local = {}
        for client in cohort_of(number):
            held, origin = own[client], weights
            local[client] = descend(weights, shards[client], 2, extra=lambda w, h=held, o=origin: alpha * (w - o) - h)
            own[client] = held - alpha * (local[client] - weights)
        server = server - alpha / len(shards) * sum(new - weights for new in local.values())
        weights = sum(local.values()) / len(local) - server / alpha
        close(model, weights, 5e-6)


LOSSY = ["clip(norm=0.02)", "top_k(fraction=0.3)", "top_k(fraction=0.3, error_feedback=False)", "int8()"]


@pytest.mark.parametrize("mods", LOSSY)
def test_feddyn_remembers_of_every_client_what_the_server_got_of_it(tmp_path, mods):
    """The server's h is the mean of the clients' h_k, as algorithm 1 has it; they would drift apart."""
    alpha = 0.1
    cohort_of = lambda number: [[0, 1, 2], [1, 2], [0, 2]][number % 3]  # noqa: E731
    played = play(tmp_path, clients(sizes=(3, 5, 4)), f"feddyn(alpha={alpha})", mods, rounds=9, participants=cohort_of)

    place = FolderMemory(tmp_path / "")
    own = [place.recall(client, number)["feddyn/gradient"] for client, number in sorted(played.last.items())]
    server = played.state.memory["feddyn/gradient"]
    torch.testing.assert_close(server, torch.stack(own).mean(dim=0), rtol=0, atol=1e-6)
    assert float(server.norm()) > 1e-3


def test_feddyn_with_limited_changes_goes_on_to_where_the_mean_gradient_is_zero(tmp_path):
    """It is 1/30 of what it was, as without the limit; were h_k made of the whole change it would stop at a half."""
    shards = clients()
    played = play(tmp_path, shards, "feddyn(alpha=0.5)", "clip(norm=0.05)", rounds=150)

    weights = vector(played.models[-1])
    at_start, at_end = (
        float(sum(gradient(where, shard) for shard in shards).norm()) / 2 for where in (start(), weights)
    )
    assert at_end < 0.05 * at_start


@pytest.mark.parametrize("mods", LOSSY)
def test_scaffolds_control_variates_are_of_the_clients_own_change_and_add_up_to_the_servers(tmp_path, mods):
    """What is lost on the way to the server is no part of a gradient; their changes travel beside the model, whole."""
    played = play(tmp_path, clients(), "scaffold()", mods, rounds=4)

    place = FolderMemory(tmp_path / "")
    own = [place.recall(client, number)["scaffold/control"] for client, number in sorted(played.last.items())]
    server = played.state.shared["scaffold/control"]
    torch.testing.assert_close(server, torch.stack(own).mean(dim=0), rtol=0, atol=1e-6)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_fednova(tmp_path, momentum):
    """Batches of 2 make clients of 3 and 5 images take 2 and 3 steps an epoch, replayed in their order."""
    shards, weights = clients(), start()
    played = play(tmp_path, shards, "fednova()", batch_size=2, momentum=momentum, rounds=2)

    for number, model in enumerate(played.models, 1):
        total, effective, origin = torch.zeros_like(weights), 0.0, weights
        for shard, share in zip(shards, (3 / 8, 5 / 8), strict=True):
            local, velocity, count = origin, torch.zeros_like(weights), 0
            for rows in order(shard, number):
                velocity = momentum * velocity + gradient(local, shard, rows)
                local, count = local - RATE * velocity, count + 1
            # Table 1 of the paper, as the sum over steps of how long each gradient acts.
            steps = sum(sum(momentum**j for j in range(i)) for i in range(1, count + 1)) if momentum else count
            assert accumulated(count, momentum) == pytest.approx(steps)
            total, effective = total + share * (local - origin) / steps, effective + share * steps
        weights = origin + effective * total
        close(model, weights, 2e-5)
    assert played.state.metrics["effective-steps"] == pytest.approx(effective, rel=1e-3)


@pytest.mark.parametrize("mods", ["top_k(fraction=0.3)", "clip(norm=0.1)", "clip(norm=0.1), top_k(fraction=0.3)"])
def test_fednova_divides_what_is_left_of_a_change_by_its_steps(tmp_path, mods):
    """A limit, and what is left over for the next round, are in units of the client's own change in every round."""
    shards, weights = clients(), start()
    played = play(tmp_path, shards, "fednova()", mods=mods, batch_size=2, rounds=3)

    left_over = [torch.zeros_like(weights) for _ in shards]
    for number, model in enumerate(played.models, 1):
        total, effective, origin = torch.zeros_like(weights), 0.0, weights
        for client, (shard, share) in enumerate(zip(shards, (3 / 8, 5 / 8), strict=True)):
            local, steps = origin, 0
            for rows in order(shard, number):
                local, steps = local - RATE * gradient(local, shard, rows), steps + 1
            change = local - origin
            if "clip" in mods:
                assert float(change.norm()) > 0.1
                change = change * 0.1 / change.norm()
            if "top_k" in mods:
                change = change + left_over[client]
                places = change.abs().topk(3).indices
                sent = torch.zeros_like(change)
                sent[places] = change[places]
                change, left_over[client] = sent, change - sent
            total, effective = total + share * change / steps, effective + share * steps
        weights = origin + effective * total
        close(model, weights, 2e-5)


def test_scales_multiply_and_spare_statistics_of_norms():
    """Two factors of a half: a quarter of the weights' change; mean and variance of a norm are sent as they are."""
    network = nn.Sequential(nn.BatchNorm1d(3, affine=False), nn.Linear(3, 2, bias=False))
    layout = Resident(network, num_labels=2, moments=[("0.running_mean", "0.running_var")]).layout
    start, trained = torch.ones(layout.size), torch.full((layout.size,), 9.0)

    sent, num_bytes, _ = passed_on([Hooks(scale=lambda _: 0.5)] * 2, layout, start, trained, Trained(0.0, 1, {}))

    found = {name: view.flatten().tolist() for name, view in layout.views(sent)}
    assert found == {"0.running_mean": [9.0] * 3, "0.running_var": [9.0] * 3, "1.weight": [1 + 8 / 4] * 6}
    assert num_bytes == 4 * 12


def pair(scale, change, mods, memory):
    """What a client sends that took four steps under fednova: its change of two numbers, by hand."""
    network = nn.Linear(1, 2, bias=False)
    resident = Resident(network, num_labels=2)
    shared = {"fednova/scale": torch.tensor([scale], dtype=torch.float64)}
    experiment = Experiment(optimizer="sgd", learning_rate=RATE)
    local = SimpleNamespace(layout=resident.layout, shared=shared, memory=memory, experiment=experiment)
    built = spec.build_all("mods", f"fednova(), {mods}")
    hooks = [mod.begin(resident, clients(sizes=(4,))[0], local) for mod in built]
    start = torch.zeros(resident.layout.size)
    trained = start.clone()
    trained[:2] = torch.tensor(change)
    return passed_on(hooks, resident.layout, start, trained, Trained(0.0, 4, {}))[0][:2].tolist()


def test_top_k_after_fednova_loses_nothing_by_hand():
    """Changes (8, 4) and (0, 0): 8 is sent in round 1 and 4 in round 2, each a quarter of it, times s = 1 and 4."""
    memory = {}

    first = pair(1.0, (8.0, 4.0), "top_k(fraction=0.5)", memory)
    second = pair(4.0, (0.0, 0.0), "top_k(fraction=0.5)", memory)

    assert first == [2.0, 0.0]
    assert second == [0.0, 4.0]
    # The server multiplies by tau_eff / s, 4 and 1: in all (8, 4).
    assert [4 * a + b for a, b in zip(first, second, strict=True)] == [8.0, 4.0]


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_clip_after_fednova_limits_the_change_itself_in_every_round_by_hand(scale):
    """(6, 8) becomes (0.6, 0.8) of length 1, and a quarter of it times s; the server's 4 / s makes it 1 again."""
    sent = pair(scale, (6.0, 8.0), "clip(norm=1.0)", {})

    assert sent == pytest.approx([0.6 * scale / 4, 0.8 * scale / 4])


@pytest.mark.parametrize("weights", ["images", "annotations"])
def test_fednova_counts_the_steps_of_a_million_images_exactly(weights):
    """Clients of 10^6 and 3 images, 1,628 labels, 5 epochs in batches of 16 with momentum; order does not matter."""
    labels, sizes, steps, momentum = 1628, (1_000_000, 3), (312_500, 5), 0.9
    rule = spec.build("strategy", f"fednova(weights={weights!r})")
    mod = spec.build("mods", rule.mods[0])
    layout = Resident(nn.Linear(1, labels), num_labels=labels, label_rows=("weight", "bias")).layout
    experiment = Experiment(optimizer="sgd", learning_rate=RATE, momentum=momentum)
    state = rule.init(torch.zeros(layout.size), layout)
    updates = []
    for client, (images, count) in enumerate(zip(sizes, steps, strict=True)):
        annotations = torch.full((labels,), images)
        local = SimpleNamespace(layout=layout, shared=state.shared, memory={}, experiment=experiment)
        hooks = mod.begin(None, SimpleNamespace(num_images=images, annotations=annotations.numpy()), local)
        trained = Trained(0.0, count, {})
        change = torch.zeros(layout.size)
        update = Update.zero(layout, units_for(rule.weighting, sizes, labels))
        update.add_client(
            client,
            change,
            weighting=rule.weighting,
            num_images=images,
            annotations=annotations,
            metrics={"loss": 0.0, "steps": float(count)},
            extras=hooks.extras(change, trained),
        )
        updates.append(update)
    sums = []
    for one, other in ((0, 1), (1, 0)):
        total = Update.zero(layout, updates[0].units)
        total.merge(updates[one])
        total.merge(updates[other])
        sums.append(total.extras["fednova/steps"])
        found = rule.aggregate(state, iter([total]), Round(1, 2, 2, layout)).metrics["effective-steps"]

    by_hand = [Fraction(accumulated(count, momentum)) for count in steps]
    expected = sum(size * each for size, each in zip(sizes, by_hand, strict=True)) / sum(sizes)
    assert found == pytest.approx(float(expected), rel=1e-12)
    assert torch.equal(*sums)


def order(shard, number):
    """The batches of a turn: from the stream that training draws its order from."""
    from fedmlic.seeds import stream

    rng = stream(0, "train/order", shard.client, number)
    for _ in range(2):
        permuted = rng.permutation(shard.num_images)
        for first in range(0, shard.num_images, 2):
            yield permuted[first : first + 2]


def test_fednova_with_equal_steps_is_fedavg(tmp_path):
    plain, other = play(tmp_path / "a", clients()), play(tmp_path / "b", clients(), "fednova()")

    assert torch.allclose(plain.state.flat, other.state.flat, atol=1e-6)


def test_clip_bounds_what_one_client_does(tmp_path):
    shards, weights, limit = clients(sizes=(4,)), start(), 0.05
    played = play(tmp_path, shards, mods=f"clip(norm={limit})", rounds=1)

    change = descend(weights, shards[0], 2) - weights
    assert float(change.norm()) > limit
    close(played.models[0], weights + change * limit / change.norm())


def drawn(count=1):
    """The layout of two tensors, and vectors of it with random numbers."""
    layout = Resident(linear(), num_labels=2, label_rows=HEAD).layout
    rng = torch.Generator().manual_seed(0)
    flats = []
    for _ in range(count):
        tensors = {
            name: torch.randn(shape, generator=rng) for name, shape in zip(layout.names, layout.shapes, strict=True)
        }
        flats.append(layout.pack(tensors))
    return layout, flats


@pytest.fixture
def in_flower(monkeypatch):
    """Inside a task of Flower, without which it makes no messages."""
    for name in ("_run_id", "_node_id", "_task_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


def record(layout, flat):
    """The tensors as Flower sends them."""
    return flwr.ArrayRecord({name: flwr.Array(view.numpy()) for name, view in layout.views(flat)})


def trained_by_flower(sent, trained, num_images=1):
    """A client's answer to the server's message."""
    content = {"arrays": trained, "metrics": flwr.MetricRecord({"num-examples": num_images})}
    return flwr.Message(flwr.RecordDict(content), reply_to=sent)


@pytest.mark.usefixtures("in_flower")
@pytest.mark.parametrize("limit", [0.5, 100.0])
def test_clip_is_flowers_fixedclipping_mod_on_the_same_numbers(limit):
    layout, (start, trained) = drawn(2)
    assert 0.5 < float((trained - start).norm()) < 100
    hooks = spec.build("mods", f"clip(norm={limit})").begin(None, None, None)
    content = {"arrays": record(layout, start), "config": flwr.ConfigRecord({"clipping_norm": limit})}
    sent = flwr.Message(flwr.RecordDict(content), dst_node_id=1, message_type="train")

    ours, _, _ = passed_on([hooks], layout, start, trained, Trained(0.0, 1, {}))
    theirs = fixedclipping_mod(sent, None, lambda message, _: trained_by_flower(message, record(layout, trained)))

    found = theirs.content.array_records["arrays"]
    for name, view in layout.views(ours):
        np.testing.assert_allclose(view.numpy(), found[name].numpy(), rtol=2e-6, atol=1e-7)


@pytest.mark.usefixtures("in_flower")
def test_fedavg_is_flowers_on_the_same_numbers():
    """Three clients of 3, 5 and 1000 images."""
    sizes, (layout, flats) = (3, 5, 1000), drawn(3)
    rule = spec.build("strategy", "fedavg()")
    total = Update.zero(layout, units_for(rule.weighting, sizes, 2))
    replies = []
    for client, (flat, size) in enumerate(zip(flats, sizes, strict=True)):
        total.add_client(
            client, flat, weighting=rule.weighting, num_images=size, annotations=torch.tensor([size, size]), metrics={}
        )
        sent = flwr.Message(flwr.RecordDict(), dst_node_id=client + 1, message_type="train")
        replies.append(trained_by_flower(sent, record(layout, flat), size))
    start = rule.init(torch.zeros(layout.size), layout)

    ours = rule.aggregate(start, iter([total]), Round(1, 3, 3, layout))
    theirs, _ = FedAvg().aggregate_train(1, replies)

    for name, view in layout.views(ours.flat):
        np.testing.assert_allclose(view.numpy(), theirs[name].numpy(), rtol=2e-6, atol=1e-7)


def test_top_k_sends_the_largest_and_remembers_the_rest(tmp_path):
    shards, weights = clients(sizes=(4,)), start()
    played = play(tmp_path, shards, mods="top_k(fraction=0.3)", rounds=3)

    left_over = torch.zeros_like(weights)
    for model in played.models:
        wanted = descend(weights, shards[0], 2) - weights + left_over
        sent = torch.zeros_like(wanted)
        places = wanted.abs().topk(3).indices  # 0.3 of 10 numbers
        sent[places] = wanted[places]
        left_over, weights = wanted - sent, weights + sent
        close(model, weights)
    assert played.turns[0].bytes_up == 3 * 36 // 8 + 1  # 32 bits and 4 of position each, rounded up


def test_int8_is_right_on_average_and_within_one_level():
    values = torch.randn(2000, generator=torch.Generator().manual_seed(0))
    level = float(values.abs().max()) / 127
    rng = torch.Generator().manual_seed(1)

    several = torch.stack([quantised(values, rng) for _ in range(400)])
    nearest = quantised(values, None)

    assert float((several - values).abs().max()) <= level * 1.0001
    assert float((nearest - values).abs().max()) <= level * 0.5001
    assert float((several.mean(dim=0) - values).abs().max()) < 6 * level * 0.5 / 400**0.5
    assert torch.equal(quantised(torch.zeros(3), None), torch.zeros(3))


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
@pytest.mark.parametrize("rounding", ["stochastic", "nearest"])
def test_int8_of_what_is_not_finite_is_not_finite(wrong, rounding):
    rng = torch.Generator().manual_seed(0) if rounding == "stochastic" else None

    assert not torch.isfinite(quantised(torch.tensor([1.0, wrong, 2.0]), rng)).all()


def test_bytes_are_those_of_what_is_sent(tmp_path):
    plain = play(tmp_path / "a", clients(), rounds=1).turns[0]
    small = play(tmp_path / "b", clients(), mods="int8()", rounds=1).turns[0]
    double = play(tmp_path / "c", clients(), "scaffold()", rounds=1).turns[0]

    assert (plain.bytes_up, plain.bytes_down) == (40, 40)  # 10 numbers
    assert small.bytes_up == 10 + 2 * 4  # a byte each, a scale for each of two tensors
    vector_bytes = 4 * 32  # the control variate travels with its padding
    assert (double.bytes_up, double.bytes_down) == (40 + vector_bytes, 40 + vector_bytes)


@pytest.mark.parametrize("mods", ["int8(), top_k(fraction=0.1)", "top_k(fraction=0.1), int8()", "int8()", "top_k()"])
def test_statistics_are_counted_once_and_whole_in_every_order(mods):
    """200 statistics of norms as float32; of 1,000 weights all or 100, with 8 or 32 bits and 11 of position."""
    network = nn.Sequential(nn.BatchNorm1d(100, affine=False), nn.Linear(100, 10, bias=False))
    resident = Resident(network, num_labels=10, moments=[("0.running_mean", "0.running_var")])
    layout = resident.layout
    rng = torch.Generator().manual_seed(0)
    local = SimpleNamespace(layout=layout, memory={}, torch_rng=lambda _: rng)
    hooks = [mod.begin(resident, None, local) for mod in spec.build_all("mods", mods)]
    trained = layout.pack({name: torch.randn(view.shape) for name, view in layout.views(resident.flat)})

    _, num_bytes, _ = passed_on(hooks, layout, torch.zeros(layout.size), trained, Trained(0.0, 1, {}))

    both = 200 * 4 + 238 + 4  # 100 * 19 bits are 237.5 bytes; one scale
    assert num_bytes == {"int8()": 200 * 4 + 1000 + 4, "top_k()": 200 * 4 + 538}.get(mods, both)


@pytest.mark.parametrize(
    ("mods", "bits"),
    [
        ("int8(), top_k(fraction=0.1)", (8, 32)),
        ("int8(), top_k(fraction=0.1, error_feedback=False)", (8, 8)),
        ("top_k(fraction=0.1), int8()", (8, 8)),
        ("top_k(fraction=0.1)", (32, 32)),
    ],
)
def test_what_was_left_over_is_not_on_the_grid_of_eight_bits(mods, bits):
    """Where top_k adds it to rounded numbers, the sums have more values than 8 bits can tell apart."""
    resident = Resident(nn.Linear(100, 100, bias=False), num_labels=100)
    layout, memory = resident.layout, {}
    for number, expected in enumerate(bits):
        rng = torch.Generator().manual_seed(number)
        local = SimpleNamespace(layout=layout, memory=memory, torch_rng=lambda _, rng=rng: rng)
        hooks = [mod.begin(resident, None, local) for mod in spec.build_all("mods", mods)]
        change = torch.randn(layout.size, generator=rng)

        sent, num_bytes, _ = passed_on(hooks, layout, torch.zeros(layout.size), change, Trained(0.0, 1, {}))

        assert num_bytes == 1000 * (expected + 14) // 8 + 4 * ("int8" in mods)  # one scale
        assert (len(sent.unique()) <= 255) is (expected == 8)


def test_fedrep_trains_the_head_before_the_body_and_keeps_it(tmp_path):
    """With the bias as a personal head: first its epochs with the weights fixed, then theirs with the bias fixed."""
    shards = clients(sizes=(3, 5))
    played = play(tmp_path, shards, mods="tests_fedrep_bias.heads(head_epochs=2, body_epochs=1)", rounds=2)
    weights, biases = start()[:8], [start()[8:], start()[8:]]

    for model in played.models:
        sent = []
        for client, shard in enumerate(shards):
            for _ in range(2):
                biases[client] = biases[client] - RATE * gradient(torch.cat([weights, biases[client]]), shard)[8:]
            sent.append(weights - RATE * gradient(torch.cat([weights, biases[client]]), shard)[:8])
        weights = (3 * sent[0] + 5 * sent[1]) / 8
        assert torch.allclose(model["1.weight"].double().flatten(), weights, atol=2e-6)
        assert set(model) == {"1.weight"}


# --- what stays on the client --------------------------------------------------------------


def evenly(network):
    """The network with values from -0.4 to 0.5 in each of its weights and biases."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.linspace(-0.4, 0.5, parameter.numel()).view_as(parameter))
    return network


def normed():
    """Four pixels through BatchNorm, which starts as torch has it, into two labels."""
    return nn.Sequential(nn.Flatten(), nn.BatchNorm1d(4), evenly(nn.Linear(4, 2)))


def deep():
    """Four pixels through three numbers into two labels."""
    return evenly(nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.Linear(3, 2)))


class Mapped(nn.Module):
    """A backbone with a map of three features at four places, and a head on their mean."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(1, 3, 1), nn.Tanh())
        self.head = nn.Linear(3, 2)

    def forward(self, images):
        return self.head(self.backbone(images).mean(dim=(2, 3)))


TOP = ("2.weight", "2.bias")
"""The tensors of ``normed`` and ``deep`` with one row per label."""
TURNS = ([0, 1], [1], [0, 1], [0])
"""Who takes part in each round: after a pause a client goes on from its own last turn."""


def initial(make):
    """float64, the floating tensors of a network as it is built, by name."""
    return {name: tensor.double() for name, tensor in make().state_dict().items() if tensor.is_floating_point()}


def stepped(tensors, shard, forward, extra=lambda _: 0.0, fixed=()):
    """The tensors after one full-batch step of gradient descent in float64; those that are ``fixed`` stay."""
    images = to_float(shard.images.take(shard.rows)).double().flatten(1)
    leaves = {name: tensor.detach().requires_grad_(name not in fixed) for name, tensor in tensors.items()}
    probs = torch.sigmoid(forward(leaves, images))
    labels = torch.from_numpy(shard.labels).double()
    loss = -(labels * probs.log() + (1 - labels) * (1 - probs).log()).mean() + extra((leaves, images))
    trained = [name for name in leaves if name not in fixed]
    gradients = torch.autograd.grad(loss, [leaves[name] for name in trained])
    moved = {name: leaves[name] - RATE * each for name, each in zip(trained, gradients, strict=True)}
    return {name: moved.get(name, leaf).detach() for name, leaf in leaves.items()}


def mean_of(sent, cohort, shards):
    """By numbers of images."""
    total = sum(shards[client].num_images for client in cohort)
    parts = [(shards[client].num_images / total, tensors) for client, tensors in zip(cohort, sent, strict=True)]
    return {name: sum(share * tensors[name] for share, tensors in parts) for name in sent[0]}


def same(found, expected, tolerance=2e-6):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name].double(), tensor, rtol=0, atol=tolerance, msg=name)


def kept(tmp_path, played, client):
    """The client's private tensors by their names in the network."""
    return private_of(FolderMemory(tmp_path / "").recall(client, played.last[client]))


def batch_norm(tensors, pixels):
    """Logits of ``normed`` in training: pixels less their mean over the batch, through their deviation."""
    spread = ((pixels - pixels.mean(dim=0)) ** 2).mean(dim=0)
    normal = (pixels - pixels.mean(dim=0)) / (spread + 1e-5).sqrt()
    return (normal * tensors["1.weight"] + tensors["1.bias"]) @ tensors["2.weight"].T + tensors["2.bias"]


def two_layers(tensors, pixels):
    """Logits of ``deep``."""
    return (pixels @ tensors["1.weight"].T + tensors["1.bias"]) @ tensors["2.weight"].T + tensors["2.bias"]


def test_fedbn_exchanges_neither_weights_nor_statistics_of_norms(tmp_path):
    """Each of two clients has a norm of its own, running mean and variance included; the layer above is averaged."""
    shards = clients()
    played = play(tmp_path, shards, mods="fedbn()", rounds=4, participants=turn_of, make=normed, rows=TOP)

    norm = ("1.weight", "1.bias", "1.running_mean", "1.running_var")
    start = initial(normed)
    shared, own = {name: start[name] for name in TOP}, [{name: start[name] for name in norm} for _ in shards]
    for cohort, model in zip(TURNS, played.models, strict=True):
        sent = []
        for client in cohort:
            here = {**shared, **own[client]}
            pixels = to_float(shards[client].images.take(shards[client].rows)).double().flatten(1)
            for _ in range(2):
                here = stepped(here, shards[client], batch_norm, fixed=norm[2:])
                here["1.running_mean"] = 0.9 * here["1.running_mean"] + 0.1 * pixels.mean(dim=0)
                here["1.running_var"] = 0.9 * here["1.running_var"] + 0.1 * pixels.var(dim=0)  # by n - 1
            own[client] = {name: here[name] for name in norm}
            sent.append({name: here[name] for name in TOP})
        shared = mean_of(sent, cohort, shards)
        same(model, shared)
    for client in (0, 1):
        same(kept(tmp_path, played, client), own[client])


def test_fedper_averages_the_body_and_leaves_every_client_its_head(tmp_path):
    """Both train together; after a pause a client has the body of all and the head of its own last turn."""
    shards = clients()
    played = play(tmp_path, shards, mods="fedper()", rounds=4, participants=turn_of, make=deep, rows=TOP)

    start = initial(deep)
    shared, own = {name: start[name] for name in HEAD}, [{name: start[name] for name in TOP} for _ in shards]
    for cohort, model in zip(TURNS, played.models, strict=True):
        sent = []
        for client in cohort:
            here = {**shared, **own[client]}
            for _ in range(2):
                here = stepped(here, shards[client], two_layers)
            own[client] = {name: here[name] for name in TOP}
            sent.append({name: here[name] for name in HEAD})
        shared = mean_of(sent, cohort, shards)
        same(model, shared)
    for client in (0, 1):
        same(kept(tmp_path, played, client), own[client])


def turn_of(number):
    return TURNS[number - 1]


@pytest.mark.parametrize(("mods", "make"), [("fedbn()", normed), ("fedper()", deep), ("fedrep(head_epochs=2)", deep)])
def test_a_client_is_scored_with_its_own_tensors_and_one_that_never_took_part_with_the_initial_ones(
    tmp_path, mods, make
):
    shards = clients(sizes=(3, 5, 4), held_out=6)
    played = play(tmp_path, shards, mods=mods, participants=lambda _: [0, 1], make=make, rows=TOP)
    own = {0: kept(tmp_path, played, 0), 1: kept(tmp_path, played, 1), 2: {}}
    request = Request("evaluate", 3, played.state.flat, last=dict(played.last))

    def scores(client, tensors):
        network = make().eval()
        missing, _ = network.load_state_dict({**played.models[-1], **tensors}, strict=False)
        assert bool([name for name in missing if "tracked" not in name]) is not bool(tensors)
        return torch.sigmoid(network(to_float(shards[client].images.take(shards[client].holdout_rows)))).detach()

    for client in (2, 1, 2, 0):  # and again after another's tensors were loaded
        played.scores.clear()
        (turn,) = played.host.play(request, [client]).turns
        assert turn.error == ""

        torch.testing.assert_close(played.scores[0], scores(client, own[client]), rtol=0, atol=1e-6)
        for other in {0, 1, 2} - {client}:
            assert float((played.scores[0] - scores(client, own[other])).abs().max()) > 1e-3


def test_moon_keeps_off_the_clients_own_last_model(tmp_path):
    """The representation is drawn to the round's global model and away from what the client's last turn ended with."""
    mu, temperature, shards = 2.0, 0.5, clients()
    make = lambda: evenly(Mapped())  # noqa: E731
    rows, mods = ("head.weight", "head.bias"), f"moon(mu={mu}, temperature={temperature})"
    played = play(tmp_path, shards, mods=mods, rounds=4, participants=turn_of, make=make, rows=rows)

    def represented(tensors, pixels):
        maps = pixels[:, None] * tensors["backbone.0.weight"].view(3, 1) + tensors["backbone.0.bias"].view(3, 1)
        return torch.tanh(maps).mean(dim=2)

    def forward(tensors, pixels):
        return represented(tensors, pixels) @ tensors["head.weight"].T + tensors["head.bias"]

    def contrast(origin, previous):
        def term(step):
            here, there, before = (represented(tensors, step[1]) for tensors in (step[0], origin, previous))
            near, far = ((F.cosine_similarity(here, each) / temperature).exp() for each in (there, before))
            return -mu * (near / (near + far)).log().mean()

        return term

    weights, last = initial(make), {}
    for cohort, model in zip(TURNS, played.models, strict=True):
        sent = []
        for client in cohort:
            here = weights
            extra = contrast(weights, last[client]) if client in last else lambda _: 0.0
            for _ in range(2):
                here = stepped(here, shards[client], forward, extra)
            last[client] = here
            sent.append(here)
        weights = mean_of(sent, cohort, shards)
        same(model, weights)


@pytest.fixture(autouse=True)
def heads(tmp_path, monkeypatch):
    """A plug-in: fedrep with the bias alone as the head."""
    (tmp_path / "tests_fedrep_bias.py").write_text(
        "from fedmlic.mods.fedrep import fedrep\n\n\n"
        "def heads(*, head_epochs: int, body_epochs: int):\n"
        "    mod = fedrep(head_epochs=head_epochs, body_epochs=body_epochs)\n"
        "    return mod._replace(private=lambda network, method: ('1.bias',))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)


RULES = {
    "server_rate": "scaffold(server_rate=2.0)",
    "less": "scaffold(server_rate=0.5)",
    "steps": "fednova()",
    "h": "feddyn(alpha=0.1)",
    **{name: f"{name}()" for name in ("fedavg", "fedprox", "labelwise", "flag", "surgical", "loss_weighted")},
    **{name: f"{name}()" for name in ("completeness_weighted", "fedharmony", "fednoro", "fedcorr")},
}


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_statistics_of_norms_are_averaged_and_never_extrapolated(rule):
    """From a variance of 1 two clients come to 0.3 with means of 0.5: a step twice as long would make it negative."""
    network = nn.Sequential(nn.BatchNorm1d(3, affine=False), nn.Linear(3, 2))
    rows = ("1.weight", "1.bias")
    resident = Resident(network, num_labels=2, label_rows=rows, moments=[("0.running_mean", "0.running_var")])
    layout, built = resident.layout, spec.build("strategy", rule)
    state = built.init(resident.flat.clone(), layout)
    tensors = {name: view.clone() for name, view in layout.views(resident.flat)}
    tensors |= {"0.running_mean": torch.full((3,), 0.5), "0.running_var": torch.full((3,), 0.3)}
    flat, labels = layout.pack({**tensors, "1.weight": tensors["1.weight"] + 1}), torch.tensor([4, 4])
    rows_sum = torch.ones(2, 4, dtype=torch.float64)
    extras = {
        "scaffold/change": torch.zeros(layout.size),
        "fednova/steps": torch.tensor([0, 5 * 4 * 1024]),
        "positive_rows/rows": rows_sum,
        "positive_rows/positives": torch.tensor([1, 1]),
        "round-sums/fednoro/losses": torch.ones(2, 2, dtype=torch.float64),
        "round-sums/fednoro/entries": torch.ones(2, 2, dtype=torch.int64),
    }
    metrics = {"loss": 1.0, "steps": 1.0, "disagreement": 0.1}
    updates = []
    for client in (0, 1):
        update = Update.zero(layout, units_for(built.weighting, [4, 4], 2))
        update.add_client(
            client,
            flat,
            weighting=built.weighting,
            num_images=4,
            annotations=labels,
            metrics=metrics,
            extras=extras,
        )
        updates.append(update)

    after = built.aggregate(state, iter(updates), Round(1, 2, 2, layout))

    found = dict(layout.views(after.flat))
    assert found["0.running_mean"].tolist() == pytest.approx([0.5] * 3)
    assert found["0.running_var"].tolist() == pytest.approx([0.3] * 3)
    assert not torch.equal(found["1.weight"], tensors["1.weight"])


def test_state_is_kept_if_nobody_answered():
    layout = Resident(linear(), num_labels=2).layout
    for name in ("fedavg()", "fedprox()", "scaffold()", "feddyn()", "fednova()", "labelwise()"):
        rule = spec.build("strategy", name)
        state = rule.init(torch.ones(layout.size), layout)
        after = rule.aggregate(state, iter(()), Round(1, 4, 2, layout))
        assert isinstance(after, State)
        assert torch.equal(after.flat, state.flat)
