"""The projector: what it keeps of the image tower's states, and how near to words it brings them.

A projector takes the patches of an image tower into the space of word embeddings. Measures of a set of patches, before
and after:

*Compression.* The eigenvalues of the covariance, as shares p, say over how many directions patches spread:
``-sum p log p`` (spectral entropy, in nats) and ``1 / sum p^2`` (participation ratio). The exponential of the one and the
other are at most the width, and at most the number of patches less one. So both sides have the same patches, and a *random
map* to the same width shows what the change of width alone does.

*Neighbours kept.* Of the k nearest patches before (Euclidean), the share that is among the k nearest after.
Chance is ``k / (patches - 1)``.

*Alignment.* Given which patches show an object and which words name it: the cosine of the mean of its projected patches
with each word's embedding, the mean over objects and words. All patches and all embeddings may lie to one side, so compare
it with the same number after the words of the objects are exchanged.

*Words.* The embeddings nearest to each projected patch, by cosine.

*Merging.* Some projectors make one token of m patches. Then compression before is that of the patches and after that of
the tokens, which are fewer: beware of bounds. Neighbours are those of the means of m patches, and the random map takes all
m patches at once, as the projector does. Which patches a token is made of is a guess, m neighbours in order, that is proved
by effect (`merges_in_order`):

- *No other patch counts.* Tokens are numbered in binary. For each digit, the patches of all tokens with a 1 there are
  disturbed: only these tokens may move. Then those with a 0. Any two tokens differ in a digit, so a token that depends on a
  patch of another one moves in some trial in which it must not.
- *All its patches count.* The first patch of every token is disturbed, then the second, and so on: each time all tokens
  must move.

A projector that takes more than patches (such as the grid of the images) cannot be tried in this way.

Jiang et al. 2025 (arXiv 2505.17316) measure compression and patch alignment of projectors. The measures here are this
toolkit's own definitions: compare their numbers with each other, not with that paper's.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from einops import rearrange, reduce, repeat
from jaxtyping import Float, Int
from torch import Tensor

from interp.arguments import as_int, checked_int, checked_seed
from interp.data.batches import batches_of
from interp.displays import Display
from interp.errors import InputError, InputTypeError, LayoutError, shown
from interp.geometry import eigenvalues, neighbor_overlap
from interp.models import VLM, Batch
from interp.models.batches.targets import word_id
from interp.models.layout.patches import patches_of
from interp.models.running.slots import first
from interp.models.running.steps import Read
from interp.models.running.structure import resolve
from interp.models.running.trace import run_for_visits, run_until_reads
from interp.provenance import provenance_of_run
from interp.results import Result
from interp.statistics.permutation import permutation_p
from interp.words.decomposition import as_rows, dictionary_of

# A token that moves by less than this, relative to its length, moves by rounding alone.
_STILL = 1e-2


@dataclass(frozen=True)
class WordAlignment(Display):
    """The mean cosine of objects with their words, its mean over exchanged words, and the share of exchanges (the true words
    included) with a cosine as high."""

    value: float
    null: float
    p: float


@dataclass(frozen=True)
class ProjectorResult(Result):
    """What a projector does to patches.

    `entropy` (nats), `participation` and `kept` `[cloud]` belong to the patches before, after, and after a random linear
    map to the same width; `kept` is 1 before. `kept_chance` is the chance level of `kept`. `word_ids` and `word_cosines`
    `[patch, k]` are the words nearest to each projected patch, `rows` the row of each patch. `alignment` is None without
    objects. Where the projector makes one token of `merged` patches, `entropy` and `participation` belong to tokens,
    except before.
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
        """The words nearest to one projected patch, nearest first. Raises `InputError` for one that is not there."""
        patch = checked_int(patch, "patch", -len(self.word_ids), len(self.word_ids) - 1)
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


# Arrays ------------------------------------------------------------------------------------------------------------------


def spread_of(patches: Any) -> tuple[float, float]:
    """The spectral entropy in nats and the participation ratio of patches `[patch, width]`.

    >>> entropy, ratio = spread_of([[1.0, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0]])
    >>> round(entropy, 3), round(ratio, 3)
    (0.693, 2.0)

    Both are of the eigenvalues of the patches' covariance. Raises `InputError` for fewer than two patches, and where all
    are the same.
    """
    values = as_rows(patches, "patches").double()
    if len(values) < 2 or bool((values == values[0]).all()):
        raise InputError(f"patches of shape {tuple(values.shape)} are all the same: expected two or more that differ")
    sizes = torch.as_tensor(eigenvalues(values))
    shares = sizes / sizes.sum()
    return float(torch.special.entr(shares).sum()), float(1 / shares.square().sum())


def neighbours_kept(before: Any, after: Any, k: int = 10) -> float:
    """The share of each patch's k nearest before that is among its k nearest after; both `[patch, width]`, Euclidean.

    >>> neighbours_kept([[0.0], [1], [3], [7]], [[0.0], [2], [6], [14]], k=1)
    1.0

    It is `interp.geometry.neighbor_overlap`, ties included. Raises `InputError` for unequal numbers of patches, and where
    `k` is not between 1 and one less than their number.
    """
    left, right = as_rows(before, "before"), as_rows(after, "after")
    if len(left) != len(right):
        raise InputError(f"{len(left)} patches before and {len(right)} after: expected the same ones")
    k = checked_int(k, "k", 1, len(left) - 1, "a number of neighbours")
    return neighbor_overlap(left.double(), right.double(), k=k)


def word_alignment(objects: Any, words: Any, rows: Any, shuffles: int = 200, seed: int = 0) -> WordAlignment:
    """The mean cosine of `objects` `[object, width]` (each the mean of its patches) with their words, against words that are
    exchanged among objects.

    >>> round(word_alignment([[1.0, 0], [0, 1]], [[0], [1]], [[2.0, 0], [0, 3]]).value, 3)
    1.0

    `rows` `[word, width]` are the embeddings of all words, and each list of ints in `words` names those of one object.
    Exchanges are drawn with `seed`.

    Raises `InputError` where lists are not one an object, a list is empty or names no row, widths differ, or `shuffles` is
    below 1, and for a seed that is not an int from 0. Raises `InputTypeError` for words that are not lists.
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
    shuffles, seed = checked_int(shuffles, "shuffles", least=1), checked_seed(seed)
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
    p = permutation_p(int((drawn >= value - 1e-12).sum()), shuffles)
    return WordAlignment(float(value), float(drawn.mean()), p)


def _unit(values: Tensor) -> Tensor:
    return values / values.norm(dim=1, keepdim=True).clamp(min=torch.finfo(values.dtype).tiny)


# Models ------------------------------------------------------------------------------------------------------------------


def projected(vlm: VLM, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """The patches that the projector makes each token of, Float `[token, merged, width]`, the tokens, Float `[token,
    width]`, and the row of each, Int `[token]`. A projector that does not merge makes a token of one patch.

    Raises `InputError` for a batch without images. Raises `LayoutError` where the model has no projector of its own, where
    it runs more than once, and where it was not proved which patches become which token.
    """
    patches = patches_of(vlm, batch, "projector")
    envoy = resolve(vlm.nnsight, vlm.structure.projector or "")
    visits = run_for_visits(vlm, batch.inputs, [envoy]).get(envoy.path, [])
    if len(visits) != 1 or visits[0].input is None or visits[0].output is None:
        raise LayoutError(
            f"the projector of {vlm.name!r} ran {len(visits)} times or gave no tensor: pass rows one at a time"
        )
    inputs, outputs = (side.flatten(0, -2) for side in (visits[0].input, visits[0].output))
    in_order = len(inputs) == len(outputs) or merges_in_order(vlm, batch, visits[0].input, len(outputs))
    if not in_order or len(outputs) <= int(patches.index.max()):
        raise LayoutError(
            f"the projector of {vlm.name!r} makes {len(outputs)} tokens of {len(inputs)} patches, and it was not proved which "
            "patches become which token: compare arrays of your own with spread_of and word_alignment"
        )
    made_of = rearrange(inputs, "(token merged) width -> token merged width", token=len(outputs))
    return made_of[patches.index].float().cpu(), outputs[patches.index].float().cpu(), patches.rows


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

    >>> import interp
    >>> vlm, scenes = interp.load("toy"), interp.toy.scenes(4, seed=0)
    >>> objects = [[(scene.patch_labels == i, [each.colour]) for i, each in enumerate(scene.objects)] for scene in scenes]
    >>> projector_report(vlm, scenes, objects).word_ids.shape
    torch.Size([144, 5])

    `objects` lists for each row its objects: pairs of a Bool mask of the row's patches (of its tokens, where patches
    are merged) and the words that name it, each one token (behind a space, and where that makes several tokens, without
    one). `k` is the number of neighbours, `top_k` that of nearest words.

    Raises what `projected` and `interp.data.batches.batches_of` raise. Raises `InputError` for data without an image, where
    objects are not one list of pairs a row, a mask has another number of patches or is empty, there are fewer than k + 1
    patches, `top_k` or `shuffles` is out of range, and for a seed that is not an int from 0.
    """
    seed = checked_seed(seed)
    dictionary = dictionary_of(vlm, "embed")
    table = dictionary.rows.float().cpu()
    top_k = checked_int(top_k, "top_k", 1, len(table), "a number of words")
    shuffles = checked_int(shuffles, "shuffles", least=1)
    batches = batches_of(vlm, data, batch_size)
    made_of, after, rows = _all_projected(vlm, batches)
    shapes = None if objects is None else _objects(vlm, objects, after, rows, sum(map(len, batches)))
    before = rearrange(made_of, "token merged width -> (token merged) width")
    pooled = reduce(made_of, "token merged width -> token width", "mean")
    joined = rearrange(made_of, "token merged width -> token (merged width)")
    generator = torch.Generator().manual_seed(seed)
    random = (
        joined
        @ torch.randn(joined.shape[1], after.shape[1], generator=generator, dtype=torch.float32)
        / joined.shape[1] ** 0.5
    )
    entropy, participation = zip(*map(spread_of, (before, after, random)), strict=True)
    kept = [1.0, neighbours_kept(pooled, after, k), neighbours_kept(pooled, random, k)]
    nearest = (_unit(after) @ _unit(table).T).topk(top_k, dim=1)
    aligned = None if shapes is None else word_alignment(*shapes, table, shuffles, seed)
    return ProjectorResult(
        entropy=torch.tensor(entropy, dtype=torch.float32),
        participation=torch.tensor(participation, dtype=torch.float32),
        kept=torch.tensor(kept, dtype=torch.float32),
        kept_chance=k / (len(after) - 1),
        alignment=None if aligned is None else aligned.value,
        alignment_null=None if aligned is None else aligned.null,
        alignment_p=None if aligned is None else aligned.p,
        word_ids=nearest.indices,
        word_cosines=nearest.values,
        rows=rows,
        vocabulary={str(word): dictionary.words[word] for word in nearest.indices.unique().tolist()},
        merged=made_of.shape[1],
        provenance=provenance_of_run(vlm, batches, seed=seed),
    )


def _all_projected(vlm: VLM, batches: Sequence[Batch]) -> tuple[Tensor, Tensor, Tensor]:
    """What `projected` gives for all batches, with rows numbered through; batches of text alone have no patches."""
    if not any(batch.has_images for batch in batches):
        raise InputError(f"the data, {sum(map(len, batches))} rows, has no image: expected rows with images")
    parts, before = [], 0
    for batch in batches:
        if batch.has_images:
            made_of, tokens, rows = projected(vlm, batch)
            parts.append((made_of, tokens, rows + before))
        before += len(batch)
    made_of, after, rows = (torch.cat(each) for each in zip(*parts, strict=True))
    return made_of, after, rows


def _objects(vlm: VLM, objects: Any, patches: Tensor, rows: Tensor, count: int) -> tuple[Tensor, list[list[int]]]:
    """The mean of each object's patches `[object, width]`, and the token ids that name it."""
    if not isinstance(objects, Sequence) or isinstance(objects, str):
        raise InputTypeError(f"objects={shown(objects)}: expected a list for each row, of pairs of a mask and words")
    if len(objects) != count:
        raise InputError(f"objects of {len(objects)} rows for {count} rows of data: expected one list a row")
    shapes, words = [], []
    for row, pairs in enumerate(objects):
        own = patches[rows == row]
        for pair in pairs if isinstance(pairs, Iterable) else [pairs]:
            mask, names = _pair(pair, row)
            if mask.dtype != torch.bool or len(mask) != len(own) or not mask.any():
                raise InputError(
                    f"an object of row {row} has a mask of {len(mask)} with {int(mask.count_nonzero())} set, of "
                    f"{mask.dtype}: expected a Bool for each of {len(own)} patches, one True or more"
                )
            shapes.append(own[mask].mean(dim=0))
            if not names:
                raise InputError(f"an object of row {row} has no word: expected one or more that name it")
            words.append([word_id(vlm, word) for word in names])
    if not shapes:
        raise InputError("objects has no object: expected pairs of a mask and words, or objects=None")
    return torch.stack(shapes), words


def _pair(value: Any, row: int) -> tuple[Tensor, list[Any]]:
    """The mask and the words of an object of a row. Raises `InputTypeError` for anything else."""
    try:
        mask, words = value
        return torch.as_tensor(mask).flatten(), [words] if isinstance(words, str | int) else list(words)
    except (TypeError, ValueError, RuntimeError):
        raise InputTypeError(
            f"an object of row {row} is {shown(value)}: expected a pair, a Bool mask of its patches and the words for it"
        ) from None


# Merging -----------------------------------------------------------------------------------------------------------------


def merges_in_order(vlm: VLM, batch: Batch, inputs: Tensor, tokens: int) -> bool:
    """Whether the projector makes each of its `tokens` of as many patches of `inputs` `[..., width]` in order, and of no
    others; tried on this batch."""
    patches = inputs[..., 0].numel()
    path = vlm.structure.projector or ""
    if patches % tokens or not _takes_patches_alone(resolve(vlm.model, path)):
        return False
    # The trial runs where the layers begin: by then the projector has run.
    arguments = (resolve(vlm.nnsight, path), inputs, trials(tokens, patches // tokens), _STILL)
    read = Read("expected", "resid_pre", 0, moves_as_expected, arguments)
    return bool(run_until_reads(vlm, batch.inputs, [read])["expected"])


def trials(tokens: int, merged: int) -> tuple[Tensor, Tensor]:
    """Which patches are disturbed in each trial, Bool `[trial, patch]`, and which tokens must move, Bool `[trial, token]`.

    >>> disturbed, moved = trials(2, 2)
    >>> disturbed.int().tolist()
    [[0, 0, 1, 1], [1, 1, 0, 0], [1, 0, 1, 0], [0, 1, 0, 1]]
    >>> moved.int().tolist()
    [[0, 1], [1, 0], [1, 1], [1, 1]]
    """
    digits = [torch.arange(tokens) >> digit & 1 == 1 for digit in range((tokens - 1).bit_length())]
    moved = [each for ones in digits for each in (ones, ~ones)]
    disturbed = [repeat(each, "token -> (token merged)", merged=merged) for each in moved]
    disturbed += [torch.arange(tokens * merged) % merged == place for place in range(merged)]
    return torch.stack(disturbed), torch.stack([*moved, *[torch.ones(tokens, dtype=torch.bool)] * merged])


def _takes_patches_alone(projector: torch.nn.Module) -> bool:
    """Whether a projector can be called with nothing but patches."""
    parameters = inspect.signature(type(projector).forward).parameters.values()
    needed = [each for each in parameters if each.default is each.empty and each.kind is each.POSITIONAL_OR_KEYWORD]
    return len(needed) == 2  # itself and the patches


# Plain torch, run inside the trace ---------------------------------------------------------------------------------------


def moves_as_expected(value, projector, inputs, trials, still):
    """Whether in each trial exactly those tokens move that must."""
    inputs = inputs.to(value.device)
    noise = torch.randn(inputs.shape, dtype=torch.float32, generator=torch.Generator().manual_seed(0)).to(
        inputs.device, inputs.dtype
    )
    noise = noise * inputs.std()
    before = first(projector(inputs)).flatten(0, -2).float()
    outcome = torch.ones((), dtype=torch.bool)
    for disturbed, expected in zip(*trials, strict=True):
        mask = disturbed.to(inputs.device).reshape(inputs.shape[:-1])[..., None]
        after = first(projector(inputs + noise * mask)).flatten(0, -2).float()
        moved = (after - before).norm(dim=-1) > still * before.norm(dim=-1)
        outcome = outcome & (moved.cpu() == expected).all()
    return outcome
