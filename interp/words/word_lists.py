"""Word lists to compare a concept with: as many words, with rows as long and as coherent as the concept's own.

Rows of an unembedding are not alike. Frequent words, and words that a model was trained to write, have other lengths than
those that it never writes; and words of one kind point in similar directions. A head that writes in the directions of trained
or of coherent words would score well on every concept, if concepts were compared with words drawn at random. So lists are
drawn that match the concept in:

- *norm*: for each word of the concept, one of the nearest in length of row (five times as many as the concept has words, or a
  tenth of the vocabulary, where that is more, but at most 4,096; twice, four and eight times as many where too few lists are
  found among these);
- *frequency*, where it is known: nearest in both ranks together;
- *coherence*, the mean cosine between two rows of the list: within 0.02 of the concept's, or within a tenth of it.

Lists are drawn word by word, each word given the others of its list, with weights that fall off with the distance from the
concept's coherence (Gibbs sampling). Lists that do not come as near are drawn anew, and each list counts once. A list may have
words of the concept, up to half of it. Were they left out, a word that some head writes often could be in the concept and in no
list, and p would be too small. A small vocabulary may have few lists that match, or none.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.displays import Display
from interp.errors import InputError

# Candidates for each word: so many for each word of the concept, or this share of the vocabulary, and at most so many.
_NEAREST, _SHARE, _MOST = 5, 0.1, 4096
# How often each word of a list is drawn anew, and how often lists are drawn before candidates are widened.
_SWEEPS, _ROUNDS = 8, 2
_AT_LEAST = 50  # lists of a round
_TOLERANCE = 0.02


@dataclass(frozen=True)
class WordLists(Display):
    """Lists of tokens that match a concept: `ids` `[list, word]`, the `coherence` of each and that of the concept, `target`.

    `matched` is False where no list comes near enough to the target: then these are the nearest.
    """

    ids: Int[Tensor, "list word"]
    coherence: Float[Tensor, " list"]
    target: float
    matched: bool


def coherence_of(unit: Float[Tensor, "*list word width"]) -> Float[Tensor, "*list"]:
    """The mean cosine between two different rows of length 1; 0 for one row.

    >>> coherence_of(torch.eye(3)).item()
    0.0
    """
    words = unit.shape[-2]
    return (unit.sum(dim=-2).square().sum(dim=-1) - words) / max(1, words * (words - 1))


def matched_lists(
    rows: Float[Tensor, "word width"],
    tokens: Int[Tensor, " concept"],
    pool: Bool[Tensor, " word"],
    lists: int,
    seed: int,
    frequencies: Float[Tensor, " word"] | None = None,
) -> WordLists:
    """Up to `lists` different lists of tokens of `pool` whose `rows` match those of a concept's `tokens` in norm, coherence and
    frequency.

    >>> rows = torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
    >>> matched_lists(rows, torch.tensor([0, 1, 2]), torch.arange(50) >= 3, lists=5, seed=0).ids.shape
    torch.Size([5, 3])

    Raises `InputError` for a pool of fewer tokens beside the concept's than it has.
    """
    others = pool.nonzero()[:, 0]
    beside = int((~torch.isin(others, tokens)).sum())
    if beside < len(tokens):
        raise InputError(f"{beside} tokens beside {len(tokens)} words: expected as many, pass fewer words")
    norms = rows.norm(dim=1)
    unit = rows / norms[:, None].clamp(min=torch.finfo(rows.dtype).tiny)
    ranks = [_ranks(each, others) for each in (norms, frequencies) if each is not None]
    target = float(coherence_of(unit[tokens]))
    tolerance = max(_TOLERANCE, abs(target) / 10)
    rng = torch.Generator().manual_seed(seed)
    drawn = torch.empty(0, len(tokens), dtype=torch.long, device=rows.device)
    for widening in (1, 2, 4, 8):
        sampler = _Sampler(tokens, _nearest(torch.stack(ranks), tokens, others, widening), rng)
        new = [sampler.sampled(unit, target, tolerance, max(lists, _AT_LEAST)) for _ in range(_ROUNDS)]
        drawn = torch.cat([drawn, *new])
        drawn = drawn[_first_of_each(drawn.sort(dim=1).values)]
        coherence = coherence_of(unit[drawn])
        near = (coherence - target).abs() <= tolerance
        if near.sum() >= lists:
            break
    places = near.nonzero()[:, 0] if near.any() else (coherence - target).abs().argsort()
    places = places[:lists]
    return WordLists(drawn[places], coherence[places], target, bool(near.any()))


def _ranks(values: Float[Tensor, " word"], others: Int[Tensor, " other"]) -> Float[Tensor, " word"]:
    """The share of the other tokens that are below each token."""
    values = values.contiguous()
    return torch.searchsorted(values[others].sort().values, values).float() / len(others)


def _nearest(
    ranks: Float[Tensor, "property word"], tokens: Int[Tensor, " concept"], others: Int[Tensor, " other"], widening: int
) -> Int[Tensor, "concept candidate"]:
    """The tokens that may stand for each word of a concept."""
    count = min(len(others), _MOST, widening * max(_NEAREST * len(tokens), round(_SHARE * len(others))))
    away = (ranks[:, tokens, None] - ranks[:, None, others]).square().sum(dim=0)
    return others[away.topk(count, dim=1, largest=False).indices]


def _first_of_each(rows: Int[Tensor, "row word"]) -> Int[Tensor, " first"]:
    """The place of the first of equal rows, in order."""
    numbers = rows.unique(dim=0, return_inverse=True)[1].tolist()
    first = {number: place for place, number in reversed([*enumerate(numbers)])}
    return torch.tensor(sorted(first.values()), dtype=torch.long)


@dataclass(frozen=True)
class _Sampler:
    """Draws lists by Gibbs sampling, of these `candidates` `[word of the concept, candidate]`."""

    tokens: Int[Tensor, " concept"]
    candidates: Int[Tensor, "concept candidate"]
    rng: torch.Generator

    def sampled(self, unit: Tensor, target: float, tolerance: float, lists: int) -> Int[Tensor, "list concept"]:
        """Lists that begin with a first word at random and words whose cosine with it is near to the target."""
        words = len(self.tokens)
        ids = torch.full((lists, words), -1, device=unit.device)
        for slot, mine in enumerate(self.candidates):
            away = (unit[ids[:, 0]] @ unit[mine].T - target) * 10 * (slot > 0)
            ids[:, slot] = self._drawn(away, ids, slot)
        total = unit[ids].sum(dim=1)
        for slot in list(range(words)) * _SWEEPS * (words > 1):
            mine, rest = self.candidates[slot], total - unit[ids[:, slot]]
            sums = rest.square().sum(dim=1)[:, None] + 2 * rest @ unit[mine].T + 1
            away = ((sums - words) / (words * (words - 1)) - target) / (tolerance / 2)
            ids[:, slot] = self._drawn(away, ids, slot)
            total = rest + unit[ids[:, slot]]
        return ids

    def _drawn(self, away: Float[Tensor, "list candidate"], ids: Tensor, slot: int) -> Int[Tensor, " list"]:
        """A candidate for each list with weight exp(-away^2 / 2): no word twice, and no more than half of the concept."""
        mine = self.candidates[slot]
        others = torch.cat([ids[:, :slot], ids[:, slot + 1 :]], dim=1)
        shared = torch.isin(others, self.tokens).sum(dim=1, keepdim=True)
        taken = (shared >= len(self.tokens) // 2) & torch.isin(mine, self.tokens)
        for other in others.T:
            taken |= other[:, None] == mine
        noise = -torch.empty(away.shape, dtype=torch.float64).exponential_(generator=self.rng).log().to(away)
        return mine[(noise - away.square() / 2).masked_fill(taken, -torch.inf).argmax(dim=1)]
