"""FedLGT against a plain implementation of its formulas that shares no code with it."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from fedmlic import spec
from fedmlic.errors import InputError
from fedmlic.experiment import Experiment
from fedmlic.label_masking import masked_loss, reveal
from fedmlic.labels import ABSENT, PRESENT, UNCERTAIN, UNKNOWN
from fedmlic.learner import build_learner, build_network
from fedmlic.method import Local, Task
from fedmlic.methods.fedlgt import guide, guided_images
from fedmlic.model import Backbone, Model
from fedmlic.shard import Shard
from fedmlic.training import batches

SIDE = 8


class Patches(Backbone):
    """One convolution over patches of 4 x 4 pixels."""

    bn_policy = "none"

    def __init__(self, channels, num_features):
        super().__init__()
        self.num_features = num_features
        self.conv = nn.Conv2d(channels, num_features, 4, stride=4)

    def forward(self, images):
        return self.conv(images)


def build(num_labels=4, features=8, seed=0, **arguments):
    """FedLGT's network on ``Patches`` with random weights everywhere, in float32."""
    method = spec.build("method", f"fedlgt({', '.join(f'{k}={v!r}' for k, v in arguments.items())})")
    task = Task(
        tuple(f"label {i}" for i in range(num_labels)),
        (SIDE, SIDE, 1),
        Model(lambda channels: Patches(channels, features)),
        seed,
    )
    torch.manual_seed(seed)
    network = method.build(task)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.4)
    return method, network


# The plain implementation: float64, one image, one head, one token at a time.


def plain_norm(vector, weight, bias):
    mean = vector.sum() / len(vector)
    variance = ((vector - mean) ** 2).sum() / len(vector)
    return (vector - mean) / torch.sqrt(variance + 1e-5) * weight + bias


def plain_linear(vector, weight, bias):
    return torch.stack([(row * vector).sum() + b for row, b in zip(weight, bias, strict=True)])


def plain_layer(tokens, w, num_heads):
    """Post-norm self-attention and feed-forward; ``w`` maps short names to weights."""
    width = len(tokens[0])
    size = width // num_heads
    joint = [plain_linear(token, w["queries_keys_values.weight"], w["queries_keys_values.bias"]) for token in tokens]
    result = []
    for i, token in enumerate(tokens):
        heads = []
        for head in range(num_heads):
            part = slice(head * size, (head + 1) * size)
            query = joint[i][:width][part]
            scores = [(query * j[width : 2 * width][part]).sum() / math.sqrt(size) for j in joint]
            weights = [torch.exp(score - max(scores)) for score in scores]
            total = sum(weights)
            heads.append(sum(a / total * j[2 * width :][part] for a, j in zip(weights, joint, strict=True)))
        gathered = plain_linear(torch.cat(heads), w["attended.weight"], w["attended.bias"])
        middle = plain_norm(token + gathered, w["norm_attended.weight"], w["norm_attended.bias"])
        hidden = plain_linear(middle, w["expand.weight"], w["expand.bias"])
        hidden = torch.where(hidden > 0, hidden, 0 * hidden)
        out = plain_linear(hidden, w["contract.weight"], w["contract.bias"])
        result.append(plain_norm(middle + out, w["norm_contracted.weight"], w["norm_contracted.bias"]))
    return result


def plain_logits(w, image, states, num_layers, num_heads):
    """Logits of one image ``[height][width]`` told ``states``; ``w`` is the state dict in float64."""
    tokens = []
    for top in range(0, SIDE, 4):
        for left in range(0, SIDE, 4):
            patch = image[0, top : top + 4, left : left + 4]
            cell = torch.stack([(kernel[0] * patch).sum() for kernel in w["backbone.conv.weight"]])
            cell = cell + w["backbone.conv.bias"]
            if "projection.weight" in w:
                cell = plain_linear(cell, w["projection.weight"], w["projection.bias"])
            tokens.append(cell)
    negative, positive = w["state_tokens"]
    for vector, state in zip(w["label_tokens"], states, strict=True):
        if state == PRESENT:
            tokens.append(vector + positive)
        elif state == ABSENT:
            tokens.append(vector + negative)
        else:
            tokens.append(vector)
    tokens = [plain_norm(token, w["norm.weight"], w["norm.bias"]) for token in tokens]
    for index in range(num_layers):
        prefix = f"layers.{index}."
        layer = {name.removeprefix(prefix): value for name, value in w.items() if name.startswith(prefix)}
        tokens = plain_layer(tokens, layer, num_heads)
    last = tokens[-len(states) :]
    return torch.stack(
        [(v * h).sum() + b for v, h, b in zip(w["readout.weight"], last, w["readout.bias"], strict=True)]
    )


def plain_guide(states, probs, threshold, band):
    """Equation 4, one label at a time."""
    return [UNKNOWN if threshold - band <= p <= threshold + band else s for s, p in zip(states, probs, strict=True)]


def plain_loss(logits, labels, states, reduction):
    """Equation 5 with both terms: over annotations that the network was not told."""
    terms = []
    for z_row, y_row, s_row in zip(logits, labels, states, strict=True):
        for z, y, s in zip(z_row, y_row, s_row, strict=True):
            if y in (PRESENT, ABSENT) and s not in (PRESENT, ABSENT):
                p = 1 / (1 + torch.exp(-z))
                terms.append(-torch.log(p) if y == PRESENT else -torch.log(1 - p))
    total = sum(terms)
    return total / len(terms) if reduction == "mean" else total


def weights_in_float64(network):
    return {name: value.detach().double().requires_grad_() for name, value in network.state_dict().items()}


CASES = [
    {"num_labels": 4, "features": 8, "layers": 1, "heads": 1},
    {"num_labels": 3, "features": 6, "layers": 2, "heads": 4, "width": 12},
    {"num_labels": 7, "features": 8, "layers": 3, "heads": 2, "feedforward": 5, "text": "learned()"},
    {"num_labels": 2, "features": 8, "layers": 2, "heads": 2, "states": "swapped"},
]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_logits_states_loss_and_gradient_agree_with_the_formulas(case, reduction):
    """One whole step: reveal, ask the global model, guide, forward, loss, gradient; to 1e-5."""
    arguments = {"dropout": 0.0, "reduction": reduction, **case}
    _, network = build(**arguments)
    _, incoming = build(**arguments, seed=1)
    torch.manual_seed(3)
    num_labels, depth, heads = case["num_labels"], case["layers"], case["heads"]
    images = torch.randn(4, 1, SIDE, SIDE)
    labels = torch.randint(-2, 2, (4, num_labels), dtype=torch.int8)
    labels[1] = PRESENT
    revealed = reveal(labels, 0.75, torch.Generator().manual_seed(5))
    threshold, band = 0.5, 0.2

    network.train()
    incoming.eval()
    probs = torch.sigmoid(incoming(images))
    told = guide(revealed, probs, threshold, band)
    logits = network(images, told)
    loss = masked_loss(logits, labels, told, reduction)
    loss.backward()

    w, w_incoming = weights_in_float64(network), weights_in_float64(incoming)
    nothing = [UNKNOWN] * num_labels
    plain_probs = [
        1 / (1 + torch.exp(-plain_logits(w_incoming, image.double(), nothing, depth, heads))) for image in images
    ]
    plain_told = [
        plain_guide(s.tolist(), p.tolist(), threshold, band) for s, p in zip(revealed, plain_probs, strict=True)
    ]
    plain = torch.stack(
        [plain_logits(w, image.double(), s, depth, heads) for image, s in zip(images, plain_told, strict=True)]
    )
    plain_value = plain_loss(plain, labels.tolist(), plain_told, reduction)
    plain_value.backward()

    def close(actual, expected):
        torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=1e-5)

    close(probs, torch.stack(plain_probs))
    assert told.tolist() == plain_told
    close(logits, plain)
    close(loss, plain_value)
    scale = max(float(w[name].grad.abs().max()) for name, _ in network.named_parameters() if w[name].grad is not None)
    for name, parameter in network.named_parameters():
        slope = parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
        expected = w[name].grad if w[name].grad is not None else torch.zeros_like(w[name])
        close(slope / scale, expected / scale)


def test_swapped_states_exchange_negative_and_positive():
    """The release gives absent labels the vector of "positive" and present ones that of "negative"."""
    _, correct = build()
    _, swapped = build(states="swapped")

    torch.testing.assert_close(swapped.state_tokens, correct.state_tokens.flip(0), rtol=0, atol=0)
    told = torch.tensor([[PRESENT, ABSENT, UNKNOWN, UNCERTAIN]], dtype=torch.int8)
    opposite = torch.tensor([[ABSENT, PRESENT, UNKNOWN, UNKNOWN]], dtype=torch.int8)
    torch.testing.assert_close(swapped.told_labels(told, 1), correct.told_labels(opposite, 1), rtol=0, atol=0)


def test_the_band_includes_its_ends():
    probs = torch.tensor([[0.25, 0.75, 0.2499, 0.7501, 0.5]])
    states = torch.tensor([[PRESENT, ABSENT, PRESENT, ABSENT, UNKNOWN]], dtype=torch.int8)

    assert guide(states, probs, 0.5, 0.25).tolist() == [[UNKNOWN, UNKNOWN, PRESENT, ABSENT, UNKNOWN]]


def test_images_with_nothing_revealed_are_not_asked_about():
    states = torch.tensor([[UNKNOWN] * 2, [PRESENT, UNKNOWN], [UNKNOWN, ABSENT]], dtype=torch.int8)

    assert guided_images(states, "batch").tolist() == [False, True, True]
    assert guided_images(states, "first_image").tolist() == [False, False, False]
    assert guided_images(states[1:], "first_image").tolist() == [True, False]


# Local training.

NAMES = ("a", "b", "c", "d", "e")


class Pixels:
    def __init__(self, pixels):
        self.pixels = pixels

    def take(self, rows):
        return self.pixels[rows]


def make_shard(labels, client=0):
    pixels = np.random.default_rng(0).integers(0, 256, (len(labels), SIDE, SIDE, 1)).astype(np.uint8)
    nothing = np.zeros(0, dtype=np.int64)
    empty = np.zeros((0, len(NAMES)), np.int8)
    return Shard(client, NAMES, Pixels(pixels), np.arange(len(labels)), labels, nothing, empty)


def some_labels(num_images=10, low=-2):
    return np.random.default_rng(1).integers(low, 2, (num_images, len(NAMES))).astype(np.int8)


def make_learner(method, **settings):
    experiment = Experiment(method=method, model="small_cnn(width=8)", batch_size=4, local_epochs=2, **settings)
    return experiment, build_learner(experiment, NAMES, (SIDE, SIDE, 1))


def incoming_of(experiment, learned, flat):
    network = build_network(experiment, learned.task)[1]
    tensors = dict(network.named_parameters())
    with torch.no_grad():
        for name, view in learned.resident.layout.views(flat):
            tensors[name].copy_(view)
    return network.eval()


def same(network):
    return network


def never():
    pytest.fail("the global model was asked")


def make_local(experiment, incoming=never):
    return Local(experiment, 1, 0, torch.device("cpu"), incoming)


@pytest.mark.parametrize("masking", ["batch", "first_image"])
def test_what_the_network_is_told_in_training(masking):
    """Every batch, against loops over images and labels with the written-out band.

    ``first_image`` is the released loop: only row 0 of a batch is looked at.
    """
    experiment, learned = make_learner(f"fedlgt(band=0.15, masking={masking!r})", learning_rate=1e-3)
    shard = make_shard(some_labels(num_images=18))
    network = incoming_of(experiment, learned, learned.resident.flat)
    local = make_local(experiment, lambda: network)
    told = []
    learned.resident.network.register_forward_pre_hook(lambda _, inputs: told.append(inputs))

    trained = learned.method.train(learned.resident, shard, local)

    rng, count, unsure = local.torch_rng("reveal"), 0, 0
    for (images, labels), (seen, states) in zip(batches(shard, local), told, strict=True):
        assert torch.equal(images, seen)
        expected = reveal(labels, 0.75, rng).tolist()
        count += sum(state != UNKNOWN for row in expected for state in row)
        with torch.no_grad():
            probs = torch.sigmoid(network(images)).tolist()
        for i in range(len(images) if masking == "batch" else 1):
            for c in range(len(NAMES)):
                if 0.35 <= probs[i][c] <= 0.65 and expected[i][c] != UNKNOWN:
                    expected[i][c] = UNKNOWN
                    unsure += 1
        assert states.tolist() == expected
    assert trained.metrics == {"revealed": count, "unsure": unsure}
    assert 0 < unsure < count


@pytest.mark.parametrize(("augmentation", "once"), [("none", True), ("flip", False)])
def test_the_global_model_is_asked_once_about_an_image_that_does_not_change(augmentation, once):
    experiment, learned = make_learner("fedlgt()", augmentation=augmentation)
    shard = make_shard(some_labels(num_images=18))
    network = incoming_of(experiment, learned, learned.resident.flat)
    seen = []
    network.register_forward_pre_hook(lambda _, inputs: seen.extend(image.numpy().tobytes() for image in inputs[0]))

    learned.method.train(learned.resident, shard, make_local(experiment, lambda: network))

    assert len(set(seen)) > 12
    assert (len(seen) == len(set(seen))) is once


def test_frozen_vectors_are_neither_exchanged_nor_trained():
    experiment, learned = make_learner("fedlgt(guidance=False)")
    network = learned.resident.network
    before = [network.label_tokens.clone(), network.state_tokens.clone()]

    learned.method.train(learned.resident, make_shard(some_labels()), make_local(experiment))

    assert not [name for name in learned.resident.layout.names if "tokens" in name]
    assert torch.equal(network.label_tokens, before[0])
    assert torch.equal(network.state_tokens, before[1])
    assert learned.resident.layout.names[-2:] == ("readout.weight", "readout.bias")


def test_learned_vectors_are_exchanged_and_trained():
    experiment, learned = make_learner("fedlgt(text='learned()', guidance=False)")
    network = learned.resident.network
    before = [network.label_tokens.clone(), network.state_tokens.clone()]

    learned.method.train(learned.resident, make_shard(some_labels()), make_local(experiment))

    assert {"label_tokens", "state_tokens"} <= set(learned.resident.layout.names)
    assert learned.resident.layout.num_row_tensors == 3
    assert (network.label_tokens != before[0]).any(dim=1).all()
    assert (network.state_tokens != before[1]).any(dim=1).all()


def test_a_shared_read_out_leaves_nothing_per_label_to_exchange():
    experiment, learned = make_learner("fedlgt(readout='shared', guidance=False)")
    labels = some_labels()
    labels[:, 1] = UNKNOWN
    before = learned.predict(make_shard(labels).images, np.arange(len(labels)))

    learned.method.train(learned.resident, make_shard(labels), make_local(experiment))

    layout = learned.resident.layout
    assert learned.method.label_rows(learned.resident.network) == ()
    assert layout.num_row_tensors == 0
    assert dict(zip(layout.names, layout.shapes, strict=True))["readout.weight"][0] == 1
    after = learned.predict(make_shard(labels).images, np.arange(len(labels)))
    assert after.shape == (len(labels), len(NAMES))
    assert (before[:, 1] != after[:, 1]).all()  # nobody annotated it, yet its prediction moves with the others


@pytest.mark.parametrize("arguments", ["guidance=False", "known_fraction_max=0"])
def test_the_global_model_is_not_asked_in_vain(arguments):
    experiment, learned = make_learner(f"fedlgt({arguments})")

    trained = learned.method.train(learned.resident, make_shard(some_labels()), make_local(experiment))

    assert trained.num_steps == 6
    assert trained.metrics["unsure"] == 0


@pytest.mark.parametrize("method", ["fedlgt()", "ctran()"])
def test_a_client_without_annotations_changes_nothing(method):
    experiment, learned = make_learner(method, optimizer="adamw", weight_decay=0.1)
    before = learned.resident.flat.clone()
    labels = np.full((6, len(NAMES)), UNKNOWN, dtype=np.int8)

    trained = learned.method.train(learned.resident, make_shard(labels), make_local(experiment))

    assert torch.equal(learned.resident.flat, before)
    assert (trained.loss, trained.num_steps) == (0.0, 0)


def test_the_global_model_does_not_drop_out_or_learn():
    """The release leaves it in training mode in its first round."""
    experiment, learned = make_learner("fedlgt(band=0.5)")
    network = incoming_of(experiment, learned, learned.resident.flat)
    before = [p.clone() for p in network.parameters()]

    learned.method.train(learned.resident, make_shard(some_labels()), make_local(experiment, lambda: network))

    assert not network.training
    assert all(p.grad is None for p in network.parameters())
    assert all(torch.equal(p, q) for p, q in zip(network.parameters(), before, strict=True))


def test_a_band_of_everything_hides_everything():
    """Then label-mask training is off: the same weights as with nothing revealed."""
    weights = []
    for arguments in ("band=1.0", "known_fraction_max=0", "band=1.0, masking='first_image'"):
        experiment, learned = make_learner(f"fedlgt({arguments})")
        network = incoming_of(experiment, learned, learned.resident.flat)
        learned.method.train(
            learned.resident, make_shard(some_labels()), make_local(experiment, partial(same, network))
        )
        weights.append(learned.resident.flat.clone())

    torch.testing.assert_close(weights[0], weights[1], rtol=1e-4, atol=1e-5)
    assert (weights[0] - weights[2]).abs().max() > 1e-4


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("fedlgt(band=-0.1)", "band"),
        ("fedlgt(known_fraction_max=1.0)", "known_fraction_max"),
        ("fedlgt(masking='row')", "masking"),
        ("fedlgt(readout='rows')", "readout"),
        ("fedlgt(eps=0.02)", "eps"),
        ("fedlgt(layers=0)", "layers"),
    ],
)
def test_bad_arguments_are_named(method, message):
    with pytest.raises(InputError, match=message):
        spec.build("method", method)


def test_heads_that_do_not_fit_are_an_error():
    with pytest.raises(InputError, match="heads"):
        make_learner("fedlgt(heads=3)")
