"""What trains the encoder in ProbMCL's first stage, the density's own loss or the contrast? Centrally, on small scenes.

1,000 scenes of which half of the labels are hidden, and 300 others for validation (none of a study's test images);
batches of 32, Adam, the losses of the method itself. Of every form it prints the norm of the gradient that L_NLL and
``balance * L_contrast`` send into the backbone, how far features differ between images, how far similarities
do, and at the end validation mAP of a ridge regression (penalty 1, standardised features) on the known entries.

    OMP_NUM_THREADS=1 nice uv run python benchmarks/probmcl_encoder.py --seeds 0 1 2
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedmlic.contrast import contrastive_loss, pairs_of
from fedmlic.corpus import open_corpus
from fedmlic.labels import UNKNOWN
from fedmlic.methods.probmcl import Contrast, MixtureEncoder, MixtureMaps, density_loss
from fedmlic.metrics import evaluate
from fedmlic.pixel_scale import to_float
from fedmlic.seeds import torch_stream
from fedmlic.solved_head import HeadSums, ridge_head
from fedmlic.spec import build
from fedmlic.views import strong_view

SCENES = "scenes(preset='tiny', num_images=1300, num_test=20, colour_reliability=1.0, cardinality=2.0, seed=7)"
TRAIN, BATCH, DIMENSIONS = 1000, 32, 32
FORMS = ("supervised", "encoder", "head")
"""Points; mixtures whose own loss trains the encoder; mixtures whose own loss trains the maps alone."""


def network_of(form: str, num_labels: int, seed: int) -> MixtureEncoder:
    """As ``probmcl`` builds it."""
    torch.manual_seed(seed)
    network = MixtureEncoder(build("model", "small_cnn()").build(3), num_labels, dimensions=DIMENSIONS, hidden=0)
    if form != "supervised":
        network.density = MixtureMaps(num_labels, DIMENSIONS, diagonal=False, least_variance=1e-3)
    return network


def contrast_of(form: str, temperature: float) -> Contrast:
    """The method's defaults, but for the temperature."""
    return Contrast(
        mixtures=form != "supervised",
        index="jaccard",
        threshold=0.5,
        temperature=temperature,
        balance=0.3,
        nll="positive",
        density_trains="encoder" if form == "encoder" else "head",
        matched=False,
        scale="log",
        queue=0,
        views="strong",
        absent=False,
    )


def losses(network: MixtureEncoder, contrast: Contrast, both: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, float]:
    """L_NLL, the weighted contrast, and the standard deviation of similarities / temperature over counted pairs."""
    pairs = pairs_of(labels, None, contrast.index, contrast.threshold)
    found = network(both, True)
    keys = contrast.keys(found)
    similarity = contrast.similarity(keys, keys) / contrast.temperature
    value = contrastive_loss(similarity, pairs.positive, pairs.counted)
    spread = float(similarity.detach()[pairs.counted].std())
    if found.mixtures is None or found.held is None:
        return value * 0, value, spread
    alone = contrast.density_trains == "head"
    judged = (found.points.detach(), found.held) if alone else (found.points, found.mixtures)
    return density_loss(*judged, labels, contrast.nll), contrast.balance * value, spread


def norm(loss: Tensor, network: MixtureEncoder) -> float:
    """Of the loss's gradient in the backbone."""
    found = torch.autograd.grad(loss, list(network.backbone.parameters()), retain_graph=True, allow_unused=True)
    return float(
        torch.stack([part.square().sum() for part in found if part is not None] or [torch.zeros(())]).sum().sqrt()
    )


@torch.no_grad()
def judged(
    network: MixtureEncoder, images: NDArray[np.uint8], truth: NDArray[np.int8], known: Tensor
) -> tuple[float, float]:
    """Validation mAP of a ridge regression on the features, and their standard deviation over images."""
    parts = np.array_split(images, 13)
    features = torch.cat([network.eval().backbone(to_float(part)).mean(dim=(2, 3)) for part in parts]).double()
    sums = HeadSums.of(features[:TRAIN], known, shared=False)
    weights, biases = ridge_head(sums, 1.0, standardise=True, balanced=False)
    scores = (features[TRAIN:] @ weights.T + biases).sigmoid().numpy()
    return float(evaluate(scores, truth[TRAIN:]).values["mAP"]), float(features.std(dim=0).mean())


def play(form: str, seed: int, steps: int, rate: float, temperature: float) -> None:
    """Train one form and print what happens."""
    corpus = open_corpus(build("dataset", SCENES))
    rows = np.arange(TRAIN + 300)
    images, truth = corpus.images.take(rows), corpus.labels.take(rows)
    hidden = np.random.default_rng(3).random(truth[:TRAIN].shape) < 0.5
    known = torch.from_numpy(np.where(hidden, UNKNOWN, truth[:TRAIN]).astype(np.int8))
    network, contrast = network_of(form, truth.shape[1], seed), contrast_of(form, temperature)
    optimiser = torch.optim.Adam((p for n, p in network.named_parameters() if not n.startswith("head.")), rate)
    rng, order = torch_stream(seed, "benchmark/views"), np.random.default_rng(seed)
    queue: list[int] = []
    for step in range(steps + 1):
        if len(queue) < BATCH:
            queue = order.permutation(TRAIN).tolist()
        batch, queue = queue[:BATCH], queue[BATCH:]
        pixels = to_float(images[batch])
        both = torch.cat([strong_view(pixels, rng), strong_view(pixels, rng)])
        fit, value, spread = losses(network, contrast, both, known[batch].repeat(2, 1))
        if step in {0, steps // 3, steps}:
            mean_ap, deviation = judged(network, images, truth, known)
            network.train()
            print(
                f"{form} temperature {temperature} seed {seed} step {step}: gradient of L_NLL "
                f"{norm(fit, network):.4f}, of the contrast {norm(value, network):.4f}, deviation of features "
                f"{deviation:.4f}, of similarities {spread:.3f}, mAP {mean_ap:.3f}",
                flush=True,
            )
        optimiser.zero_grad()
        (fit + value).backward()
        optimiser.step()


def main() -> None:
    """Play every form with every seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rate", type=float, default=0.003)
    parser.add_argument("--temperature", type=float, default=0.2)
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=FORMS)
    given = parser.parse_args()
    for seed in given.seeds:
        for form in given.forms:
            play(form, seed, given.steps, given.rate, given.temperature)


if __name__ == "__main__":
    main()
