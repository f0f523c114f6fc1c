"""What every partition promises, whoever wrote it: all entries of the catalogue are found by themselves."""

import inspect
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmlic.errors import InputError
from fedmlic.partition import Population
from fedmlic.seeds import stream
from fedmlic.spec import build, entries, factory

NAMES = entries("partition")
NUM_IMAGES, NUM_LABELS, NUM_OWNERS = 400, 6, 10
every_partition = pytest.mark.parametrize("name", NAMES)


def population(seed=0, num_images=NUM_IMAGES):
    """Images of a few owners with uneven labels in all four states, some with no present label."""
    rng = np.random.default_rng(seed)
    prevalence = np.linspace(0.02, 0.4, NUM_LABELS)
    labels = (rng.random((num_images, NUM_LABELS)) < prevalence).astype(np.int8)
    labels[rng.random(labels.shape) < 0.1] = -1
    labels[rng.random(labels.shape) < 0.05] = -2
    return Population(labels, np.sort(rng.integers(0, NUM_OWNERS, num_images)))


def test_the_catalogue_is_found():
    assert {"iid", "dirichlet", "natural"} <= set(NAMES)


@every_partition
def test_every_image_has_one_client_at_most_and_every_client_an_image(name):
    partition = build("partition", name)(population(), 7, stream(0, "partition"))

    partition.check(NUM_IMAGES)
    assert partition.num_clients == 7


@every_partition
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000), num_clients=st.integers(1, 6), num_images=st.integers(60, 200))
def test_invariants_hold_for_any_population(name, seed, num_clients, num_images):
    partition = build("partition", name)(population(seed, num_images), num_clients, stream(seed, "partition"))

    partition.check(num_images)
    assert partition.num_clients == num_clients
    assert all(isinstance(count, int) for count in partition.notes.values())


@every_partition
def test_the_same_stream_gives_the_same_partition(name):
    first, second = (build("partition", name)(population(), 5, stream(3, "partition")) for _ in range(2))

    assert first.client_ptr.tolist() == second.client_ptr.tolist()
    assert first.rows.tolist() == second.rows.tolist()


@every_partition
def test_another_stream_gives_another_partition(name):
    first, second = (build("partition", name)(population(), 5, stream(seed, "partition")) for seed in (3, 4))

    assert first.rows.tolist() != second.rows.tolist() or first.sizes.tolist() != second.sizes.tolist()


@every_partition
def test_the_population_is_not_changed(name):
    given_population = population()
    given_population.labels.flags.writeable = False
    given_population.owners.flags.writeable = False

    build("partition", name)(given_population, 5, stream(0, "partition"))


@every_partition
@pytest.mark.parametrize("num_clients", [NUM_IMAGES + 1, -1])
def test_an_impossible_number_of_clients_is_a_clear_error(name, num_clients):
    with pytest.raises(InputError, match=r"Expected num-clients .* got"):
        build("partition", name)(population(), num_clients, stream(0, "partition"))


@every_partition
def test_every_parameter_is_a_keyword_with_a_default(name):
    parameters = inspect.signature(factory("partition", name)).parameters.values()

    assert all(p.kind is p.KEYWORD_ONLY and p.default is not p.empty for p in parameters)


@every_partition
def test_a_page_explains_it(name):
    page = Path(__file__).parents[2] / "docs" / "partitions" / f"{name}.md"

    assert page.read_text(encoding="utf-8").startswith("# ")
