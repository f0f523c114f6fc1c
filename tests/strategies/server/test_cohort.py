"""Who takes part, and who plays whom."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from fedmlic.errors import InputError
from fedmlic.protocol import HostInfo
from strategies.server.cohort import Directory, deal, sample_cohort

ROUNDS = 4000


def directory(sizes, ids=None, names=("a", "b")):
    ids = range(len(sizes)) if ids is None else ids
    return Directory([HostInfo("h", np.array(ids), np.array(sizes), names)])


def cohort(there, size, how="uniform", seed=0, number=1):
    return sample_cohort(there, size=size, how=how, seed=seed, round_number=number)


# Sampling


@given(
    sizes=st.lists(st.integers(0, 1000), min_size=1, max_size=40),
    size=st.integers(0, 40),
    how=st.sampled_from(["uniform", "size"]),
    seed=st.integers(0, 2**40),
    number=st.integers(1, 10**6),
)
def test_a_cohort_is_distinct_and_costliest_first_and_a_function_of_seed_and_round(sizes, size, how, seed, number):
    size = min(size, len(sizes))
    ids = [3 * i + 1 for i in range(len(sizes))]
    there = directory(sizes, ids)

    chosen = cohort(there, size, how, seed, number)

    assert len(chosen) == len(set(chosen)) == (size or len(sizes))
    assert set(chosen) <= set(ids)
    images = there.sizes_of(chosen).tolist()
    assert images == [sizes[ids.index(client)] for client in chosen]
    assert images == sorted(images, reverse=True)
    assert chosen == cohort(directory(sizes, ids), size, how, seed, number)


def test_how_clients_are_spread_over_hosts_does_not_change_the_cohort():
    sizes = np.arange(10, 30)
    one = directory(sizes)
    ids = np.arange(20)
    many = Directory([HostInfo(f"h{i}", ids[i::3], sizes[i::3], ("a", "b")) for i in (2, 0, 1)])
    copies = Directory([HostInfo(f"h{i}", ids, sizes, ("a", "b")) for i in range(3)])

    for how, number in itertools.product(("uniform", "size"), range(1, 20)):
        expected = cohort(one, 7, how, number=number)
        assert expected == cohort(many, 7, how, number=number)
        assert expected == cohort(copies, 7, how, number=number)


def test_rounds_and_seeds_draw_different_cohorts():
    there = directory([5] * 30)

    cohorts = {tuple(cohort(there, 10, seed=seed, number=number)) for seed in range(5) for number in range(1, 21)}

    assert len(cohorts) == 100


def test_uniform_sampling_takes_every_pair_equally_often():
    there = directory([1, 10, 100, 1000, 10_000])
    counts = dict.fromkeys(itertools.combinations(range(5), 2), 0)
    for number in range(1, ROUNDS + 1):
        counts[tuple(sorted(cohort(there, 2, number=number)))] += 1

    assert chisquare(list(counts.values())).pvalue > 1e-3


def test_sampling_by_size_is_drawing_one_after_another_without_replacement():
    sizes = [1, 2, 3, 4, 10]
    there = directory(sizes)
    counts = dict.fromkeys(itertools.combinations(range(5), 2), 0)
    for number in range(1, ROUNDS + 1):
        counts[tuple(sorted(cohort(there, 2, "size", number=number)))] += 1
    total = sum(sizes)
    expected = [
        sizes[a] / total * sizes[b] / (total - sizes[a]) + sizes[b] / total * sizes[a] / (total - sizes[b])
        for a, b in counts
    ]

    assert chisquare(list(counts.values()), np.array(expected) * ROUNDS).pvalue > 1e-3
    assert chisquare(list(counts.values())).pvalue < 1e-6, "the test could not tell it from uniform"


def test_an_empty_client_is_drawn_by_size_only_when_nobody_else_is_left():
    there = directory([0, 5, 5])

    assert all(0 not in cohort(there, 2, "size", number=number) for number in range(1, 200))
    assert 0 in cohort(there, 3, "size")


def test_more_clients_than_there_are_is_an_error():
    with pytest.raises(InputError, match="at most the 3 clients"):
        cohort(directory([1, 1, 1]), 4)


def test_hosts_must_exist_and_share_the_labels():
    with pytest.raises(InputError, match="at least one host"):
        Directory([])
    with pytest.raises(InputError, match=r"one label space.*first.*second"):
        Directory(
            [
                HostInfo("first", np.array([0]), np.array([1]), ("a",)),
                HostInfo("second", np.array([1]), np.array([1]), ("b",)),
            ]
        )


# Dealing


@given(
    costs=st.lists(st.floats(0, 1e6), min_size=0, max_size=40),
    num_hosts=st.integers(1, 6),
)
def test_everyone_is_dealt_once_and_nobody_has_much_more_than_needed(costs, num_hosts):
    clients = list(range(len(costs)))
    hosts = {f"h{i}": None for i in range(num_hosts)}

    dealt = deal(clients, dict(enumerate(costs)), hosts)

    assert sorted(client for given in dealt.values() for client in given) == clients
    assert all(dealt.values())
    if costs:
        makespan = max(sum(costs[client] for client in given) for given in dealt.values())
        # Graham (1969): at most 4/3 - 1/(3m) of the best, which is at least the mean load, the largest
        # cost, and the sum of the m-th and the next when there are more clients than hosts.
        ranked = sorted(costs, reverse=True)
        pair = ranked[num_hosts - 1] + ranked[num_hosts] if len(ranked) > num_hosts else 0
        best = max(sum(costs) / num_hosts, ranked[0], pair)
        # Against a lower bound of the best, greedy dealing still stays below mean + largest.
        assert makespan <= best + ranked[0] * (1 - 1 / num_hosts) + 1e-6


@given(costs=st.lists(st.integers(1, 30), min_size=1, max_size=7), num_hosts=st.integers(1, 3))
def test_the_longest_host_is_within_grahams_bound_of_the_best_deal(costs, num_hosts):
    dealt = deal(range(len(costs)), dict(enumerate(costs)), {f"h{i}": None for i in range(num_hosts)})
    makespan = max(sum(costs[client] for client in given) for given in dealt.values())

    best = min(
        max(sum(c for c, host in zip(costs, plan, strict=True) if host == h) for h in range(num_hosts))
        for plan in itertools.product(range(num_hosts), repeat=len(costs))
    )

    assert makespan <= best * (4 / 3 - 1 / (3 * num_hosts)) + 1e-9


@given(data=st.data(), num_clients=st.integers(1, 12))
def test_a_client_goes_only_to_a_host_that_has_it(data, num_clients):
    clients = list(range(num_clients))
    hosts = {name: set(data.draw(st.lists(st.sampled_from(clients)))) for name in ("x", "y")}
    hosts["x"] |= set(clients) - hosts["y"]

    dealt = deal(clients, dict.fromkeys(clients, 1.0), hosts)

    assert sorted(client for given in dealt.values() for client in given) == clients
    assert all(set(given) <= hosts[name] for name, given in dealt.items())


def test_one_device_per_client_is_dealt_to_itself():
    hosts = {f"device-{i}": {i} for i in range(5)}

    assert deal([3, 1, 4], {3: 1, 1: 9, 4: 5}, hosts) == {"device-1": [1], "device-4": [4], "device-3": [3]}


def test_a_client_that_nobody_holds_is_an_error():
    with pytest.raises(InputError, match=r"hold client 2, got none among \['a', 'b'\]"):
        deal([1, 2], {1: 1.0, 2: 1.0}, {"b": {1}, "a": set()})


def test_dealing_does_not_depend_on_the_order_of_arguments():
    costs = {client: float(client % 4) for client in range(12)}
    hosts = {"a": None, "b": None, "c": {1, 2, 3}}
    expected = deal(list(range(12)), costs, hosts)

    assert expected == deal(list(reversed(range(12))), costs, dict(reversed(hosts.items())))
