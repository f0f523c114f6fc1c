"""What skew every partition achieves on the same images: sizes, labels, number of labels, co-occurrence.

The images have 12 topics, each with labels of its own, so that labels occur together more often
than by chance; label c is present on about 0.5 / (c + 1)^0.8 of them. All numbers are means over
clients; the definitions are in ``docs/achieved_skew.md``.

    uv run python benchmarks/partition_skew.py
"""

from __future__ import annotations

import argparse

import numpy as np

from fedmlic.dataset import Objects
from fedmlic.partition import Population
from fedmlic.seeds import stream
from fedmlic.spec import build
from fedmlic.statistics import summarise, tally

PARTITIONS = (
    "iid()",
    "constant_size(num_images=500)",
    "constant_size(num_images=500, within_owners=True)",
    "natural()",
    "quantity(sigma=1.0)",
    "quantity(rule='zipf_mandelbrot')",
    "quantity(rule='dirichlet', alpha=0.5)",
    "count_strata(alpha=0.5)",
    "dirichlet(alpha=0.1)",
    "dirichlet(alpha=0.3)",
    "dirichlet(alpha=0.3, key='largest_object')",
    "dirichlet(alpha=0.3, key='random')",
    "dirichlet(alpha=0.3, key='first')",
    "powerset(alpha=0.3)",
    "marginal_matching(alpha=0.3)",
    "marginal_matching(alpha=3.0)",
    "pathological(labels_per_client=2)",
    "pathological(labels_per_client=2, spanning='drop')",
    "pachinko()",
    "cooccurrence_clusters(keep_marginals=False)",
    "cooccurrence_clusters()",
    "cooccurrence_clusters(num_clusters=30)",
)


def topical_population(num_images: int, num_labels: int, num_owners: int) -> Population:
    """Images of topics; every owner prefers some topics and holds a lognormal number of images."""
    rng = np.random.default_rng(0)
    topics = rng.gamma(0.3, 1, (12, num_labels))
    rates = 0.5 * np.arange(1, num_labels + 1) ** -0.8 * topics / topics.mean(axis=0)
    weights = rng.lognormal(0, 1, num_owners)
    owners = rng.choice(num_owners, num_images, p=weights / weights.sum())
    taste = rng.dirichlet(np.full(12, 0.3), num_owners).cumsum(axis=1)
    topic = np.minimum((rng.random(num_images)[:, None] >= taste[owners]).sum(axis=1), 11)
    labels = (rng.random((num_images, num_labels)) < np.minimum(0.9, rates[topic])).astype(np.int8)
    row, label = np.nonzero(labels)
    area = rng.random(len(row), dtype=np.float32)
    objects = Objects(row, label.astype(np.int16), np.zeros((len(row), 4), dtype=np.float32), area)
    names = tuple(f"label {label}" for label in range(num_labels))
    return Population(labels, owners, objects, names, tuple(f"group {label // 5}" for label in range(num_labels)))


def main() -> None:
    """Print one line of a Markdown table per partition."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=40_000)
    parser.add_argument("--labels", type=int, default=30)
    parser.add_argument("--clients", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    population = topical_population(options.images, options.labels, options.clients)
    print("| partition | images | size Gini | labels per image | label skew | pairwise | co-occurrence skew |")
    print("|---|---|---|---|---|---|---|")
    for text in PARTITIONS:
        partition = build("partition", text)(population, options.clients, stream(options.seed, "partition"))
        truth = population.labels[partition.rows]
        none_held_out = np.zeros(partition.num_clients, dtype=np.int64)
        found = summarise(tally(truth, truth, partition.client_ptr, none_held_out), population.label_names).summary
        per = found["clients"]
        print(
            f"| `{text}` | {found['num_images']:,} | {found['size_gini']:.2f} "
            f"| {per['cardinality']['p05']:.2f} to {per['cardinality']['p95']:.2f} | {per['js_true']['mean']:.3f} "
            f"| {found['pairwise_js_true']['mean']:.3f} | {per['phi_distance']['mean']:.3f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
