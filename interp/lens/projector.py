"""The projector: what it keeps of what the tower saw, and how near to words it brings it.

A projector takes the patches of an image tower into the space of word embeddings. Of a set of patches, before and after:

*Compression.* The eigenvalues of the covariance as shares p say over how many directions patches spread:
``-sum p log p`` (spectral entropy, in nats) and ``1 / sum p^2`` (participation ratio). They do not exceed the width, nor
the number of patches less one, so the two sides have the same patches; and a *random map* to the same width says what
the change of width alone does.

*Neighbours kept.* Of the k nearest patches before (Euclidean), the share that is still among the k nearest after.
Chance is ``k / (patches - 1)``.

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

from interp.errors import InputError, InputTypeError, LayoutError
from interp.lens.decomposition import as_rows, dictionary_of
from interp.models.batch import Batch, fingerprint
from interp.models.encodings import shown
from interp.models.forward import run_watched
from interp.models.positions import as_int
from interp.models.structure import resolve
from interp.models.tokens import target_id
from interp.models.tower import patches_of
from interp.results import Provenance, Result

if TYPE_CHECKING:
    from interp.models import VLM

# Distances are made between this many pairs at a time.
_PAIRS_AT_ONCE = 2**24
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
    objects were named.
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
    squares = torch.linalg.svdvals(values - values.mean(dim=0)).square()
    total = squares.sum()
    if len(values) < 2 or total <= 1e-20 * values.square().sum():
        raise InputError(f"patches of shape {tuple(values.shape)} are all the same: expected two or more that differ")
    shares = squares / total
    return float(torch.special.entr(shares).sum()), float(1 / shares.square().sum())


def neighbours_kept(before: Any, after: Any, k: int = 10) -> float:
    """Of each patch's k nearest before, the share that is among its k nearest after; both `[patch, width]`, Euclidean.

    Raises `InputError` for another number of patches, and where `k` is not between 1 and one less than there are.
    """
    first, second = as_rows(before, "before"), as_rows(after, "after")
    if len(first) != len(second):
        raise InputError(f"{len(first)} patches before and {len(second)} after: expected the same ones")
    count = as_int(k)
    if count is None or not 1 <= count < len(first):
        raise InputError(f"k={shown(k)}: expected 1 to {len(first) - 1}, one less than there are patches")
    near, still = (_nearest(values.double(), count) for values in (first, second))
    return float((near[:, :, None] == still[:, None, :]).any(dim=2).double().mean())


def _nearest(values: Tensor, k: int) -> Tensor:
    """The k nearest others of each: Int `[patch, k]`."""
    found = []
    at_once = max(1, _PAIRS_AT_ONCE // len(values))
    for start in range(0, len(values), at_once):
        distances = torch.cdist(values[start : start + at_once], values)
        own = torch.arange(start, start + len(distances), device=values.device)
        distances[own - start, own] = torch.inf
        found.append(distances.topk(k, dim=1, largest=False).indices)
    return torch.cat(found)


def word_alignment(objects: Any, words: Any, rows: Any, shuffles: int = 200, seed: int = 0) -> Alignment:
    """The mean cosine of `objects` `[object, width]` (each the mean of its patches) with the `rows` `[word, width]` that
    its list of ints in `words` names, against lists exchanged among objects, drawn with `seed`.

    Raises `InputError` where lists are not one an object, one is empty, or widths differ.
    """
    these, table = as_rows(objects, "objects"), as_rows(rows, "rows")
    words = [list(named) if isinstance(named, Iterable) else [] for named in words]
    if len(words) != len(these) or not all(words):
        raise InputError(f"{len(words)} lists of words for {len(these)} objects: expected one word or more for each")
    if these.shape[1] != table.shape[1]:
        raise InputError(f"objects of width {these.shape[1]} and words of width {table.shape[1]}: expected the same")
    for word in (word for named in words for word in named):
        if as_int(word) is None or not 0 <= word < len(table):
            raise InputError(f"word {shown(word)}: expected a row of the table, 0 to {len(table) - 1}")
    if as_int(shuffles) is None or shuffles < 1:
        raise InputError(f"shuffles={shown(shuffles)}: expected 1 or more")
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


def _unit(values: Tensor) -> Tensor:
    return values / values.norm(dim=1, keepdim=True).clamp(min=torch.finfo(values.dtype).tiny)


# Of a model --------------------------------------------------------------------------------------------------------------


def projected(vlm: VLM, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """The patches of a batch as its projector gets and gives them, Float `[patch, width]` each, and whose each is, Int
    `[patch]`.

    Raises `InputError` for a batch without images, `LayoutError` where the model has no projector of its own, where that
    runs more than once, and where it merges patches, so that before and after are not the same ones.
    """
    patches = patches_of(vlm, batch, "projector")
    envoy = resolve(vlm.nnsight, vlm.structure.projector or "")
    visits = run_watched(vlm, batch.inputs, [envoy]).get(envoy.path, [])
    if len(visits) != 1 or visits[0].given is None or visits[0].gave is None:
        raise LayoutError(
            f"the projector of {vlm.name!r} ran {len(visits)} times or gave no tensor: pass rows one at a time"
        )
    given, gave = (side.flatten(0, -2) for side in (visits[0].given, visits[0].gave))
    if len(given) != len(gave) or len(gave) <= int(patches.index.max()):
        raise LayoutError(
            f"the projector of {vlm.name!r} makes {len(gave)} tokens of {len(given)}: before and after are not the same "
            "patches, compare arrays of your own with spread_of and word_alignment"
        )
    return given[patches.index].float().cpu(), gave[patches.index].float().cpu(), patches.rows


def projector_report(
    vlm: VLM,
    data: Any,
    objects: Sequence[Sequence[tuple[Any, Any]]] | None = None,
    top_k: int = 5,
    k: int = 10,
    shuffles: int = 200,
    seed: int = 0,
) -> ProjectorResult:
    """Measure the projector on all patches of `data`, a batch or several.

    `objects` has a list for each row, of pairs: which of the row's patches show an object (Bool, one a patch) and the
    words that name it, each one token. `k` is the number of neighbours, `top_k` that of nearest words.

    Raises what `projected` raises, and `InputError` where objects are not one list a row, a mask has another number of
    patches or none, or fewer than k + 1 patches are there.

    >>> import interp
    >>> vlm, found = interp.load("toy"), interp.toy.scenes(4, seed=0)
    >>> batch = vlm.prepare(texts=["<image>"] * 4, images=[scene.image for scene in found])
    >>> seen = [[(scene.patch_labels == i, [each.colour]) for i, each in enumerate(scene.objects)] for scene in found]
    >>> projector_report(vlm, batch, seen).word_ids.shape
    torch.Size([144, 5])
    """
    batches = [data] if isinstance(data, Batch) else list(data)
    if not batches:
        raise InputError("data is empty: expected a batch with images, or several")
    if odd := [each for each in batches if not isinstance(each, Batch)]:
        raise InputTypeError(f"data has a {type(odd[0]).__name__}: expected batches with images, made by vlm.prepare")
    parts, done = [], 0
    for batch in batches:
        given, gave, whose = projected(vlm, batch)
        parts.append((given, gave, whose + done))
        done += len(batch)
    before, after, rows = (torch.cat(each) for each in zip(*parts, strict=True))
    dictionary = dictionary_of(vlm, "embed")
    table = dictionary.rows.float().cpu()
    if as_int(top_k) is None or not 1 <= top_k <= len(table):
        raise InputError(f"top_k={shown(top_k)}: expected 1 to {len(table)}, the size of the vocabulary")
    generator = torch.Generator().manual_seed(seed)
    random = before @ torch.randn(before.shape[1], after.shape[1], generator=generator) / before.shape[1] ** 0.5
    entropy, participation = zip(*map(spread_of, (before, after, random)), strict=True)
    kept = [1.0, neighbours_kept(before, after, k), neighbours_kept(before, random, k)]
    nearest = (_unit(after) @ _unit(table).T).topk(top_k, dim=1)
    aligned = None
    if objects is not None:
        shapes, words = _objects(vlm, objects, after, rows, done)
        aligned = word_alignment(shapes, words, table, shuffles, seed)
    return ProjectorResult(
        entropy=torch.tensor(entropy),
        participation=torch.tensor(participation),
        kept=torch.tensor(kept),
        kept_chance=k / (len(before) - 1),
        alignment=None if aligned is None else aligned.value,
        alignment_null=None if aligned is None else aligned.null,
        alignment_p=None if aligned is None else aligned.p,
        word_ids=nearest.indices,
        word_cosines=nearest.values,
        rows=rows,
        vocabulary={str(word): dictionary.words[word] for word in nearest.indices.unique().tolist()},
        provenance=Provenance(model=vlm.name, revision=vlm.revision, data=fingerprint(*batches), seed=seed),
    )


def _objects(
    vlm: VLM, objects: Sequence[Sequence[tuple[Any, Any]]], patches: Tensor, rows: Tensor, count: int
) -> tuple[Tensor, list[list[int]]]:
    """The mean of each object's patches `[object, width]`, and the token ids that name it."""
    if len(objects) != count:
        raise InputError(f"objects of {len(objects)} rows for {count} rows of data: expected one list a row")
    shapes, words = [], []
    for row, named in enumerate(objects):
        own = patches[rows == row]
        for mask, these in named:
            chosen = torch.as_tensor(mask).flatten()
            if chosen.dtype != torch.bool or len(chosen) != len(own) or not chosen.any():
                raise InputError(
                    f"an object of row {row} has a mask of {len(chosen)} and {int(chosen.sum())} in it: expected a Bool for "
                    f"each of {len(own)} patches, one True or more"
                )
            shapes.append(own[chosen].mean(dim=0))
            words.append([target_id(vlm, word) for word in ([these] if isinstance(these, str | int) else these)])
    if not shapes:
        raise InputError("objects names none: expected pairs of a mask and words, or objects=None")
    return torch.stack(shapes), words
