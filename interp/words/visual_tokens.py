"""Visual tokens as a language: how often codes come, how fast new ones appear, what one says of the next.

States of patches are brought to a codebook (k-means), or codes are given as a tokenizer makes them. Then the questions
asked of texts can be asked of images:

- *Zipf.* In texts the word of rank r comes about ``r^-s`` as often as the first, with s near 1. `zipf` is s by maximum
  likelihood over the codes that occur, `zipf_slope` that of the line through log frequency over log rank.
- *Heaps.* In texts the number of distinct words grows as ``n^b`` with the n words read: `heaps` is b, the slope of log
  distinct over log read, at points evenly far apart in log.
- *Entropy* of a code, and of a code given the one before it in its image (`conditional_entropy`), in nats.

Each is biased on few tokens: ranks come from the same counts, so even equal frequencies have a slope, and a code seen once
seems to predict the next. So each stands beside the same number of *shuffled* tokens (same counts, no order; what has
only to do with counts stays as it is) and of *uniform* codes, as many tokens and as many codes.

Source: the questions of "Analyzing the Language of Visual Tokens" (Chan et al. 2024); the estimators are as said here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.arguments import as_int, checked_seed
from interp.errors import InputError, shown
from interp.provenance import Provenance
from interp.results import Result
from interp.words.decomposition import as_rows, near_one

MEASURES = ("zipf", "zipf_slope", "heaps", "entropy", "conditional_entropy")
# How many points the growth of the vocabulary is looked at.
_POINTS = 40


@dataclass(frozen=True)
class TokenStats(Result):
    """The statistics of visual tokens.

    `values`, `shuffled` and `uniform` `[measure]` in the order of `measures`, the last two the mean over draws. `counts`
    `[code]` of the codes that occur, most frequent first. `distinct` `[point]` codes were seen after `read` `[point]` tokens.
    """

    measures: tuple[str, ...]
    values: Float[Tensor, " measure"]
    shuffled: Float[Tensor, " measure"]
    uniform: Float[Tensor, " measure"]
    counts: Int[Tensor, " code"]
    read: Int[Tensor, " point"]
    distinct: Int[Tensor, " point"]

    def __getitem__(self, measure: str) -> float:
        if measure not in self.measures:
            raise InputError(f"measure {measure!r}: expected one of {', '.join(self.measures)}")
        return float(self.values[self.measures.index(measure)])

    def to_frame(self) -> pd.DataFrame:
        """One row a measure: its value, that of shuffled tokens, and that of uniform codes."""
        columns = {"value": self.values, "shuffled": self.shuffled, "uniform": self.uniform}
        return pd.DataFrame({"measure": self.measures, **{name: each.tolist() for name, each in columns.items()}})


def quantise(states: Any, codes: int = 256, seed: int = 0) -> Int[Tensor, " token"]:
    """The code of each state `[token, width]` in a codebook of k-means (scikit-learn's MiniBatchKMeans).

    Raises `InputError` where there are not as many states as codes, and for a seed that is no int from 0 on.
    """
    from sklearn.cluster import MiniBatchKMeans

    values = near_one(as_rows(states, "states"))[0].float().cpu().numpy()  # the squares of what is huge are infinite
    count = as_int(codes)
    if count is None or not 2 <= count <= len(values):
        raise InputError(f"codes={shown(codes)}: expected 2 to {len(values)}, the number of states")
    return torch.from_numpy(
        MiniBatchKMeans(count, random_state=checked_seed(seed), n_init=3).fit_predict(values)
    ).long()


def visual_token_stats(codes: Any, rows: Any = None, draws: int = 10, seed: int = 0) -> TokenStats:
    """The statistics of `codes`, ints `[token]` in reading order, or `[image, token]`; `rows` `[token]` says which image each
    is of where it is not the second shape, and without it all are one.

    Raises `InputError` for what are no ints, for fewer than two codes or three tokens, for rows that are not one a token,
    where no image has two tokens, and for a seed that is no int from 0 on.

    >>> stats = visual_token_stats([[0, 1, 0, 1], [0, 1, 2, 1]])
    >>> round(stats["entropy"], 3), stats.counts.tolist()
    (0.974, [4, 3, 1])
    """
    tokens, images = _tokens(codes, rows)
    seed = checked_seed(seed)
    if as_int(draws) is None or draws < 1:
        raise InputError(f"draws={shown(draws)}: expected 1 or more")
    follows = images[1:] == images[:-1]
    if not follows.any():
        raise InputError("no image has two tokens in a row: expected tokens in reading order, image after image")
    generator = np.random.default_rng(seed)
    number = int(tokens.max()) + 1
    shuffled = [_measured(generator.permutation(tokens), follows) for _ in range(draws)]
    uniform = [_measured(generator.integers(number, size=len(tokens)), follows) for _ in range(draws)]
    read, distinct = growth(tokens)
    return TokenStats(
        measures=MEASURES,
        values=torch.tensor(_measured(tokens, follows), dtype=torch.float64),
        shuffled=torch.tensor(shuffled, dtype=torch.float64).mean(dim=0),
        uniform=torch.tensor(uniform, dtype=torch.float64).mean(dim=0),
        counts=torch.from_numpy(np.sort(np.bincount(tokens))[::-1].copy()),
        read=torch.from_numpy(read),
        distinct=torch.from_numpy(distinct),
        provenance=Provenance(seed=seed),
    )


def _tokens(codes: Any, rows: Any) -> tuple[np.ndarray, np.ndarray]:
    """Codes numbered from 0 without gaps, and the image of each."""
    given = _array(codes, "codes")
    if given.dtype.kind not in "iu" or given.ndim not in (1, 2) or given.size < 3:
        raise InputError(
            f"codes of shape {given.shape} and type {given.dtype}: expected ints [token] or [image, token], three or more"
        )
    if rows is not None and given.ndim == 2:
        raise InputError(f"rows were given with codes of shape {given.shape}: expected codes [token], or no rows")
    images = np.repeat(np.arange(len(given)), given.shape[1]) if given.ndim == 2 else np.zeros(len(given), dtype=int)
    images = images if rows is None else _array(rows, "rows")
    if images.shape != (given.size,):
        raise InputError(f"rows of shape {images.shape} for {given.size} tokens: expected one a token")
    found, tokens = np.unique(given.reshape(-1), return_inverse=True)
    if len(found) < 2:
        raise InputError(f"all {given.size} tokens are code {found[0]}: expected two codes or more")
    return tokens, images


def _array(given: Any, name: str) -> np.ndarray:
    """An array on the CPU. Raises `InputError` for lists that are not of one length."""
    try:
        return np.asarray(given.cpu() if isinstance(given, Tensor) else given)
    except (TypeError, ValueError):
        raise InputError(
            f"{name}={shown(given)} makes no array: expected rows of one length, or codes [token] with rows="
        ) from None


# The measures ------------------------------------------------------------------------------------------------------------


def _measured(tokens: np.ndarray, follows: np.ndarray) -> list[float]:
    counts = np.sort(np.bincount(tokens))[::-1]
    counts = counts[counts > 0]
    first, second = tokens[:-1][follows], tokens[1:][follows]
    pairs = np.unique(first * (int(tokens.max()) + 1) + second, return_counts=True)[1]
    conditional = entropy_of(pairs) - entropy_of(np.bincount(first))
    read, distinct = growth(tokens)
    ranks = np.arange(1, len(counts) + 1)
    return [
        zipf_exponent(counts),
        -log_slope(ranks, counts),
        log_slope(read, distinct),
        entropy_of(counts),
        conditional,
    ]


def log_slope(x: np.ndarray, y: np.ndarray) -> float:
    """The least-squares slope of log y over log x; 0 of a single point, as a draw of one code alone has."""
    across, up = np.log(x) - np.log(x).mean(), np.log(y) - np.log(y).mean()
    square = float((across**2).sum())
    return float((across * up).sum()) / square if square else 0.0


def entropy_of(counts: np.ndarray) -> float:
    """The entropy in nats of the frequencies that counts say."""
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log(shares)).sum())


def zipf_exponent(counts: np.ndarray) -> float:
    """The s of ``r^-s`` over these ranks that makes `counts` (most frequent first) most likely.

    There the mean log rank is what it is under the power law, and it falls with s: found by halving.
    """
    logs = np.log(np.arange(1, len(counts) + 1))
    wanted = float((counts * logs).sum() / counts.sum())
    low, high = 0.0, 64.0
    for _ in range(60):
        middle = (low + high) / 2
        weights = np.exp(-middle * logs)
        low, high = (middle, high) if (weights * logs).sum() / weights.sum() > wanted else (low, middle)
    return (low + high) / 2


def growth(tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How many distinct codes the first n tokens have, at numbers n evenly far apart in log: Int `[point]` each."""
    new = np.zeros(len(tokens), dtype=np.int64)
    new[np.unique(tokens, return_index=True)[1]] = 1
    read = np.unique(np.geomspace(1, len(tokens), _POINTS).round().astype(np.int64))
    return read, new.cumsum()[read - 1]
