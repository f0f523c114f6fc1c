"""Diff-Feat: the search among clients, both heads, and texts."""

import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

from fedmlic import spec
from fedmlic.diffusion import NUM_TIMESTEPS, DiffusionBackbone, noise_of, write_texts
from fedmlic.errors import InputError
from fedmlic.experiment import Experiment
from fedmlic.learner import build_learner
from fedmlic.local_search import LocalSearch
from fedmlic.method import Local
from fedmlic.methods.diff_feat import CANDIDATES, FederatedSearch, search_of, state_of
from fedmlic.pixel_scale import to_float
from fedmlic.pooled_scores import fit_sums, judged
from fedmlic.ridge_scores import cross_scores
from fedmlic.shard import Shard
from fedmlic.solved_head import SolvedHead

PLUGIN = '''
import math
import torch
import torch.nn.functional as F
from torch import nn
from fedmlic.diffusion import NUM_TIMESTEPS, DiffusionBackbone, noise_of
from fedmlic.model import Backbone, Model


class Planted(DiffusionBackbone):
    """Features in which labels show best at one block and timestep, and elsewhere drown in noise."""

    bn_policy, num_features, num_blocks, num_timesteps = "none", 48, 28, NUM_TIMESTEPS

    def __init__(self, best):
        super().__init__()
        self.best, self.block, self.timestep, self.gain = best, *best, nn.Parameter(torch.ones(1))
        self.asked = []

    def at(self, images, blocks, timestep):
        self.asked.append((len(images), tuple(blocks), timestep))
        red, green, blue = images.split(1, dim=1)
        pairs = torch.cat([red - green, green - blue, blue - red], dim=1)
        signal = F.adaptive_max_pool2d(torch.cat([images, -images, pairs, -pairs], dim=1), 2).flatten(1)
        parts = []
        for block in blocks:
            noise = noise_of(images, (48,), block, timestep)
            off = ((block - self.best[0]) / 10) ** 2 + ((timestep - self.best[1]) / 120) ** 2
            share = math.exp(-off)
            parts.append(self.gain * (share * signal + (1 - share) * 3 * noise))
        return torch.stack(parts, dim=1)

    def forward(self, images):
        return self.at(images, [self.block], self.timestep)[:, 0, :, None, None]


def planted(*, block: int = 17, timestep: int = 180) -> Model:
    """A backbone with a planted optimum."""
    return Model(lambda channels: Planted((block, timestep)))
'''

RUN = {
    "dataset": "scenes(preset='tiny', num_images=600, num_test=60, colour_reliability=1.0, cardinality=2.0)",
    "model": "planted_features.planted()",
    "regime": "random_missing(known_fraction=0.7)",
    "cohort_size": 0,
    "num_rounds": 9,
    "allow_statistics": True,
    "statistics_min_clients": 2,
    "statistics_min_images": 2,
    "evaluate_every": 9,
    "method": "diff_feat(search_rounds=8, budget=40, alpha=30.0)",
}


@pytest.fixture
def model(plug):
    plug("planted_features", PLUGIN)
    return "planted_features.planted()"


def rounds(folder):
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    return [event for event in events if event["event"] == "round"]


def tensors_of(folder):
    found = load_file(max((folder / "checkpoints").glob("*.safetensors")))
    return {name.removeprefix("model/"): each for name, each in found.items() if name.startswith("model/")}


@pytest.mark.usefixtures("model")
def test_a_federated_search_finds_the_planted_place_with_fewer_probes_than_the_grid(play, tmp_path):
    play(tmp_path / "run", **RUN)

    found = tensors_of(tmp_path / "run")
    scored = found["probes"][found["probes"][:, 0] >= 0]
    block, timestep = found["place"][:2].tolist()
    assert found["place"][4] == 1
    share, begun = (
        math.exp(-(((b - 17) / 10) ** 2) - ((t - 180) / 120) ** 2) for b, t in ((block, timestep), (12, 100))
    )
    assert begun < 0.51
    assert share > 0.85
    assert 8 < len(scored) <= 40
    assert len(scored) < 28 * (NUM_TIMESTEPS // 10) / 50
    assert scored[:, 2].max() > scored[0, 2] + 0.02  # better than where it began
    events = rounds(tmp_path / "run")
    asked = sum(event["method/probes"] for event in events[:8])
    assert 6 * len(scored) < asked <= 6 * 8 * CANDIDATES  # places are scored again beside their neighbours
    assert max(event["bytes-up"] for event in events[:8]) == 6 * 8 * (CANDIDATES * 24 + 32)
    told = {name: events[7][f"strategy/search/{name}"] for name in ("block", "timestep", "candidates", "ended")}
    assert told == {"block": block, "timestep": timestep, "candidates": len(scored), "ended": 1}
    assert events[-1]["server/mAP"] > events[-1]["server/prevalence"] + 0.1


@pytest.mark.usefixtures("model")
def test_both_heads_come_after_the_search_and_nothing_else_is_sent(play, tmp_path):
    begun = {**RUN, "num_rounds": 3}
    play(tmp_path / "solved", **{**begun, "method": "diff_feat(search_rounds=1)"})
    play(tmp_path / "trained", **{**begun, "method": "diff_feat(search_rounds=1, head='trained', width=7)"})

    solved, trained = (rounds(tmp_path / folder) for folder in ("solved", "trained"))
    assert [event["method/added"] for event in solved[1:]] == [6, 0]
    assert solved[2]["bytes-up"] == 0
    numbers = 48 * 7 + 7 + 7 * 8 + 8
    assert [event["bytes-up"] for event in trained[1:]] == [6 * 4 * numbers] * 2
    assert {name.partition(".")[0] for name in tensors_of(tmp_path / "trained")} == {
        "place",
        "probes",
        "head",
        "projections",
        "backbone",
    } - {"backbone"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_rounds": 8}, "its head comes after search_rounds=8"),
        ({"allow_statistics": False}, "compute from their images and labels"),
        ({"model": "small_cnn()"}, "block and timestep can be searched for, got SmallCnn"),
    ],
)
@pytest.mark.usefixtures("model")
def test_what_cannot_be_is_refused(play, tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        play(tmp_path / "run", **{**RUN, **changes})


def test_a_solved_head_with_a_projection_is_refused():
    with pytest.raises(InputError, match="width=0 with head='solved'"):
        spec.build("method", "diff_feat(width=8)")


OF_SEARCH = ("start_block", "start_timestep", "step_block", "step_timestep", "least_step", "budget", "search_images")
OF_THE_SEARCH = [*(f"{name}=3" for name in OF_SEARCH), "score='pooled'"]


@pytest.mark.parametrize("option", OF_THE_SEARCH)
def test_options_of_the_search_without_one_are_refused(option):
    name = option.partition("=")[0]
    with pytest.raises(InputError, match=rf"no {name} with search_rounds=0, .*got {option}\. .*dit\(block="):
        spec.build("method", f"diff_feat(search_rounds=0, {option})")

    spec.build("method", f"diff_feat(search_rounds=2, {option})")


@pytest.mark.parametrize("count", [1, 7])
def test_half_a_step_of_a_search_by_pooled_scores_is_refused(count):
    with pytest.raises(InputError, match=rf"even with score='pooled'.* got {count}\. Use search_rounds={count + 1}\."):
        spec.build("method", f"diff_feat(search_rounds={count}, score='pooled')")


@pytest.mark.parametrize(
    ("options", "refused"),
    [
        ("head='trained', gram='label'", "no gram with head='trained'"),
        ("head='trained', gram='shared', search_rounds=0", "no gram with head='trained'"),
        ("head='trained', alpha=2.0, search_rounds=0", "no alpha with head='trained'"),
        ("head='trained', alpha=2.0, gram='label', search_rounds=0", "no gram and alpha with head='trained'"),
    ],
)
def test_options_of_the_solved_head_with_a_trained_one_are_refused(options, refused):
    with pytest.raises(InputError, match=rf"{refused}.*Use head='solved'"):
        spec.build("method", f"diff_feat({options})")


@pytest.mark.parametrize(
    "options",
    [
        "head='trained', alpha=2.0",
        "alpha=2.0, gram='label', search_rounds=0",
        "head='trained', alpha=2.0, gram='label', score='pooled'",
    ],
)
def test_a_penalty_counts_in_the_search_and_in_the_solved_head(options):
    spec.build("method", f"diff_feat({options})")


def test_a_search_travels_as_two_tensors():
    begin = LocalSearch((28, 1000), (12, 100), (4, 50), budget=6)
    step = begin.scored({(12, 100): 0.25, (16, 100): 0.5, (8, 100): 0.125, (12, 150): 0.25, (12, 50): 0.25})

    assert step.place == (16, 100)
    for search in (begin, step, step.scored({(16, 100): 0.5, (20, 100): 0.5})):
        again = search_of(begin, *state_of(search))
        assert again == search
        assert again.wanted() == search.wanted()


class Stand(DiffusionBackbone):
    """Twelve numbers of an image, times block + 1."""

    bn_policy, num_features, num_blocks, num_timesteps = "none", 12, 3, NUM_TIMESTEPS
    block, timestep = 1, 100

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(1))

    def at(self, images, blocks, timestep):
        pooled = F.adaptive_avg_pool2d(images, 2).flatten(1)
        return torch.stack([pooled * self.gain + noise_of(images, (12,), block, timestep) for block in blocks], dim=1)

    def forward(self, images):
        return self.at(images, [self.block], self.timestep)[:, 0, :, None, None]


class Pixels:
    as_maps = False

    def __init__(self, pixels):
        self.pixels = pixels

    def take(self, rows):
        return self.pixels[rows]


def client(count=20):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, 8, 8, 3)).astype(np.uint8)
    labels = (images.reshape(count, -1)[:, :3] > 120).astype(np.int8)
    nothing = np.zeros(0, dtype=np.int64)
    return Shard(0, ("a", "b", "c"), Pixels(images), np.arange(count), labels, nothing, labels[:0])


def learner(method, monkeypatch):
    build = spec.build

    def stand(key, text):
        from fedmlic.model import Model

        return Model(lambda _: Stand()) if key == "model" else build(key, text)

    monkeypatch.setattr(spec, "build", stand)
    settings = Experiment(method=method)
    return settings, build_learner(settings, ("a", "b", "c"), (8, 8, 3))


def local_of(settings):
    return Local(settings, 1, 0, torch.device("cpu"), nn.Identity)


def test_a_step_by_pooled_scores_takes_two_rounds_and_goes_on_in_its_middle(model, play, tmp_path):
    from sim.run import resume

    method = "diff_feat(search_rounds=4, alpha=30.0, score='pooled')"
    settings = {**RUN, "model": model, "method": method, "cohort_size": 4, "num_rounds": 5, "keep_checkpoints": 5}
    play(tmp_path / "whole", **settings)
    play(tmp_path / "part", **settings)
    kept = sorted((tmp_path / "part" / "checkpoints").glob("*.safetensors"))
    states = [load_file(path) for path in kept]
    solved = [bool(state["model/regressions"].any()) for state in states]
    for path in kept[3:]:
        path.unlink()
    (tmp_path / "part" / "result.json").unlink()  # a run that has one is over

    resume(tmp_path / "part")

    assert (tmp_path / "part" / "result.json").exists()
    here, there = tensors_of(tmp_path / "part"), tensors_of(tmp_path / "whole")
    assert [name for name in there if not torch.equal(here[name], there[name])] == []
    assert solved == [True, False, True, False, False]
    scored = [int((state["model/probes"][:, 0] >= 0).sum()) for state in states]
    assert scored[:3] == [0, 5, 5]
    assert scored[3] > 5
    second = 8 * 10 * 48 * 49 // 2
    numbers = second + 2 * 8 * 10 * 48 + 10 * 48
    sent = [event["bytes-up"] for event in rounds(tmp_path / "whole")]
    assert sent[1] == sent[3] == 4 * 8 * (CANDIDATES * 24 + 32)
    assert 16 * 4 * numbers < sent[0] < 16 * 4 * numbers * 1.01  # and counts, and how many stand behind each row


def test_a_client_adds_what_cross_scores_gives_for_every_candidate(monkeypatch):
    settings, learned = learner("diff_feat(start_block=1, alpha=3.0, search_images=12)", monkeypatch)
    data, local = client(), local_of(settings)
    search = learned.method.phases[0]

    told = search.train(learned.resident, data, local)

    rows = np.unique(np.linspace(0, 19, 12).round().astype(int))
    images = to_float(data.images.take(rows))
    wanted = [(1, 100), (2, 100), (0, 100), (1, 150), (1, 50)]
    assert told.metrics == {"probes": 5.0, "images-seen": 12.0}
    for column, (block, timestep) in enumerate(wanted):
        with torch.no_grad():
            features = learned.resident.network.backbone.at(images, [block], timestep)[:, 0].double().numpy()
        found = cross_scores(features, data.labels[rows], 3.0)
        np.testing.assert_allclose(local.solution_sums["search/precision"][:, column].numpy(), found.precision)
        assert local.solution_sums["search/positives"][:, column].tolist() == found.positives.tolist()


def test_the_servers_step_weighs_clients_by_positives_and_labels_alike():
    begin = LocalSearch((3, 1000), (1, 100), (4, 50), budget=24)
    place, probes = state_of(begin)
    precision, positives = torch.zeros(3, 5, dtype=torch.float64), torch.zeros(3, 5, dtype=torch.int64)
    positives[0], positives[1] = 10, 2
    precision[0], precision[1] = torch.tensor([5.0, 6, 4, 5, 5]), torch.tensor([1.0, 2, 0.5, 1, 1])
    federated = FederatedSearch(begin, 1.0, 8)

    found = federated.solve(
        nn.Identity(),
        {"search/precision": precision, "search/positives": positives},
        {"place": place, "probes": probes},
    )

    scores = found["probes"][found["probes"][:, 0] >= 0]
    np.testing.assert_allclose(scores[:, 2].numpy(), [0.5, 0.8, 0.325, 0.5, 0.5], rtol=1e-6)
    assert found["place"][:2].tolist() == [2, 100]  # the third label, which nobody could judge, is in no mean


def searched(easier, rounds=8):
    """A search for a clear peak at (18, 200), when round k's clients find everything easier by ``easier[k]``.

    Returns the tensors after each round. ``easier[k]`` None: nobody could judge in that round.
    """
    begin = LocalSearch((28, 1000), (12, 100), (4, 50), budget=24)
    federated = FederatedSearch(begin, 1.0, 8)
    state, found = dict(zip(("place", "probes"), state_of(begin), strict=True)), []
    for number in range(rounds):
        judge = easier[number % len(easier)]
        positives = torch.zeros(2, CANDIDATES, dtype=torch.int64)
        precision = torch.zeros(2, CANDIDATES, dtype=torch.float64)
        for column, (block, timestep) in enumerate(search_of(begin, **state).wanted()):
            if judge is not None:
                share = math.exp(-(((block - 18) / 10) ** 2) - ((timestep - 200) / 120) ** 2)
                positives[:, column] = 10
                precision[:, column] = 10 * (0.2 + 0.5 * share + judge)
        sums = {"search/precision": precision, "search/positives": positives}
        state = dict(federated.solve(nn.Identity(), sums, state))
        found.append(state)
    return found


@pytest.mark.parametrize(
    "easier", [(0.0,), (0.15, *[0.0] * 7), (0.15, 0.0), (-0.1, 0.1, 0.05)], ids=["one", "first", "in turns", "three"]
)
def test_clients_that_find_everything_easier_do_not_mislead_the_search(easier):
    found = searched(easier)

    assert found[-1]["place"][:2].tolist() == [18, 200]
    for state, alone in zip(found, searched((0.0,)), strict=True):
        assert state["place"].tolist() == alone["place"].tolist()
        known = alone["probes"][:, 0] >= 0
        torch.testing.assert_close(state["probes"][known, :2], alone["probes"][known, :2])
        torch.testing.assert_close(state["probes"][known, 2], alone["probes"][known, 2] + easier[0])


def test_a_round_in_which_nobody_could_judge_writes_nothing():
    found, alone = searched((None, 0.0, 0.0, None, 0.0, 0.0), rounds=6), searched((0.0,), rounds=4)

    assert (found[0]["probes"] == -1).all()
    for state, other in zip(found, (None, *alone[:2], alone[1], *alone[2:]), strict=True):
        if other is not None:
            assert all(torch.equal(state[name], other[name]) for name in ("place", "probes"))


def few_images(seed, pooled, clients=10, count=16):
    """A search by ten clients of 16 images for a peak at (18, 200); how near it comes, 1 for the peak itself.

    Features are those that four labels follow, with some noise of labels, and drown in noise away from the peak.
    """
    rng = np.random.default_rng(seed)
    weights = rng.normal(size=(24, 4))
    signals = [rng.normal(size=(count, 24)) for _ in range(clients)]
    labels = [((x @ weights + rng.normal(size=(count, 4)) * 2) > 0).astype(np.int8) for x in signals]

    def share(block, timestep):
        return math.exp(-(((block - 18) / 10) ** 2) - ((timestep - 200) / 120) ** 2)

    def features(client, place):
        noise = np.random.default_rng([seed * 1000 + client, *place]).normal(size=(count, 24))
        return share(*place) * signals[client] + (1 - share(*place)) * 2 * noise

    begin = LocalSearch((28, 1000), (12, 100), (4, 50), budget=40)
    federated = FederatedSearch(begin, 10.0, count, SolvedHead(lambda _, x: x, 10.0) if pooled else None)
    state = dict(zip(("place", "probes"), state_of(begin), strict=True))
    state |= {"regressions": torch.zeros(2, CANDIDATES, 4, 25)} if pooled else {}
    while not state["place"][4]:
        wanted, added = search_of(begin, state["place"], state["probes"]).wanted(), []
        fits = pooled and not state["regressions"].any()
        for client in range(clients):
            x = np.stack([features(client, place) for place in wanted], axis=1)
            if fits:
                added.append(fit_sums(torch.from_numpy(x), torch.from_numpy(labels[client]), CANDIDATES, shared=True))
                continue
            precision, positives = (torch.zeros(4, CANDIDATES, dtype=each) for each in (torch.float64, torch.int64))
            for column in range(len(wanted)):
                if pooled:
                    rows = state["regressions"][:, column].double().numpy()
                    found = judged(x[:, column], labels[client], rows)
                else:
                    found = cross_scores(x[:, column], labels[client], 10.0)
                precision[:, column] = torch.from_numpy(found.precision)
                positives[:, column] = torch.from_numpy(found.positives)
            added.append({"search/precision": precision, "search/positives": positives})
        sums = {name: sum(each[name] for each in added) for name in added[0]}
        state |= federated.solve(nn.Identity(), sums, state)
    return share(*state["place"][:2].tolist())


def test_pooled_scores_find_a_peak_that_clients_with_few_images_miss_alone():
    pooled, alone = ([few_images(seed, kind) for seed in (1, 2)] for kind in (True, False))

    assert min(pooled) > 0.85
    assert max(alone) < 0.4  # it begins at 0.35


@pytest.mark.parametrize("head", ["solved", "trained"])
def test_texts_are_a_second_modality(monkeypatch, tmp_path, head):
    data = client()
    vectors = np.where(data.labels == 1, 1.0, -1.0).astype(np.float32)
    write_texts(tmp_path / "texts.npz", data.images.pixels, vectors)
    text = f"diff_feat(search_rounds=0, head={head!r}, texts={str(tmp_path / 'texts.npz')!r}"
    text += ")" if head == "solved" else ", width=16)"
    settings, learned = learner(text, monkeypatch)
    settings = replace_settings(settings)
    network, images = learned.resident.network, to_float(data.images.pixels)

    with torch.no_grad():
        features = network.features(images)
        alone = network.backbone(images)[..., 0, 0]
    if head == "solved":
        torch.testing.assert_close(features, torch.cat([alone, torch.from_numpy(vectors)], dim=1))
        local = local_of(settings)
        phase = learned.method.phases[-1]
        phase.train(learned.resident, data, local)
        before = dict(learned.resident.layout.views(learned.resident.flat))
        found = phase.solution.solve(network, local.solution_sums, before)
        logits = features.double() @ found["head.weight"].T + found["head.bias"]
    else:
        first, second = network.projections
        torch.testing.assert_close(features, first(alone) + second(torch.from_numpy(vectors)))
        learned.method.train(learned.resident, data, local_of(settings))
        logits = network(images)
    assert (torch.sign(logits.detach()).numpy() == vectors).mean() > 0.95  # the texts tell the labels
    assert learned.method.needs_pixels


def replace_settings(settings):
    return settings.model_copy(update={"local_epochs": 60, "learning_rate": 1e-2, "batch_size": 10})


def test_feature_vectors_may_be_scaled(monkeypatch):
    _, learned = learner("diff_feat(search_rounds=0, layer_norm=True)", monkeypatch)

    features = learned.resident.network.features(to_float(client().images.pixels)).detach()

    assert features.mean(dim=1).abs().max() < 1e-5
    torch.testing.assert_close(features.var(dim=1, unbiased=False), torch.ones(20), rtol=1e-3, atol=1e-3)
