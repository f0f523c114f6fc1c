"""How hard ``emoji_scenes`` is for pretrained EfficientNet-Lite0: frozen with a linear head, and fine-tuned, centrally.

Frozen: features are computed once (mean over places), a linear layer is trained on them by Adam; of a few
learning rates the one with the best validation mAP is taken with a seed of its own, and test mAP is that of the
last epoch. Fine-tuned: all parts train, BatchNorm with the statistics of the weights. Pictures and
weights are installed with FedMLIC; a model's file can be given instead with ``--weights``.

    OMP_NUM_THREADS=1 nice uv run python benchmarks/emoji_scenes.py --fine-tune 3
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from fedmlic.corpus import Corpus, open_corpus
from fedmlic.metrics import evaluate
from fedmlic.models.efficientnet_lite0 import efficientnet_lite0
from fedmlic.pixel_scale import PIXEL_MEAN, PIXEL_STD
from fedmlic.seeds import torch_stream
from fedmlic.spec import build

BATCH = 64
SEARCH_SEED = 1000
RATES = (3e-5, 1e-4, 3e-4)


def batch_of(corpus: Corpus, rows: NDArray[np.int64]) -> Tensor:
    """float32 ``[rows, channels, height, width]``, normalised."""
    pixels = torch.from_numpy(corpus.images.take(rows)).permute(0, 3, 1, 2).float()
    return (pixels - PIXEL_MEAN) / PIXEL_STD


@torch.inference_mode()
def features_of(corpus: Corpus, backbone: nn.Module) -> Tensor:
    """float32 ``[images, features]``, means over places."""
    parts = []
    for start in range(0, corpus.num_images, BATCH):
        rows = np.arange(start, min(start + BATCH, corpus.num_images))
        parts.append(backbone(batch_of(corpus, rows)).mean(dim=(2, 3)))
        if start // BATCH % 20 == 0:
            print(f"features of {start:,} of {corpus.num_images:,} images", flush=True)
    return torch.cat(parts)


def scores_of(corpus: Corpus, split: str, logits: Tensor) -> float:
    """MAP on one split."""
    rows = np.asarray(corpus.splits[split])
    return float(evaluate(logits.double().sigmoid().numpy(), corpus.labels.take(rows)).values["mAP"])


def linear(corpus: Corpus, features: Tensor, rate: float, seed: int, epochs: int = 30) -> dict[str, float]:
    """Validation and test mAP of a linear layer on standardised features."""
    train = torch.arange(corpus.num_images)[list(corpus.splits["train"])]
    labels = torch.from_numpy(corpus.labels.take(np.arange(corpus.num_images))).float()
    inputs = (features - features[train].mean(0)) / (features[train].std(0) + 1e-3)
    generator = torch_stream(seed, "benchmark/order")
    head = nn.Linear(inputs.shape[1], labels.shape[1])
    nn.init.zeros_(head.weight)
    nn.init.constant_(head.bias, -2.7)
    optimiser = torch.optim.AdamW(head.parameters(), lr=rate, weight_decay=0.1)
    for _ in range(epochs):
        for batch in train[torch.randperm(len(train), generator=generator)].split(BATCH):
            optimiser.zero_grad()
            F.binary_cross_entropy_with_logits(head(inputs[batch]), labels[batch]).backward()
            optimiser.step()
    with torch.inference_mode():
        return {split: scores_of(corpus, split, head(inputs[list(corpus.splits[split])])) for split in ("val", "test")}


def fine_tune(corpus: Corpus, backbone: nn.Module, epochs: int, rate: float, seed: int) -> None:
    """Print test mAP after every epoch; all parts train, the learning rate falls to 0 along a cosine."""
    train = torch.arange(corpus.num_images)[list(corpus.splits["train"])]
    labels = torch.from_numpy(corpus.labels.take(np.arange(corpus.num_images))).float()
    generator = torch_stream(seed, "benchmark/order")
    head = nn.Linear(1280, labels.shape[1])
    nn.init.zeros_(head.weight)
    nn.init.constant_(head.bias, -2.7)
    groups = [{"params": list(backbone.parameters()), "lr": rate}, {"params": list(head.parameters()), "lr": 10 * rate}]
    optimiser = torch.optim.Adam(groups)
    batches = -(-len(train) // 32)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs * batches)
    start = time.process_time()
    for epoch in range(epochs):
        for number, batch in enumerate(train[torch.randperm(len(train), generator=generator)].split(32)):
            optimiser.zero_grad()
            logits = head(backbone(batch_of(corpus, batch.numpy())).mean(dim=(2, 3)))
            F.binary_cross_entropy_with_logits(logits, labels[batch]).backward()
            optimiser.step()
            schedule.step()
            if number % 40 == 0:
                print(f"epoch {epoch + 1}, batch {number} of {batches}", flush=True)
        used = time.process_time() - start
        with torch.inference_mode():
            rows = np.asarray(corpus.splits["test"])
            parts = [head(backbone(batch_of(corpus, part)).mean(dim=(2, 3))) for part in np.array_split(rows, 24)]
        print(
            f"fine-tuned, epoch {epoch + 1}: test mAP {scores_of(corpus, 'test', torch.cat(parts)):.3f} ({used:.0f} s)"
        )


def main() -> None:
    """Features, heads, fine-tuning."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", default="emoji_scenes()")
    parser.add_argument("--weights", default="package")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--fine-tune", type=int, default=0, help="epochs; 0: only the frozen network")
    parser.add_argument("--rate", type=float, default=3e-4, help="learning rate of fine-tuning")
    options = parser.parse_args()
    corpus = open_corpus(build("dataset", options.dataset))
    train, test = (corpus.labels.take(np.asarray(corpus.splits[split])) for split in ("train", "test"))
    print(f"prevalence: training {(train == 1).mean():.4f}, test {(test == 1).mean():.4f}")
    model = efficientnet_lite0(weights=options.weights)
    start = time.process_time()
    features = features_of(corpus, model.build(3).eval())
    print(f"features: {time.process_time() - start:.0f} s of processor time")
    chosen = max(RATES, key=lambda rate: linear(corpus, features, rate, SEARCH_SEED)["val"])
    found = [linear(corpus, features, chosen, seed)["test"] for seed in range(options.seeds)]
    print(f"frozen, linear head, learning rate {chosen:g}: test mAP {np.mean(found):.3f} ± {np.std(found):.3f}")
    if options.fine_tune:
        fine_tune(corpus, model.build(3), options.fine_tune, options.rate, 0)


if __name__ == "__main__":
    main()
