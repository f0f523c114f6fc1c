"""Query2Label, ML-Decoder and ADD-GCN against torch's own layers and plain loops."""

import math

import pytest
import torch
from torch import nn

from fedmlic.errors import InputError
from fedmlic.experiment import Experiment
from fedmlic.label_queries import GroupReadout, QueryLayer
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


@torch.no_grad()
def test_a_layer_is_torchs_decoder_layer():
    torch.manual_seed(0)
    expected = nn.TransformerDecoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    layer = QueryLayer(8, 2, 16, 0.0, self_attention=True)
    names = {"among": "self_attn", "across": "multihead_attn", "expand": "linear1", "contract": "linear2"}
    names |= {"norm_among": "norm1", "norm_across": "norm2", "norm_contracted": "norm3"}
    for own, other in names.items():
        getattr(layer, own).load_state_dict(getattr(expected, other).state_dict())
    queries, tokens = torch.randn(2, 5, 8), torch.randn(2, 7, 8)

    torch.testing.assert_close(layer(queries, tokens), expected(queries, tokens), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_queries_that_do_not_look_at_each_other_are_alone():
    layer = QueryLayer(8, 2, 16, 0.0, self_attention=False)
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


@torch.no_grad()
def test_query2label_by_its_parts():
    made = network(METHODS["query2label"]).eval()
    features = made.backbone(images())
    height, width = features.shape[2:]
    tokens = features.flatten(2).transpose(1, 2).clone()
    quarter = tokens.shape[2] // 4
    for row in range(height):
        for column in range(width):
            for wave in range(quarter):
                speed = 10000 ** (-wave / quarter)
                for axis, place in enumerate((row, column)):
                    tokens[:, row * width + column, 2 * axis * quarter + wave] += math.sin(place * speed)
                    tokens[:, row * width + column, (2 * axis + 1) * quarter + wave] += math.cos(place * speed)
    queries = made.queries.expand(3, -1, -1)
    tokens = made.encoder[0](tokens)
    for layer in made.decoder:
        queries = layer(queries, tokens)
    expected = (queries * made.readout.weight).sum(2) + made.readout.bias

    torch.testing.assert_close(made(images()), expected, rtol=1e-4, atol=1e-5)


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
    overall = torch.relu(made.norm(made.overall(sum(static) / num_labels)))
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
