"""Statistics: intervals and tests, shared by all rooms. No module here knows a model.

>>> from interp.statistics import wilson_interval
>>> [round(bound, 3) for bound in wilson_interval(0.5, 100)]
[0.404, 0.596]

One module each: `bootstrap` (means and ratios over rows), `proportions` (shares: Wilson's interval, and the bootstrap over
groups), `permutation` (tests) and `half_samples` (measures of neighbours, whose functions are in the module alone).
"""

from __future__ import annotations

from interp.statistics.bootstrap import bootstrap_mean, bootstrap_ratio
from interp.statistics.permutation import BlockOrder, permutation_p, shuffle_labels
from interp.statistics.proportions import bootstrap_shares, wilson_interval

__all__ = [
    "BlockOrder",
    "bootstrap_mean",
    "bootstrap_ratio",
    "bootstrap_shares",
    "permutation_p",
    "shuffle_labels",
    "wilson_interval",
]
