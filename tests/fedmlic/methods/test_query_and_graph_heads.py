"""Query2Label, ML-Decoder and ADD-GCN against torch's own layers and plain loops."""

import math

import pytest
import torch
from torch import nn

from fedmlic.errors import InputError
from fedmlic.experiment import Experiment
from fedmlic.label_queries import GroupReadout, QueryLayer, scaled_positions
from fedmlic.learner import build_learner

METHODS = {
    "query2label": "query2label(heads=2, feedforward=16)",
    "ml_decoder": "ml_decoder(width=8, heads=2, feedforward=16, groups=3)",
    "add_gcn": "add_gcn(width=6)",
}


def network(method, num_labels=4, shape=(12, 10, 3)):
    names = tuple(map(str, range(num_labels)))
    settings = Experiment(method=method, model="small_cnn(width=4, num_blocks=0)")
    return build_learner(settings, names, shape).resident.network


def images(count=3, channels=3):
    return torch.randn(count, channels, 12, 10, generator=torch.Generator().manual_seed(0))


NAMES_OF_TORCH = {
    "among": "self_attn",
    "across": "multihead_attn",
    "expand": "linear1",
    "contract": "linear2",
    "norm_among": "norm1",
    "norm_across": "norm2",
    "norm_contracted": "norm3",
}


def pair(drop):
    """A layer and torch's with the same numbers."""
    torch.manual_seed(0)
    theirs = nn.TransformerDecoderLayer(8, 2, 16, dropout=drop, batch_first=True)
    ours = QueryLayer(8, 2, 16, drop, first="attention")
    for own, other in NAMES_OF_TORCH.items():
        getattr(ours, own).load_state_dict(getattr(theirs, other).state_dict())
    return ours, theirs


@torch.no_grad()
def test_a_layer_is_torchs_decoder_layer():
    ours, theirs = pair(0.0)
    queries, tokens = torch.randn(2, 5, 8), torch.randn(2, 7, 8)

    torch.testing.assert_close(ours(queries, tokens), theirs(queries, tokens), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_attention_weights_drop_out_as_in_torchs_decoder_layer(monkeypatch):
    """With all other dropout taken away both draw the same numbers."""
    ours, theirs = pair(0.3)
    monkeypatch.setattr(ours, "drop", lambda values: values)
    for part in ("dropout", "dropout1", "dropout2", "dropout3"):
        setattr(theirs, part, nn.Identity())
    queries, tokens = torch.randn(2, 5, 8), torch.randn(2, 7, 8)
    found = []
    for layer in (ours, theirs):
        torch.manual_seed(1)
        found.append(layer.train()(queries, tokens))

    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)
    assert (found[0] - ours.eval()(queries, tokens)).abs().max() > 0.05


@torch.no_grad()
def test_dropout_spreads_as_in_torchs_decoder_layer():
    ours, theirs = pair(0.3)
    queries, tokens = torch.randn(1, 5, 8), torch.randn(1, 7, 8)
    many = queries.expand(4000, -1, -1), tokens.expand(4000, -1, -1)

    found, expected = ours.train()(*many), theirs.train()(*many)

    torch.testing.assert_close(found.mean(dim=0), expected.mean(dim=0), rtol=0, atol=0.06)
    assert found.var(dim=0).mean().item() == pytest.approx(expected.var(dim=0).mean().item(), rel=0.05)


@pytest.mark.parametrize("first", ["doubled", "nothing"])
@torch.no_grad()
def test_queries_that_do_not_look_at_each_other_are_alone(first):
    layer = QueryLayer(8, 2, 16, 0.0, first=first)
    queries, tokens = torch.randn(2, 5, 8), torch.randn(2, 7, 8)

    torch.testing.assert_close(layer(queries, tokens)[:, 3:4], layer(queries[:, 3:4], tokens))


@pytest.mark.parametrize(("num_queries", "num_labels"), [(3, 7), (4, 4), (1, 5), (3, 4)])
@torch.no_grad()
def test_a_group_readout_by_a_plain_loop(num_queries, num_labels):
    readout, queries = GroupReadout(num_queries, num_labels, 6), torch.randn(2, num_queries, 6)
    readout.bias.copy_(torch.randn(num_labels))
    size = math.ceil(num_labels / num_queries)
    expected = [
        [
            float(queries[image, label // size] @ readout.weight[label] + readout.bias[label])
            for label in range(num_labels)
        ]
        for image in range(2)
    ]

    torch.testing.assert_close(readout(queries), torch.tensor(expected))


def attended(asked, keys, gathered, joint, bias, out, out_bias, heads):
    """Attention by its formula: rows of ``joint`` are for queries, keys and values, in this order."""
    width = joint.shape[1]
    size = width // heads
    parts = [
        x @ joint[n * width : (n + 1) * width].T + bias[n * width : (n + 1) * width]
        for n, x in enumerate((asked, keys, gathered))
    ]
    found = torch.zeros_like(asked)
    for image in range(len(asked)):
        for head in range(heads):
            q, k, v = (part[image, :, head * size : (head + 1) * size] for part in parts)
            for query in range(len(q)):
                weights = [math.exp(float(q[query] @ k[token]) / math.sqrt(size)) for token in range(len(k))]
                for token, weight in enumerate(weights):
                    found[image, query, head * size : (head + 1) * size] += weight / sum(weights) * v[token]
    return found @ out.T + out_bias


def normed(values, norm):
    spread = values - values.mean(dim=-1, keepdim=True)
    return spread / (spread.square().mean(dim=-1, keepdim=True) + 1e-5).sqrt() * norm.weight + norm.bias


def of_torch(module):
    return module.in_proj_weight, module.in_proj_bias, module.out_proj.weight, module.out_proj.bias


def fed_forward(values, layer, norm):
    hidden = torch.relu(values @ layer.expand.weight.T + layer.expand.bias)
    return normed(values + hidden @ layer.contract.weight.T + layer.contract.bias, norm)


def angles(height, width, num_features):
    """Rows and columns count from 1 and end at 2 pi; sine and cosine take turns."""
    table = torch.zeros(height * width, num_features)
    half = num_features // 2
    for row in range(height):
        for column in range(width):
            for axis, (place, count) in enumerate(((row, height), (column, width))):
                for number in range(half):
                    angle = (place + 1) / count * 2 * math.pi / 10000 ** (2 * (number // 2) / half)
                    wave = math.cos(angle) if number % 2 else math.sin(angle)
                    table[row * width + column, axis * half + number] = wave
    return table


@pytest.mark.parametrize(("height", "width", "features"), [(1, 1, 4), (3, 2, 8), (2, 5, 12)])
def test_scaled_positions_by_loop(height, width, features):
    found = scaled_positions(height, width, features)

    torch.testing.assert_close(found, angles(height, width, features), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("positions", ["sine", "none"])
@pytest.mark.parametrize("self_attention", [True, False])
@torch.no_grad()
def test_query2label_by_its_formulas(self_attention, positions):
    """Queries are added in every layer to what attention asks and looks up, places to what is looked up."""
    method = f"query2label(heads=2, feedforward=16, self_attention={self_attention}, positions={positions!r})"
    made = network(method).eval()
    for name, parameter in made.named_parameters():
        if not name.startswith("backbone"):  # biases and norms that do something
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name))))
    features = made.backbone(images())
    height, width = features.shape[2:]
    tokens = features.flatten(2).transpose(1, 2)
    places = angles(height, width, tokens.shape[2]) * (positions == "sine")
    (layer,) = made.encoder
    joint, out = layer.queries_keys_values, layer.attended
    placed = tokens + places
    seen = attended(placed, placed, tokens, joint.weight, joint.bias, out.weight, out.bias, 2)
    tokens = fed_forward(normed(tokens + seen, layer.norm_attended), layer, layer.norm_contracted)
    queries = made.queries.expand(3, -1, -1)
    values = torch.zeros_like(queries)
    assert len(made.decoder) == 2
    for layer in made.decoder:
        if self_attention:
            asked = values + queries
            own = attended(asked, asked, values, *of_torch(layer.among), 2)
            values = normed(values + own, layer.norm_among)
        seen = attended(values + queries, tokens + places, tokens, *of_torch(layer.across), 2)
        values = fed_forward(normed(values + seen, layer.norm_across), layer, layer.norm_contracted)
    values = normed(values, made.norm)
    expected = (values * made.readout.weight).sum(2) + made.readout.bias

    torch.testing.assert_close(made(images()), expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_ml_decoder_by_its_formulas():
    """Queries are doubled and normalised, look at the tokens, and answer for their group."""
    made = network(METHODS["ml_decoder"], 7).eval()
    for parameter in made.decoder.parameters():
        parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel())))
    linear = made.projection[0]
    tokens = torch.relu(made.backbone(images()).flatten(2).transpose(1, 2) @ linear.weight.T + linear.bias)
    (layer,) = made.decoder
    values = normed(2 * made.queries.expand(3, -1, -1), layer.norm_among)
    seen = attended(values, tokens, tokens, *of_torch(layer.across), 2)
    values = fed_forward(normed(values + seen, layer.norm_across), layer, layer.norm_contracted)
    columns = [values[:, label // 3] @ made.readout.weight[label] + made.readout.bias[label] for label in range(7)]

    torch.testing.assert_close(made(images()), torch.stack(columns, dim=1), rtol=1e-4, atol=1e-4)


def test_initial_numbers_are_those_of_the_released_codes():
    made = network("query2label(feedforward=64)", 50)
    width = made.queries.shape[1]

    def is_uniform(values, bound):
        assert 0.9 * bound < values.abs().max() <= bound

    layers = (*made.encoder, *made.decoder)
    for layer in layers:
        is_uniform(layer.expand.weight, math.sqrt(6 / (width + 64)))
    for layer in made.decoder:
        is_uniform(layer.across.out_proj.weight, math.sqrt(6 / (2 * width)))
        assert not layer.across.out_proj.bias.any()
    assert not made.encoder[0].attended.bias.any()
    is_uniform(made.readout.weight, 1 / math.sqrt(width))
    is_uniform(made.readout.bias, 1 / math.sqrt(width))

    made = network("ml_decoder(groups=20, heads=2)", 1628)
    kept = torch.empty(20, made.queries.shape[1], 82)
    nn.init.xavier_normal_(kept)
    assert made.readout.weight.std().item() == pytest.approx(kept.std().item(), rel=0.05)
    assert not made.readout.bias.any()


def test_fixed_queries_are_drawn_from_the_seed_and_never_exchanged():
    settings = {"method": METHODS["ml_decoder"], "model": "small_cnn(width=4, num_blocks=0)"}
    one, same, other = (
        build_learner(Experiment(**settings, seed=seed), tuple("abcdefg"), (12, 10, 3)).resident for seed in (1, 1, 2)
    )

    assert one.network.queries.shape == (3, 8)
    assert torch.equal(one.network.queries, same.network.queries)
    assert not torch.equal(one.network.queries, other.network.queries)
    assert "queries" not in one.layout.names
    assert "queries" in one.other_state()


@torch.no_grad()
def test_the_graphs_by_plain_loops():
    made = network(METHODS["add_gcn"])
    features = made.backbone(images(1))[0].flatten(1)
    num_labels, width, places = 4, 6, features.shape[1]

    def act(vector):
        return torch.where(vector > 0, vector, 0.2 * vector)

    score = [[float(made.activation.weight[k] @ features[:, p]) for p in range(places)] for k in range(num_labels)]
    moved = [made.transform(features[:, p]) for p in range(places)]
    nodes = [sum(moved[p] / (1 + math.exp(-score[k][p])) for p in range(places)) for k in range(num_labels)]
    static = []
    for k in range(num_labels):
        mixed = sum(made.static.weight[k, j] * nodes[j] for j in range(num_labels))
        static.append(nodes[k] + act(made.static_weight(act(mixed))))
    overall = act(made.norm(made.overall(sum(static) / num_labels)))
    graph = [torch.sigmoid(made.relation(torch.cat([overall, static[k]]))) for k in range(num_labels)]
    expected = []
    for k in range(num_labels):
        mixed = sum(graph[k][j] * static[j] for j in range(num_labels))
        node = nodes[k] + act(made.dynamic_weight(act(mixed)))
        second = float(made.readout.weight[k] @ node + made.readout.bias[k])
        expected.append((max(score[k]) + second) / 2)

    assert made(images(1))[0].shape == (num_labels,)
    assert len(nodes[0]) == width
    torch.testing.assert_close(made(images(1))[0], torch.tensor(expected), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("num_labels", [1, 1628])
@pytest.mark.parametrize("method", METHODS.values())
def test_one_label_and_many_and_gradients_everywhere(method, num_labels):
    made = network(method, num_labels)

    made(images(1)).square().sum().backward()

    without = [name for name, parameter in made.named_parameters() if parameter.grad is None]
    assert without == []
    assert all(parameter.grad.isfinite().all() for parameter in made.parameters())


@pytest.mark.parametrize("method", ["query2label(heads=3)", "ml_decoder(width=8, heads=3)"])
def test_heads_that_do_not_divide_the_width_are_refused(method):
    with pytest.raises(InputError, match="heads to divide the width 8, got 3"):
        network(method)
