"""Examples: conversations as a model is trained on them.

`training_rows` are the rows of any data that have answers, as a data set of torch; a `Collator` makes some of them a batch
with labels. Their texts are those of `interp.tuning.conversation_text`, and their encoding is that of `VLM.prepare`, except that
padding is on the right: a model that counts its positions itself then counts those of each row from 0. ::

    input_ids        <bos>  <image> ... where is the 3 ?  left  what colour is it ?  red   <eos>  <pad>
    labels            -100   -100  ...  ............ -100  left  <eos>  -100 ... -100  red   <eos>  -100

Transformers' models shift labels by themselves: the label below a token is what the model should say before it. So the label
behind an answer may be the end token where the model reads the next question. A token that holds any character of an answer
counts as the answer's, such as one that is a space or the end of a prompt and the answer's first letters at once.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from interp.arguments import checked_int
from interp.data.data import Data, as_data
from interp.data.rows import Batches, Row, Rows, fault_of_turns, open_turns, without_faults
from interp.data.sources import source_of
from interp.errors import InputError, InputTypeError, LayoutError, RowError, shown
from interp.models.batches.batch import Batch
from interp.models.batches.chats import has_chat_template
from interp.models.batches.continuations import Continuations
from interp.models.batches.maker import BatchMaker
from interp.models.batches.prompts import PLACEHOLDER, Refusal, encode
from interp.models.running.greedy import end_ids
from interp.models.running.position_limits import position_limit
from interp.models.running.trace import run_forward
from interp.patching.agreement import allowed_difference, largest_difference
from interp.progress import progress_bar
from interp.tuning.conversation_text import ConversationText, ConversationWriter
from interp.tuning.patch_alignment import PatchAlignment

if TYPE_CHECKING:
    from interp.models import VLM

IGNORED = -100
# So many rows are read at once to see which have answers.
_AT_ONCE = 1000


def training_rows(vlm: VLM, data: Any, collator: Collator | None = None, progress: bool = True) -> TrainingRows:
    """The rows of any data that have answers, as a data set of torch: ``len(rows)``, ``rows[i]``.

    >>> import interp
    >>> chat = [{"from": "human", "value": "where is the 3 ?"}, {"from": "gpt", "value": "left"}]
    >>> rows = training_rows(interp.load("toy"), [{"id": "a", "conversations": chat}])
    >>> len(rows), rows[0].turns
    (1, (('where is the 3 ?', 'left'),))

    All rows are looked at once, and read again when they are used; pictures are opened only for their batch. A stream, which
    cannot be read again, is kept in memory as it comes, with its pictures unopened. With ``on_error="skip"`` each row is tried
    alone with the `collator` (by default ``Collator(vlm)``), since a batch that has begun cannot leave one out: this opens each
    picture once before training, and `skipped` counts the rows that cannot be used. A model with a chat template is trained with
    it, whatever `chat` the data says.

    Raises `InputTypeError` for batches, which have no answers, and `InputError` for the first row without an answer, for one that
    cannot be read, for data of which no row is left, and for ``chat=True`` where the model has no chat template.
    """
    data = as_data(data)
    if data.chat and not has_chat_template(vlm.processor or vlm.tokenizer):
        raise InputError("chat=True: this model's processor has no chat template, leave it out")
    source = source_of(data)
    if isinstance(source, Batches):
        raise InputTypeError(
            "data is made of batches, which have no answers: expected rows with answers, as LLaVA's conversations or a table "
            "with the columns text and answer"
        )
    return _usable(source, data, None if data.on_error == "raise" else collator or Collator(vlm), progress)


def _usable(source: Rows, data: Data, collator: Collator | None, progress: bool) -> TrainingRows:
    """The rows of a source without a fault; without a collator, a fault is an error."""
    kept, indices, skipped, start = list[Row](), list[int](), 0, 0
    first = ""  # an error itself would keep the pictures of its row
    with progress_bar("rows", source.size, "rows", progress) as bar:
        while rows := source.read(start, start + _AT_ONCE):
            for row in rows:
                bar.advance()
                fault = _fault_of(row)
                if collator is None and fault is not None:
                    raise fault
                if collator is not None and fault is None:
                    fault = _refusal_of(row, collator)
                if fault is not None:
                    first, skipped = first or str(fault), skipped + 1
                    continue
                indices.append(row.index)
                if source.size is None:
                    kept.append(row)
            start += len(rows)
    if not indices:
        raise InputError(f"none of {skipped} rows of the data can be used: the first error was {first}")
    if skipped:
        warnings.warn(f"{skipped} rows of the data are left out: the first error was {first}", stacklevel=3)
    if source.size is None:
        return TrainingRows(None, None, kept, skipped)
    return TrainingRows(data, source, indices, skipped)


def _fault_of(row: Row) -> InputError | None:
    fault = fault_of_turns(row)
    return None if fault is None else InputError(f"{row.name}: {fault}")


def _refusal_of(row: Row, collator: Collator) -> InputError | None:
    try:
        collator([row])
    except InputError as error:
        return error
    return None


class TrainingRows(Dataset[Row]):
    """Rows with answers, by their number from 0; `skipped` is how many the data has besides.

    In another process the source is made anew from its `Data`.
    """

    def __init__(self, data: Data | None, source: Rows | None, rows: Sequence[Any], skipped: int) -> None:
        self.data, self.skipped = data, skipped
        self._rows = rows  # those of a stream, else their numbers in the source
        self._source: Rows | Batches | None = source

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Row:
        row = self._rows[index]
        if self.data is None:
            return row
        self._source = self._source or source_of(self.data)
        assert not isinstance(self._source, Batches)
        return self._source.read(row, row + 1)[0]

    def __iter__(self) -> Iterator[Row]:
        return map(self.__getitem__, range(len(self)))

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_source": None}


class Collator:
    """Makes a batch of rows for training one model: ``collator(rows)`` is a dict of the model's inputs and

    ============= =======================================================================================================
    `labels`      Int `[row, seq]`: the tokens of answers and the end token behind each, -100 elsewhere
    `row_numbers` Int `[row]`: the number of each row in its data
    `cut_off`     Bool `[row]`: the row was longer than `max_length`, and an answer lost tokens or its end
    `extra_...`   what `extra`, a loss beside the model's, needs to know of the rows
    ============= =======================================================================================================

    >>> import interp
    >>> chat = [{"from": "human", "value": "where is the 3 ?"}, {"from": "gpt", "value": "left"}]
    >>> vlm = interp.load("toy")
    >>> batch = Collator(vlm)(training_rows(vlm, [{"conversations": chat}]))
    >>> [vlm.tokenizer.decode(token) for token in batch["labels"][0] if token >= 0]
    ['left', '<eos>']

    Rows are cut at their end to `max_length` tokens. It takes the processor from the model and none of its weights, so workers of
    a `DataLoader` get a small copy.

    Raises `InputError` for a model without a fast tokenizer or an end token, and `LayoutError` for one in which tokens see those
    behind them. A call raises `InputTypeError` for values that are no rows, and `InputError`, which names the row, for one whose
    answer the chat template changes, holds the end token or is not in the vocabulary, of which `max_length` leaves no label or
    a part of an image, that is longer than the model's table of positions, or that `VLM.prepare` or `extra` refuses.
    """

    def __init__(self, vlm: VLM, max_length: int | None = None, extra: PatchAlignment | None = None) -> None:
        self.max_length = None if max_length is None else checked_int(max_length, "max_length", least=2)
        self.extra = extra
        tokenizer = vlm.tokenizer
        if not getattr(tokenizer, "is_fast", False):
            what = (
                "no tokenizer"
                if tokenizer is None
                else "a tokenizer in plain Python, which does not say where tokens are"
            )
            raise InputError(
                f"{vlm.name!r} has {what}: load it with the processor that belongs to it, and a fast tokenizer"
            )
        self.end, self.unknown = _end_of(vlm), Continuations(tokenizer).unknown
        inputs = replace(vlm.maker.model_inputs, find_images=None, find_sinks=None)
        self._parts = vlm.maker.processor, tokenizer, inputs
        self._maker: BatchMaker | None = None
        end = tokenizer.convert_ids_to_tokens(self.end)
        specials = tuple(sorted(_special_tokens(tokenizer), key=len, reverse=True))
        self.writer = ConversationWriter(self._parts[0], specials, end, _written_behind(self._parts[0]))
        self.answer_type = _type_of_answers(vlm)
        self.limit = position_limit(vlm)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_maker": None}

    @property
    def maker(self) -> BatchMaker:
        """What makes the encoding, as in `VLM.prepare`."""
        self._maker = self._maker or BatchMaker(*self._parts)
        return self._maker

    def __call__(self, rows: Iterable[Row]) -> dict[str, Tensor]:
        rows = list(rows)
        if not rows:
            raise InputError("the batch is empty: expected at least one row")
        for row in rows:
            if not isinstance(row, Row):
                raise InputTypeError(
                    f"{shown(row)} is not a row of a data set: expected rows as training_rows gives them"
                )
        images = [open_turns(row) for row in rows]
        written = [self._write(row) for row in rows]
        spans = [
            {f"answer {number}": (each.start, each.stop) for number, each in enumerate(text.answers)}
            for text in written
        ]
        try:
            batch = self.maker.from_texts([text.text for text in written], images, spans, side="right")
            labels = self._labels(batch, written)
            batch, kept = self._cut(batch, labels)
        except RowError as error:
            without_faults(rows, error, skip=None)
            raise
        return {
            **self._typed(batch.inputs, labels),
            "labels": kept,
            "row_numbers": torch.tensor([row.index for row in rows]),
            "cut_off": (labels != IGNORED).sum(dim=1) > (kept != IGNORED).sum(dim=1),
            **({} if self.extra is None else self.extra.targets(rows, batch)),
        }

    def _write(self, row: Row) -> ConversationText:
        try:
            return self.writer.write(row.turns, row.system)
        except InputError as error:
            raise InputError(f"{row.name}: {error}") from error.__cause__

    def _labels(self, batch: Batch, written: Sequence[ConversationText]) -> Tensor:
        ids = batch.inputs["input_ids"]
        labels = torch.full_like(ids, IGNORED)
        for row, text in enumerate(written):
            for number, answer in enumerate(text.answers):
                columns = batch.positions[f"answer {number}"][row].nonzero().flatten()
                labels[row, columns] = ids[row, columns]
                if not answer.ended:
                    labels[row, columns[-1] + 1] = self.end
        return labels

    def _typed(self, inputs: dict[str, Tensor], labels: Tensor) -> dict[str, Tensor]:
        """The inputs with the token type of answers from the first of a row on, for a model that sees ahead before it."""
        if self.answer_type is None or "token_type_ids" not in inputs:
            return inputs
        types = inputs["token_type_ids"]
        behind = (labels[:, : types.shape[1]] != IGNORED).cumsum(dim=1) > 0
        return {**inputs, "token_type_ids": types.masked_fill(behind, self.answer_type)}

    def _cut(self, batch: Batch, labels: Tensor) -> tuple[Batch, Tensor]:
        """The batch and its labels up to `max_length`."""
        shape, length = labels.shape, self.max_length or labels.shape[1]
        keep = torch.arange(shape[1]) < length
        faults = self._faults(batch, labels, keep)
        if faults:
            raise RowError({row: ("", f" {what}") for row, what in faults.items()})
        if keep.all():
            return batch, labels
        inputs = {name: _columns(name, value, keep, shape) for name, value in batch.inputs.items()}
        tokens = [row[:length] for row in batch.tokens]
        positions = batch.positions.part(range(len(batch)), keep)
        return replace(batch, inputs=inputs, tokens=tokens, positions=positions), labels[:, keep]

    def _faults(self, batch: Batch, labels: Tensor, keep: Tensor) -> dict[int, str]:
        """What is wrong with rows of which these columns are kept."""
        real, images, faults = batch.positions["all"], batch.positions["image"], dict[int, str]()
        for row, tokens in enumerate(real.sum(dim=1).tolist()):
            size = f"has {tokens} tokens, of which max_length={self.max_length} leaves"
            if real[row, ~keep].any():
                if batch.images[row] and not images[row].any():
                    faults[row] = (
                        f"{size} what may be a part of an image: choose a larger one, for an image has to be whole"
                    )
                elif images[row, ~keep].any():
                    faults[row] = f"{size} a part of an image: choose a larger one, for an image has to be whole"
                elif (labels[row, keep] == IGNORED).all():
                    faults[row] = f"{size} no token of an answer: choose a larger one"
            if (labels[row] == self.unknown).any():
                faults[row] = (
                    "has an answer with words that the tokenizer does not know: expected words of its vocabulary"
                )
            tokens = int(real[row, keep].sum())
            if self.limit is not None and tokens > self.limit.positions:
                if self.limit.table:
                    faults[row] = (
                        f"has {tokens} tokens, but this model's positions end at {self.limit.positions}: choose max_length"
                    )
                else:
                    most = f"max_length={self.limit.positions}"
                    warnings.warn(
                        f"rows are longer than those that the model was trained on: {most} cuts them", stacklevel=5
                    )
        return faults


def _columns(name: str, value: Tensor, keep: Tensor, shape: torch.Size) -> Tensor:
    """An input at these columns, where it has a value for each token."""
    if value.is_floating_point() and name != "attention_mask":  # pixels
        return value
    if value.shape[-2:] == shape:
        return value[..., keep]
    return value[:, keep] if value.shape[:2] == shape else value


def _end_of(vlm: VLM) -> int:
    """The id of the token that ends an answer: the tokenizer's own, or where generation goes on behind that, one at which it
    stops."""
    tokenizer, stops = vlm.tokenizer, end_ids(vlm)["eos_token_id"]
    stops = list(stops) if isinstance(stops, list | tuple) else [] if stops is None else [stops]
    own = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    others = (tokenizer.bos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id)
    for end in [*(each for each in own if each in stops or not stops), *(s for s in stops if s not in others), *own]:
        text = tokenizer.convert_ids_to_tokens(end)
        if text in _special_tokens(tokenizer) and tokenizer.encode(text, add_special_tokens=False) == [end]:
            return int(end)
    raise InputError(f"the tokenizer of {vlm.name!r} has no end token, so no answer can end: set tokenizer.eos_token")


def _special_tokens(tokenizer: Any) -> set[str]:
    return {*tokenizer.all_special_tokens, *map(str, getattr(tokenizer, "added_tokens_decoder", {}).values())}


def _written_behind(processor: Any) -> str:
    """What a processor writes behind every prompt."""
    if not hasattr(processor, "tokenizer"):
        return ""
    try:
        from PIL import Image

        _, prompts = encode(processor, [f"{PLACEHOLDER} what"], [[Image.new("RGB", (64, 48))]])
    except Refusal:
        return ""
    return prompts[0].text.rpartition("what")[2] if prompts else ""


def _type_of_answers(vlm: VLM) -> int | None:
    """The token type that answers need so that no token of them sees those behind it; None where they need none.

    A model that takes token types may see its whole prompt at once (PaliGemma). Whether it does is tried: its logits must not
    change with the last token.
    """
    if "token_type_ids" not in vlm.arguments or vlm.remote:
        return None
    ids = torch.tensor([[3, 4, 5, 6, 7, 8], [3, 4, 5, 6, 7, 9]]) % vlm.structure.vocab_size
    for kind in (None, 1):
        types = torch.zeros_like(ids)
        types[:, 3:] = kind or 0
        batch = vlm.prepare(
            encoding={"input_ids": ids, "token_type_ids": types, "attention_mask": torch.ones_like(ids)}
        )
        first, second = run_forward(vlm, batch, logits="all")["logits"][:, 2:-1]
        if largest_difference(first, second) <= allowed_difference(vlm, first):
            return kind
    raise LayoutError(f"{vlm.name!r} sees tokens behind those it writes: it cannot learn to write them one by one")
