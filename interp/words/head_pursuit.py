"""Head pursuit: which attention heads write in the words of a concept.

A head adds to the stream its `z` through its own slice of the output projection: over examples, a matrix H `[example,
width]`. If the head writes colours, H lies near the span of a few colour words' unembedding rows. So H is decomposed over
the rows of the concept's words alone, by simultaneous pursuit: one support of k words for all examples. The score is the
share of H's squared Frobenius norm in the span of these k words.

The words are chosen on some rows of the data and scored on the others. k directions explain something of any matrix, so
each head is also scored with lists of as many words that match the concept's in norm, coherence and, where it is known,
frequency (`interp.words.word_lists`): `null` is the mean of these scores, `p` how often they are as good, and `p_family` how
often the best of *all* heads is as good, each head measured by the spread of its own null. Heads are ranked by what the
concept's words explain beyond the null.

So p says that a head writes in these words more than in other words as long and as alike. Heads share the lists, so their p
go together: a concept that a model writes often has a small p in many heads. In the toy digits do, in 13 of 32 on questions for a
colour. These heads do write the digit that is asked for: read with the ten digits alone, what they write names it in 16 to
61 % of rows, where chance is 10 %.

A score says what a head writes, not what it is for. `HeadResult.scaling` gives interventions that reverse these heads or
make them stronger. `control` names as many other heads, so that the effect can be compared with that of any heads.

Where a norm follows the output projection, H is the head's input to that norm.

Source: Head Pursuit, Basile et al. 2025. The paper does not say whether to centre; here it is a choice.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from interp.activations import Activations
from interp.arguments import as_int, as_ints, checked_flag, checked_int, checked_number, checked_seed, checked_share
from interp.errors import InputError, InputTypeError, shown
from interp.interventions import Scale
from interp.models import VLM
from interp.models.batches.targets import word_id, word_of
from interp.models.running.places import proved_place
from interp.models.running.structure import Heads, resolve
from interp.progress import progress_bar
from interp.results import Result
from interp.statistics.corrections import family_p
from interp.statistics.permutation import permutation_p
from interp.words.decomposition import (
    ROUNDINGS,
    Directions,
    as_rows,
    dictionary_of,
    directions,
    explained_by,
    near_one,
    pursue_jointly,
)
from interp.words.word_lists import WordLists, matched_lists


@dataclass(frozen=True)
class HeadResult(Result):
    """How much of what each head writes lies in a concept's words.

    `scores`, `null` and `p` are `[layer, head]`: the explained share on rows that chose no word, its mean with `lists` matched
    lists of as many words, and the share of lists (the concept included) that score as well. `p_family` is the share in which
    any head scores as well, corrected for all heads. They are NaN for heads that a layer lacks, and for a head that writes
    nothing on those rows (once centred, with `center`); these are not ranked. p is NaN where no list matches the concept.
    `layers` are the numbers of the layers, `words[layer][head]` the words in the order in which the pursuit took them.
    """

    scores: Float[Tensor, "layer head"]
    null: Float[Tensor, "layer head"]
    p: Float[Tensor, "layer head"]
    layers: tuple[int, ...]
    words: tuple[tuple[tuple[str, ...], ...], ...]
    concept: tuple[str, ...]
    p_family: Float[Tensor, "layer head"] | None = None
    lists: int = 0

    def __post_init__(self) -> None:
        if not self.scores.shape == self.null.shape == self.p.shape or len(self.scores) != len(self.layers):
            raise InputError(
                f"scores of shape {tuple(self.scores.shape)} do not fit null {tuple(self.null.shape)}, p "
                f"{tuple(self.p.shape)} and {len(self.layers)} layers: expected [layer, head] each"
            )

    @property
    def margin(self) -> Float[Tensor, "layer head"]:
        """What the concept's words explain beyond random ones. Heads are ranked by it."""
        return self.scores - self.null

    def top(self, n: int) -> list[tuple[int, int]]:
        """The n heads with the largest margin, best first, each as (layer, head)."""
        return self._ranked()[: self._count(n)]

    def control(self, n: int, seed: int = 0) -> list[tuple[int, int]]:
        """n random heads that are not among the top n, to compare the effect of the top n with."""
        others = self._ranked()[self._count(n) :]
        if len(others) < n:
            raise InputError(
                f"n={n!r}: there are {len(others)} heads beside the top {n}, expected as many: ask for fewer"
            )
        order = torch.randperm(len(others), generator=torch.Generator().manual_seed(checked_seed(seed)))
        return [others[index] for index in order[:n].tolist()]

    def scaling(self, factor: float, n: int, positions: Any = "all") -> list[Scale]:
        """The interventions that scale the output of the top n heads at these positions."""
        return scale_heads(self.top(n), factor, positions)

    def _count(self, n: Any) -> int:
        return checked_int(n, "n", 1, int((~self.scores.isnan()).sum()), "a number of heads")

    def _ranked(self) -> list[tuple[int, int]]:
        width = self.scores.shape[1]
        margins = self.margin.flatten()
        order = margins.nan_to_num(nan=-torch.inf).argsort(descending=True, stable=True).tolist()
        return [(self.layers[at // width], at % width) for at in order if not margins[at].isnan()]

    def to_frame(self) -> pd.DataFrame:
        """One row a head, best first: layer, head, score, null, p, p_family, and its words."""
        rows = []
        family = torch.full_like(self.p, torch.nan) if self.p_family is None else self.p_family
        for layer, head in self._ranked():
            at = self.layers.index(layer)
            numbers = (float(each[at, head]) for each in (self.scores, self.null, self.p, family))
            rows.append((layer, head, *numbers, " ".join(self.words[at][head])))
        return pd.DataFrame(rows, columns=["layer", "head", "score", "null", "p", "p_family", "words"])


def scale_heads(heads: Sequence[tuple[int, int]], factor: float, positions: Any = "all") -> list[Scale]:
    """The interventions that scale the output of these heads, each (layer, head): one intervention a layer.

    >>> [(change.layers, change.heads) for change in scale_heads([(5, 1), (2, 0), (5, 3)], factor=-1)]
    [(2, (0,)), (5, (1, 3))]

    Raises `InputError` for a factor that is not a finite number, and for heads that are not pairs of ints.
    """
    checked_number(factor, "factor")  # an intervention checks it only when it is used
    of_layer: dict[int, list[int]] = defaultdict(list)
    for head in heads:
        pair = as_ints(head) or []
        if len(pair) != 2:
            raise InputError(f"{shown(head)} among the heads: expected pairs of ints, (layer, head)")
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
    frequencies: Any = None,
    *,
    progress: bool = True,
) -> HeadResult:
    """Score every captured head by how much of what it writes lies in `k` of these `words` (tokens, by word or id).

    >>> import interp
    >>> vlm = interp.load("toy")
    >>> scenes = interp.toy.scenes(12, seed=0)
    >>> rows = [(scene.image, f"<image> what colour is the {scene.objects[0].digit} ?") for scene in scenes]
    >>> acts = interp.capture(vlm, rows, sites=("z",), positions="last", progress=False)
    >>> colours = ["red", "green", "blue", "yellow", "magenta", "cyan"]
    >>> head_pursuit(vlm, acts, colours, k=3, lists=5).scores.shape
    torch.Size([8, 4])

    A word is looked up behind a space, as in running text, and where that makes several tokens, without one; a word
    that begins with a space is taken as it is. `acts` are Activations that hold site "z", of any positions. Rows of the
    data are split with `seed`: `test_size` of them score, the others choose words. With `center` the mean over the
    choosing rows is subtracted from what a head writes, so that a head which always writes the same scores by what it
    changes. The null is made of `lists` other lists of as many tokens, none of them special, that match the words in norm and
    coherence (`interp.words.word_lists`; `lists` of the result says how many there are, `provenance.notes` how near they
    come). `frequencies` `[vocabulary]` are counts of the tokens, of which only the order matters, to be matched too; without
    them the number of a token is taken where its tokenizer was learned by byte pairs, which finds frequent tokens first.

    A long run shows its progress on a terminal or in a notebook; ``progress=False`` hides it.

    Raises `InputError` where site z was not captured or has other heads than the model; for no words or fewer than `k`, a
    repeated word, fewer than two rows of data, and a vocabulary too small for lists; for frequencies that are not one number a
    token; for a seed that is not an int from 0; and for a `center` that is not True or False. Raises `InputTypeError` where
    `acts` are not activations.
    """
    if not isinstance(acts, Activations):
        raise InputTypeError(f"acts is a {type(acts).__name__}: expected what interp.capture(sites=('z',)) gives")
    if "z" not in acts:
        raise InputError(f"site 'z' was not captured: only {', '.join(acts)}, capture with sites=('z',)")
    checked_flag(center, "center")
    tokens = [word_id(vlm, word) for word in (words if _are_several(words) else [words])]
    if not tokens:
        raise InputError(f"words={shown(words)} is empty: expected the words of a concept")
    k = checked_int(k, "k", 1, len(tokens), "a number of words")
    if len(set(tokens)) < len(tokens):
        raise InputError(f"words={shown(words)} names a token more than once: name each once")
    lists, seed = checked_int(lists, "lists", least=1), checked_seed(seed)
    rows = dictionary_of(vlm, "head").rows
    head = directions(rows)
    pool = _trained(vlm, head.usable, tokens)
    drawn = matched_lists(
        near_one(rows)[0],
        torch.tensor(tokens, device=rows.device),
        pool,
        lists,
        seed,
        _frequencies(vlm, frequencies, rows),
    )
    choices = [torch.tensor(tokens), *drawn.ids]
    test = _test_examples(acts.places("z").rows, test_size, seed)

    layers = tuple(acts.layers["z"])
    shares = torch.full(
        (len(choices), len(layers), max(proved_place(vlm, layer, "z").number for layer in layers)),
        torch.nan,
        dtype=torch.float32,
    )
    words_of_layers: list[tuple[tuple[str, ...], ...]] = []
    with progress_bar("head pursuit", len(layers), "layers", progress) as bar:
        for at, layer in enumerate(layers):
            words_of_heads = []
            for number, written in enumerate(_contributions(vlm, layer, acts["z"][at])):
                sides = _sides(written, test, center)
                of_choices, places = zip(
                    *(_score(sides, _rows_of(head.unit, choice), k) for choice in choices), strict=True
                )
                shares[:, at, number] = torch.tensor(of_choices, dtype=torch.float32)
                words_of_heads.append(tuple(word_of(vlm, tokens[place]) for place in places[0]))
            words_of_layers.append(tuple(words_of_heads))
            bar.advance()
    scores, random = shares[0], shares[1:]
    return HeadResult(
        scores=scores,
        null=random.mean(dim=0),
        p=_tested(permutation_p((random >= scores).sum(dim=0).float(), len(random)), scores, drawn.matched),
        layers=layers,
        words=tuple(words_of_layers),
        concept=tuple(word_of(vlm, token) for token in tokens),
        p_family=_tested(family_p(scores, random), scores, drawn.matched),
        lists=len(random),
        provenance=replace(
            acts.provenance, seed=seed, notes=(*acts.provenance.notes, _note_of(drawn, rows.norm(dim=1), tokens, lists))
        ),
    )


def _tested(p: Tensor, scores: Tensor, matched: bool) -> Tensor:
    """p where there is a score, and lists to compare it with."""
    return p.to(scores).masked_fill(scores.isnan() | (not matched), torch.nan)


def _note_of(drawn: WordLists, norms: Tensor, tokens: Sequence[int], lists: int) -> str:
    """How near the lists come to the concept."""
    norm, own = float(norms[drawn.ids].mean()), float(norms[list(tokens)].mean())
    cosine = float(drawn.coherence.mean())
    near = f"mean cosine {cosine:.2g} (the concept's is {drawn.target:.2g}), mean norm {norm:.3g} ({own:.3g})"
    if not drawn.matched:
        return f"no list of other words is as coherent as these words, so there is no p: the null is of the nearest, {near}"
    return (
        f"the null is of {len(drawn.ids)} lists of other words{' (no more match)' * (len(drawn.ids) < lists)}: {near}"
    )


class Sides(NamedTuple):
    """What a head writes, `[example, width]`, on the examples that choose words and on those that score."""

    choosing: Tensor
    scoring: Tensor


def _are_several(words: Any) -> bool:
    """Whether these are several words, not one."""
    return isinstance(words, Iterable) and not isinstance(words, str) and as_int(words) is None


def _contributions(vlm: VLM, layer: int, z: Any) -> Iterator[Tensor]:
    """What each head of a layer writes through the output projection, `[example, width]`; z is `[example, head, d_head]`."""
    place: Heads = proved_place(vlm, layer, "z")
    states = torch.as_tensor(z)
    if tuple(states.shape[1:]) != (place.number, place.d_head):
        raise InputError(
            f"z of layer {layer} has shape {tuple(states.shape[1:])}, {vlm.name!r} has {place.number} heads of width "
            f"{place.d_head}: expected activations of this model"
        )
    projection = resolve(vlm.model, f"{vlm.structure.layers}.{layer}.{place.module}")
    # The module itself is called with one feature at a time, since it may store its weights in any form.
    features = torch.eye(place.number * place.d_head, dtype=vlm.dtype, device=vlm.device)
    with torch.no_grad():
        rows = (projection(features) - projection(torch.zeros_like(features))).float()
    for head, weights in enumerate(rearrange(rows, "(head d_head) width -> head d_head width", d_head=place.d_head)):
        yield as_rows(states[:, head].to(weights.device, torch.float32) @ weights, f"head {head} of layer {layer}")


def _sides(written: Tensor, test: Tensor, center: bool) -> Sides:
    """What a head writes on each side of the split; with `center`, less its mean over the choosing examples."""
    written, _ = near_one(written)  # squares of tiny numbers would vanish
    mean = written[~test].mean(dim=0) if center else 0.0
    rounding = ROUNDINGS * torch.finfo(written.dtype).eps * written.abs().max()
    changes = (written[side] - mean for side in (~test, test))
    # What is left of a head that never changes is rounding: zeros. By size, not by length: squares would vanish.
    return Sides(*(change if change.abs().max() > rounding else torch.zeros_like(change) for change in changes))


def _rows_of(unit: Tensor, tokens: Tensor) -> Directions:
    """The directions of these tokens, all of them usable."""
    rows = unit[tokens.to(unit.device)]
    return Directions(rows, torch.ones(len(rows), dtype=torch.bool, device=unit.device))


def _score(sides: Sides, words: Directions, k: int) -> tuple[float, list[int]]:
    """The share of the scoring examples in the span of the k words that the others choose, and the places of these words."""
    fit = pursue_jointly(sides.choosing, words, k)
    return explained_by(sides.scoring, fit.basis[0]), [place for place in fit.ids[0].tolist() if place >= 0]


def _test_examples(rows: Tensor, test_size: float, seed: int) -> Tensor:
    """Which examples score: Bool `[example]`, all examples of a row or none."""
    numbers = rows.unique()
    if len(numbers) < 2:
        raise InputError(f"{len(numbers)} rows of data: expected two or more, some to choose words and others to score")
    count = min(len(numbers) - 1, max(1, round(checked_share(test_size, "test_size") * len(numbers))))
    order = torch.randperm(len(numbers), generator=torch.Generator().manual_seed(seed))
    return torch.isin(rows, numbers[order[:count]])


def _trained(vlm: VLM, usable: Tensor, tokens: Sequence[int]) -> Tensor:
    """The tokens that lists are drawn from: those of the concept, and all others that are trained and not special."""
    for token in tokens:
        if not usable[token]:
            raise InputError(f"token {token} ({word_of(vlm, token)!r}) has a row of zeros in the head: leave it out")
    pool = usable.clone()
    special = [] if vlm.tokenizer is None else vlm.tokenizer.all_special_ids
    pool[[token for token in special if token < len(pool) and token not in tokens]] = False
    return pool


def _frequencies(vlm: VLM, frequencies: Any, rows: Tensor) -> Tensor | None:
    """One number a token whose order is that of frequency, None where it is unknown."""
    if frequencies is None:
        learned = getattr(getattr(vlm.tokenizer, "backend_tokenizer", None), "model", None)
        return -torch.arange(len(rows), device=rows.device).float() if type(learned).__name__ == "BPE" else None
    if np.shape(frequencies) != (len(rows),):
        raise InputError(f"frequencies={shown(frequencies)}: expected {len(rows)} numbers, one a token")
    return as_rows(torch.as_tensor(frequencies)[None], "frequencies")[0].to(rows)
