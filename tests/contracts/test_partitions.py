"""What every partition promises: all entries of the catalogue are found by themselves."""

import inspect
import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmlic.dataset import Objects
from fedmlic.errors import InputError
from fedmlic.partition import Population
from fedmlic.seeds import stream
from fedmlic.spec import build, entries, factory

NAMES = os.environ.get("FEDMLIC_ENTRY", "").split() or entries("partition")
NUM_IMAGES, NUM_LABELS, NUM_OWNERS = 400, 6, 10

FEASIBLE = {"constant_size": "constant_size(num_images=8)", "powerset": "powerset(min_support=2)"}
"""Arguments for entries whose defaults ask for more than 60 images and 6 clients give."""

VARIANTS = [
    "constant_size(num_images=2, within_owners=True)",
    "cooccurrence_clusters(keep_marginals=False)",
    "dirichlet(key='largest_object')",
    "dirichlet(key='random')",
    "dirichlet(key='first')",
    "natural(min_images=2, max_images=3, merge_small=True)",
    "pathological(spanning='drop')",
    "quantity(rule='zipf_mandelbrot')",
    "quantity(rule='dirichlet')",
]
"""Other branches of the entries, held to the same promises."""

every_name = pytest.mark.parametrize("name", NAMES)
every_partition = pytest.mark.parametrize("text", [*(FEASIBLE.get(name, name) for name in NAMES), *VARIANTS])


def population(seed=0, num_images=NUM_IMAGES, num_labels=NUM_LABELS, num_owners=NUM_OWNERS):
    """Images of a few owners with uneven labels in all four states, some with no present label."""
    rng = np.random.default_rng(seed)
    prevalence = np.linspace(0.02, 0.4, num_labels)
    labels = (rng.random((num_images, num_labels)) < prevalence).astype(np.int8)
    labels[rng.random(labels.shape) < 0.1] = -1
    labels[rng.random(labels.shape) < 0.05] = -2
    return with_labels(labels, np.sort(rng.integers(0, num_owners, num_images)))


def with_labels(labels, owners):
    """All that a partitioner may look at: objects for most present labels, a parent for every two labels."""
    rng = np.random.default_rng(len(labels))
    row, label = np.nonzero((labels == 1) & (rng.random(labels.shape) < 0.9))
    box = np.zeros((len(row), 4), dtype=np.float32)
    objects = Objects(row, label.astype(np.int16), box, rng.integers(1, 9, len(row)).astype(np.float32))
    names = tuple(f"label {c}" for c in range(labels.shape[1]))
    return Population(labels, owners, objects, names, tuple(f"group {c // 2}" for c in range(labels.shape[1])))


def check(partition, num_images, num_clients):
    """The invariants: valid rows, no empty client, as many clients as asked for, every missing image accounted for."""
    partition.check(num_images)
    left_out = sum(n for name, n in partition.notes.items() if "images" in name and name.endswith("_left_out"))

    assert partition.num_clients == num_clients
    assert left_out == num_images - len(partition.rows)
    assert all(type(value) in {int, float} for value in partition.notes.values())
    json.dumps(dict(partition.notes), allow_nan=False)


def check_or_explain(text, images, num_clients):
    """The promises are kept, or the error says what was expected."""
    try:
        partition = build("partition", text)(images, num_clients, stream(0, "partition"))
    except InputError as error:
        explanation = str(error)
    else:
        check(partition, len(images.labels), num_clients)
        return
    assert explanation.startswith("Expected ")
    assert ", got " in explanation


def test_the_catalogue_is_found():
    assert {"iid", "dirichlet", "natural"} <= set(NAMES)


@every_partition
def test_every_image_has_one_client_at_most_and_every_client_an_image(text):
    check(build("partition", text)(population(), 7, stream(0, "partition")), NUM_IMAGES, 7)


@every_partition
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000), num_clients=st.integers(1, 6), num_images=st.integers(60, 200))
def test_invariants_hold_for_any_population(text, seed, num_clients, num_images):
    partition = build("partition", text)(population(seed, num_images), num_clients, stream(seed, "partition"))

    check(partition, num_images, num_clients)


@every_partition
@pytest.mark.parametrize("state", [1, 0, -1])
def test_images_that_are_all_alike_end_in_a_partition_or_a_clear_error(text, state):
    """All labels present everywhere, none anywhere, nothing known."""
    alike = with_labels(np.full((90, NUM_LABELS), state, dtype=np.int8), np.arange(90) % NUM_OWNERS)

    check_or_explain(text, alike, 3)


@every_partition
@pytest.mark.parametrize("num_images", [1, 2, 40])
def test_as_many_clients_as_images_end_in_a_partition_or_a_clear_error(text, num_images):
    few = population(1, num_images)
    few = with_labels(few.labels, np.arange(num_images))

    check_or_explain(text, few, num_images)


@every_partition
def test_the_same_stream_gives_the_same_partition(text):
    first, second = (build("partition", text)(population(), 5, stream(3, "partition")) for _ in range(2))

    assert first.client_ptr.tolist() == second.client_ptr.tolist()
    assert first.rows.tolist() == second.rows.tolist()
    assert first.notes == second.notes


@every_partition
def test_another_stream_gives_another_partition(text):
    first, second = (build("partition", text)(population(), 5, stream(seed, "partition")) for seed in (3, 4))

    assert first.rows.tolist() != second.rows.tolist() or first.sizes.tolist() != second.sizes.tolist()


@every_partition
def test_the_population_is_not_changed(text):
    given_population = population()
    objects = given_population.objects
    for array in (given_population.labels, given_population.owners, objects.row, objects.label, objects.area):
        array.flags.writeable = False

    build("partition", text)(given_population, 5, stream(0, "partition"))


@every_partition
@pytest.mark.parametrize("num_clients", [NUM_IMAGES + 1, -1])
def test_an_impossible_number_of_clients_is_a_clear_error(text, num_clients):
    with pytest.raises(InputError, match=r"Expected num-clients .* got"):
        build("partition", text)(population(), num_clients, stream(0, "partition"))


@pytest.mark.slow
@every_partition
def test_thousands_of_clients_end_and_keep_the_promises(text):
    labels = (np.random.default_rng(2).random((50_000, 80)) < 0.4 / np.arange(1, 81)).astype(np.int8)
    many = with_labels(labels, np.arange(50_000) % 5_000)
    text = text.replace("natural(min_images=2", "natural(min_images=1")

    check(build("partition", text)(many, 5_000, stream(0, "partition")), 50_000, 5_000)


@every_name
def test_every_parameter_is_a_keyword_with_a_default(name):
    parameters = inspect.signature(factory("partition", name)).parameters.values()

    assert all(p.kind is p.KEYWORD_ONLY and p.default is not p.empty for p in parameters)


@every_name
def test_a_page_explains_it_and_every_parameter(name):
    page = (Path(__file__).parents[2] / "docs" / "partitions" / f"{name}.md").read_text(encoding="utf-8")
    parameters = inspect.signature(factory("partition", name)).parameters

    assert page.startswith(f"# {name}\n")
    assert all(f"| `{parameter}` |" in page for parameter in parameters)
