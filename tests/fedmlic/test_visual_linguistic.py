"""The networks of HSVLT against plain loops, timm's trunk and hand counts."""

import math

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from fedmlic.errors import InputError
from fedmlic.model import Classifier
from fedmlic.models import convnext as module
from fedmlic.models.convnext import convnext
from fedmlic.text import LabelVectors, label_vectors
from fedmlic.visual_linguistic import CrossAttention, Interaction, ScaleClassifier, VisualLinguistic

DEPTHS, WIDTHS = (1, 2, 1, 2), (8, 12, 16, 24)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """A trunk that costs nothing."""
    monkeypatch.setitem(module.SIZES, "atto", (DEPTHS, WIDTHS))


def images(count=2, side=64):
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(1))


def randomised(network):
    rng = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        parameter.data.add_(torch.randn(parameter.shape, generator=rng), alpha=0.2)
    return network


def vectors(num_labels=5, width=10, *, trainable=False):
    values = np.random.default_rng(0).normal(size=(num_labels, width)).astype(np.float32)
    return LabelVectors(values, trainable=trainable, source="")


def build(labels=None, trainable="all", **options):
    torch.manual_seed(0)
    return VisualLinguistic(convnext(trainable=trainable).build(3), labels or vectors(), **options)


# One block, by plain loops over images, heads, tokens and places in float64.


def plain_attention(layer, own, context, num_heads):
    weights = {name: p.detach().numpy() for name, p in layer.named_parameters()}
    width = own.shape[1]
    size = width // num_heads
    queries, keys, values = (
        [weights[f"{name}.weight"] @ token for token in tokens]
        for name, tokens in (("queries", own), ("keys", context), ("values", context))
    )
    result = []
    for query in queries:
        gathered = np.zeros(width)
        for head in range(num_heads):
            part = slice(head * size, (head + 1) * size)
            scores = [math.exp(query[part] @ key[part] / math.sqrt(size)) for key in keys]
            for score, value in zip(scores, values, strict=True):
                gathered[part] += score / sum(scores) * value[part]
        result.append(weights["attended.weight"] @ gathered + weights["attended.bias"])
    return np.array(result)


def gelu(values):
    return np.array([0.5 * v * (1 + math.erf(v / math.sqrt(2))) for v in values])


def plain_block(block, features, tokens, num_heads):
    """The new map ``[places, width]``, the new tokens and M of one image."""
    weights = {name: p.detach().numpy() for name, p in block.named_parameters()}
    gathered = plain_attention(block.attention, tokens, features, num_heads)
    common, passed = [], []
    for token, seen in zip(tokens, gathered, strict=True):
        language = gelu(weights["language.weight"] @ token + weights["language.bias"])
        common.append(gelu(weights["fusion.weight"] @ (language * seen) + weights["fusion.bias"]))
        moved = token + common[-1]
        gate = np.tanh(weights["gate.2.weight"] @ np.maximum(weights["gate.0.weight"] @ moved, 0))
        passed.append(moved + gate * moved)
    if block.to_map is not None:
        features = features + weights["gamma"] * plain_attention(block.to_map, features, tokens, num_heads)
    return features, np.array(passed), np.array(common)


@pytest.mark.parametrize("num_heads", [1, 2])
@pytest.mark.parametrize("changes_map", [False, True])
def test_one_block_is_the_formulas(num_heads, changes_map):
    block = randomised(Interaction(6, num_heads, changes_map=changes_map)).double()
    rng = torch.Generator().manual_seed(2)
    features = torch.randn(2, 6, 2, 3, generator=rng, dtype=torch.float64)
    tokens = torch.randn(2, 4, 6, generator=rng, dtype=torch.float64)

    with torch.no_grad():
        found = block(features, tokens, 4)
    for image in range(2):
        places = features[image].flatten(1).T.numpy()
        expected = plain_block(block, places, tokens[image].numpy(), num_heads)
        got = (found[0][image].flatten(1).T, found[1][image], found[2][image])
        for left, right in zip(got, expected, strict=True):
            np.testing.assert_allclose(left.numpy(), right, rtol=1e-10, atol=1e-12)
    assert torch.equal(found[0], features) != changes_map


def test_one_place_and_unit_weights_by_hand():
    """With one place the attention is 1; x = 3, u = gelu(1), m = gelu(3 u), t = 1 + m, then t + tanh(t) t."""
    block = Interaction(1, 1)
    for parameter in block.parameters():
        parameter.data.fill_(float(parameter.dim() > 1))
    _, tokens, common = block(torch.full((1, 1, 1, 1), 3.0), torch.ones(1, 1, 1), 1)

    u = 0.5 * (1 + math.erf(1 / math.sqrt(2)))
    m = 3 * u * 0.5 * (1 + math.erf(3 * u / math.sqrt(2)))
    assert common.item() == pytest.approx(m, rel=1e-6)
    assert tokens.item() == pytest.approx((1 + m) * (1 + math.tanh(1 + m)), rel=1e-6)


def test_tokens_that_are_the_same_for_all_images_need_not_be_repeated():
    attention = CrossAttention(6, 2)
    own, context = torch.randn(1, 4, 6), torch.randn(3, 5, 6)

    torch.testing.assert_close(attention(own, context), attention(own.expand(3, -1, -1), context))


# The whole network.


@pytest.mark.parametrize("changes_map", [False, True])
@pytest.mark.parametrize("scales", ["all", "last"])
def test_the_whole_network_goes_stage_by_stage(changes_map, scales):
    """An independent walk: every block's trunk, then its interaction; M of each stage's last block is read."""
    network = randomised(build(changes_map=changes_map, scales=scales, num_heads=2)).double().eval()
    given = images().double()
    table = network.label_tokens.numpy().astype(np.float64)
    tokens = torch.from_numpy(table / np.sqrt((table.astype(np.float32).astype(np.float64) ** 2).mean()))
    tokens = tokens.expand(2, -1, -1)

    with torch.no_grad():
        found = network(given)
        features, read = network.backbone.embed(given), []
        for i in range(4):
            features = network.backbone.stages[i].downsample(features)
            tokens = tokens @ network.projections[i].weight.T + network.projections[i].bias
            for j in range(DEPTHS[i]):
                features = network.backbone.stages[i].blocks[j](features)
                features, tokens, common = network.interactions[i][j](features, tokens, 5)
            read.append(common)
        read = torch.cat(read, dim=2) if scales == "all" else read[-1]
        rows = [read[:, c] @ network.readout.weight[c] + network.readout.bias[c] for c in range(5)]

    assert read.shape[2] == (sum(WIDTHS) if scales == "all" else WIDTHS[-1])
    torch.testing.assert_close(found.double(), torch.stack(rows, dim=1), rtol=1e-5, atol=1e-5)


def test_language_does_not_change_the_trunk_which_is_timms(tmp_path):
    """The maps between, with the language on, and what is read with it off, are those of timm's network."""
    timm = pytest.importorskip("timm")
    reference = randomised(timm.models.ConvNeXt(depths=DEPTHS, dims=WIDTHS)).eval()
    save_file(reference.state_dict(), tmp_path / "trunk.safetensors")
    trunk = convnext(weights=str(tmp_path / "trunk.safetensors")).build(3).eval()
    given, seen = images(), []
    network = VisualLinguistic(trunk, vectors()).eval()
    for stage in network.interactions:
        stage[-1].register_forward_hook(lambda _module, _given, result: seen.append(result[0]))
    off = ScaleClassifier(trunk, 5)

    with torch.no_grad():
        network(given)
        logits = off(given)
        pixels = trunk.pixels(given)
        expected = reference.forward_intermediates(pixels, intermediates_only=True)
        pooled = torch.cat([each.mean((2, 3)) for each in expected], dim=1)

    for found, wanted in zip(seen, expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(logits, pooled @ off.readout.weight.T + off.readout.bias, rtol=1e-4, atol=1e-5)


def test_without_language_and_scales_it_is_the_plain_classifier():
    trunk = convnext().build(3)
    plain, network = Classifier(trunk, 5), ScaleClassifier(trunk, 5, "last")
    network.readout.load_state_dict(plain.head.state_dict())

    torch.testing.assert_close(network(images()), plain(images()))


def counted(network, prefix=""):
    return sum(p.numel() for name, p in network.named_parameters() if name.startswith(prefix))


def test_the_papers_size_counts_what_the_formulas_say():
    """ConvNeXt-S and 80 labels: 97.2 million in the reference's count, of which the last gate (2 x 768^2) is dead."""
    with torch.device("meta"):
        labels = LabelVectors(np.ones((80, 768), np.float32), trainable=False, source="")
        network = VisualLinguistic(convnext(size="small").build(3), labels)
    depths, widths = (3, 3, 27, 3), (96, 192, 384, 768)
    blocks = sum(n * (8 * d * d + 3 * d) for n, d in zip(depths, widths, strict=True)) - 2 * 768**2
    linears = sum(a * b + b for a, b in ((768, 96), (96, 192), (192, 384), (384, 768)))
    timms = 50_223_688 - 769_000 - 1_536  # with the head for ImageNet; that head; the norm before it

    assert counted(network, "backbone") == timms == 49_453_152
    assert counted(network, "interactions") == blocks
    assert counted(network, "projections") == linears
    assert counted(network, "readout") == 80 * (1440 + 1)
    assert counted(network) == 96_003_824


def test_the_released_codes_other_numbers_are_what_nothing_reads():
    """Its log says 154,409,466: the network here, the last block's gate, and what the page lists as never read."""
    depths, widths = (3, 3, 27, 3), (96, 192, 384, 768)
    perceptrons = sum(n * (8 * d * d + 5 * d + 2 * d) for n, d in zip(depths, widths, strict=True))
    inputs = (1024 + 512, 512, 512 + 256, 512, 512 + 128, 512)  # of convolutions over 3 labels to 512 channels
    aggregation = sum(3 * 512 * each for each in inputs) + 6 * 2 * 512 + 2 * 512 + 2
    attention = 4 * 768**2 + 768
    classifier = 2 * 768 + 1000 * 769

    assert (perceptrons, aggregation, attention, classifier) == (47_206_944, 6_888_450, 2_360_064, 770_536)
    assert 96_003_824 + 2 * 768**2 + perceptrons + aggregation + attention + classifier == 154_409_466


@pytest.mark.parametrize("trainable", ["all", "head", "last(2)", "lora(1)"])
@pytest.mark.parametrize("options", [{}, {"changes_map": True}, {"scales": "last"}, {"readout": "shared"}], ids=str)
def test_gradients_reach_everything_that_trains_and_nothing_else(trainable, options):
    network = build(trainable=trainable, **options)
    network(images()).square().sum().backward()

    without = [n for n, p in network.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    frozen = [n for n, p in network.named_parameters() if not p.requires_grad]
    # A low-rank product starts at zero: its first factor's gradient is zero then, but for the second's first step.
    assert [name for name in without if not name.endswith("lora_a")] == []
    assert all(p.grad is None for p in network.parameters() if not p.requires_grad)
    assert all(name.startswith("backbone.") for name in frozen)
    assert bool(frozen) == (trainable != "all")
    if trainable == "head":
        assert len(frozen) == len(list(network.backbone.parameters()))


def test_learned_vectors_train_and_frozen_ones_are_no_parameters():
    frozen, learned = build(), build(vectors(trainable=True))
    learned(images()).sum().backward()

    assert "label_tokens" not in dict(frozen.named_parameters())
    assert learned.label_tokens.grad.any(dim=1).all()
    assert frozen.label_rows() == ("readout.weight", "readout.bias")
    assert learned.label_rows() == ("label_tokens", "readout.weight", "readout.bias")
    assert build(vectors(trainable=True), readout="shared").label_rows() == ("label_tokens",)


@pytest.mark.parametrize("num_labels", [1, 1628])
def test_one_label_and_1628_in_a_batch_of_one(num_labels):
    network = build(label_vectors("random_orthogonal()", [f"label {n}" for n in range(num_labels)], 24, seed=0))
    logits = network(images(1, side=32))

    assert logits.shape == (1, num_labels)
    assert logits.isfinite().all()


def test_the_length_of_the_vectors_does_not_matter():
    labels = vectors()
    longer = labels._replace(vectors=labels.vectors * 14)

    torch.testing.assert_close(build(labels)(images()), build(longer)(images()), rtol=1e-4, atol=1e-6)
    assert build(labels._replace(vectors=np.zeros((5, 10), np.float32)))(images()).isfinite().all()


def test_a_label_does_not_depend_on_the_others():
    """Without a change of the map, fewer labels give the same logits; with it, further ones change nothing."""
    for changes_map in (False, True):
        network = randomised(build(readout="shared", changes_map=changes_map))
        further = torch.from_numpy(vectors(3, 10).vectors) + 0.5
        own, beside = network(images()), network.beside(images(), further)

        alone = torch.cat([network.beside(images(), row[None]) for row in further], dim=1)
        torch.testing.assert_close(beside, alone, rtol=1e-4, atol=1e-5)
        again = network.beside(images(), network.label_tokens)
        torch.testing.assert_close(again, own, rtol=1e-4, atol=1e-5)


def test_attention_is_over_places_whatever_their_order():
    """Turning the map of the last block by a half turn changes nothing that a label reads."""
    block = randomised(Interaction(6, 1))
    features, tokens = torch.randn(2, 6, 3, 2), torch.randn(2, 4, 6)

    for left, right in zip(block(features, tokens, 4)[1:], block(features.flip(2, 3), tokens, 4)[1:], strict=True):
        torch.testing.assert_close(left, right)


def test_heads_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match=r"Expected heads to divide .*\[8, 12, 16, 24\], got 5"):
        build(num_heads=5)
