"""Head pursuit: which attention heads write in the words of a concept.

What a head adds to the stream at a position is its `z` through its own slice of the output projection: over examples, a
matrix H `[example, width]`. If the head writes colours, H lies near the span of a few colour words' unembedding rows.
So H is decomposed over the rows of the concept's words alone, by simultaneous pursuit: one support of k words for all
examples. The score is the share of H's squared Frobenius norm in the span of these k words.

The words are chosen on some rows of the data and scored on the others. k directions explain something of any matrix, so
each head is scored with random lists of as many words in the same way: `null` is their mean, `p` how often they do as
well. Heads are ranked by what the concept's words explain beyond that.

A score says what a head writes, not what it is for. `HeadResult.scaling` gives the interventions that turn these heads
over or make them stronger, and `control` as many others, so that the effect is measured beside that of any heads.

Where a norm stands between the output projection and the stream, H is what the head gives to that norm.

Source: Head Pursuit, Basile et al. 2025. Centring is not spelled out there; here it is a choice.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from interp.activations import Activations
from interp.arguments import as_int, as_ints, checked_flag, checked_number, checked_seed
from interp.errors import InputError, InputTypeError, shown
from interp.interventions import Scale
from interp.models.batches.targets import target_id, word_of
from interp.models.running.places import proved
from interp.models.running.structure import Heads, resolve
from interp.results import Result
from interp.words.decomposition import (
    ROUNDINGS,
    as_rows,
    dictionary_of,
    directions,
    explained_by,
    near_one,
    pursue_jointly,
)

if TYPE_CHECKING:
    from interp.models import VLM


@dataclass(frozen=True)
class HeadResult(Result):
    """How much of what each head writes lies in a concept's words.

    `scores`, `null` and `p` `[layer, head]`: the explained share on rows that chose no word, its mean with random lists
    of as many words, and the share of lists (this one counted) that do as well; NaN where a layer has fewer heads, and of a
    head that writes nothing on those rows, once centred where that was asked for: these are not ranked.
    `layers` are the numbers of the layers, `words[layer][head]` the words taken, first to last.
    """

    scores: Float[Tensor, "layer head"]
    null: Float[Tensor, "layer head"]
    p: Float[Tensor, "layer head"]
    layers: tuple[int, ...]
    words: tuple[tuple[tuple[str, ...], ...], ...]
    concept: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.scores.shape == self.null.shape == self.p.shape or len(self.scores) != len(self.layers):
            raise InputError(
                f"scores of shape {tuple(self.scores.shape)} do not fit null {tuple(self.null.shape)}, p "
                f"{tuple(self.p.shape)} and {len(self.layers)} layers: expected [layer, head] each"
            )

    @property
    def margin(self) -> Float[Tensor, "layer head"]:
        """What the concept's words explain beyond random ones: what heads are ranked by."""
        return self.scores - self.null

    def top(self, n: int) -> list[tuple[int, int]]:
        """The n heads with the largest margin, best first, each as (layer, head)."""
        return self._ranked()[: self._count(n)]

    def control(self, n: int, seed: int = 0) -> list[tuple[int, int]]:
        """n heads drawn from those that are not among the top n: what the effect of these is to be read against."""
        others = self._ranked()[self._count(n) :]
        if len(others) < n:
            raise InputError(
                f"n={n!r}: there are {len(others)} heads beside the top {n}, expected as many: ask for fewer"
            )
        order = torch.randperm(len(others), generator=torch.Generator().manual_seed(checked_seed(seed)))
        return [others[index] for index in order[:n].tolist()]

    def scaling(self, factor: float, n: int, positions: Any = "all") -> list[Scale]:
        """The interventions that scale what the top n heads give at these positions."""
        return scale_heads(self.top(n), factor, positions)

    def _count(self, n: Any) -> int:
        number, there = as_int(n), int((~self.scores.isnan()).sum())
        if number is None or not 1 <= number <= there:
            raise InputError(f"n={shown(n)}: expected 1 to {there}, the number of heads")
        return number

    def _ranked(self) -> list[tuple[int, int]]:
        width = self.scores.shape[1]
        margins = self.margin.flatten()
        order = margins.nan_to_num(nan=-torch.inf).argsort(descending=True, stable=True).tolist()
        return [(self.layers[at // width], at % width) for at in order if not margins[at].isnan()]

    def to_frame(self) -> pd.DataFrame:
        """One row a head, best first: layer, head, score, null, p, and the words taken."""
        places = [(self.layers.index(layer), layer, head) for layer, head in self._ranked()]
        return pd.DataFrame(
            [
                {
                    "layer": layer,
                    "head": head,
                    "score": float(self.scores[at, head]),
                    "null": float(self.null[at, head]),
                    "p": float(self.p[at, head]),
                    "words": " ".join(self.words[at][head]),
                }
                for at, layer, head in places
            ]
        )


def scale_heads(heads: Sequence[tuple[int, int]], factor: float, positions: Any = "all") -> list[Scale]:
    """The interventions that scale what these heads, each (layer, head), give: one a layer.

    Raises `InputError` for a factor that is no finite number, and for heads that are no pairs of ints.

    >>> [(change.layers, change.heads) for change in scale_heads([(5, 1), (2, 0), (5, 3)], factor=-1)]
    [(2, (0,)), (5, (1, 3))]
    """
    checked_number(factor, "factor")  # an intervention says it only when it is used
    of_layer: dict[int, list[int]] = defaultdict(list)
    for given in heads:
        pair = as_ints(given) or []
        if len(pair) != 2:
            raise InputError(f"{shown(given)} among the heads: expected pairs of ints, (layer, head)")
        of_layer[pair[0]].append(pair[1])
    return [
        Scale(site="z", layers=layer, heads=tuple(sorted(of_layer[layer])), positions=positions, factor=factor)
        for layer in sorted(of_layer)
    ]


def head_pursuit(
    vlm: VLM,
    acts: Any,
    words: Sequence[Any],
    k: int,
    center: bool = False,
    lists: int = 100,
    test_size: float = 0.3,
    seed: int = 0,
) -> HeadResult:
    """Score every captured head by how much of what it writes lies in `k` of these `words` (tokens, by word or id).

    `acts` are Activations that hold site "z", of any positions. Rows of the data are split with `seed`: `test_size` of
    them score, the others choose words. With `center` the mean over the choosing rows is taken off what a head writes, so
    that a head which always writes the same scores by what it changes. The null is made of `lists` random lists of tokens
    that are neither special nor among the words.

    Raises `InputError` where site z was not captured or has other heads than the model, for no words or fewer than `k`, a word
    named twice, fewer than two rows of data, a vocabulary too small for random lists, a seed that is no int from 0 on, and
    a `center` that is neither True nor False; `InputTypeError` for what are no activations.

    >>> import interp
    >>> vlm = interp.load("toy")
    >>> found = interp.toy.scenes(12, seed=0)
    >>> asked = [(scene.image, f"<image> what colour is the {scene.objects[0].digit} ?") for scene in found]
    >>> acts = interp.capture(vlm, asked, sites=("z",), positions="last", progress=False)
    >>> colours = ["red", "green", "blue", "yellow", "magenta", "cyan"]
    >>> head_pursuit(vlm, acts, colours, k=3, lists=5).scores.shape
    torch.Size([8, 4])
    """
    if not isinstance(acts, Activations):
        raise InputTypeError(f"acts is a {type(acts).__name__}: expected what interp.capture(sites=('z',)) gives")
    if "z" not in acts:
        raise InputError(f"site 'z' was not captured: these were, {', '.join(acts)}, capture with sites=('z',)")
    checked_flag(center, "center")
    tokens = [target_id(vlm, word) for word in (words if _are_several(words) else [words])]
    if not tokens:
        raise InputError(f"words={shown(words)} names none: expected the words of a concept")
    count = as_int(k)
    if count is None or not 1 <= count <= len(tokens):
        raise InputError(f"k={shown(k)}: expected 1 to {len(tokens)}, the number of words")
    if len(set(tokens)) < len(tokens):
        raise InputError(f"words={shown(words)} names a token more than once: name each once")
    if as_int(lists) is None or lists < 1:
        raise InputError(f"lists={shown(lists)}: expected 1 random list of words or more")
    seed = checked_seed(seed)
    unit, usable = directions(dictionary_of(vlm, "head").rows)
    drawn = _random_lists(vlm, usable.cpu(), tokens, lists, seed)
    chosen = [torch.tensor(tokens), *drawn]
    test = _held_out(acts.places("z").rows, test_size, seed)

    layers = tuple(acts.layers["z"])
    heads = max(proved(vlm, layer, "z").number for layer in layers)
    shares = torch.full((len(chosen), len(layers), heads), torch.nan)
    taken: list[tuple[tuple[str, ...], ...]] = []
    for at, layer in enumerate(layers):
        said = []
        for head, written in enumerate(_contributions(vlm, layer, acts["z"][at])):
            written, _ = near_one(written)  # else the squares of what is tiny are lost
            mean = written[~test].mean(dim=0) if center else 0.0
            train, held = (_beyond_rounding(written[side] - mean, written) for side in (~test, test))
            for turn, these in enumerate(chosen):
                shares[turn, at, head], ids = _score(train, held, unit[these.to(unit.device)], count)
                if not turn:
                    said.append(tuple(word_of(vlm, tokens[place]) for place in ids))
        taken.append(tuple(said))
    scores, random = shares[0], shares[1:]
    return HeadResult(
        scores=scores,
        null=random.mean(dim=0),
        p=((random >= scores).sum(dim=0) + 1).float().div(lists + 1).masked_fill(scores.isnan(), torch.nan),
        layers=layers,
        words=tuple(taken),
        concept=tuple(word_of(vlm, token) for token in tokens),
        provenance=replace(acts.provenance, seed=seed),
    )


def _are_several(words: Any) -> bool:
    """Whether these are words, and not one of them."""
    return isinstance(words, Iterable) and not isinstance(words, str) and as_int(words) is None


def _contributions(vlm: VLM, layer: int, z: Any) -> Iterator[Tensor]:
    """What each head of a layer adds through the output projection, `[example, width]`; z is `[example, head, d_head]`."""
    place: Heads = proved(vlm, layer, "z")
    states = torch.as_tensor(z)
    if tuple(states.shape[1:]) != (place.number, place.d_head):
        raise InputError(
            f"z of layer {layer} has shape {tuple(states.shape[1:])}, {vlm.name!r} has {place.number} heads of width "
            f"{place.d_head}: expected what was captured of this model"
        )
    projection = resolve(vlm.model, f"{vlm.structure.layers}.{layer}.{place.module}")
    # The map itself is asked, one feature at a time: how its weights are kept is its own affair.
    features = torch.eye(place.number * place.d_head, dtype=vlm.dtype, device=vlm.device)
    with torch.no_grad():
        slices = (projection(features) - projection(torch.zeros_like(features))).float().split(place.d_head)
    for head, weights in enumerate(slices):
        yield as_rows(states[:, head].to(weights.device, torch.float32) @ weights, f"head {head} of layer {layer}")


def _beyond_rounding(change: Tensor, written: Tensor) -> Tensor:
    """What is left of a head when its mean is taken off; zeros where that is rounding, as a head's that never changes."""
    rounding = ROUNDINGS * torch.finfo(written.dtype).eps
    # By size, not by length: the squares of what is tiny are lost.
    return change if change.abs().max() > rounding * written.abs().max() else torch.zeros_like(change)


def _score(train: Tensor, held: Tensor, unit: Tensor, k: int) -> tuple[float, list[int]]:
    """The share of what was held out in the span of the k words that the other examples choose, and these words."""
    usable = torch.ones(len(unit), dtype=torch.bool, device=unit.device)
    found = pursue_jointly(train, unit, usable, k)
    return explained_by(held, found.basis[0]), [place for place in found.ids[0].tolist() if place >= 0]


def _held_out(rows: Tensor, test_size: float, seed: int) -> Tensor:
    """Which examples score: Bool `[example]`, all of a row or none."""
    numbers = rows.unique()
    if len(numbers) < 2:
        raise InputError(f"{len(numbers)} rows of data: expected two or more, to choose words on some and score others")
    if isinstance(test_size, bool) or not isinstance(test_size, int | float) or not 0 < test_size < 1:
        raise InputError(f"test_size={shown(test_size)}: expected a share between 0 and 1")
    order = torch.randperm(len(numbers), generator=torch.Generator().manual_seed(seed))
    count = min(len(numbers) - 1, max(1, round(test_size * len(numbers))))
    return torch.isin(rows, numbers[order[:count]])


def _random_lists(vlm: VLM, usable: Tensor, tokens: Sequence[int], lists: int, seed: int) -> list[Tensor]:
    """Lists of as many tokens as the concept has, of trained tokens that are neither special nor among its words."""
    for token in tokens:
        if not usable[token]:
            raise InputError(f"token {token} ({word_of(vlm, token)!r}) has a row of zeros in the head: leave it out")
    pool = usable.clone()
    special = [] if vlm.tokenizer is None else vlm.tokenizer.all_special_ids
    pool[[token for token in (*special, *tokens) if token < len(pool)]] = False
    others = pool.nonzero()[:, 0]
    if len(others) < len(tokens):
        raise InputError(f"{len(others)} tokens beside {len(tokens)} words: expected as many, give fewer words")
    generator = torch.Generator().manual_seed(seed)
    return [others[torch.randperm(len(others), generator=generator)[: len(tokens)]] for _ in range(lists)]
