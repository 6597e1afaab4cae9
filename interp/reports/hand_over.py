"""The depth at which an answer moves from the image tokens to the last token, and whether this is at intermediate layers.

Clean states at the image tokens restore the answer up to some layer, clean states at the last token from some layer on. For
each row, the depth of the hand-over is where the two curves cross, from 0 (the input of the first layer) to 1 (the output of the
last). A band says beforehand what "intermediate" means. In a wide one nearly any depth is intermediate, so that the claim says
nothing: the share of the depth that the band covers is the chance that a hand-over at a random depth lies in it. The band here is
the middle third, which two of three random depths miss.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from interp.statistics import Verdict, mean_interval
from interp.statistics.half_samples import NORMAL_95

BAND = (1 / 3, 2 / 3)


def crossing_depths(image: Float[Tensor, "row layer"], last: Float[Tensor, "row layer"]) -> Float[Tensor, " row"]:
    """Where the effect of clean image tokens first falls to that of the clean last token, as a share of the depth, for each row.

    Both are effects or metrics of a patching sweep of `resid_pre` over all layers. After the last layer the image has none and
    the last token all of the effect.

    >>> round(crossing_depths(torch.tensor([[1.0, 1.0, 0.4, 0.0]]), torch.tensor([[0.0, 0.0, 0.6, 1.0]])).item(), 3)
    0.458
    """
    ahead = image.double() - last.double()
    ahead = torch.cat([ahead, -ahead.amax(dim=1, keepdim=True)], dim=1)
    step = (ahead <= 0).to(torch.int8).argmax(dim=1, keepdim=True)
    before, after = (ahead.gather(1, at)[:, 0] for at in ((step - 1).clamp(min=0), step))
    share = (before / (before - after)).nan_to_num(0.0).clamp(0, 1)
    return torch.where(step[:, 0] == 0, 0.0, (step[:, 0] - 1 + share) / image.shape[1])


def hand_over(image: Float[Tensor, "row layer"], last: Float[Tensor, "row layer"]) -> HandOver:
    """The mean depth of the hand-over with its 95 % interval over rows, and the verdict on "at intermediate layers".

    Supported where the whole interval lies in `BAND`, contradicted where all of it lies outside, else undecided.
    """
    depths = crossing_depths(image, last)
    low, high = (float(bound) for bound in mean_interval(depths))
    depth, (first, end) = float(depths.mean()), BAND
    margin, least = (min(a - first, end - b) for a, b in ((depth, depth), (low, high)))
    nearest = min(max((first + end) / 2, low), high)  # the place in the interval that is deepest in the band
    most = min(nearest - first, end - nearest)
    value: Literal["supported", "contradicted", "undecided"]
    value = "supported" if least > 0 else "contradicted" if most < 0 else "undecided"
    error = (margin - least) / NORMAL_95
    p = 2 * NormalDist().cdf(-margin / error) if error > 0 else float("nan")
    return HandOver(
        depth, low, high, len(depths), Verdict(value, margin, least, most, 0.0, margin - least), min(1.0, p)
    )


@dataclass(frozen=True)
class HandOver:
    """The mean `depth` of the hand-over over `n` rows with its 95 % interval, and the verdict that it lies in `BAND`.

    The estimate of `verdict` is the distance from the nearer end of the band, positive inside. `p` is of two sides.
    """

    depth: float
    low: float
    high: float
    n: int
    verdict: Verdict
    p: float
