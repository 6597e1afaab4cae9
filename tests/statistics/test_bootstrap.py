"""Bootstrap intervals against scipy's, and the ends of what they can be asked."""

import numpy as np
import scipy.stats
import torch

from interp.statistics.bootstrap import bootstrap_mean, bootstrap_ratio


def test_the_interval_of_a_mean_is_scipys():
    values = torch.from_numpy(np.random.default_rng(0).normal(3, 2, 60))
    low, high = bootstrap_mean(values, draws=20_000)
    theirs = scipy.stats.bootstrap((values.numpy(),), np.mean, method="percentile", n_resamples=20_000, rng=1)
    np.testing.assert_allclose([low, high], theirs.confidence_interval, atol=0.02)


def test_the_interval_of_a_ratio_draws_both_parts_of_a_row_together():
    rng = np.random.default_rng(0)
    whole = rng.uniform(1, 5, 50)
    values = np.stack([whole * 0.5, whole * rng.uniform(0, 1, 50)], axis=1)
    low, high = bootstrap_ratio(torch.from_numpy(values), torch.from_numpy(whole), draws=20_000)
    np.testing.assert_allclose([low[0], high[0]], 0.5)  # the same share in every row: nothing to be unsure of
    theirs = scipy.stats.bootstrap(
        (values[:, 1], whole),
        lambda a, b, axis: a.mean(axis) / b.mean(axis),
        paired=True,
        vectorized=True,
        method="percentile",
        n_resamples=20_000,
        rng=1,
    )
    np.testing.assert_allclose([low[1], high[1]], theirs.confidence_interval, atol=0.01)


def test_one_row_has_no_interval_and_the_seed_decides():
    assert all(bound.isnan().all() for bound in bootstrap_mean(torch.ones(1, 2, 3)))
    values = torch.randn(9, 2, generator=torch.Generator().manual_seed(0))
    assert (bootstrap_mean(values, seed=1)[0] == bootstrap_mean(values, seed=1)[0]).all()
    assert (bootstrap_mean(values, seed=1)[0] != bootstrap_mean(values, seed=2)[0]).any()
