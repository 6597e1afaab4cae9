"""Token statistics of sequences whose laws are known."""

import numpy as np
import pytest
import scipy.optimize
import scipy.stats
import torch

import interp
from interp.lens import TokenStats, quantise, visual_token_stats
from interp.words.visual_tokens import growth, zipf_exponent


def drawn(exponent, n=40_000, codes=200, seed=0):
    shares = np.arange(1, codes + 1.0) ** -exponent
    return np.random.default_rng(seed).choice(codes, size=n, p=shares / shares.sum())


@pytest.mark.parametrize("exponent", [0.7, 1.0, 1.5])
def test_the_exponent_that_tokens_were_drawn_with(exponent):
    codes = np.random.default_rng(1).permutation(10**6)[drawn(exponent)]
    found = visual_token_stats(codes, draws=2)
    assert found["zipf"] == pytest.approx(exponent, abs=0.03)
    assert found["zipf_slope"] == pytest.approx(exponent, abs=0.15)


def test_the_exponent_is_the_most_likely():
    counts = np.sort(np.random.default_rng(0).integers(1, 90, 30))[::-1]
    logs = np.log(np.arange(1, 31))

    def lost(s):
        return s * (counts * logs).sum() + counts.sum() * np.log(np.exp(-s * logs).sum())

    least = scipy.optimize.minimize_scalar(
        lost,
        bounds=(0, 9),
        options={"xatol": 1e-10},
    )
    assert zipf_exponent(counts) == pytest.approx(least.x, abs=1e-5)


def test_equal_frequencies_have_no_slope():
    found = visual_token_stats(np.arange(50).repeat(4).reshape(10, 20))
    assert found["zipf"] == pytest.approx(0, abs=1e-9)
    assert found["zipf_slope"] == pytest.approx(0, abs=1e-9)
    assert found["entropy"] == pytest.approx(np.log(50))


def test_growth_is_counted():
    tokens = drawn(1.0, n=3000)
    read, distinct = growth(tokens)
    assert distinct.tolist() == [len(set(tokens[:n])) for n in read]
    assert (read[0], read[-1]) == (1, 3000)
    assert visual_token_stats(np.arange(500))["heaps"] == pytest.approx(1)


def test_entropies_are_scipys_and_order_is_seen():
    """A cycle with a fifth of noise: the next code is nearly known, and shuffled it is not."""
    generator = np.random.default_rng(0)
    codes = np.where(generator.random((80, 50)) < 0.2, generator.integers(0, 10, (80, 50)), np.arange(50) % 10)
    found = visual_token_stats(codes)
    assert found["entropy"] == pytest.approx(scipy.stats.entropy(np.bincount(codes.reshape(-1))))
    table = np.zeros((10, 10))
    np.add.at(table, (codes[:, :-1], codes[:, 1:]), 1)
    expected = scipy.stats.entropy(table.reshape(-1)) - scipy.stats.entropy(table.sum(axis=1))
    assert found["conditional_entropy"] == pytest.approx(expected)
    frame = found.to_frame().set_index("measure")
    assert frame.loc["conditional_entropy", "shuffled"] > 2.2
    assert expected < 1.6
    for measure in ("zipf", "zipf_slope", "entropy"):
        assert frame.loc[measure, "shuffled"] == pytest.approx(frame.loc[measure, "value"])


def test_uniform_codes_are_as_their_control():
    found = visual_token_stats(np.random.default_rng(5).integers(0, 40, (50, 36)), draws=20)
    torch.testing.assert_close(found.values, found.uniform, atol=0.04, rtol=0.05)


def test_images_are_kept_apart():
    """No pair across the end of an image."""
    rows = [0, 0, 0, 1, 1, 1]
    whole = visual_token_stats([[0, 1, 0], [2, 3, 2]])
    assert whole["conditional_entropy"] == pytest.approx(0, abs=1e-12)
    parted = visual_token_stats([0, 1, 0, 2, 3, 2], rows)
    assert torch.equal(parted.values, whole.values)
    assert visual_token_stats([0, 1, 0, 2, 3, 2])["conditional_entropy"] > 0.1


def test_clusters_become_codes(tmp_path):
    centres = 10 * torch.eye(5)
    labels = torch.randint(5, (200,), generator=torch.Generator().manual_seed(0))
    codes = quantise(centres[labels] + 0.1 * torch.randn(200, 5, generator=torch.Generator().manual_seed(1)), codes=5)
    assert len({(int(a), int(b)) for a, b in zip(labels, codes, strict=True)}) == 5
    found = visual_token_stats(codes)
    assert found.counts.tolist() == sorted(torch.bincount(labels).tolist(), reverse=True)
    again = TokenStats.load(found.save(tmp_path / "tokens.safetensors"))
    assert torch.equal(again.values, found.values)
    assert again.measures == found.measures


@pytest.mark.parametrize("unit", [1e30, 1e-30])
def test_codes_do_not_depend_on_the_unit_of_the_states(unit):
    states = torch.randn(200, 5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(quantise(states * unit, codes=5), quantise(states, codes=5))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: visual_token_stats([0.5, 1, 2]), "expected ints"),
        (lambda: visual_token_stats([1, 2]), "three or more"),
        (lambda: visual_token_stats([4, 4, 4]), "all 3 tokens are code 4"),
        (lambda: visual_token_stats([0, 1, 2], [0, 1]), r"rows of shape \(2,\) for 3 tokens"),
        (lambda: visual_token_stats([0, 1, 2], [0, 1, 2]), "no image has two tokens"),
        (lambda: visual_token_stats([[0, 1, 2]], [0, 1, 2]), "or no rows"),
        (lambda: visual_token_stats([0, 1, 2], draws=0), "draws=0"),
        (
            lambda: visual_token_stats([[0, 1], [2]]),
            r"codes=\[\[0, 1\], \[2\]\] is not an array: expected rows of one length",
        ),
        (lambda: visual_token_stats([0, 1, 2], [[0], 1, 1]), r"rows=\[\[0\], 1, 1\] is not an array"),
        (lambda: visual_token_stats([0, 1, 2])["zip"], "measure='zip' is unknown: use one of zipf, "),
        (lambda: quantise(torch.ones(4, 2), codes=5), "codes=5: expected a number of states from 2 to 4"),
    ],
)
def test_what_cannot_be_counted(call, words):
    with pytest.raises(interp.InputError, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)
