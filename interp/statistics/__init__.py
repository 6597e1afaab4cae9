"""Statistics: intervals and tests, shared by all rooms. No module here knows a model.

>>> from interp.statistics import wilson_interval
>>> [round(bound, 3) for bound in wilson_interval(0.5, 100)]
[0.404, 0.596]

One module each: `intervals` (means and ratios over rows or groups), `proportions` (Wilson's interval), `paired` (the same
items twice), `crossed` (the same items in several runs), `random_effects` and `model_means` (the mean over models), `verdicts`
(what an interval says of a claim), `corrections` (one p of many), `permutation` (tests) and `half_samples` (measures of
neighbours, whose functions are in the module alone).
"""

from __future__ import annotations

from interp.statistics.corrections import family_p, holm
from interp.statistics.crossed import Crossed, crossed_change, crossed_ratio, crossed_share
from interp.statistics.intervals import few_rows, mean_interval, ratio_interval
from interp.statistics.model_means import mean_over_models
from interp.statistics.paired import Change, paired_change
from interp.statistics.permutation import BlockOrder, permutation_p, shuffle_labels
from interp.statistics.proportions import wilson_interval
from interp.statistics.random_effects import RandomEffects, random_effects
from interp.statistics.verdicts import Verdict, verdict

__all__ = [
    "BlockOrder",
    "Change",
    "Crossed",
    "RandomEffects",
    "Verdict",
    "crossed_change",
    "crossed_ratio",
    "crossed_share",
    "family_p",
    "few_rows",
    "holm",
    "mean_interval",
    "mean_over_models",
    "paired_change",
    "permutation_p",
    "random_effects",
    "ratio_interval",
    "shuffle_labels",
    "verdict",
    "wilson_interval",
]
