"""Sparse decomposition against planted words, scikit-learn's pursuit, and a plain loop."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import orthogonal_mp

import interp
from interp.lens import DecompositionResult, Dictionary, dictionary_of, vocabulary_decomposition


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def simultaneous(vectors, unit, k):
    """Simultaneous pursuit as it is written down: choose, fit anew, subtract."""
    support, residuals = [], vectors
    for _ in range(k):
        scores = np.abs(residuals @ unit.T).sum(axis=0)
        scores[support] = -1
        support.append(int(scores.argmax()))
        fit = np.linalg.lstsq(unit[support].T, vectors.T, rcond=None)[0]
        residuals = vectors - fit.T @ unit[support]
    return support, fit.T, 1 - (residuals**2).sum(axis=1) / (vectors**2).sum(axis=1)


def test_three_planted_words_are_found_in_noise():
    """At 20 dB, a tenth of the length is noise."""
    rows = normal(300, 96) * (1 + 5 * torch.rand(300, 1, dtype=torch.float64))
    planted = torch.stack([torch.randperm(300, generator=torch.Generator().manual_seed(n))[:3] for n in range(40)])
    weights = torch.tensor([1.0, -1.2, 0.8], dtype=torch.float64) / rows.norm(dim=1)[planted]
    clean = torch.einsum("vk,vkd->vd", weights, rows[planted])
    noise = normal(40, 96, seed=1)
    vectors = clean + 0.1 * noise * clean.norm(dim=1, keepdim=True) / noise.norm(dim=1, keepdim=True)
    found = vocabulary_decomposition(vectors, rows, k=3)
    assert torch.equal(found.ids.sort(dim=1).values, planted.sort(dim=1).values)
    order, wanted = found.ids.argsort(dim=1), planted.argsort(dim=1)
    torch.testing.assert_close(found.weights.gather(1, order), weights.gather(1, wanted), atol=0.02, rtol=0.15)
    assert (found.explained > 0.98).all()
    assert found.chance < 0.7


def test_it_is_scikit_learns_pursuit():
    rows, vectors = normal(80, 24), normal(9, 24, seed=1)
    unit = rows / rows.norm(dim=1, keepdim=True)
    found = vocabulary_decomposition(vectors, rows, k=6, draws=0)
    expected = orthogonal_mp(unit.T.numpy(), vectors.T.numpy(), n_nonzero_coefs=6).T / rows.norm(dim=1).numpy()
    dense = torch.zeros(9, 80, dtype=torch.float64).scatter(1, found.ids, found.weights)
    np.testing.assert_allclose(dense, expected, atol=1e-10)
    fit = torch.einsum("vk,vkd->vd", found.weights, rows[found.ids])
    left = (vectors - fit).square().sum(dim=1) / vectors.square().sum(dim=1)
    torch.testing.assert_close(found.explained, 1 - left)


def test_a_set_of_vectors_has_one_support():
    rows, vectors = normal(60, 20), normal(15, 20, seed=1)
    norms = rows.norm(dim=1)
    support, weights, explained = simultaneous(vectors.numpy(), (rows / norms[:, None]).numpy(), 5)
    found = vocabulary_decomposition(vectors, rows, k=5, joint=True, draws=0)
    assert found.ids.tolist() == [support] * 15
    np.testing.assert_allclose(found.weights * norms[support], weights, atol=1e-10)
    np.testing.assert_allclose(found.explained, explained, atol=1e-10)


def test_chunks_change_nothing(monkeypatch):
    from interp.words import decomposition

    rows, vectors = normal(60, 20), normal(15, 20, seed=1)
    whole = [vocabulary_decomposition(vectors, rows, k=4, joint=joint) for joint in (False, True)]
    monkeypatch.setattr(decomposition, "_AT_ONCE", 130)
    for joint in (False, True):
        parts = vocabulary_decomposition(vectors, rows, k=4, joint=joint)
        assert torch.equal(parts.ids, whole[joint].ids)
        torch.testing.assert_close(parts.weights, whole[joint].weights)
        assert parts.chance == pytest.approx(whole[joint].chance)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), joint=st.booleans(), center=st.booleans())
def test_more_words_explain_more_and_begin_alike(seed, joint, center):
    rows, vectors = normal(12, 7, seed=seed), normal(4, 7, seed=seed + 1)
    results = [vocabulary_decomposition(vectors, rows, k, joint, center, draws=0) for k in range(1, 11)]
    for fewer, more in itertools.pairwise(results):
        assert (more.explained >= fewer.explained - 1e-9).all()
        assert torch.equal(more.ids[:, :-1], fewer.ids)
    assert ((results[-1].explained >= 0) & (results[-1].explained <= 1)).all()


def test_untrained_and_equal_rows():
    rows = normal(40, 16)
    rows[3] = 0
    rows[30] = rows[7]
    rows[31] = -2 * rows[7]
    found = vocabulary_decomposition(normal(50, 16, seed=1), rows, k=16)
    assert not (found.ids == 3).any()
    assert not torch.isin(found.ids, torch.tensor([30, 31])).any()
    assert (found.ids == 7).any()
    assert all(len(set(row)) == 16 for row in found.ids.tolist())
    torch.testing.assert_close(found.explained, torch.ones(50, dtype=torch.float64))


def test_nothing_left_to_explain():
    rows = torch.eye(6)
    found = vocabulary_decomposition(torch.stack([2 * rows[4], 0 * rows[0], rows[0] + 3 * rows[2]]), rows, k=3)
    assert found.ids.tolist() == [[4, -1, -1], [-1, -1, -1], [2, 0, -1]]
    assert found.weights.tolist() == [[2, 0, 0], [0, 0, 0], [3, 1, 0]]
    assert found.explained[[0, 2]].tolist() == [1, 1]
    assert found.explained[1].isnan()
    assert found.words(2) == ["2", "0"]
    assert len(found.to_frame()) == 3


@pytest.mark.parametrize(("size", "length"), [(1e-30, 1), (1e25, 1), (1, 1e-30), (1, 1e25)])
def test_what_is_tiny_or_huge_is_decomposed_alike(size, length):
    vectors, rows = normal(4, 8).float(), normal(20, 8, seed=1).float()
    plain, scaled = (vocabulary_decomposition(vectors * a, rows * b, k=3) for a, b in ((1, 1), (size, length)))
    assert torch.equal(scaled.ids, plain.ids)
    torch.testing.assert_close(scaled.explained, plain.explained)
    torch.testing.assert_close(scaled.weights / size * length, plain.weights)
    assert scaled.chance == pytest.approx(plain.chance, abs=1e-5)


def test_an_array_is_taken_as_it_lies():
    vectors, rows = normal(4, 8), normal(20, 8, seed=1)
    there = vocabulary_decomposition(vectors, rows, k=2)
    assert torch.equal(vocabulary_decomposition(vectors.numpy()[::-1], rows.numpy(), k=2).ids.flip(0), there.ids)


def test_what_all_words_share_is_taken_off():
    """Rows in a narrow cone: uncentred, what is explained is the cone; centred, the word."""
    shared = 30 * torch.eye(16, dtype=torch.float64)[0]
    words = normal(50, 16)
    vectors = shared + 3 * words[[5, 9]] - 2 * words.mean(dim=0)
    found = vocabulary_decomposition(vectors, words + shared, k=1, center=True)
    assert found.ids.flatten().tolist() == [5, 9]
    assert vocabulary_decomposition(vectors, words + shared, k=1).chance > 0.9
    assert found.chance < 0.7
    assert (found.p <= 0.05).all()


def test_chance_is_that_of_words_that_mean_nothing():
    """Vectors drawn like the rows, and apart from them, are explained as by chance."""
    root = normal(20, 20) * torch.linspace(0.1, 2, 20, dtype=torch.float64)
    rows, vectors = normal(400, 20, seed=1) @ root, normal(300, 20, seed=2) @ root
    found = vocabulary_decomposition(vectors, rows, k=3, draws=5)
    assert found.chance == pytest.approx(float(found.explained.mean()), abs=0.02)


def uniform_rotation(generator):
    frame, triangle = torch.linalg.qr(torch.randn(48, 48, generator=generator, dtype=torch.float64))
    return frame * triangle.diagonal().sign()


DICTIONARIES = {
    "a cone": normal(300, 48, seed=3) + 3 * normal(48, seed=4),
    "correlated": normal(300, 9, seed=3) @ normal(9, 48, seed=4) + 0.4 * normal(300, 48, seed=5),
    "clusters": normal(30, 48, seed=3).repeat_interleave(10, dim=0) + 0.4 * normal(300, 48, seed=4),
}


@pytest.mark.parametrize("dictionary", DICTIONARIES)
@pytest.mark.parametrize("kind", ["isotropic", "of other axes", "like the words"])
def test_a_vector_that_has_nothing_to_do_with_the_words_exceeds_its_chance_as_often_as_it_says(dictionary, kind):
    """Of 600 vectors 5 % exceed the 95 % quantile, and about half the mean. (Against random dictionaries the mean was exceeded
    by up to three quarters.)"""
    rows, generator = DICTIONARIES[dictionary], torch.Generator().manual_seed(6)
    strengths = torch.linspace(0.05, 1, 48, dtype=torch.float64) ** 3
    vectors = torch.randn(600, 48, generator=generator, dtype=torch.float64)
    if kind == "of other axes":
        vectors = torch.stack([uniform_rotation(generator) @ (strengths * each) for each in vectors])
    if kind == "like the words":
        unit = rows / rows.norm(dim=1, keepdim=True)
        vectors = vectors @ torch.linalg.cholesky(torch.cov(unit.T)).T + unit.mean(dim=0)
    found = vocabulary_decomposition(vectors, rows, k=3)
    assert 0.02 <= float((found.explained > found.chance_high).double().mean()) <= 0.075
    assert torch.equal(found.p <= 0.05, found.explained > found.chance_high)
    assert 0.38 < float((found.explained > found.chances).double().mean()) < 0.62


def test_vectors_with_one_support_exceed_their_chance_as_often_as_it_says():
    rows, generator, shares = DICTIONARIES["correlated"], torch.Generator().manual_seed(6), []
    for seed in range(150):
        vectors = torch.randn(12, 48, generator=generator, dtype=torch.float64)
        shares.append((vocabulary_decomposition(vectors, rows, 3, joint=True, seed=seed).p <= 0.05).double().mean())
    assert 0.02 <= float(torch.stack(shares).mean()) <= 0.075


def test_sums_of_words_are_told_from_chance():
    for rows in (DICTIONARIES["clusters"], torch.eye(48, dtype=torch.float64)):
        unit = rows / rows.norm(dim=1, keepdim=True)
        order = torch.stack(
            [torch.randperm(len(rows), generator=torch.Generator().manual_seed(n))[:3] for n in range(50)]
        )
        vectors = unit[order].sum(dim=1)
        vectors = vectors + 0.3 * normal(50, 48) * vectors.norm(dim=1, keepdim=True) / 48**0.5
        assert float((vocabulary_decomposition(vectors, rows, k=3).p <= 0.05).double().mean()) > 0.9


def test_what_is_turned_keeps_its_length_and_its_strength_along_the_axes_of_the_words():
    from interp.words.decomposition import turned_at_random

    rows = DICTIONARIES["correlated"] @ torch.diag(torch.logspace(0, 2, 48, dtype=torch.float64))
    unit, vectors = rows / rows.norm(dim=1, keepdim=True), normal(7, 48)
    strengths, axes = torch.linalg.eigh(unit.T @ unit)
    octave = (strengths[-1] / strengths).log2().floor()
    for turned in turned_at_random(vectors, unit, 3, seed=0):
        torch.testing.assert_close(turned @ turned.T, vectors @ vectors.T)  # all turned together
        before, after = ((each @ axes).square() for each in (vectors, turned))
        for each in octave.unique():
            torch.testing.assert_close(after[:, octave == each].sum(dim=1), before[:, octave == each].sum(dim=1))
        assert not torch.allclose(turned, vectors, atol=0.1)


def test_few_draws_have_no_quantile():
    rows, vectors = normal(30, 8), normal(4, 8, seed=1)
    found = vocabulary_decomposition(vectors, rows, 2, draws=18)
    assert found.chance_high.isnan().all()
    assert (found.p >= 1 / 19).all()
    none = vocabulary_decomposition(vectors, rows, 2, draws=0)
    assert none.chances.isnan().all()
    assert none.p.isnan().all()
    assert list(found.to_frame().columns[-3:]) == ["chance", "chance_high", "p"]


def test_the_toys_own_words(toy):
    embed, head = dictionary_of(toy, "embed"), dictionary_of(toy, "head")
    assert embed.words == head.words
    assert torch.equal(head.rows, toy.model.get_output_embeddings().weight.detach())
    red, three = (toy.tokenizer.convert_tokens_to_ids(word) for word in ("red", "3"))
    found = vocabulary_decomposition(2 * embed.rows[[red]] + 1.5 * embed.rows[[three]], embed, k=2)
    assert found.words(0) == ["red", "3"]
    torch.testing.assert_close(found.weights[0], torch.tensor([2.0, 1.5]))


def test_a_result_is_kept(tmp_path):
    found = vocabulary_decomposition(normal(3, 8), Dictionary(normal(5, 8, seed=1), tuple("abcde")), k=2)
    again = DecompositionResult.load(found.save(tmp_path / "words.safetensors"))
    assert torch.equal(again.ids, found.ids)
    assert again.words(1) == found.words(1)
    assert set("".join(again.words(1))) <= set("abcde")


@pytest.mark.parametrize(
    ("vectors", "rows", "options", "words"),
    [
        (normal(3, 8), normal(5, 7), {}, "vectors of width 8 and a dictionary of width 7"),
        (normal(3, 8), normal(5, 8), {"k": 6}, "k=6: expected a number of words that are not zero from 1 to 5"),
        (
            normal(3, 8),
            normal(5, 8) * torch.tensor([[1], [0], [1], [1], [1]]),
            {"k": 5},
            "k=5: expected a number of words that are not zero from 1 to 4",
        ),
        (normal(3, 8), normal(5, 8), {"k": 0}, "k=0"),
        (normal(3, 8), normal(5, 8), {"draws": -1}, "draws=-1"),
        (normal(8), normal(5, 8), {}, r"vectors of shape \(8,\)"),
        (
            torch.full((3, 8), torch.nan),
            normal(5, 8),
            {},
            "vectors has numbers that are not finite, the first in row 0",
        ),
        (normal(3, 8), normal(5, 8) / torch.tensor([[1], [1], [0], [1], [1]]), {}, "dictionary has .* in row 2"),
        (normal(3, 8), Dictionary(normal(2, 8) / 0, ("a", "b")), {}, "dictionary has .* in row 0"),
        (normal(3, 8), normal(5, 8) * 0, {}, "all 5 rows of the dictionary are zero: expected words"),
        (normal(3, 8), normal(1, 8), {"center": True}, "all 1 rows of the dictionary are zero once centred"),
        ([["red", "blue"]], normal(5, 8), {}, "vectors of type list is not an array of numbers"),
        ([[1.0, 2.0], [1.0]], normal(5, 8), {}, "vectors of type list is not an array of numbers"),
    ],
)
def test_what_cannot_be_decomposed(vectors, rows, options, words):
    with pytest.raises(interp.InputError, match=words) as caught:
        vocabulary_decomposition(vectors, rows, **{"k": 2, **options})
    assert "\n" not in str(caught.value)


def test_what_is_no_dictionary(toy):
    with pytest.raises(interp.InputError, match="part='neck': expected 'embed'"):
        dictionary_of(toy, "neck")
    with pytest.raises(interp.InputError, match="2 words for 3 rows"):
        Dictionary(normal(3, 4), ("a", "b"))


def test_chance_is_that_of_the_words_that_can_be_taken():
    """Rows of zeros are no words: random dictionaries neither have as many more words nor lie nearer to zero for them."""
    generator = torch.Generator().manual_seed(0)
    words, vectors = torch.randn(40, 16, generator=generator) + 1, torch.randn(30, 16, generator=generator)
    padded = torch.cat([words, torch.zeros(400, 16)])
    assert vocabulary_decomposition(vectors, padded, 3).chance == vocabulary_decomposition(vectors, words, 3).chance
