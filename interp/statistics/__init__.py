"""Statistics: the intervals and tests that all rooms share. They know no model.

One module each: `bootstrap` (means and ratios over rows), `proportions` (shares: Wilson's interval, and the bootstrap over
groups), `half_samples` (measures of neighbours) and `permutation` (tests).
"""

from __future__ import annotations

from interp.statistics.bootstrap import bootstrap_mean, bootstrap_ratio
from interp.statistics.half_samples import generator, half_samples, interval, reach, standard_error, wide
from interp.statistics.permutation import BlockOrder, permutation_p, shuffle_labels
from interp.statistics.proportions import bootstrap_shares, wilson_interval

__all__ = [
    "BlockOrder",
    "bootstrap_mean",
    "bootstrap_ratio",
    "bootstrap_shares",
    "generator",
    "half_samples",
    "interval",
    "permutation_p",
    "reach",
    "shuffle_labels",
    "standard_error",
    "wide",
    "wilson_interval",
]
