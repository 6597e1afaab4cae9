"""The projector: what it keeps of what the tower saw, and how near to words it brings it.

A projector takes the patches of an image tower into the space of word embeddings. Of a set of patches, before and after:

*Compression.* The eigenvalues of the covariance as shares p say over how many directions patches spread:
``-sum p log p`` (spectral entropy, in nats) and ``1 / sum p^2`` (participation ratio). Neither the exponential of the one
nor the other exceeds the width or the number of patches less one, so the two sides have the same patches; and a *random
map* to the same width says what the change of width alone does.

*Neighbours kept.* Of the k nearest patches before (Euclidean), the share that is still among the k nearest after.
Chance is ``k / (patches - 1)``.

*Merging.* Where m patches become one token (`interp.words.merging`), compression before is that of the patches and after
that of the tokens, which are fewer: beware of bounds. Neighbours are those of the means of m patches, and the random map
is given all m at once, as the projector is.

*Alignment.* Given which patches show an object and which words name it: the cosine of the mean of its projected patches
with each word's embedding, the mean over objects and words. All patches and all embeddings may lie to one side, so it is
read against the same number with the words of the objects exchanged.

*Words.* The embeddings nearest to each projected patch, by cosine.

Jiang et al. 2025 (arXiv 2505.17316) measure compression and patch alignment of projectors. These are this toolkit's own
definitions of such measures, not theirs: numbers are to be compared with each other, not with that paper's.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.arguments import as_int, checked_seed
from interp.data.batches import batches_of
from interp.errors import InputError, InputTypeError, LayoutError, shown
from interp.geometry import eigenvalues, neighbor_overlap
from interp.models.batches.batch import Batch
from interp.models.batches.targets import target_id
from interp.models.layout.patches import patches_of
from interp.models.running.structure import resolve
from interp.models.running.trace import run_for_visits
from interp.provenance import Provenance, fingerprint
from interp.results import Result
from interp.words.decomposition import as_rows, dictionary_of
from interp.words.merging import merged_in_order

if TYPE_CHECKING:
    from interp.models import VLM

CLOUDS = ("before", "after", "random map")


@dataclass(frozen=True)
class Alignment:
    """The mean cosine of objects with their words, its mean over exchanged words, and the share of exchanges (this one
    counted) that do as well."""

    value: float
    null: float
    p: float


@dataclass(frozen=True)
class ProjectorResult(Result):
    """What a projector does to patches.

    `entropy` (nats), `participation` and `kept` `[cloud]` belong to the patches before, after, and after a random linear
    map to the same width; `kept` is 1 before. `kept_chance` is that of strangers. `word_ids`, `word_cosines`
    `[patch, k]` are the words nearest to each projected patch, `rows` says whose each is. `alignment` is None where no
    objects were named. Where the projector makes one token of `merged` patches, all but the first of `entropy` and of
    `participation` is of tokens.
    """

    entropy: Float[Tensor, " cloud"]
    participation: Float[Tensor, " cloud"]
    kept: Float[Tensor, " cloud"]
    kept_chance: float
    alignment: float | None
    alignment_null: float | None
    alignment_p: float | None
    word_ids: Int[Tensor, "patch k"]
    word_cosines: Float[Tensor, "patch k"]
    rows: Int[Tensor, " patch"]
    vocabulary: dict[str, str]
    merged: int = 1

    def words(self, patch: int) -> list[str]:
        """The words nearest to one projected patch, nearest first."""
        return [self.vocabulary[str(word)] for word in self.word_ids[patch].tolist()]

    def to_frame(self) -> pd.DataFrame:
        """One row a number: measure, its value, its control, and what the control is."""
        rows: list[tuple[str, float, float, str]] = []
        for name in ("entropy", "participation"):
            before, after, random = getattr(self, name).tolist()
            rows += [(f"{name} before", before, float("nan"), ""), (f"{name} after", after, random, "random map")]
        rows.append(("neighbours kept", float(self.kept[1]), self.kept_chance, "chance"))
        rows.append(("neighbours kept", float(self.kept[1]), float(self.kept[2]), "random map"))
        if self.alignment is not None and self.alignment_null is not None:
            rows.append(("alignment", self.alignment, self.alignment_null, "exchanged words"))
        return pd.DataFrame(rows, columns=["measure", "value", "control", "control_is"])


# Of arrays ---------------------------------------------------------------------------------------------------------------


def spread_of(patches: Any) -> tuple[float, float]:
    """Spectral entropy in nats and participation ratio of patches `[patch, width]`, of the eigenvalues of their covariance.

    Raises `InputError` for fewer than two patches and where all are the same.

    >>> entropy, ratio = spread_of([[1.0, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0]])
    >>> round(entropy, 3), round(ratio, 3)
    (0.693, 2.0)
    """
    values = as_rows(patches, "patches").double()
    if len(values) < 2 or bool((values == values[0]).all()):
        raise InputError(f"patches of shape {tuple(values.shape)} are all the same: expected two or more that differ")
    found = torch.as_tensor(eigenvalues(values))
    shares = found / found.sum()
    return float(torch.special.entr(shares).sum()), float(1 / shares.square().sum())


def neighbours_kept(before: Any, after: Any, k: int = 10) -> float:
    """Of each patch's k nearest before, the share that is among its k nearest after; both `[patch, width]`, Euclidean.

    It is `interp.geometry.neighbor_overlap`, ties included.

    Raises `InputError` for another number of patches, and where `k` is not between 1 and one less than there are.
    """
    first, second = as_rows(before, "before"), as_rows(after, "after")
    if len(first) != len(second):
        raise InputError(f"{len(first)} patches before and {len(second)} after: expected the same ones")
    count = as_int(k)
    if count is None or not 1 <= count < len(first):
        raise InputError(f"k={shown(k)}: expected 1 to {len(first) - 1}, one less than there are patches")
    return neighbor_overlap(first.double(), second.double(), k=count)


def word_alignment(objects: Any, words: Any, rows: Any, shuffles: int = 200, seed: int = 0) -> Alignment:
    """The mean cosine of `objects` `[object, width]` (each the mean of its patches) with the `rows` `[word, width]` that
    its list of ints in `words` names, against lists exchanged among objects, drawn with `seed`.

    Raises `InputError` where lists are not one an object, one is empty or names no row, or widths differ, for shuffles below 1
    and for a seed that is no int from 0 on; `InputTypeError` for words that are no lists.
    """
    these, table = as_rows(objects, "objects"), as_rows(rows, "rows")
    if not isinstance(words, Iterable):
        raise InputTypeError(
            f"words={shown(words)}: expected a list for each object, of ints that name rows of the table"
        )
    words = [list(named) if isinstance(named, Iterable) else [] for named in words]
    if len(words) != len(these) or not all(words):
        raise InputError(f"{len(words)} lists of words for {len(these)} objects: expected one word or more for each")
    if these.shape[1] != table.shape[1]:
        raise InputError(f"objects of width {these.shape[1]} and words of width {table.shape[1]}: expected the same")
    for word in (word for named in words for word in named):
        if as_int(word) is None or not 0 <= word < len(table):
            raise InputError(f"word {shown(word)}: expected a row of the table, 0 to {len(table) - 1}")
    _check_shuffles(shuffles)
    seed = checked_seed(seed)
    cosines = _unit(these.double()) @ _unit(table.double()).T
    # Each list as weights over the words, which sum to 1.
    lists = cosines.new_zeros(len(words), len(table))
    for place, named in enumerate(words):
        own_words = {int(word) for word in named}
        lists[place, list(own_words)] = 1 / len(own_words)
    own = cosines @ lists.T
    generator = torch.Generator().manual_seed(seed)
    here = torch.arange(len(own))
    drawn = torch.stack([own[here, torch.randperm(len(own), generator=generator)].mean() for _ in range(shuffles)])
    value = own.diagonal().mean()
    p = (int((drawn >= value - 1e-12).sum()) + 1) / (shuffles + 1)
    return Alignment(float(value), float(drawn.mean()), p)


def _check_shuffles(shuffles: Any) -> None:
    if (as_int(shuffles) or 0) < 1:
        raise InputError(f"shuffles={shown(shuffles)}: expected an int, 1 or more")


def _unit(values: Tensor) -> Tensor:
    return values / values.norm(dim=1, keepdim=True).clamp(min=torch.finfo(values.dtype).tiny)


# Of a model --------------------------------------------------------------------------------------------------------------


def projected(vlm: VLM, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """What the projector makes of a batch: the patches of each token, Float `[token, merged, width]`, the tokens, Float
    `[token, width]`, and whose each is, Int `[token]`. A projector that does not merge makes a token of one patch.

    Raises `InputError` for a batch without images, `LayoutError` where the model has no projector of its own, where that
    runs more than once, and where it could not be proved which patches become which token.
    """
    patches = patches_of(vlm, batch, "projector")
    envoy = resolve(vlm.nnsight, vlm.structure.projector or "")
    visits = run_for_visits(vlm, batch.inputs, [envoy]).get(envoy.path, [])
    if len(visits) != 1 or visits[0].input is None or visits[0].output is None:
        raise LayoutError(
            f"the projector of {vlm.name!r} ran {len(visits)} times or gave no tensor: pass rows one at a time"
        )
    given, gave = (side.flatten(0, -2) for side in (visits[0].input, visits[0].output))
    known = len(given) == len(gave) or merged_in_order(vlm, batch, visits[0].input, len(gave))
    if not known or len(gave) <= int(patches.index.max()):
        raise LayoutError(
            f"the projector of {vlm.name!r} makes {len(gave)} tokens of {len(given)} patches and it could not be proved of which "
            "each: compare arrays of your own with spread_of and word_alignment"
        )
    made_of = given.unflatten(0, (len(gave), -1))
    return made_of[patches.index].float().cpu(), gave[patches.index].float().cpu(), patches.rows


def projector_report(
    vlm: VLM,
    data: Any,
    objects: Sequence[Sequence[tuple[Any, Any]]] | None = None,
    top_k: int = 5,
    k: int = 10,
    shuffles: int = 200,
    seed: int = 0,
    batch_size: int = 8,
) -> ProjectorResult:
    """Measure the projector on all patches of `data`: any data, prepared `batch_size` rows at a time unless it is batches.

    `objects` has a list for each row, of pairs: which of the row's patches show an object (Bool, one a patch, one a token
    where patches are merged) and the words that name it, each one token. `k` is the number of neighbours, `top_k` that of
    nearest words.

    Raises what `projected` and `interp.data.batches.batches_of` raise, and `InputError` for data without an image, where
    objects are not one list of pairs a row, a mask has another number of patches or none, fewer than k + 1 patches are
    there, `top_k` or `shuffles` is out of range, and for a seed that is no int from 0 on.

    >>> import interp
    >>> vlm, found = interp.load("toy"), interp.toy.scenes(4, seed=0)
    >>> seen = [[(scene.patch_labels == i, [each.colour]) for i, each in enumerate(scene.objects)] for scene in found]
    >>> projector_report(vlm, found, seen).word_ids.shape
    torch.Size([144, 5])
    """
    seed = checked_seed(seed)
    dictionary = dictionary_of(vlm, "embed")
    table = dictionary.rows.float().cpu()
    if as_int(top_k) is None or not 1 <= top_k <= len(table):
        raise InputError(f"top_k={shown(top_k)}: expected 1 to {len(table)}, the size of the vocabulary")
    _check_shuffles(shuffles)
    batches = batches_of(vlm, data, batch_size)
    made_of, after, rows = _all_projected(vlm, batches)
    named = None if objects is None else _objects(vlm, objects, after, rows, sum(map(len, batches)))
    before, pooled, at_once = made_of.flatten(0, 1), made_of.mean(dim=1), made_of.flatten(1)
    generator = torch.Generator().manual_seed(seed)
    random = at_once @ torch.randn(at_once.shape[1], after.shape[1], generator=generator) / at_once.shape[1] ** 0.5
    entropy, participation = zip(*map(spread_of, (before, after, random)), strict=True)
    kept = [1.0, neighbours_kept(pooled, after, k), neighbours_kept(pooled, random, k)]
    nearest = (_unit(after) @ _unit(table).T).topk(top_k, dim=1)
    aligned = None if named is None else word_alignment(*named, table, shuffles, seed)
    return ProjectorResult(
        entropy=torch.tensor(entropy),
        participation=torch.tensor(participation),
        kept=torch.tensor(kept),
        kept_chance=k / (len(after) - 1),
        alignment=None if aligned is None else aligned.value,
        alignment_null=None if aligned is None else aligned.null,
        alignment_p=None if aligned is None else aligned.p,
        word_ids=nearest.indices,
        word_cosines=nearest.values,
        rows=rows,
        vocabulary={str(word): dictionary.words[word] for word in nearest.indices.unique().tolist()},
        merged=made_of.shape[1],
        provenance=Provenance(model=vlm.name, revision=vlm.revision, data=fingerprint(*batches), seed=seed),
    )


def _all_projected(vlm: VLM, batches: Sequence[Batch]) -> tuple[Tensor, Tensor, Tensor]:
    """What `projected` gives of all batches together, rows counted through; batches of text alone have none."""
    if not any(batch.has_images for batch in batches):
        raise InputError(
            f"the data, {sum(map(len, batches))} rows, has no image: expected images, that is what is projected"
        )
    parts, done = [], 0
    for batch in batches:
        if batch.has_images:
            made_of, gave, whose = projected(vlm, batch)
            parts.append((made_of, gave, whose + done))
        done += len(batch)
    made_of, after, rows = (torch.cat(each) for each in zip(*parts, strict=True))
    return made_of, after, rows


def _objects(vlm: VLM, objects: Any, patches: Tensor, rows: Tensor, count: int) -> tuple[Tensor, list[list[int]]]:
    """The mean of each object's patches `[object, width]`, and the token ids that name it."""
    if not isinstance(objects, Sequence) or isinstance(objects, str):
        raise InputTypeError(f"objects={shown(objects)}: expected a list for each row, of pairs of a mask and words")
    if len(objects) != count:
        raise InputError(f"objects of {len(objects)} rows for {count} rows of data: expected one list a row")
    shapes, words = [], []
    for row, named in enumerate(objects):
        own = patches[rows == row]
        for pair in named if isinstance(named, Iterable) else [named]:
            chosen, these = _pair(pair, row)
            if chosen.dtype != torch.bool or len(chosen) != len(own) or not chosen.any():
                raise InputError(
                    f"an object of row {row} has a mask of {len(chosen)} and {int(chosen.count_nonzero())} in it, of "
                    f"{chosen.dtype}: expected a Bool for each of {len(own)} patches, one True or more"
                )
            shapes.append(own[chosen].mean(dim=0))
            if not these:
                raise InputError(f"an object of row {row} has no word: expected one or more that name it")
            words.append([target_id(vlm, word) for word in these])
    if not shapes:
        raise InputError("objects names none: expected pairs of a mask and words, or objects=None")
    return torch.stack(shapes), words


def _pair(given: Any, row: int) -> tuple[Tensor, list[Any]]:
    """The mask and the words of an object of a row. Raises `InputTypeError` for what is no pair of these."""
    try:
        mask, words = given
        named = [words] if isinstance(words, str | int) else list(words)
        return torch.as_tensor(mask).flatten(), named
    except (TypeError, ValueError, RuntimeError):
        raise InputTypeError(
            f"an object of row {row} is {shown(given)}: expected a pair, a Bool mask of its patches and the words for it"
        ) from None
