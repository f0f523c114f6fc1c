"""Losses for incomplete labels: each by a plain loop in float64, its gradient by differences, and what it contains.

The loops share no code with the project: they are written from the papers' formulas.
"""

import math

import pytest
import torch

from fedmlic.guesses import entropy, expected_positives, taken_as_absent
from fedmlic.labels import ABSENT, PRESENT, UNCERTAIN, UNKNOWN
from fedmlic.large_losses import large_loss_of, large_loss_step
from fedmlic.losses import asymmetric, mean_binary_cross_entropy
from fedmlic.methods import (
    an_ls,
    boostlu,
    csl,
    db,
    em,
    epr,
    focal,
    gr,
    hill,
    partial_bce,
    role,
    splc,
    two_way,
    wan,
)
from fedmlic.model import Backbone

torch.manual_seed(0)
LOGITS = (2 * torch.randn(5, 7, dtype=torch.float64)).round(decimals=3)
LABELS = torch.randint(-2, 2, (5, 7), dtype=torch.int8)
LABELS[3], LABELS[4], LABELS[:, 6] = UNKNOWN, PRESENT, UNKNOWN
COUNT, NUM = LOGITS.numel(), LOGITS.shape[1]
FREQUENT = torch.tensor([True, False] * 3 + [False])
COUNTS, IMAGES = torch.tensor([3, 1, 0, 2, 5, 1, 4]), torch.tensor([5])
NOW = torch.tensor([1.5, -2.0, 0.7, 0.6], dtype=torch.float64)
THETA = torch.randn(5, 7, dtype=torch.float64)
TARGETS = torch.where(torch.rand(5, 7) < 0.3, 0.2, -1.0).double()
TARGETS[LABELS >= 0] = -1
CORRECTED = (torch.rand(5, 7) < 0.3) & (LABELS < 0)


def sigmoid(z):
    return 1 / (1 + math.exp(-z))


def mean_of(entry):
    """The mean over all entries of ``entry(probability, state, logit, place)``."""

    def loss(logits, labels):
        rows = zip(logits.tolist(), labels.tolist(), strict=True)
        pairs = [(i, c, z, y) for i, (zs, ys) in enumerate(rows) for c, (z, y) in enumerate(zip(zs, ys, strict=True))]
        return sum(entry(sigmoid(z), y, z, (i, c)) for i, c, z, y in pairs) / len(pairs)

    return loss


def bce(p, y):
    return -math.log(p) if y == PRESENT else -math.log(1 - p)


def penalty(logits, expected):
    predicted = [sum(sigmoid(z) for z in row) for row in logits.tolist()]
    return (sum(predicted) / len(predicted) - expected) ** 2 / len(logits[0]) ** 2


@mean_of
def plain_an_ls(p, y, *_):
    return 0.9 * bce(p, y == PRESENT) + 0.1 * bce(p, y != PRESENT)


@mean_of
def plain_wan(p, y, *_):
    return -math.log(p) if y == PRESENT else -math.log(1 - p) * (1 if y == ABSENT else 1 / (NUM - 1))


def plain_epr(logits, labels):
    return mean_of(lambda p, y, *_: bce(p, y) if y >= 0 else 0.0)(logits, labels) + penalty(logits, 1.9)


@mean_of
def plain_hill(p, y, z, _):
    q = sigmoid(z - 1)
    return -((1 - q) ** 2) * math.log(q) if y == PRESENT else (1.5 - p) * p * p


@mean_of
def plain_splc(p, y, z, _):
    if y == PRESENT:
        p = sigmoid(z - 1)
    if y == PRESENT or (y < 0 and p > 0.6):
        return -((1 - p) ** 2) * math.log(p)
    return -(p**2) * math.log(1 - p)


@mean_of
def plain_em(p, y, *_):
    return bce(p, y) if y >= 0 else 0.1 * (p * math.log(p) + (1 - p) * math.log(1 - p))


@mean_of
def plain_apl(p, y, _, place):
    t = TARGETS[place].item()
    if t >= 0:
        return 0.9 * (-t * math.log(p) - (1 - t) * math.log(1 - p))
    return bce(p, y) if y >= 0 else 0.1 * (p * math.log(p) + (1 - p) * math.log(1 - p))


def plain_role(logits, labels):
    def side(own, other):
        @mean_of
        def entry(p, y, _, place):
            t = sigmoid(other[place].item())
            return (bce(p, y) if y >= 0 else 0.0) - t * math.log(p) - (1 - t) * math.log(1 - p)

        return entry(own, labels) + penalty(own, 1.5)

    return (side(logits, THETA) + side(THETA, logits)) / 2


def plain_partial(logits, labels):
    total = 0.0
    for zs, ys in zip(logits.tolist(), labels.tolist(), strict=True):
        terms = [bce(sigmoid(z), y) for z, y in zip(zs, ys, strict=True) if y >= 0]
        total += (-4.45 * len(terms) / len(zs) + 5.45) / len(zs) * sum(terms)
    return total / len(logits)


def plain_csl(logits, labels):
    unknown = sorted(
        (
            z
            for zs, ys in zip(logits.tolist(), labels.tolist(), strict=True)
            for z, y in zip(zs, ys, strict=True)
            if y < 0
        ),
        reverse=True,
    )
    last = unknown[len(logits) - 1]  # one per image of the batch

    @mean_of
    def entry(p, y, z, place):
        if y == PRESENT:
            return -math.log(p)
        if y == ABSENT:
            return -p * math.log(1 - p)
        return 0.0 if z >= last or FREQUENT[place[1]] else -(p**2) * math.log(1 - p)

    return entry(logits, labels)


def plain_focal(logits, labels):
    terms = []
    for z, y in zip(logits.flatten().tolist(), labels.flatten().tolist(), strict=True):
        t = sigmoid(z) if y == PRESENT else 1 - sigmoid(z)
        if y >= 0:
            terms.append(-(0.25 if y == PRESENT else 0.75) * (1 - t) ** 2 * math.log(t))
    return sum(terms) / len(terms)


def plain_two_way(logits, labels):
    def rows(values, states):
        terms = []
        for zs, ys in zip(values, states, strict=True):
            present = [math.exp(-z / 4) for z, y in zip(zs, ys, strict=True) if y == PRESENT]
            absent = [math.exp(z) for z, y in zip(zs, ys, strict=True) if y == ABSENT]
            if present:
                terms.append(math.log1p(sum(absent) * sum(present) ** 4))
        return sum(terms) / len(terms)

    return rows(logits.tolist(), labels.tolist()) + rows(logits.T.tolist(), labels.T.tolist())


def plain_db(logits, labels):
    n, total, terms = COUNTS.tolist(), IMAGES.item(), []
    for zs, ys in zip(logits.tolist(), labels.tolist(), strict=True):
        share = sum(1 / n[c] for c, y in enumerate(ys) if y == PRESENT and n[c])
        for c, (z, y) in enumerate(zip(zs, ys, strict=True)):
            if y < 0:
                continue
            shift = math.log(total / n[c] - 1) if 0 < n[c] < total else 0.0
            v = z - 0.05 / 2 * shift
            weight = 1.0
            if all(n[j] for j, other in enumerate(ys) if other == PRESENT) and n[c]:
                weight = 0.1 + (sigmoid(10 * (1 / n[c] / share - 0.2)) if share else 1.0)
            t = sigmoid(v) if y == PRESENT else 1 - sigmoid(2 * v)
            base = math.log1p(math.exp(-v)) if y == PRESENT else math.log1p(math.exp(2 * v)) / 2
            terms.append(weight * base * 2 * (1 - t) ** 2)
    return sum(terms) / len(terms)


@mean_of
def plain_gr(p, y, *_):
    if y >= 0:
        return bce(p, y)
    w, b, mu, s = NOW.tolist()
    k, v = sigmoid(w * p + b), math.exp(-((p - mu) ** 2) / (2 * s * s))
    return v * (k * (1 - p**0.3) / 0.3 + (1 - k) * (1 - (1 - p) ** 0.8) / 0.8)


def plain_large(variant):
    def loss(logits, labels):
        guessed = sorted(
            (
                -math.log(1 - sigmoid(z))
                for z, y in zip(logits.flatten().tolist(), labels.flatten().tolist(), strict=True)
                if y < 0
            ),
            reverse=True,
        )
        last = guessed[3]

        def entry(p, y, *_):
            own = bce(p, y == PRESENT)
            if y < 0 and own >= last:
                return 0.0 if variant == "R" else -math.log(p)
            return own

        return mean_of(entry)(logits, labels)

    return loss


def plain_permanent(logits, labels):
    """LL-Cp: what was corrected before is present, and so are the four largest losses among what is left."""
    corrected = CORRECTED.tolist()
    open_ones = {
        (i, c): -math.log(1 - sigmoid(z))
        for i, (zs, ys) in enumerate(zip(logits.tolist(), labels.tolist(), strict=True))
        for c, (z, y) in enumerate(zip(zs, ys, strict=True))
        if y < 0 and not corrected[i][c]
    }
    large = sorted(open_ones, key=open_ones.__getitem__, reverse=True)[:4]
    now_present = mean_of(lambda p, y, _, at: bce(p, y == PRESENT or at in large or corrected[at[0]][at[1]]))
    return now_present(logits, labels)


class Handed(Backbone):
    """What it is given is the map of logits."""

    num_features = NUM
    bn_policy = "none"

    def forward(self, images):
        return images


def boosted(logits):
    """BoostLU's logits of a map of three places, made of one logit per label."""
    unit = boostlu.BoostedClassifier(Handed(), NUM, 5.0, always=True).double()
    with torch.no_grad():
        unit.head.weight.copy_(torch.eye(NUM))
        unit.head.bias.zero_()
    z = logits.double()
    return unit(torch.stack([z, z / 2 + THETA, 0.3 - z], dim=2)[..., None])


def plain_boosted(logits, labels):
    """Positive places count five times, then the mean over places, then LL-R."""
    rows = []
    for zs, thetas in zip(logits.tolist(), THETA.tolist(), strict=True):
        maps = [(z, z / 2 + theta, 0.3 - z) for z, theta in zip(zs, thetas, strict=True)]
        rows.append([sum(5 * m if m > 0 else m for m in places) / 3 for places in maps])
    return plain_large("R")(torch.tensor(rows, dtype=torch.float64), labels)


def db_focal(logits, labels):
    entries = db.tolerant_entries(logits, labels, 0.05 / 2 * db.shifts(COUNTS, IMAGES), 2.0, focal=True)
    weights = db.rebalanced(labels, COUNTS, floor=0.1, steepness=10.0, middle=0.2)
    return (entries * weights).sum() / (labels >= 0).sum().clamp(min=1)


PAIRS = {
    "an_ls": (lambda z, y: an_ls.smoothed_loss(z, y, 0.1), plain_an_ls),
    "wan": (wan.weak_loss, plain_wan),
    "epr": (lambda z, y: epr.expected_loss(z, y, 1.9), plain_epr),
    "hill": (lambda z, y: hill.hill_entries(z, y).mean(), plain_hill),
    "splc": (
        lambda z, y: splc.splc_entries(z, y, torch.tensor(True), threshold=0.6, gamma=2.0, margin=1.0).mean(),
        plain_splc,
    ),
    "em": (lambda z, y: em.em_entries(z, y, 0.1).mean(), plain_em),
    "em+apl": (lambda z, y: em.apl_entries(z, y, TARGETS, 0.1, 0.9).mean(), plain_apl),
    "role": (lambda z, y: role.role_loss(z, y, THETA, 1.5), plain_role),
    "partial_bce": (lambda z, y: partial_bce.partial_loss(z, y, alpha=-4.45, beta=5.45, gamma=1.0), plain_partial),
    "focal": (lambda z, y: focal.focal_entries(z, y, 2.0, 0.25).sum() / (y >= 0).sum().clamp(min=1), plain_focal),
    "two_way": (
        lambda z, y: two_way.ranked(z, y, temperature_pos=4.0, temperature_neg=1.0, over_labels=True),
        plain_two_way,
    ),
    "db": (db_focal, plain_db),
    "csl": (
        lambda z, y: csl.selective_entries(z, y, FREQUENT, gammas=(0.0, 1.0, 2.0), margin=0.0, top_k=1).mean(),
        plain_csl,
    ),
    "gr": (lambda z, y: gr.gr_entries(z, y, NOW, 0.3, 0.8).mean(), plain_gr),
    "ll-r": (lambda z, y: large_loss_of("R", z, y, torch.tensor(4))[0], plain_large("R")),
    "ll-ct": (lambda z, y: large_loss_of("Ct", z, y, torch.tensor(4))[0], plain_large("Ct")),
    "ll-cp": (lambda z, y: large_loss_step("Cp")(z, y, torch.tensor(4), CORRECTED)[0], plain_permanent),
    "boostlu": (lambda z, y: large_loss_of("R", boosted(z), y, torch.tensor(4))[0], plain_boosted),
}
DETACHED = {"csl", "gr", "role"}
"""Parts of these send no gradient."""


@pytest.mark.parametrize("name", PAIRS)
def test_values_are_those_of_a_plain_loop(name):
    loss, plain = PAIRS[name]

    assert loss(LOGITS, LABELS).item() == pytest.approx(plain(LOGITS, LABELS), rel=1e-7)


@pytest.mark.parametrize("name", ["an_ls", "wan", "partial_bce"])
def test_constants_are_as_exact_as_logits_of_double_precision(name):
    loss, plain = PAIRS[name]

    assert loss(LOGITS, LABELS).item() == pytest.approx(plain(LOGITS, LABELS), rel=1e-13)


def test_what_moves_in_gr_by_hand():
    """Of four passes w and b are at 0, 1/4, 1/2 and 3/4 of their way, mu and sigma at 1/4, 1/2, 3/4 and 1."""
    shape = gr.Shape((0.0, 2.0), (-2.0, 2.0), (0.5, 0.9), (2.0, 1.0), 0.01, 1.0, 4)

    assert shape.at(0).tolist() == pytest.approx([0.0, -2.0, 0.6, 1.75])
    assert shape.at(2).tolist() == pytest.approx([1.0, 0.0, 0.8, 1.25])
    assert shape.at(3).tolist() == pytest.approx([1.5, 1.0, 0.9, 1.0])
    assert shape.at(4).tolist() == shape.at(9).tolist() == pytest.approx([2.0, 2.0, 0.9, 1.0])


def test_gr_waits_until_its_first_pass():
    """As the release after 2 epochs with a frozen backbone, out of 6 in all."""
    shape = gr.Shape((0.0, 2.0), (-2.0, 2.0), (0.5, 0.9), (2.0, 1.0), 0.01, 1.0, 4, first_pass=2)

    assert shape.at(0).tolist() == shape.at(1).tolist() == pytest.approx([0.0, -2.0, 0.5, 2.0])
    assert shape.at(2).tolist() == pytest.approx([0.0, -2.0, 0.6, 1.75])
    assert shape.at(5).tolist() == pytest.approx([1.5, 1.0, 0.9, 1.0])


@pytest.mark.parametrize("name", sorted(PAIRS.keys() - DETACHED))
def test_gradients_are_those_of_the_formula(name):
    loss, plain = PAIRS[name]
    logits = LOGITS.clone().requires_grad_()

    loss(logits, LABELS).backward()

    for place in [(0, 0), (0, 3), (1, 6), (2, 2), (3, 1), (4, 5)]:
        up, down = LOGITS.clone(), LOGITS.clone()
        up[place] += 1e-5
        down[place] -= 1e-5
        slope = (plain(up, LABELS) - plain(down, LABELS)) / 2e-5
        assert logits.grad[place].item() == pytest.approx(slope, rel=1e-4, abs=1e-8)


def test_a_withheld_count_gives_an_image_that_has_the_label_weight_one():
    """By hand: label 0 in 100 images, label 1 in 4 and its count withheld: r of label 0 is not (1/100) / (1/100)."""
    labels = torch.tensor([[1, 1, 0], [1, 0, 0], [0, 0, -1]], dtype=torch.int8)

    told = db.rebalanced(labels, torch.tensor([100, 4, 50]), floor=0.1, steepness=10.0, middle=0.2)
    withheld = db.rebalanced(labels, torch.tensor([100, 0, 50]), floor=0.1, steepness=10.0, middle=0.2)

    assert told[0, 0].item() == pytest.approx(0.1 + sigmoid(10 * (0.01 / (0.01 + 0.25) - 0.2)), rel=1e-6)
    assert withheld[0].tolist() == [1, 1, 1]
    assert withheld[1].tolist() == pytest.approx([0.1 + sigmoid(8), 1, 0.1 + sigmoid(10 * (100 / 50 - 0.2))], rel=1e-6)
    assert withheld[2].tolist() == pytest.approx([1.1, 1, 1.1], rel=1e-6)


def test_what_sends_no_gradient():
    """ROLE's network half has the estimates as constants; GR's k and v and CSL's factors are constants."""
    logits = LOGITS.clone().requires_grad_()
    q = torch.sigmoid(THETA)
    p = torch.sigmoid(LOGITS)
    known = torch.where(LABELS >= 0, p - (LABELS == PRESENT).double(), 0.0)
    gap = p.sum(1).mean() - 1.5
    expected = ((known + p - q) / COUNT + 2 * gap / NUM**2 * p * (1 - p) / 5) / 2

    role.role_loss(logits, LABELS, THETA, 1.5).backward()
    torch.testing.assert_close(logits.grad, expected)

    logits.grad = None
    gr.gr_entries(logits, LABELS, NOW, 0.3, 0.8).sum().backward()
    w, b, mu, s = NOW
    k, v = torch.sigmoid(w * p + b), torch.exp(-((p - mu) ** 2) / (2 * s * s))
    guessed = v * (-k * p**0.3 * (1 - p) + (1 - k) * (1 - p) ** 0.8 * p)
    torch.testing.assert_close(logits.grad, torch.where(LABELS < 0, guessed, p - (LABELS == PRESENT).double()))

    logits.grad = None
    csl.selective_entries(logits, LABELS, FREQUENT, gammas=(0.0, 1.0, 2.0), margin=0.0, top_k=0).sum().backward()
    absent = torch.where(LABELS == ABSENT, p * p, torch.where(FREQUENT, 0.0, p**2 * p))
    torch.testing.assert_close(logits.grad, torch.where(LABELS == PRESENT, p - 1, absent))


def test_roles_closed_gradient_is_autograds():
    theta = THETA.clone().requires_grad_()

    role.role_loss(LOGITS, LABELS, theta, 1.5).backward()

    torch.testing.assert_close(role.gradient_of_estimates(LOGITS, LABELS, THETA, 1.5), theta.grad)


def test_what_contains_assume_negative():
    expected = taken_as_absent(LOGITS, LABELS)

    for loss in (
        an_ls.smoothed_loss(LOGITS, LABELS, 0.0),
        wan.weak_loss(LOGITS, LABELS, 1.0),
        large_loss_of("R", LOGITS, LABELS, torch.tensor(0))[0],
        splc.splc_entries(LOGITS, LABELS, torch.tensor(False), threshold=0.6, gamma=0.0, margin=0.0).mean(),
        csl.selective_entries(
            LOGITS, LABELS, torch.zeros(NUM, dtype=torch.bool), gammas=(0.0, 0.0, 0.0), margin=0.0, top_k=0
        ).mean(),
    ):
        torch.testing.assert_close(loss, expected)


def test_gr_contains_assume_negative_and_expected_positives_without_guesses():
    """k = 0, v = 1 and q3 near 0 is -log(1 - p); v = 0 leaves known entries alone, as EPR without its penalty."""
    plain = torch.tensor([0.0, -1e3, 0.5, 1e6], dtype=torch.float64)
    nothing = torch.tensor([0.0, 0.0, 50.0, 1e-2], dtype=torch.float64)

    entries = gr.gr_entries(LOGITS, LABELS, plain, 1.0, 1e-9)
    torch.testing.assert_close(entries.mean(), taken_as_absent(LOGITS, LABELS), rtol=1e-6, atol=0)
    exact = torch.sigmoid(LOGITS).sum(1).mean().item()
    assert expected_positives(LOGITS, exact).item() == pytest.approx(0, abs=1e-20)
    torch.testing.assert_close(
        gr.gr_entries(LOGITS, LABELS, nothing, 1.0, 1.0).mean(), epr.expected_loss(LOGITS, LABELS, exact)
    )


@pytest.mark.parametrize("name", ["em", "wan", "gr", "ll-r", "partial_bce"])
def test_with_complete_labels_it_is_bce(name):
    labels = (LABELS == PRESENT).to(torch.int8)

    torch.testing.assert_close(
        PAIRS[name][0](LOGITS, labels), mean_binary_cross_entropy(LOGITS, labels), rtol=1e-6, atol=0
    )


def test_what_contains_bce():
    expected = mean_binary_cross_entropy(LOGITS, LABELS)
    known = (LABELS >= 0).sum()

    plain = focal.focal_entries(LOGITS, LABELS, 0.0, None).sum() / known
    level = db.tolerant_entries(LOGITS, LABELS, torch.zeros(NUM), 1.0, focal=False).sum() / known
    torch.testing.assert_close(plain, expected)
    torch.testing.assert_close(level, expected)


def test_hill_and_splc_without_focus_and_margin():
    present = LABELS == PRESENT
    nothing = torch.tensor(False)

    entries = hill.hill_entries(LOGITS, LABELS, gamma=0.0, margin=0.0)
    torch.testing.assert_close(entries[present], -torch.log(torch.sigmoid(LOGITS[present])))
    focused = splc.splc_entries(LOGITS, LABELS, nothing, threshold=0.6, gamma=2.0, margin=0.0)
    targets = present.to(torch.int8)
    torch.testing.assert_close(
        focused, asymmetric(LOGITS, targets, gamma_pos=2, gamma_neg=2, margin=0, detach_weight=False)
    )


def test_focal_is_torchvisions():
    ops = pytest.importorskip("torchvision.ops")
    labels = (LABELS == PRESENT).to(torch.int8)

    expected = ops.sigmoid_focal_loss(LOGITS, labels.double(), alpha=0.25, gamma=2.0, reduction="mean")
    torch.testing.assert_close(focal.focal_entries(LOGITS, labels, 2.0, 0.25).mean(), expected)


def test_csl_without_unknown_entries_is_timms_asymmetric_loss():
    timm = pytest.importorskip("timm.loss")
    labels = (LABELS == PRESENT).to(torch.int8)

    mine = csl.selective_entries(LOGITS, labels, FREQUENT, gammas=(1.0, 4.0, 2.0), margin=0.05, top_k=5).sum()
    theirs = timm.AsymmetricLossMultiLabel(gamma_neg=4, gamma_pos=1, clip=0.05, disable_torch_grad_focal_loss=True)
    torch.testing.assert_close(
        mine, len(LOGITS) * theirs(LOGITS, labels.double()), rtol=1e-5, atol=1e-6, check_dtype=False
    )


def test_entropy_is_torchs():
    expected = torch.distributions.Bernoulli(logits=LOGITS).entropy()

    torch.testing.assert_close(entropy(LOGITS), expected)


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("states", ["nothing", "one", "mixed"])
def test_finite_for_extreme_logits_and_labels_of_any_kind(name, states):
    logits = torch.tensor([[0.0, 40.0, -40.0, 200.0, -200.0, 1e4, -1e4]]).repeat(5, 1).requires_grad_()
    labels = {"nothing": torch.full_like(LABELS, UNKNOWN), "mixed": LABELS}.get(
        states, torch.full_like(LABELS, UNCERTAIN)
    )
    if states == "one":
        labels[:, 1] = PRESENT

    value = PAIRS[name][0](logits, labels)
    value.backward()

    assert value.isfinite()
    assert logits.grad is None or logits.grad.isfinite().all()


def hill_half(logits, labels):
    return hill.hill_entries(logits, labels, gamma=0.5)


def splc_half(logits, labels):
    return splc.splc_entries(logits, labels, torch.tensor(False), threshold=0.6, gamma=0.5, margin=1.0)


@pytest.mark.parametrize("entries", [hill_half, splc_half])
def test_an_exponent_below_one_has_the_formulas_gradient_at_extreme_logits(entries):
    """Of (1 - t)^g (-log t), t = sigmoid(x): -g t (1 - t)^g (-log t) - (1 - t)^(g + 1)."""

    def slope(x):
        rest = 1 / (1 + math.exp(x))
        return -0.5 / (1 + math.exp(-x)) * rest**0.5 * math.log1p(math.exp(-x)) - rest**1.5

    logits = torch.tensor([[120.0, -120.0, 0.5, 120.0, -120.0]]).requires_grad_()
    labels = torch.tensor([[PRESENT, PRESENT, PRESENT, UNKNOWN, UNKNOWN]], dtype=torch.int8)
    open_ones = [0.0, 0.0] if entries is hill_half else [-slope(-120.0), -slope(120.0)]

    entries(logits, labels).sum().backward()

    expected = [slope(119.0), slope(-121.0), slope(-0.5), *open_ones]
    assert logits.grad[0].tolist() == pytest.approx(expected, rel=1e-5, abs=1e-12)
