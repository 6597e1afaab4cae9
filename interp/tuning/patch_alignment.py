"""Patch alignment: a loss that draws what the projector makes of a patch towards the words for what the patch shows.

The caption loss asks one thing of the projector: the words of the answer. Which patch each word belongs to it does not say, and
the outputs of a projector that was trained on it alone lie nearly as far from the words for what they show as from others. Masks
say it: this object, these words.

For image token t with the projector's output ``v_t``, and the embeddings ``e_w`` of all words of the vocabulary,

    ``p(w | t) = softmax over w of cos(v_t, e_w) / temperature``
    ``loss = - sum over t, w of m_tw log p(w | t) / sum over t, w of m_tw``

The target ``m_tw`` is the share of the token's area that shows an object (`interp.tuning.object_masks`), divided evenly among
the words that name the object and, where a word is several tokens of the vocabulary, evenly among these: in the cosines it
stands for the mean of their directions. So a token with several words is drawn towards all of them, a token counts by how much
of it is labelled, and one without a label counts nothing. The embeddings are those before training, and no gradient reaches them.

*Why not the plain cosine*, ``1 - cos(v_t, e_w)``? All embeddings of a model may lie to one side, and tokens that move there are
nearer to their own words and to all others alike: that loss falls, although no patch says more of what it shows. The softmax
counts how much nearer a token is to its own words than to others. For the same reason judge the effect by the alignment of
`interp.words.projector_report` minus its null of exchanged words.

This is this toolkit's own definition. Jiang et al. 2025 (arXiv 2505.17316) train projectors on captions and labels of patches,
and hypothesise that an image token aligns with several words; compare numbers with each other, not with that paper's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize
from torch.nn.utils.rnn import pad_sequence

from interp.arguments import as_int, as_number
from interp.data.data import as_data
from interp.data.rows import Batches, Row, open_row
from interp.data.sources import source_of
from interp.errors import InputError, InputTypeError, LayoutError, shown
from interp.models import VLM, Batch
from interp.models.batches.targets import word_ids
from interp.models.running.slots import first, is_feature_list
from interp.models.running.structure import resolve
from interp.tuning.object_masks import WordMask, mask_shares, open_masks
from interp.tuning.token_places import OutputOrder, token_boxes
from interp.words.decomposition import dictionary_of

TEMPERATURE = 0.07
_MASKS = 'expected a column masks, [{"words": "red 3", "mask": ...}]'


def patch_alignment_loss(
    tokens: Float[Tensor, "token width"],
    words: Any,
    table: Float[Tensor, "word width"],
    temperature: float = TEMPERATURE,
) -> Float[Tensor, ""]:
    """The mean cross-entropy of the words that name each token, under ``softmax(cosines with all words / temperature)``.

    >>> table = torch.eye(3)
    >>> near, far = torch.tensor([[1.0, 1, 0]]), torch.tensor([[0.0, 0, 1]])
    >>> [round(float(patch_alignment_loss(each, [[0, 1]], table)), 2) for each in (near, far)]
    [0.69, 14.29]

    `words` has for each token a list of the rows of `table` that name it, none for a token that does not count; or it is
    Float `[token, word]`, where a row is divided among its words and adds up to how much the token counts. The loss is 0 where
    nothing counts. Its gradient reaches `tokens` alone.

    Raises `InputError` for words that are not one list or row a token, a word that is no row of the table, a weight that is not a
    number from 0, tokens and words of unlike width, and a temperature that is not above 0.
    """
    if tokens.shape[-1] != table.shape[-1]:
        raise InputError(
            f"tokens are {shown(tokens)} and table is {shown(table)}: expected [token, width] and [word, width] of one width"
        )
    number = as_number(temperature)
    if number is None or not 0 < number < float("inf"):
        raise InputError(f"temperature={shown(temperature)}: expected a number above 0")
    targets = _targets(words, len(tokens), len(table)).to(tokens.device)
    counted = targets.sum(dim=1) > 0
    if not counted.any():
        return tokens.float().sum() * 0
    table = table.detach().to(tokens.device)
    unit = normalize(tokens[counted].float(), dim=1).to(table.dtype)
    cosines = (unit @ normalize(table, dim=1).T).float()
    targets = targets[counted]
    return cross_entropy(cosines / number, targets, reduction="sum") / targets.sum()


def _targets(words: Any, tokens: int, rows: int) -> Tensor:
    """How much each word of the table counts for each token, Float `[token, word]`."""
    if isinstance(words, Tensor) and words.is_floating_point():
        if words.shape != (tokens, rows) or not bool(((words >= 0) & words.isfinite()).all()):
            raise InputError(f"words={shown(words)}: expected weights from 0, Float [{tokens}, {rows}] (token, word)")
        return words.detach().float()
    lists = words.tolist() if hasattr(words, "tolist") else words
    lists = list(lists) if isinstance(lists, Iterable) else []
    if len(lists) != tokens or not all(isinstance(own, list | tuple) for own in lists):
        raise InputError(f"words={shown(words)}: expected a list of rows of the table for each of {tokens} tokens")
    targets = torch.zeros(tokens, rows, dtype=torch.float32)
    for token, own in enumerate(lists):
        wrong = [word for word in own if (number := as_int(word)) is None or not 0 <= number < rows]
        if wrong:
            raise InputError(f"word {shown(wrong[0])}: expected a row of the table, 0 to {rows - 1}")
        for word in own:
            targets[token, int(word)] += 1 / len(own)
    return targets


def masked_objects(vlm: VLM, data: Any) -> list[list[tuple[Bool[Tensor, " token"], list[int]]]]:
    """The objects of each row of `data` with masks, as `interp.words.projector_report` takes them: pairs of the image tokens
    that show a part of the object, Bool `[token]`, and the ids of the tokens that name it.

    >>> import interp
    >>> scene = interp.toy.scenes(1, seed=0)[0]
    >>> masks = [{"words": f"{each.colour} {each.digit}", "mask": mask} for each, mask in zip(scene.objects, scene.masks)]
    >>> shows, words = masked_objects(interp.load("toy"), [{"image": scene.image, "masks": masks}])[0][0]
    >>> int(shows.sum()), len(words)
    (4, 2)

    Raises `InputTypeError` for batches, which have no masks, and `InputError`, one line that names the row, for a row that cannot
    be read, what `interp.tuning.object_masks` refuses, an object that no token shows, and a word outside the vocabulary, and for
    data without a mask. Raises `LayoutError` where the tokens of a picture form no grid on it.
    """
    source, labels = source_of(as_data(data)), _Labels(vlm)
    if isinstance(source, Batches):
        raise InputTypeError("data is made of batches, which have no masks: expected rows")
    objects, number = list[list[tuple[Tensor, list[int]]]](), 0
    while rows := source.read(number, number + 1):
        (row,), pictures = rows, open_row(rows[0])
        batch = vlm.prepare([row.text], [pictures])
        objects.append([(shares > 0, [*chain(*words)]) for shares, words in labels.of_row(row, batch, 0)])
        number += 1
    if not any(objects):
        raise InputError(f"none of {number} rows has masks: {_MASKS}")
    return objects


class _Labels:
    """What masks say of the image tokens of rows, with the words of one vocabulary."""

    def __init__(self, vlm: VLM) -> None:
        self.tokenizer, self.vocab_size = vlm.tokenizer, vlm.vocab_size
        self._ids: dict[str, list[int]] = {}

    def of_row(self, row: Row, batch: Batch, number: int) -> list[tuple[Float[Tensor, " token"], list[list[int]]]]:
        """For each mask of a row, number `number` of a batch: the share of each image token, and the ids of each word."""
        masks = open_masks(row, batch.images[number])
        boxes = token_boxes(batch, number) if masks else []
        return [self._label(row, place, mask, boxes) for place, mask in enumerate(masks)]

    def _label(self, row: Row, place: int, mask: WordMask, boxes: Sequence[Tensor]) -> tuple[Tensor, list[list[int]]]:
        name = f"{row.name}, mask {place} ({' '.join(mask.words)})"
        parts = [torch.zeros(len(own), dtype=torch.float32) for own in boxes]
        parts[mask.image] = mask_shares(mask.pixels, boxes[mask.image])
        if not parts[mask.image].any():
            raise InputError(
                f"{name}: no image token shows a part of it: expected an object that the processor does not crop away"
            )
        try:
            return torch.cat(parts), [self._ids.setdefault(word, word_ids(self, word)) for word in mask.words]
        except InputError as error:
            raise InputError(f"{name}: {error}") from None


class PatchAlignment:
    """The loss that ``tune(..., patch_alignment=beta)`` adds: beta times `patch_alignment_loss` on what masks of rows label.

    What rides with a batch is, for each row, `extra_tokens` Int `[row]`, how many image tokens it has; and for each word of
    each labelled token `extra_outputs` (which of the projector's outputs for this row the token is), `extra_words` and
    `extra_weights`, `[row, entry]`, padded with zeros.

    Raises `InputError` for a beta that is not above 0, and `LayoutError` for a model without a projector.
    """

    def __init__(self, vlm: VLM, beta: float) -> None:
        number = as_number(beta)
        if number is None or not 0 < number < float("inf"):
            raise InputError(f"patch_alignment={shown(beta)}: expected a number from 0; 0 trains without it")
        if vlm.structure.projector is None:
            raise LayoutError(
                f"{vlm.name!r} has no projector of its own: patch alignment draws its outputs towards words"
            )
        self.beta, self.name = number, vlm.name
        self.paths = [path for path in (vlm.structure.projector, vlm.structure.vision) if path]
        self._labels, self._order = _Labels(vlm), OutputOrder(vlm)
        self._table: Tensor | None = dictionary_of(vlm, "embed").rows.to(vlm.model.dtype)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_table": None}  # workers of a DataLoader make targets alone

    def check(self, rows: Any) -> None:
        """Refuse rows, ``rows[0]`` to ``rows[len(rows) - 1]``, none of which has a mask."""
        if not any(rows[number].masks for number in range(len(rows))):
            raise InputError(
                f"patch_alignment={self.beta!r}, but none of {len(rows)} rows has masks: {_MASKS}, or patch_alignment=0"
            )

    def targets(self, rows: Sequence[Row], batch: Batch) -> dict[str, Tensor]:
        """What the loss needs to know of the rows of a batch.

        Raises `InputError`, one line that names the row, for masks that cannot be used, and `LayoutError` where image tokens
        have no known places.
        """
        entries = [self._entries(row, batch, number) for number, row in enumerate(rows)]
        outputs, words, weights = (pad_sequence(list(each), batch_first=True) for each in zip(*entries, strict=True))
        tokens = batch.positions["image"].sum(dim=1)
        return {"extra_tokens": tokens, "extra_outputs": outputs, "extra_words": words, "extra_weights": weights}

    def watched(self, model: nn.Module) -> nn.Module:
        """The projector. Raises `InputError` where neither it nor the image tower below it is trained."""
        whole = getattr(model, "get_base_model", lambda: model)()  # within what PEFT puts around it
        parts = [resolve(whole, path) for path in self.paths]
        if not any(parameter.requires_grad for part in parts for parameter in part.parameters()):
            raise InputError(
                f"patch_alignment={self.beta!r} acts on what the projector makes, but neither it nor the image tower is "
                "trained: expected connector=True or vision=True"
            )
        return parts[0]

    def count(self, targets: Mapping[str, Tensor]) -> Tensor:
        """How much of a batch is labelled, in image tokens: the weight of the batch in the mean of a step."""
        return targets["extra_weights"].sum()

    def loss(self, output: Any, targets: Mapping[str, Tensor]) -> Tensor:
        """beta times the mean over the labelled tokens of a batch; 0 where it has none.

        Raises `LayoutError` where the projector makes another number of outputs than the batch has image tokens.
        """
        outputs = torch.cat(output) if is_feature_list(output) else first(output).flatten(0, -2)
        tokens, weights = targets["extra_tokens"], targets["extra_weights"]
        if len(outputs) != int(tokens.sum()):
            raise LayoutError(
                f"the projector of {self.name!r} made {len(outputs)} outputs in a batch of {int(tokens.sum())} image tokens, so "
                "it is not known which are whose: expected per_device_train_batch_size=1"
            )
        assert self._table is not None  # only workers have none
        labelled = weights > 0
        starts = (tokens.cumsum(dim=0) - tokens)[:, None]
        places, token = (starts + targets["extra_outputs"])[labelled].unique(return_inverse=True)
        words = weights.new_zeros(len(places), len(self._table))
        words.index_put_((token, targets["extra_words"][labelled]), weights[labelled], accumulate=True)
        self._table = self._table.to(outputs.device)
        return self.beta * patch_alignment_loss(outputs[places], words, self._table)

    def _entries(self, row: Row, batch: Batch, number: int) -> tuple[Tensor, Tensor, Tensor]:
        """For each word of each labelled token of a row: the projector's output, the word's id and its weight, `[entry]` each."""
        outputs, ids, weights = [_NO_INTS], [_NO_INTS], [_NO_FLOATS]
        for shares, words in self._labels.of_row(row, batch, number):
            order, shows = self._order(batch, number), shares > 0
            for pieces in words:
                for piece in pieces:
                    outputs.append(order[shows])
                    ids.append(torch.full_like(order[shows], piece))
                    weights.append(shares[shows] / (len(words) * len(pieces)))
        return torch.cat(outputs), torch.cat(ids), torch.cat(weights)


_NO_INTS, _NO_FLOATS = torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.float32)
