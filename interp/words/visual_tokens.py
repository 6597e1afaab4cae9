"""Visual tokens as a language: how frequent codes are, how fast new ones appear, how well one predicts the next.

States of patches are assigned to a codebook (k-means), or codes come from a tokenizer. Then the statistics of texts apply
to images:

- *Zipf.* In texts the word of rank r is about ``r^-s`` as frequent as the first, with s near 1. `zipf` is s by maximum
  likelihood over the codes that occur, `zipf_slope` the slope of the line through log frequency over log rank.
- *Heaps.* In texts the number of distinct words grows as ``n^b`` with the n words read. `heaps` is b, the slope of log
  distinct over log read, at points that are evenly spaced in log.
- *Entropy* of a code, and of a code given the one before it in its image (`conditional_entropy`), in nats.

All are biased on few tokens: ranks come from the same counts, so even equal frequencies have a slope, and a code that occurs
once seems to predict the next. So each is compared with *shuffled* tokens (same counts, no order; a measure of counts alone
does not change) and with *uniform* codes, as many tokens of as many codes.

Source: the questions of "Analyzing the Language of Visual Tokens" (Chan et al. 2024), with the estimators above.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.arguments import checked_choice, checked_int, checked_seed
from interp.errors import InputError, shown
from interp.provenance import Provenance
from interp.results import Result
from interp.words.decomposition import as_rows, near_one

MEASURES = ("zipf", "zipf_slope", "heaps", "entropy", "conditional_entropy")
# At how many points the growth of the vocabulary is measured.
_POINTS = 40


@dataclass(frozen=True)
class TokenStats(Result):
    """The statistics of visual tokens.

    `values`, `shuffled` and `uniform` `[measure]` are in the order of `measures`, the last two means over draws. `counts`
    `[code]` are those of the codes that occur, most frequent first. The first `read` `[point]` tokens have `distinct`
    `[point]` codes.
    """

    measures: tuple[str, ...]
    values: Float[Tensor, " measure"]
    shuffled: Float[Tensor, " measure"]
    uniform: Float[Tensor, " measure"]
    counts: Int[Tensor, " code"]
    read: Int[Tensor, " point"]
    distinct: Int[Tensor, " point"]

    def __getitem__(self, measure: str) -> float:
        return float(self.values[self.measures.index(checked_choice(measure, "measure", self.measures))])

    def to_frame(self) -> pd.DataFrame:
        """One row a measure: its value, the value of shuffled tokens, and that of uniform codes."""
        columns = {"value": self.values, "shuffled": self.shuffled, "uniform": self.uniform}
        return pd.DataFrame({"measure": self.measures, **{name: each.tolist() for name, each in columns.items()}})


def quantise(states: Any, codes: int = 256, seed: int = 0) -> Int[Tensor, " token"]:
    """The code of each state `[token, width]` in a codebook of k-means (scikit-learn's MiniBatchKMeans).

    >>> quantise([[0.0], [0.1], [9.0]], codes=2).tolist() in ([0, 0, 1], [1, 1, 0])
    True

    Raises `InputError` for fewer states than codes, and for a seed that is not an int from 0.
    """
    from sklearn.cluster import MiniBatchKMeans

    values = near_one(as_rows(states, "states"))[0].float().cpu().numpy()  # squares of huge numbers would overflow
    codes = checked_int(codes, "codes", 2, len(values), "a number of states")
    clusters = MiniBatchKMeans(codes, random_state=checked_seed(seed), n_init=3).fit_predict(values)
    return torch.from_numpy(clusters).long()


def visual_token_stats(codes: Any, rows: Any = None, draws: int = 10, seed: int = 0) -> TokenStats:
    """The statistics of `codes`, ints `[token]` in reading order, or `[image, token]`.

    >>> stats = visual_token_stats([[0, 1, 0, 1], [0, 1, 2, 1]])
    >>> round(stats["entropy"], 3), stats.counts.tolist()
    (0.974, [4, 3, 1])

    `rows` `[token]` gives the image of each token of codes `[token]`; without it all are of one image.

    Raises `InputError` for codes that are not ints, for fewer than two codes or three tokens, for rows that are not one a
    token, where no image has two tokens, and for a seed that is not an int from 0.
    """
    tokens, images = _tokens(codes, rows)
    draws, seed = checked_int(draws, "draws", least=1), checked_seed(seed)
    follows = images[1:] == images[:-1]
    if not follows.any():
        raise InputError("no image has two tokens in a row: expected tokens in reading order, image after image")
    generator = np.random.default_rng(seed)
    number = int(tokens.max()) + 1
    shuffled = [_measures(generator.permutation(tokens), follows) for _ in range(draws)]
    uniform = [_measures(generator.integers(number, size=len(tokens)), follows) for _ in range(draws)]
    read, distinct = growth(tokens)
    return TokenStats(
        measures=MEASURES,
        values=torch.tensor(_measures(tokens, follows), dtype=torch.float64),
        shuffled=torch.tensor(shuffled, dtype=torch.float64).mean(dim=0),
        uniform=torch.tensor(uniform, dtype=torch.float64).mean(dim=0),
        counts=torch.from_numpy(np.sort(np.bincount(tokens))[::-1].copy()),
        read=torch.from_numpy(read),
        distinct=torch.from_numpy(distinct),
        provenance=Provenance(seed=seed),
    )


def _tokens(codes: Any, rows: Any) -> tuple[np.ndarray, np.ndarray]:
    """Codes numbered from 0 without gaps, and the image of each."""
    array = _array(codes, "codes")
    if array.dtype.kind not in "iu" or array.ndim not in (1, 2) or array.size < 3:
        raise InputError(
            f"codes of shape {array.shape} and type {array.dtype}: expected ints [token] or [image, token], three or more"
        )
    if rows is not None and array.ndim == 2:
        raise InputError(f"rows= with codes of shape {array.shape}: expected codes [token], or no rows")
    images = np.repeat(np.arange(len(array)), array.shape[1]) if array.ndim == 2 else np.zeros(len(array), dtype=int)
    images = images if rows is None else _array(rows, "rows")
    if images.shape != (array.size,):
        raise InputError(f"rows of shape {images.shape} for {array.size} tokens: expected one a token")
    distinct, tokens = np.unique(array.reshape(-1), return_inverse=True)
    if len(distinct) < 2:
        raise InputError(f"all {array.size} tokens are code {distinct[0]}: expected two codes or more")
    return tokens, images


def _array(values: Any, name: str) -> np.ndarray:
    """An array on the CPU. Raises `InputError` for lists of several lengths."""
    try:
        return np.asarray(values.cpu() if isinstance(values, Tensor) else values)
    except (TypeError, ValueError):
        raise InputError(
            f"{name}={shown(values)} is not an array: expected rows of one length, or codes [token] with rows="
        ) from None


# The measures ------------------------------------------------------------------------------------------------------------


def _measures(tokens: np.ndarray, follows: np.ndarray) -> list[float]:
    """The value of each of `MEASURES`; `follows` says which tokens but the first continue an image."""
    counts = np.sort(np.bincount(tokens))[::-1]
    counts = counts[counts > 0]
    first, second = tokens[:-1][follows], tokens[1:][follows]
    pairs = np.unique(first * (int(tokens.max()) + 1) + second, return_counts=True)[1]
    conditional = entropy_of(pairs) - entropy_of(np.bincount(first))
    slope = -log_slope(np.arange(1, len(counts) + 1), counts)
    return [zipf_exponent(counts), slope, log_slope(*growth(tokens)), entropy_of(counts), conditional]


def log_slope(x: np.ndarray, y: np.ndarray) -> float:
    """The least-squares slope of log y over log x; 0 for a single point, as in a draw of one code alone."""
    across, up = np.log(x) - np.log(x).mean(), np.log(y) - np.log(y).mean()
    square = float((across**2).sum())
    return float((across * up).sum()) / square if square else 0.0


def entropy_of(counts: np.ndarray) -> float:
    """The entropy in nats of the frequencies in counts."""
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log(shares)).sum())


def zipf_exponent(counts: np.ndarray) -> float:
    """The s of ``r^-s`` over ranks r under which `counts` (most frequent first) are most likely.

    At that s the power law has the observed mean log rank. The mean log rank falls with s, so bisection finds it.
    """
    logs = np.log(np.arange(1, len(counts) + 1))
    mean = float((counts * logs).sum() / counts.sum())
    low, high = 0.0, 64.0
    for _ in range(60):
        middle = (low + high) / 2
        weights = np.exp(-middle * logs)
        low, high = (middle, high) if (weights * logs).sum() / weights.sum() > mean else (low, middle)
    return (low + high) / 2


def growth(tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Numbers n that are evenly spaced in log, and how many distinct codes the first n tokens have: Int `[point]` each."""
    new = np.zeros(len(tokens), dtype=np.int64)
    new[np.unique(tokens, return_index=True)[1]] = 1
    read = np.unique(np.geomspace(1, len(tokens), _POINTS).round().astype(np.int64))
    return read, new.cumsum()[read - 1]
