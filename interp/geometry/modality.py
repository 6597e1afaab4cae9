"""The modality gap: how far apart do images and texts lie, whatever they show?

Embeddings of images and of texts lie in two regions of one space, even after training on pairs (Liang et al. 2022). There
are several measures of this gap, they need not agree, and papers mean different ones:

- **The cosine of pairs**: an image with its own text. High where both lie in one narrow cone, whatever they say; the effect
  of the pairing shows against shuffled pairs.
- **The cosine of all pairs**: images with the texts of others. It says how far apart the *regions* are.
- **The corrected cosine**: a pair's cosine less the mean cosine of its image with the other texts, the part that is due to
  the pairing.
- **The distance of the centres**, over the distance of points from their own centre.
- **Separability**: how often a hyperplane tells an image from a text. It alone searches all directions for one that tells
  them apart, and may be 1 where all the others say "close".

Every number has its control: the same with pairs shuffled, or with image and text exchanged at random within pairs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from interp.arguments import checked_int
from interp.geometry.clouds import Cloud, as_pair, check_one_space
from interp.geometry.neighbors import blocks
from interp.geometry.outlying import notes_of_outlying
from interp.geometry.scaling import centred_pair, doubles, unit_rows
from interp.provenance import Provenance
from interp.results import Result
from interp.statistics.categories import Labels
from interp.statistics.half_samples import NORMAL_95, generator
from interp.statistics.permutation import permutation_p, random_order, read_strata

# The measures that one `ModalityGap` has, by name: its fields with the value, the error, the chance level and p.
FIELDS = {
    "paired_cosine": ("paired_cosine", "", "shuffled_cosine", "p"),
    "corrected_cosine": ("corrected_cosine", "corrected_error", "", ""),
    "centroid_distance": ("centroid_relative", "", "centroid_chance", ""),
    "separability": ("separability", "separability_error", "", ""),
}
FOLDS = 5
_MAX_ITERATIONS = 5000


@dataclass(frozen=True)
class ModalityGap(Result):
    """How far apart two clouds of paired rows, images and texts, lie in one space.

    - `paired_cosine`: the median over examples of cos(x_i, y_i); `shuffled_cosine`: its mean over shuffles of the pairs;
      `p`: the share of shuffles that reach it, with the true pairing among them.
    - `all_pairs`: the quartiles of cos(x_i, y_j) over all i > j.
    - `corrected_cosine`: the mean over i of cos(x_i, y_i) - mean over j != i of cos(x_i, y_j), `corrected_error` its
      standard error. 0 where the pairing has no effect.
    - `centroid_distance`: Euclidean, between the mean rows; `centroid_relative`: over the mean of the two spreads, each
      the root of the mean squared distance to a cloud's own mean row; `centroid_chance`: `centroid_relative` for
      modalities exchanged at random within pairs, the root of its mean square, over the observed spreads.
    - `separability`: how often a logistic regression predicts the modality of a row, after training on neither it nor its
      partner; `separability_error` its standard error, which allows for what folds share and for n hits of n. Chance is 0.5.
    - `n` examples, `shuffles` and `folds`: the sizes of the computation.
    """

    paired_cosine: float
    shuffled_cosine: float
    p: float
    all_pairs: tuple[float, float, float]
    corrected_cosine: float
    corrected_error: float
    centroid_distance: float
    centroid_relative: float
    centroid_chance: float
    separability: float
    separability_error: float
    n: int
    shuffles: int
    folds: int

    def to_frame(self) -> pd.DataFrame:
        """One row for each number: measure, value, error, control, and the kind of control."""
        nan = math.nan
        rows = [
            ("paired cosine, median", self.paired_cosine, nan, self.shuffled_cosine, "shuffled pairs"),
            *(
                (f"cosine of all pairs, {name}", value, nan, nan, "")
                for name, value in zip(("lower quartile", "median", "upper quartile"), self.all_pairs, strict=True)
            ),
            ("corrected cosine, mean", self.corrected_cosine, self.corrected_error, 0.0, "unrelated pairs"),
            ("centroid distance", self.centroid_distance, nan, nan, ""),
            ("centroid distance / spread", self.centroid_relative, nan, self.centroid_chance, "exchanged in pairs"),
            ("separability", self.separability, self.separability_error, 0.5, "chance"),
        ]
        return pd.DataFrame(rows, columns=["measure", "value", "error", "control", "control_is"])


def modality_gap(
    x: Cloud, y: Cloud, shuffles: int = 100, seed: int = 0, *, strata: Labels | None = None
) -> ModalityGap:
    """The gap between `x` (say images) and `y` (texts), both `[example, feature]` in one space, with paired rows.

    >>> rng = np.random.default_rng(0)
    >>> shared = rng.normal(size=(100, 20))
    >>> gap = modality_gap(shared, shared + 1.5 + 0.5 * rng.normal(size=(100, 20)))
    >>> gap.p < 0.05, gap.corrected_cosine > 0.3, gap.centroid_relative > gap.centroid_chance, gap.separability > 0.9
    (True, True, True, True)

    See `ModalityGap` for each number. One positive scale for both clouds changes only the centroid distance, a rotation of
    both only separability (columns are standardised). A shift of both changes the cosines, which start at the origin of
    the space. The cosine of all pairs uses the strict lower triangle of the cross block, where two examples meet once, as in
    the code of Serra et al. (2024); the corrected cosine is the baseline of Wu et al. (2024).

    Standard errors are over examples and treat them as independent. Separability: columns standardised on the training
    rows, logistic regression at C = 1, 5 folds (or one for each example where there are fewer) drawn with `seed`, with both
    rows of an example in the same fold.

    `strata`, one label an example, keep the shuffled pairs of `shuffled_cosine` and p within them.

    Raises `InputError` where rows are not paired, widths differ, a cloud is not finite, is constant or has a row of
    zeros, and where `shuffles` is not a positive integer.
    """
    shuffles = checked_int(shuffles, "shuffles", least=1)
    first, second = _in_one_space(x, y)
    one, other = unit_rows(first, "x"), unit_rows(second, "y")
    paired, shuffled, p = _paired(one, other, shuffles, seed, read_strata(strata, len(first)))
    corrected = _corrected(one, other)
    distance, relative, chance = _centroids(first, second)
    right = _predicted(first, second, seed)
    n = len(first)
    return ModalityGap(
        paired_cosine=paired,
        shuffled_cosine=shuffled,
        p=p,
        all_pairs=_quartiles(one, other),
        corrected_cosine=float(corrected.mean()),
        corrected_error=float(corrected.std()) / math.sqrt(n),
        centroid_distance=distance,
        centroid_relative=relative,
        centroid_chance=chance,
        separability=float(right.mean()),
        separability_error=_fold_error(right),
        n=n,
        shuffles=shuffles,
        folds=min(FOLDS, n),
        provenance=Provenance(seed=seed, notes=notes_of_outlying(x=first, y=second)),
    )


def paired_cosine(x: Cloud, y: Cloud) -> float:
    """The `paired_cosine` of `modality_gap` alone."""
    return float(_cosines(*_unit_pair(x, y)).quantile(0.5))


def corrected_cosine(x: Cloud, y: Cloud) -> float:
    """The `corrected_cosine` of `modality_gap` alone."""
    return float(_corrected(*_unit_pair(x, y)).mean())


def centroid_distance(x: Cloud, y: Cloud) -> float:
    """The `centroid_relative` of `modality_gap` alone."""
    return _centroids(*_in_one_space(x, y))[1]


def separability(x: Cloud, y: Cloud) -> float:
    """The `separability` of `modality_gap` alone, with its folds drawn with seed 0."""
    return float(_predicted(*_in_one_space(x, y), 0).mean())


def _in_one_space(x: Cloud, y: Cloud) -> tuple[Tensor, Tensor]:
    """Two paired clouds of equal width in float64; constant ones are refused."""
    first, second = (doubles(cloud) for cloud in as_pair(x, y))
    check_one_space(first, second)
    centred_pair(first, second)  # it refuses constant clouds
    return first, second


def _unit_pair(x: Cloud, y: Cloud) -> tuple[Tensor, Tensor]:
    first, second = _in_one_space(x, y)
    return unit_rows(first, "x"), unit_rows(second, "y")


def _cosines(x: Float[Tensor, "n d"], y: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
    return (x * y).sum(dim=1)


def _paired(
    x: Float[Tensor, "n d"], y: Float[Tensor, "n d"], shuffles: int, seed: int, strata: np.ndarray | None
) -> tuple[float, float, float]:
    """The median cosine of pairs, its mean over shuffled pairs, and its p."""
    value = _cosines(x, y).quantile(0.5)
    rng = generator(seed)
    orders = (torch.from_numpy(random_order(len(x), rng, strata)).to(x.device) for _ in range(shuffles))
    drawn = torch.stack([_cosines(x, y[order]).quantile(0.5) for order in orders])
    reached = int((drawn >= value - 1e-12).sum())
    return float(value), float(drawn.mean()), permutation_p(reached, shuffles)


def _quartiles(x: Float[Tensor, "n d"], y: Float[Tensor, "n d"]) -> tuple[float, float, float]:
    """The quartiles of the cosines of x_i with y_j, i > j."""
    n = len(x)
    values = np.empty(n * (n - 1) // 2, dtype=np.float32)
    done = 0
    for rows in blocks(n, n):
        block = (x[rows] @ y[: rows.stop].T).float()
        below = block[torch.ones_like(block, dtype=torch.bool).tril_(diagonal=rows.start - 1)]
        values[done : done + len(below)] = below.cpu()
        done += len(below)
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75], overwrite_input=True)
    return float(low), float(middle), float(high)


def _corrected(x: Float[Tensor, "n d"], y: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
    """Each pair's cosine less the mean cosine of its x with the y of the other examples."""
    own = _cosines(x, y)
    return own - (x @ y.sum(dim=0) - own) / (len(x) - 1)


def _centroids(x: Float[Tensor, "n d"], y: Float[Tensor, "n d"]) -> tuple[float, float, float]:
    """The distance of the mean rows, the same over the mean spread, and the latter's chance level.

    Exchanged at random within pairs, the difference of means is the mean of +-(x_i - y_i), whose mean square is
    sum |x_i - y_i|^2 / n^2.
    """
    distance = (x.mean(dim=0) - y.mean(dim=0)).norm()
    spread = sum((cloud - cloud.mean(dim=0)).square().sum(dim=1).mean().sqrt() for cloud in (x, y)) / 2
    return float(distance), float(distance / spread), float((x - y).norm() / len(x) / spread)


def _fold_error(right: np.ndarray) -> float:
    """The standard error of the mean of cross-validated hits, at least that with which Wilson's interval of n hits ends.

    Folds share what they were trained on, so that their hits are wrong together: the error of independent ones is too small,
    and is multiplied by 1 + test/train examples, after Nadeau and Bengio (2003).
    """
    n, folds = len(right), min(FOLDS, len(right))
    error = float(right.std(ddof=1)) / math.sqrt(n) * folds / (folds - 1)
    return max(error, NORMAL_95 / (n + NORMAL_95**2))


def _predicted(x: Float[Tensor, "n d"], y: Float[Tensor, "n d"], seed: int) -> np.ndarray:
    """For each example, the share of its two rows whose modality is predicted without training on either."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    clouds = np.stack([x.cpu().numpy(), y.cpu().numpy()])
    n = len(x)
    right = np.empty(n)
    for test in np.array_split(generator(seed).permutation(n), min(FOLDS, n)):
        train = np.setdiff1d(np.arange(n), test)
        probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=_MAX_ITERATIONS))
        probe.fit(np.concatenate(clouds[:, train]), np.repeat([0, 1], len(train)))
        predicted = probe.predict(np.concatenate(clouds[:, test])).reshape(2, -1)
        right[test] = (predicted == np.array([[0], [1]])).mean(axis=0)
    return right
