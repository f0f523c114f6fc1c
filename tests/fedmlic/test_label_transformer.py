"""The label transformer against torch's own encoder layer, and its parts by hand."""

import json
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fedmlic import label_transformer, spec
from fedmlic.errors import InputError
from fedmlic.label_transformer import (
    EncoderLayer,
    LabelTransformer,
    Readout,
    ask,
    build_label_transformer,
    dropout,
    sine_positions,
)
from fedmlic.method import Task
from fedmlic.model import Backbone, Model
from fedmlic.text import LabelVectors


class Patches(Backbone):
    """One convolution; the smallest thing that makes a feature map."""

    bn_policy = "none"

    def __init__(self, num_features):
        super().__init__()
        self.num_features = num_features
        self.conv = nn.Conv2d(1, num_features, 4, stride=4)

    def forward(self, images):
        return self.conv(images)


def network(num_labels=5, width=8, features=8, *, learned=False, **settings):
    torch.manual_seed(1)
    rng = np.random.default_rng(1)
    labels = rng.standard_normal((num_labels, width), dtype=np.float32)
    states = rng.standard_normal((3, width), dtype=np.float32) * np.array([[0], [1], [1]], np.float32)
    return LabelTransformer(
        Patches(features),
        LabelVectors(labels, learned, "test"),
        LabelVectors(states, learned, "test"),
        **{"num_layers": 2, "num_heads": 2, **settings},
    )


def states_like(values):
    return torch.tensor(values, dtype=torch.int8)


@pytest.mark.parametrize(("width", "heads", "feedforward"), [(8, 1, 8), (12, 3, 20), (16, 4, 16)])
@pytest.mark.parametrize("training", [False, True])
def test_an_encoder_layer_is_torchs_post_norm_layer(width, heads, feedforward, training):
    torch.manual_seed(2)
    ours = EncoderLayer(width, heads, feedforward, 0.0).train(training)
    theirs = nn.TransformerEncoderLayer(width, heads, feedforward, 0.0, batch_first=True).train(training)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.copy_(torch.randn_like(parameter))
    names = {
        "queries_keys_values.weight": "self_attn.in_proj_weight",
        "queries_keys_values.bias": "self_attn.in_proj_bias",
        "attended": "self_attn.out_proj",
        "norm_attended": "norm1",
        "expand": "linear1",
        "contract": "linear2",
        "norm_contracted": "norm2",
    }
    renamed = {}
    for name, value in ours.state_dict().items():
        stem = name if name in names else name.rpartition(".")[0]
        renamed[name.replace(stem, names[stem])] = value
    theirs.load_state_dict(renamed)
    tokens = torch.randn(3, 7, width)

    torch.testing.assert_close(ours(tokens), theirs(tokens), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours(tokens, 4), theirs(tokens)[:, -4:], rtol=1e-5, atol=1e-5)


def test_training_without_drops_equals_evaluation():
    """A dropout probability that rounds to 0 takes the written-out attention; both paths agree."""
    ours = network(dropout=1e-6)
    images, states = torch.randn(3, 1, 12, 8), states_like([[1, 0, -1, -1, 1]] * 3)

    torch.testing.assert_close(ours.train()(images, states), ours.eval()(images, states), rtol=1e-5, atol=1e-5)


def test_the_read_out_is_the_diagonal_of_a_linear_map():
    torch.manual_seed(3)
    readout, tokens = Readout(6, 4), torch.randn(2, 6, 4)

    dense = F.linear(tokens, readout.weight, readout.bias)

    torch.testing.assert_close(readout(tokens), dense.diagonal(dim1=1, dim2=2))


@pytest.mark.parametrize("learned", [False, True])
def test_a_state_adds_its_vector_to_its_label(learned):
    ours = network(learned=learned)

    told = ours.told_labels(states_like([[1, 0, -1, -2, 1]]), 1)

    negative, positive = ours.state_tokens
    zero = torch.zeros(8)
    expected = ours.label_tokens + torch.stack([positive, negative, zero, zero, positive])
    torch.testing.assert_close(told, expected[None])


def test_telling_nothing_is_telling_unknown():
    ours = network().eval()
    images = torch.randn(2, 1, 8, 8)

    torch.testing.assert_close(ours(images), ours(images, states_like([[-1] * 5] * 2)), rtol=0, atol=0)


def test_a_revealed_label_changes_the_others():
    ours = network().eval()
    images = torch.randn(1, 1, 8, 8)

    difference = ours(images, states_like([[1, -1, -1, -1, -1]])) - ours(images)

    assert (difference.abs() > 1e-6).all()


def test_frozen_tables_are_buffers_and_learned_ones_parameters():
    frozen, learned = network(), network(learned=True)

    tables = {"label_tokens", "state_tokens"}
    assert tables <= dict(frozen.named_buffers()).keys()
    assert not tables & dict(frozen.named_parameters()).keys()
    assert tables <= dict(learned.named_parameters()).keys()
    assert frozen.label_rows() == ("readout.weight", "readout.bias")
    assert learned.label_rows() == ("label_tokens", "readout.weight", "readout.bias")


@pytest.mark.parametrize("learned", [False, True])
def test_a_shared_read_out_is_one_unit_for_all_labels(learned):
    ours = network(learned=learned, readout="shared").eval()
    tokens = torch.randn(2, 5, 8)

    assert {name: tuple(p.shape) for name, p in ours.readout.named_parameters()} == {"weight": (1, 8), "bias": (1,)}
    assert ours.label_rows() == (("label_tokens",) if learned else ())
    assert ours(torch.randn(3, 1, 8, 8)).shape == (3, 5)
    expected = F.linear(tokens, ours.readout.weight, ours.readout.bias)[..., 0]
    torch.testing.assert_close(ours.readout(tokens), expected)


@pytest.mark.parametrize("readout", ["row", "shared"])
def test_only_a_shared_read_out_moves_with_the_labels(readout):
    """Labels in another order give the same logits in that order, unless each has its own weights."""
    ours = network(readout=readout).eval()
    images, states = torch.randn(3, 1, 8, 8), states_like([[1, 0, -1, -1, 0], [-1] * 5, [0, 0, 1, 1, -1]])
    order = torch.tensor([3, 0, 4, 1, 2])
    before = ours(images, states)

    ours.label_tokens = ours.label_tokens[order]
    after = ours(images, states[:, order])

    difference = (after - before[:, order]).abs()
    assert (difference.max() < 1e-5) == (readout == "shared")


def test_the_gradient_of_a_shared_read_out_is_the_sum_over_labels():
    """Against a read-out per label whose rows are equal."""
    rows, shared = network(dropout=0.0), network(dropout=0.0, readout="shared")
    same = {n: value for n, value in rows.state_dict().items() if not n.startswith("readout")}
    shared.load_state_dict(same, strict=False)
    with torch.no_grad():
        rows.readout.weight.copy_(shared.readout.weight.expand(5, -1))
        rows.readout.bias.copy_(shared.readout.bias.expand(5))
    images, weights = torch.randn(4, 1, 8, 8), torch.randn(4, 5)

    for ours in (rows, shared):
        (ours(images) * weights).sum().backward()

    torch.testing.assert_close(shared(images), rows(images), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(shared.readout.weight.grad[0], rows.readout.weight.grad.sum(dim=0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(shared.readout.bias.grad[0], rows.readout.bias.grad.sum(), rtol=1e-4, atol=1e-5)


def test_a_read_out_per_label_is_the_default():
    default, rows = network(), network(readout="row")

    assert default.state_dict().keys() == rows.state_dict().keys()
    assert all(torch.equal(value, rows.state_dict()[name]) for name, value in default.state_dict().items())
    assert default.readout.weight.shape == (5, 8)


def test_other_labels_can_be_predicted_with_a_shared_read_out():
    ours = network(readout="shared").eval()
    images = torch.randn(2, 1, 8, 8)
    before, tokens = ours(images), ours.label_tokens.numpy().copy()
    more = np.concatenate([tokens[::-1], np.ones((2, 8), np.float32)])

    ours.set_labels(LabelVectors(more, trainable=False, source="test"))

    assert ours(images).shape == (2, 7)
    assert ours(images, states_like([[1, -1, 0, -1, -1, -1, 1]] * 2)).shape == (2, 7)
    assert "label_tokens" in dict(ours.named_buffers())
    ours.set_labels(LabelVectors(tokens[[2]], trainable=False, source="test"))
    assert ours(images).shape == (2, 1)
    ours.set_labels(LabelVectors(tokens, trainable=False, source="test"))
    torch.testing.assert_close(ours(images), before, rtol=0, atol=0)


def share_right_of_new_labels(readout, *, meaningful):
    """Trained on 16 labels; share of right answers on 4 that nobody annotated and, if it can, on 4 added afterwards.

    An image is a point in space; a label is a direction, present where the point lies on its side. Its vector
    is that direction, or another label's.
    """
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    directions = rng.standard_normal((24, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    vectors = np.pad(directions if meaningful else rng.permutation(directions), ((0, 0), (0, 9))).astype(np.float32)
    ours = LabelTransformer(
        Patches(12),
        LabelVectors(vectors[:20], trainable=False, source="test"),
        LabelVectors(np.zeros((3, 12), np.float32), trainable=False, source="test"),
        num_layers=1,
        num_heads=2,
        feedforward=32,
        dropout=0.0,
        readout=readout,
    )
    images = torch.randn(2000, 1, 4, 4)
    present = images.flatten(1)[:, :3] @ torch.tensor(directions.T, dtype=torch.float32) > 0
    optimiser = torch.optim.Adam(ours.parameters(), 1e-2)
    for batch in torch.randint(0, 1500, (250, 64)):
        optimiser.zero_grad()
        known = ours(images[batch])[:, :16]
        F.binary_cross_entropy_with_logits(known, present[batch, :16].float()).backward()
        optimiser.step()

    def right(labels):
        with torch.no_grad():
            return ((ours(images[1500:]) > 0)[:, -4:] == present[1500:, labels]).float().mean().item()

    unannotated = right(slice(16, 20))
    if readout == "row":
        return unannotated
    ours.set_labels(LabelVectors(vectors, trainable=False, source="test"))
    return (unannotated + right(slice(20, 24))) / 2


def test_a_shared_read_out_predicts_labels_that_nobody_annotated_from_their_vectors():
    """And needs both: vectors that mean something, and one read-out for all."""
    assert share_right_of_new_labels("shared", meaningful=True) > 0.85
    assert share_right_of_new_labels("shared", meaningful=False) < 0.7
    assert share_right_of_new_labels("row", meaningful=True) < 0.7


def test_labels_that_a_shared_read_out_cannot_tell_apart_are_an_error(tmp_path):
    table = {"cat": [1.0, 0.0, 0.0, 0.0], "Cat": [1.0, 0.0, 0.0, 0.0], "dog": [0.0, 1.0, 0.0, 0.0]}
    table |= {"negative": [0.0] * 4, "positive": [0.0] * 4}
    path = tmp_path / "vectors.json"
    path.write_text(json.dumps(table))
    task = Task(("cat", "dog", "Cat"), (8, 8, 1), Model(lambda _: Patches(4)), 0)
    settings = {"layers": 1, "heads": 1, "width": None, "feedforward": None, "dropout": 0.0, "positions": "none"}

    with pytest.raises(InputError, match="equal ones for cat = Cat"):
        build_label_transformer(task, text=f"file(path={str(path)!r})", readout="shared", **settings)
    network = build_label_transformer(task, text=f"file(path={str(path)!r})", readout="row", **settings)
    assert network(torch.randn(1, 1, 8, 8)).shape == (1, 3)


@pytest.mark.parametrize(
    ("settings", "shape", "trainable", "message"),
    [
        ({}, (3, 8), False, r"readout\.weight, readout\.bias"),
        ({"readout": "shared", "learned": True}, (3, 8), False, "label_tokens"),
        ({"readout": "shared"}, (3, 8), True, "new vectors"),
        ({"readout": "shared"}, (3, 7), False, r"\[labels, 8\], got \[3, 7\]"),
        ({"readout": "shared"}, (0, 8), False, r"got \[0, 8\]"),
    ],
)
def test_labels_that_cannot_take_the_place_of_others_are_errors(settings, shape, trainable, message):
    with pytest.raises(InputError, match=message):
        network(**settings).set_labels(LabelVectors(np.ones(shape, np.float32), trainable, "test"))


def test_a_projection_exists_only_where_widths_differ():
    same, different = network(), network(features=6)

    assert not list(same.projection.parameters())
    assert {name: tuple(p.shape) for name, p in different.projection.named_parameters()} == {
        "weight": (8, 6),
        "bias": (8,),
    }
    assert different(torch.randn(2, 1, 8, 8)).shape == (2, 5)


def test_positions_tell_cells_apart():
    """Without positions an image and its mirror image of patches look the same; with them they do not."""
    patches = torch.randn(1, 1, 4, 2, 4)
    images = patches.reshape(1, 1, 4, 8)
    mirrored = patches.flip(3).reshape(1, 1, 4, 8)
    plain, placed = network().eval(), network(positions="sine").eval()

    torch.testing.assert_close(plain(images), plain(mirrored), rtol=1e-5, atol=1e-5)
    assert (placed(images) - placed(mirrored)).abs().max() > 1e-4


@pytest.mark.parametrize(("height", "width", "features"), [(1, 1, 4), (3, 2, 8), (2, 5, 12)])
def test_sine_positions_by_loop(height, width, features):
    table = sine_positions(height, width, features)

    quarter = features // 4
    expected = []
    for row in range(height):
        for column in range(width):
            cell = []
            for place in (row, column):
                angles = [place / 10000 ** (i / quarter) for i in range(quarter)]
                cell += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
            expected.append(cell)
    torch.testing.assert_close(table, torch.tensor(expected))


@pytest.mark.parametrize(
    ("settings", "message"), [({"num_heads": 3}, "heads"), ({"positions": "sine"}, "multiple of 4")]
)
def test_widths_that_do_not_fit_are_errors(settings, message):
    with pytest.raises(InputError, match=message):
        network(width=10 if "positions" in settings else 8, features=8, **settings)


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.9])
def test_dropout_has_its_probability_and_keeps_the_mean(probability):
    torch.manual_seed(4)
    values = torch.ones(1000, 331)

    dropped = dropout(values, probability)

    share = (dropped == 0).double().mean().item()
    spread = 5 * math.sqrt(probability * (1 - probability) / values.numel())
    assert abs(share - probability) < spread + 2**-16
    torch.testing.assert_close(dropped.unique(), torch.tensor([0.0, 1 / (1 - probability)]), rtol=2**-12, atol=0)
    # Four decisions share one draw; neighbours must still be independent.
    both = (dropped[:, 1:] == 0) & (dropped[:, :-1] == 0)
    assert abs(both.double().mean().item() - probability**2) < 0.01


def test_dropout_sends_gradient_through_what_it_kept():
    values = torch.ones(50, requires_grad=True)
    torch.manual_seed(5)
    first = dropout(values, 0.4)
    first.sum().backward()

    torch.manual_seed(5)
    torch.testing.assert_close(dropout(values, 0.4), first, rtol=0, atol=0)
    torch.testing.assert_close(values.grad, first.detach())
    assert dropout(values, 0.0) is not None
    torch.testing.assert_close(dropout(values, 0.0), values)
    assert dropout(values, 1 - 1e-9).isfinite().all()


def test_initial_weights_are_within_their_bounds():
    ours = network(width=16, features=8, num_heads=4)
    bounds = {"projection": 8**-0.5, "readout": 16**-0.5, "attended": 0.25, "expand": 0.25, "contract": 0.25}

    for name, parameter in ours.named_parameters():
        for part, bound in bounds.items():
            if f".{part}." in f".{name}":
                assert parameter.abs().max() <= bound, name
                assert parameter.abs().max() > bound / 2, name
    joint = ours.layers[0].queries_keys_values
    assert (joint.bias == 0).all()
    assert joint.weight.abs().max() <= math.sqrt(6 / (4 * 16))


def test_it_runs_in_inference_mode_on_any_grid():
    ours = network(positions="sine").eval()

    with torch.inference_mode():
        for height, width in [(4, 4), (8, 20), (32, 12)]:
            assert ours(torch.randn(2, 1, height, width)).shape == (2, 5)


def test_the_last_layer_answers_for_labels_only(monkeypatch):
    """Only a saving: all tokens give the same logits."""
    ours = network(num_layers=3).eval()
    images = torch.randn(2, 1, 8, 8)
    expected = ours(images)
    forward = EncoderLayer.forward
    monkeypatch.setattr(label_transformer.EncoderLayer, "forward", lambda self, tokens, _: forward(self, tokens))

    torch.testing.assert_close(ours(images), expected, rtol=1e-5, atol=1e-6)


def test_further_labels_look_and_are_not_looked_at():
    """Against torch's own encoder layers, with a mask that says who looks at whom."""
    torch.manual_seed(4)
    ours = network(readout="shared", num_layers=2, dropout=0.0).eval()
    images, further = torch.randn(3, 1, 8, 8), torch.randn(4, 8)

    with torch.no_grad():
        found = ours.beside(images, further)
        labels = ours.told_labels(None, 3)
        tokens = ours.norm(torch.cat([ours.image_tokens(images), labels, further.expand(3, -1, -1)], dim=1))
        count, num_further = tokens.shape[1], len(further)
        blocked = torch.zeros(count, count, dtype=torch.bool)
        blocked[:, -num_further:] = True
        blocked.fill_diagonal_(fill_value=False)
        for layer in ours.layers:
            theirs = nn.TransformerEncoderLayer(8, 2, 8, 0.0, batch_first=True).eval()
            renamed = {}
            for name, value in layer.state_dict().items():
                for old, new in {
                    "queries_keys_values.": "self_attn.in_proj_",
                    "norm_attended": "norm1",
                    "norm_contracted": "norm2",
                    "attended": "self_attn.out_proj",
                    "expand": "linear1",
                    "contract.": "linear2.",
                }.items():
                    if name.startswith(old):
                        renamed[name.replace(old, new, 1)] = value
                        break
            theirs.load_state_dict(renamed)
            tokens = theirs(tokens, src_mask=blocked)
        expected = ours.readout(tokens[:, -num_further:])
        own = ours.readout(tokens[:, -num_further - 5 : -num_further])

    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(own, ours(images), rtol=1e-5, atol=1e-5)


def test_what_else_is_asked_for_does_not_matter():
    ours = network(readout="shared").eval()
    images, further = torch.randn(2, 1, 8, 8), torch.randn(200, 8)

    together, alone = ours.beside(images, further), ours.beside(images, further[[7]])

    assert together.shape == (2, 200)
    torch.testing.assert_close(together[:, [7]], alone, rtol=1e-5, atol=1e-6)
    assert together.std(dim=1).min() > 1e-3


def asking(tmp_path, **settings):
    """A network for three words of a GloVe file, its task, and the spec."""
    lines = {"cat": (1, 0, 0), "dog": (0, 1, 0), "tree": (0, 0, 1), "kite": (1, 1, 0), "sea": (1, 2, 3)}
    lines |= {"negative": (1, 0, 2), "positive": (0, 2, 1)}
    file = tmp_path / "words.txt"
    file.write_text("".join(f"{word} {' '.join(map(str, row))}\n" for word, row in lines.items()))
    text = f"glove(path={str(file)!r})"
    task = Task(("cat", "dog", "tree"), (8, 8, 1), Model(lambda _: Patches(8), "patches"), 3)
    options = {"layers": 1, "heads": 2, "width": None, "feedforward": None, "dropout": 0.0, "positions": "none"}
    torch.manual_seed(5)
    return (
        build_label_transformer(task, **{**options, "text": text, "readout": "shared", **settings}).eval(),
        task,
        text,
    )


def test_names_are_asked_for_in_any_order_and_labels_have_their_own_probability(tmp_path):
    ours, task, text = asking(tmp_path)
    images = torch.randn(3, 1, 8, 8)

    with torch.no_grad():
        found = ask(ours, task, ["kite", "tree", "Cat", "sea tree", "dog"], text)(images)
        labels = torch.sigmoid(ours(images))

    assert found.shape == (3, 5)
    assert torch.equal(found[:, [2, 4, 1]], labels)
    assert not torch.equal(found[:, 0], found[:, 3])
    with torch.no_grad():
        torch.testing.assert_close(ask(ours, task, ["sea tree"], text)(images), found[:, [3]])
        assert torch.equal(ask(ours, task, ["dog"], text)(images), labels[:, [1]])


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"readout": "row"}, "a read-out row for each label.*Train with readout='shared'"),
        ({"text": "learned()"}, "got learned ones"),
        ({"text": "random_orthogonal()"}, "made from a name alone"),
    ],
)
def test_a_network_that_cannot_be_asked_says_why(tmp_path, settings, told):
    ours, task, text = asking(tmp_path, **settings)

    with pytest.raises(InputError, match=told):
        ask(ours, task, ["kite"], settings.get("text", text))


def test_vectors_that_changed_since_the_training_are_an_error(tmp_path):
    ours, task, text = asking(tmp_path)
    file = tmp_path / "words.txt"
    file.write_text(file.read_text().replace("dog 0 1 0", "dog 0 1 1"))

    with pytest.raises(InputError, match="label vectors that the network was trained with, got others"):
        ask(ours, task, ["kite"], text)
    with pytest.raises(InputError, match="unheard"):
        ask(ours, task, ["unheard"], text)


def test_a_shared_readout_refuses_equal_vectors_that_are_wider_than_the_network(tmp_path):
    names = ("cat", "dog", "caf\u00e9", "Cafe", "tree", "kite", "sea animal", "bus")
    rows = np.random.default_rng(0).standard_normal((8, 384))
    rows[3] = rows[2]
    (tmp_path / "vectors.json").write_text(json.dumps(dict(zip(names, rows.tolist(), strict=True))))
    text = f"file(path='{tmp_path / 'vectors.json'}')"
    task = Task(names, (32, 32, 3), spec.build("model", "small_cnn()"), 0)

    with pytest.raises(InputError, match="got equal ones for caf\u00e9 = Cafe"):
        spec.build("method", f"fedlgt(text={text!r}, readout='shared', width=128, layers=1)").build(task)
