"""What a client keeps about each of its images, its count of passes, and what methods make of both."""

import numpy as np
import pytest
import torch

from fedmlic.errors import InputError
from fedmlic.experiment import Experiment
from fedmlic.image_state import Passes, image_state
from fedmlic.labels import ABSENT, PRESENT, UNKNOWN
from fedmlic.large_losses import large_loss_inputs, large_loss_step
from fedmlic.learner import build_learner
from fedmlic.method import Local, Objective
from fedmlic.methods.em import label_least_probable
from fedmlic.shard import Shard
from fedmlic.spec import build
from fedmlic.training import fit, full_gradient
from strategies.server.check import check_experiment

NAMES = ("a", "b", "c")


class Pixels:
    def __init__(self, pixels):
        self.pixels = pixels

    def take(self, rows):
        return self.pixels[rows]


def shard(num=6, seed=0, labels=None):
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (num, 8, 8, 1)).astype(np.uint8)
    drawn = np.where(rng.random((num, len(NAMES))) < 0.4, PRESENT, UNKNOWN).astype(np.int8)
    nothing, empty = np.zeros(0, dtype=np.int64), np.zeros((0, len(NAMES)), np.int8)
    return Shard(0, NAMES, Pixels(pixels), np.arange(num), drawn if labels is None else labels, nothing, empty)


def local(data, memory=None, round_number=1, **settings):
    values = {"model": "small_cnn(width=8)", "batch_size": 4, "local_epochs": 2, **settings}
    experiment = Experiment(**values)
    kept = {} if memory is None else memory
    return Local(experiment, round_number, 0, torch.device("cpu"), None, memory=kept, shard=data)


def train(method, data, memory, round_number=1, **settings):
    """One turn from the same weights; ``memory`` is changed."""
    here = local(data, memory, round_number, method=method, **settings)
    learner = build_learner(here.experiment, NAMES, (8, 8, 1))
    trained = learner.method.train(learner.resident, data, here)
    return learner.resident.flat.clone(), trained


def test_state_begins_once_is_changed_in_place_and_found_again():
    data, memory = shard(), {}
    state = image_state(local(data, memory), "x", lambda own: torch.zeros(own.num_images))
    state[2] = 5

    again = image_state(local(data, dict(memory)), "x", lambda _: pytest.fail("made twice"))

    assert again.tolist() == [0, 0, 5, 0, 0, 0]
    again[0] = 1
    assert memory["images/x"][0] == 0, "what a turn changes is its own until it is kept"


@pytest.mark.parametrize("other", [shard(5), shard(6, seed=1), shard(6, labels=np.zeros((6, 3), np.int8))])
def test_state_of_other_images_or_labels_is_refused(other):
    memory = {}
    image_state(local(shard(), memory), "x", lambda own: torch.zeros(own.num_images))

    with pytest.raises(InputError, match="images and labels for which it keeps x"):
        image_state(local(other, memory), "x", lambda own: torch.zeros(own.num_images))


def test_state_without_a_shard_is_a_mistake_of_the_method():
    with pytest.raises(RuntimeError, match=r"training\.fit"):
        image_state(local(None), "x", lambda _: torch.zeros(1))


def test_passes_are_the_clients_own_over_all_turns():
    memory, found = {}, []
    for _turn in range(3):
        passes = Passes(local(shard(5), memory))
        found += [tuple(passes.next(size)) for size in (2, 2, 1)]

    assert found == [(n, first) for n in range(3) for first in (True, False, False)]


def test_passes_of_turns_that_end_within_a_pass():
    memory, numbers, begins = {}, [], []
    for _turn in range(4):
        passes = Passes(local(shard(6), memory))
        for _step in range(2):
            number, first = passes.next(2)
            numbers.append(number)
            begins.append(first)

    assert numbers == [0, 0, 0, 1, 1, 1, 2, 2]
    assert begins == [True, False, False, True, False, False, True, False]


def test_what_a_loss_gives_beside_the_scalar_reaches_seen_after_the_step():
    data, log = shard(), []

    def inputs(here):
        from fedmlic.method import Inputs

        assert here.shard is data
        looked = here.on_all(lambda network, images: network(images))
        assert looked.shape == (6, 3)
        assert not looked.requires_grad
        return Inputs(lambda *_: (), dict, lambda numbers, logits: log.append((numbers.tolist(), logits)))

    def loss(network, images, _labels):
        logits = network(images)
        return logits.square().mean(), logits

    here = local(data)
    learner = build_learner(here.experiment.model_copy(update={"method": "bce()"}), NAMES, (8, 8, 1))
    fit(learner.resident, data, here, Objective(loss, inputs))

    assert [len(numbers) for numbers, _ in log] == [4, 2, 4, 2]
    assert sorted(log[0][0] + log[1][0]) == list(range(6))
    assert all(not logits.requires_grad for _, logits in log)


def test_looking_at_all_images_is_in_evaluation_mode_and_leaves_training_mode():
    data, modes = shard(), []
    here = local(data, method="bce()")
    learner = build_learner(here.experiment, NAMES, (8, 8, 1))

    def inputs(turn):
        from fedmlic.method import Inputs

        def of(*_):
            modes.append(learner.resident.network.training)
            turn.on_all(lambda network, images: (modes.append(network.training), network(images))[1])
            modes.append(learner.resident.network.training)
            return ()

        return Inputs(of, dict)

    fit(learner.resident, data, here, Objective(lambda network, images, _: network(images).square().mean(), inputs))

    assert modes == [True, False, True] * 4


@pytest.mark.parametrize("method", ["role()", "large_loss(variant='Cp')", "em(pseudo_labels=True, warm_up=0)", "csl()"])
def test_the_gradient_over_all_images_leaves_no_trace_in_memory(method):
    """SCAFFOLD's option I looks at the loss without training."""
    data, memory = shard(), {}
    train(method, data, memory)
    before = {name: tensor.clone() for name, tensor in memory.items()}
    here = local(data, memory, method=method)
    learner = build_learner(here.experiment, NAMES, (8, 8, 1))
    from dataclasses import replace

    found = full_gradient(learner.resident, data, replace(here, objective=learner.method.objective, shard=None))

    assert any(bool(gradient.any()) for gradient in found)
    assert memory.keys() == before.keys()
    assert all(torch.equal(memory[name], tensor) for name, tensor in before.items())


def test_role_learns_its_estimates_where_nothing_is_known():
    data, memory = shard(), {}
    train("role(expected=1.0)", data, memory, learning_rate=1e-2)
    first = memory["images/role"].clone()
    train("role(expected=1.0)", data, memory, 2, learning_rate=1e-2)

    labels = torch.from_numpy(data.labels)
    assert (first[labels == PRESENT] > 4).all()
    assert (first[labels == UNKNOWN] != memory["images/role"][labels == UNKNOWN]).all()


def test_role_learns_its_estimates_beside_a_network_of_double_precision():
    data = shard()
    inputs = build("method", "role()").objective.inputs(local(data, {}, momentum=0.0, optimizer="sgd"))
    numbers = torch.tensor([4, 1])
    before = inputs.of(torch.zeros(0), torch.zeros(0), numbers)[0]

    inputs.seen(numbers, torch.ones(2, len(NAMES), dtype=torch.float64))

    after = inputs.of(torch.zeros(0), torch.zeros(0), numbers)[0]
    assert after.dtype == torch.float32
    assert (after < before).all()


def test_roles_estimates_start_as_the_source_says():
    labels = np.array([[PRESENT, ABSENT, UNKNOWN]] * 200, dtype=np.int8)
    from fedmlic.methods.role import start_of

    theta = start_of(shard(200, labels=labels), torch.Generator().manual_seed(0))

    probs = torch.sigmoid(theta)
    torch.testing.assert_close(probs[:, 0], torch.full((200,), 0.995))
    torch.testing.assert_close(probs[:, 1], torch.full((200,), 0.005))
    assert 0.4 <= probs[:, 2].min() < 0.42
    assert 0.58 < probs[:, 2].max() <= 0.6


def test_apl_labels_the_least_probable_of_each_label_for_good():
    labels = torch.tensor([[1, -1], [-1, -1], [-1, -1], [-2, -1], [-1, 0]], dtype=torch.int8)
    probs = torch.tensor([[0.0, 0.5], [0.3, 0.1], [0.2, 0.4], [0.6, 0.2], [0.9, 0.0]])
    targets = torch.full((5, 2), -1.0)

    label_least_probable(targets, probs, labels, 0.5)
    assert targets.tolist() == torch.tensor([[-1, -1], [0.3, 0.1], [0.2, -1], [-1, 0.2], [-1, -1]]).tolist()

    label_least_probable(targets, 1 - probs, labels, 0.75)
    assert targets[:, 0].tolist() == pytest.approx([-1, 0.3, 0.2, -1, 0.1])
    assert targets[:, 1].tolist() == pytest.approx([0.5, 0.1, -1, 0.2, -1])


def test_apl_pseudo_labels_in_the_passes_that_it_says():
    """4 passes in two turns, labels before passes 1 and 2: half of the open entries, then all."""
    data, memory, seen = shard(), {}, []
    method = "em(pseudo_labels=True, warm_up=1, epochs=3, share=1.0)"
    for number in (1, 2):
        _, trained = train(method, data, memory, number)
        seen.append(trained.metrics["pseudo-labels-per-label"] * len(NAMES))

    open_per_label = (data.labels < 0).sum(axis=0)
    assert seen == pytest.approx([(open_per_label // 2).sum(), open_per_label.sum()])


@pytest.mark.parametrize(
    ("rounding", "num", "expected"),
    [
        ("total", 1, [0, 0, 0, 0, 0, 0]),
        ("total", 5, [0, 1, 2, 3, 4, 4]),
        ("total", 7, [1, 2, 3, 5, 6, 6]),
        ("pass", 5, [0, 0, 0, 0, 0, 0]),
        ("pass", 7, [1, 2, 3, 4, 5, 5]),
    ],
)
def test_apl_labels_its_share_of_a_small_client_too(rounding, num, expected):
    """floor(0.9 * images * p / 5) entries of a label after pass p of 5, or p times floor(0.9 * images / 5)."""
    data, memory, found = shard(num, labels=np.full((num, 3), UNKNOWN, np.int8)), {}, []
    method = f"em(pseudo_labels=True, warm_up=0, epochs=5, rounding='{rounding}')"
    for number in range(1, 7):
        train(method, data, memory, number, local_epochs=1)
        found.append((memory["images/apl"] >= 0).sum(dim=0).tolist())

    assert found == [[each] * 3 for each in expected]


def test_permanent_corrections_are_remembered_and_temporary_ones_are_not():
    data, memory = shard(), {}
    train("large_loss(variant='Cp', delta=10)", data, memory)
    corrected = memory["images/corrected"]

    assert corrected.sum() > 0
    assert not corrected[torch.from_numpy(data.labels == PRESENT)].any()
    other = {}
    train("large_loss(variant='Ct', delta=10)", data, other)
    assert set(other) == {"images/passes"}


def test_a_corrected_entry_is_present_from_then_on():
    step = large_loss_step("Cp")
    logits, labels = torch.tensor([[2.0, -1.0]]), torch.tensor([[-1, -1]], dtype=torch.int8)

    value, _ = step(logits, labels, torch.tensor(0), torch.tensor([[True, False]]))
    present, _ = step(logits, torch.tensor([[1, -1]], dtype=torch.int8), torch.tensor(0))

    assert value == present


def test_the_first_pass_of_a_large_loss_is_assume_negative():
    data = shard()
    first, _ = train("large_loss(delta=30)", data, {}, local_epochs=1)
    plain, _ = train("assume_negative()", data, {}, local_epochs=1)
    second, _ = train("large_loss(delta=30)", data, {}, local_epochs=2)
    plain_twice, _ = train("assume_negative()", data, {}, local_epochs=2)

    torch.testing.assert_close(first, plain)
    assert not torch.allclose(second, plain_twice)
    rejected_none, _ = train("large_loss(delta=0)", data, {}, local_epochs=2)
    torch.testing.assert_close(rejected_none, plain_twice)


def test_boostlu_with_factor_1_is_large_loss():
    data = shard()
    boosted, _ = train("boostlu(factor=1.0)", data, {})
    plain, _ = train("large_loss()", data, {})

    torch.testing.assert_close(boosted, plain, rtol=1e-4, atol=1e-6)


def test_boostlu_by_hand():
    from fedmlic.methods.boostlu import BoostedClassifier

    class Map(torch.nn.Module):
        num_features = 1

        def forward(self, images):
            return images

    network = BoostedClassifier(Map(), 1, 5.0, always=False)
    with torch.no_grad():
        network.head.weight.fill_(1.0)
        network.head.bias.fill_(0.0)
        image = torch.tensor([[[[1.0, -2.0], [3.0, 0.0]]]])
        assert network.eval()(image).item() == (5 - 2 + 15 + 0) / 4
        assert network.train()(image).item() == (1 - 2 + 3 + 0) / 4


@pytest.mark.parametrize(
    "method", ["role()", "large_loss(variant='Cp', delta=20)", "em(pseudo_labels=True, warm_up=0)", "csl()"]
)
@pytest.mark.parametrize("num", [1, 3])
def test_small_clients_and_many_labels(method, num):
    names = tuple(f"label {number}" for number in range(1628))
    labels = np.full((num, len(names)), UNKNOWN, dtype=np.int8)
    labels[0, 7] = PRESENT
    nothing, empty = np.zeros(0, dtype=np.int64), np.zeros((0, len(names)), np.int8)
    pixels = np.zeros((num, 8, 8, 1), dtype=np.uint8)
    data = Shard(0, names, Pixels(pixels), np.arange(num), labels, nothing, empty)
    here = local(data, {}, method=method, batch_size=1)
    learner = build_learner(here.experiment, names, (8, 8, 1))

    trained = learner.method.train(learner.resident, data, here)

    assert learner.resident.flat.isfinite().all()
    assert trained.num_steps == 2 * num


def test_the_inputs_of_a_large_loss_count_by_the_clients_own_passes():
    inputs = large_loss_inputs("R", 10.0, 3)(local(shard(10)))
    images, labels = torch.zeros(10, 1, 8, 8), torch.full((10, 3), UNKNOWN, dtype=torch.int8)

    counts = [inputs.of(images, labels, torch.arange(10))[0].item() for _ in range(5)]

    assert counts == [0, 3, 6, 6, 6]


@pytest.mark.parametrize("variant", ["R", "Ct", "Cp"])
def test_the_metric_counts_what_was_large_not_how_much_was_wanted(variant):
    """Two of 30 entries are open: K is 3, then 6 (Cp: 3), but no more than these two are ever large, with Cp once."""
    labels = np.full((10, 3), ABSENT, dtype=np.int8)
    labels[:2, 0] = UNKNOWN
    data = shard(10, labels=labels)
    inputs, step = large_loss_inputs(variant, 10.0, 3)(local(data)), large_loss_step(variant)
    numbers, observed = torch.arange(10), torch.from_numpy(labels)
    for _pass in range(3):
        given = inputs.of(torch.zeros(10, 1, 8, 8), observed, numbers)
        inputs.seen(numbers, *step(torch.zeros(10, 3), observed, *given)[1:])

    assert inputs.metrics() == {"large-per-label": pytest.approx({"R": 4, "Ct": 4, "Cp": 2}[variant] / 3)}


def test_permanent_corrections_go_on_until_nothing_is_open():
    """One image of a batch and three labels at 0.1 %: K is 1 all the same, in every pass but the first."""
    labels = np.full((4, 3), UNKNOWN, dtype=np.int8)
    data, memory, open_entries = shard(4, labels=labels), {}, []
    for number in range(1, 5):
        train("large_loss(variant='Cp', delta=0.1)", data, memory, number, batch_size=2, local_epochs=2)
        open_entries.append(12 - int(memory["images/corrected"].sum()))

    assert open_entries == [10, 6, 2, 0]


def test_pseudo_labels_of_clients_trained_at_once_are_refused_before_anything_is_built(tiny):
    with pytest.raises(InputError, match="allow vectorize, got pseudo-labels are made with a client's own network"):
        check_experiment(*tiny(method="em(pseudo_labels=True)", vectorize=2))

    check_experiment(*tiny(method="role()", vectorize=2))


def test_epochs_of_em_above_its_warm_up():
    with pytest.raises(InputError, match=r"epochs of em to be above its warm_up \(5\), got 5"):
        build("method", "em(pseudo_labels=True, epochs=5)")
