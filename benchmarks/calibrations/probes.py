"""Probes: p and p of the family, intervals, controls, the best state, paired changes.

The truth of an interval is the accuracy of the fitted probes on 4,000 new examples (groups) of the same design, for an interval
is of *these* probes. Binary labels; `strength` is how far the class means lie apart, drawn anew so that accuracies are anywhere.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from calibrations import Row
from interp.probes import ProbeResult, probe_layers

FEATURES = 6
FAST = {"kind": "mean_difference", "progress": False}


def states_of(
    rng: np.random.Generator, labels: np.ndarray, group: np.ndarray, strength: float, count: int = 1, alike: float = 1.0
) -> np.ndarray:
    """States [state, example, feature] that hold the label in their first feature; a part `alike` of the noise is the group's."""
    shape = (count, int(group.max()) + 1, FEATURES)
    noise = alike * rng.normal(size=shape)[:, group] + np.sqrt(1 - alike**2) * rng.normal(
        size=(count, len(group), FEATURES)
    )
    noise[:, :, 0] += strength * labels
    return noise


def design(
    seed: int, groups: int, size: int | np.ndarray, strength: float, count: int = 1
) -> tuple[ProbeResult, float]:
    """Probes of so many test groups (and as many to train on), and the accuracy of the first on new groups."""
    rng = np.random.default_rng(seed)
    sizes = np.broadcast_to(size, groups)
    of = np.repeat(np.arange(2 * groups), np.concatenate([rng.permutation(sizes), rng.permutation(sizes)]))
    labels = rng.permutation(np.arange(2 * groups) % 2)[of]
    alone = bool((sizes == 1).all())
    alike = 0.0 if alone else 0.9
    found = probe_layers(
        states_of(rng, labels, of, strength, count, alike),
        labels,
        groups=None if alone else of,
        test_size=0.5,
        control=True,
        permutations=199,
        seed=seed,
        **FAST,
    )
    fresh = np.repeat(np.arange(4000), rng.choice(sizes, size=4000)) if not alone else np.arange(4000)
    new = (np.arange(4000) % 2)[fresh]
    answers = found.probes[0].predict(states_of(rng, new, fresh, strength, alike=alike)[0])
    return found, float((answers == new).mean())


def covers(groups: int, size: int | np.ndarray = 1) -> Callable[[int], bool]:
    """Whether the interval of the accuracy holds the accuracy on new examples; strengths from nothing to 4."""

    def draw(seed: int) -> bool:
        found, truth = design(seed, groups, size, np.random.default_rng(seed + 10**6).uniform(0, 4))
        return float(found.low[0]) <= truth <= float(found.high[0])

    return draw


def rejects(
    number: Callable[[ProbeResult], float], groups: int, size: int | np.ndarray, count: int
) -> Callable[[int], bool]:
    """Whether a p is at most .05 where no state holds the label."""
    return lambda seed: number(design(seed, groups, size, 0.0, count)[0]) <= 0.05


def best(what: str, groups: int, size: int, count: int = 33) -> Callable[[int], float]:
    """The chosen state, of 33 that hold nothing: its accuracy less 1/2, does its interval hold 1/2, is its p at most .05?"""

    def draw(seed: int) -> float:
        found = design(seed, groups, size, 0.0, count)[0].best_state()
        return {
            "chance": found.accuracy - 0.5,
            "coverage": found.low <= 0.5 <= found.high,
            "false positives": (found.p or 1.0) <= 0.05,
        }[what]

    return draw


def control(groups: int, size: int) -> Callable[[int], float]:
    """The accuracy on shuffled labels less 1/2."""
    return lambda seed: float(design(seed, groups, size, 2.0)[0].control[0]) - 0.5


def leaky(seed: int, pictures: int = 60, size: int = 5) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Questions about pictures: states of the picture and a tenth of that of the question; a random label a picture."""
    rng = np.random.default_rng(seed)
    picture = np.repeat(np.arange(pictures), size)
    states = rng.normal(size=(1, pictures, 64))[:, picture] + 0.1 * rng.normal(size=(1, len(picture), 64))
    return states, rng.integers(2, size=pictures)[picture], picture


def leak_p(seed: int) -> bool:
    """Whether p is at most .05 in the leaky design, with groups."""
    states, labels, picture = leaky(seed)
    return (
        float(probe_layers(states, labels, groups=picture, control=False, permutations=199, seed=seed, **FAST).p[0])
        <= 0.05
    )


def is_noted(states: np.ndarray, labels: np.ndarray, seed: int) -> bool:
    """Whether arrays without groups get a note of leakage."""
    found = probe_layers(states, labels, control=False, permutations=0, seed=seed, **FAST)
    return any(note.startswith("leakage") for note in found.provenance.notes)


def leak_noted(seed: int) -> bool:
    """Whether the leaky design, without groups, gets a note."""
    states, labels, _ = leaky(seed)
    return is_noted(states, labels, seed)


def honest_noted(dimension: int) -> Callable[[int], bool]:
    """Whether independent examples get a note of leakage."""

    def draw(seed: int) -> bool:
        rng = np.random.default_rng(seed)
        return is_noted(rng.normal(size=(1, 300, dimension)), rng.integers(2, size=300), seed)

    return draw


def change(what: str, groups: int, size: int, gain: float) -> Callable[[int], bool]:
    """Two checkpoints with the same noise, the second with a label that stands out more by `gain`; the truth from new groups."""

    def draw(seed: int) -> bool:
        rng = np.random.default_rng(seed)
        of = np.repeat(np.arange(2 * groups), size)
        labels = rng.permutation(np.arange(2 * groups) % 2)[of]
        alike = 0.0 if size == 1 else 0.9
        noise = states_of(rng, labels, of, 0.0, 1, alike)
        new = (np.arange(4000) % 2).repeat(size)
        fresh = states_of(rng, new, np.arange(4000).repeat(size), 0.0, 1, alike)
        found, truth = [], []
        for strength in (1.0, 1.0 + gain):
            states, others = noise.copy(), fresh.copy()
            states[:, :, 0] += strength * labels
            others[:, :, 0] += strength * new
            states, others = (each + 0.3 * rng.normal(size=each.shape) for each in (states, others))
            options = {"groups": None if size == 1 else of, "control": False, "permutations": 0, "test_size": 0.5}
            found.append(probe_layers(states, labels, seed=seed, **options, **FAST))
            truth.append((found[-1].probes[0].predict(others[0]) == new).mean())
        result = found[0].change(found[1])
        if what == "coverage":
            return float(result.low[0]) <= truth[1] - truth[0] <= float(result.high[0])
        return float(result.p[0]) <= 0.05

    return draw


TIES = "few groups have few different counts of right answers"
UNEQUAL = np.array([1, 2, 3, 5, 8, 13, 21])
ROWS = [
    *(
        Row("probe_layers low, high", f"{n} test examples, labels read with 50 to 98 %", "coverage", covers(n))
        for n in (10, 20, 50, 200)
    ),
    *(
        Row(
            "probe_layers low, high",
            f"{n} test groups of 5",
            "coverage",
            covers(n, 5),
            reason="few groups: the effective number is cautious",
        )
        for n in (6, 10, 20, 50)
    ),
    Row(
        "probe_layers low, high",
        "21 test groups of 1 to 21",
        "coverage",
        covers(21, np.tile(UNEQUAL, 3)),
        reason="unequal groups: the effective number is cautious",
    ),
    *(
        Row(
            f"probe_layers {name}",
            f"{count} states, {n} test examples",
            "false positives",
            rejects(number, n, 1, count),
            reason=TIES,
        )
        for name, number, count in (
            ("p", lambda found: float(found.p[0]), 1),
            ("p_family, any state", lambda found: float(found.p_family.min()), 33),
            ("p_holm, any state", lambda found: float(found.p_holm.min()), 33),
        )
        for n in (20, 100)
    ),
    *(
        Row(
            f"probe_layers {name}",
            f"{count} states, {design}",
            "false positives",
            rejects(number, n, size, count),
            reason=TIES,
        )
        for name, number, count in (
            ("p", lambda found: float(found.p[0]), 1),
            ("p_family, any state", lambda found: float(found.p_family.min()), 33),
        )
        for design, n, size in (
            ("10 test groups of 5", 10, 5),
            ("50 test groups of 5", 50, 5),
            ("42 test groups of 1 to 21", 42, np.tile(UNEQUAL, 6)),
        )
    ),
    Row(
        "probe_layers p",
        "random label for each of 60 pictures, 5 questions each, groups",
        "false positives",
        leak_p,
        reason=TIES,
    ),
    Row("probe_layers leakage note", "the same without groups, as an array", "power", leak_noted),
    *(
        Row(
            "probe_layers leakage note",
            f"300 independent examples, {d} dimensions",
            "false positives",
            honest_noted(d),
            reason="nothing to note",
        )
        for d in (1, 3, 100)
    ),
    Row("probe_layers control", "100 test examples that hold the label", "chance", control(100, 1)),
    Row("probe_layers control", "20 test groups of 5", "chance", control(20, 5)),
    Row("best_state accuracy", "33 states that hold nothing, 60 test examples", "chance", best("chance", 60, 1)),
    Row("best_state accuracy", "33 states that hold nothing, 40 test groups of 3", "chance", best("chance", 40, 3)),
    Row("best_state low, high", "33 states that hold nothing, 60 test examples", "coverage", best("coverage", 60, 1)),
    Row(
        "best_state p",
        "33 states that hold nothing, 60 test examples",
        "false positives",
        best("false positives", 60, 1),
        reason=TIES,
    ),
    *(
        Row(
            "ProbeResult.change low, high",
            f"{n} test {kind}, gain of 0.5",
            "coverage",
            change("coverage", n, size, 0.5),
            reason="half an item is added to each kind of pair",
        )
        for n, size, kind in ((20, 1, "examples"), (100, 1, "examples"), (20, 5, "groups of 5"))
    ),
    Row(
        "ProbeResult.change p",
        "100 test examples, no gain",
        "false positives",
        change("p", 100, 1, 0.0),
        reason="McNemar's exact test",
    ),
    Row(
        "ProbeResult.change p",
        "50 test groups of 5, no gain",
        "false positives",
        change("p", 50, 5, 0.0),
        reason="signs of few changed groups",
    ),
    Row("ProbeResult.change p", "400 test examples, 69 % against 84 %", "power", change("p", 400, 1, 1.0)),
]
