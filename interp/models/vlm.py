"""A vision-language model and its parts: a thin layer over nnsight's `TransformersModel`.

A `VLM` adds to nnsight what a VLM needs: where its parts are (`structure`), batches of images and texts with their
positions (`prepare`), and forward passes and generation with interventions. A language model alone is a `VLM` that takes no
images. What it does not offer, the objects underneath do: `vlm.model`, `vlm.processor`, `vlm.tokenizer` and `vlm.nnsight`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from interp.arguments import checked_choice, checked_int
from interp.errors import InputError, InputTypeError, shown
from interp.models.batches.answered import AnsweredBatch
from interp.models.batches.batch import Batch
from interp.models.batches.maker import BatchMaker, ModelInputs
from interp.models.copying import Unsendable, copied, pickled
from interp.models.layout.checks import CheckReport, measure, run_checks
from interp.models.layout.discovery import takes_images
from interp.models.layout.image_positions import find_images
from interp.models.running.core import Core, Origin
from interp.models.running.generated import as_generated
from interp.models.running.greedy import end_ids
from interp.models.running.readiness import ready_inputs
from interp.models.running.sinks import find_sinks
from interp.models.running.steps import Edit
from interp.models.running.structure import Structure, resolve
from interp.models.running.trace import run_forward, run_generate


@runtime_checkable
class Intervention(Protocol):
    """A value that says what to change, where, in which layers. `edits` turns it into edits of the forward pass.

    `new` is the number of generated tokens that follow the prompt. Where the intervention's positions go on in these, its
    edits do too.
    """

    def edits(self, vlm: VLM, batch: Batch, new: int = 0) -> list[Edit]: ...


def checked_interventions(interventions: Any) -> tuple[Intervention, ...]:
    """These interventions as a tuple. Raises `InputTypeError` for anything but a list of interventions."""
    if not isinstance(interventions, Sequence) or isinstance(interventions, str):
        raise InputTypeError(f"interventions={shown(interventions)}: expected a list of interventions")
    for each in interventions:
        if not isinstance(each, Intervention):
            raise InputTypeError(f"{shown(each)} is not an intervention: expected one as Patch, Ablate or Knockout")
    return tuple(interventions)


class VLM(Core):
    """A vision-language model, or a language model alone, its parts and how to run it. Made by `interp.load`.

    >>> import interp
    >>> vlm = interp.load("toy")
    >>> batch = vlm.prepare(texts=["a red 3 at top . what colour is the 3 ?"])
    >>> vlm.generate(batch)
    ['red']
    """

    def __init__(
        self, wrapped: Any, structure: Structure, name: str, revision: str | None = None, remote: bool | str = False
    ) -> None:
        self.nnsight = wrapped  # the model's `arguments` are read through it
        processor = getattr(wrapped, "processor", None)
        tokenizer = getattr(wrapped, "tokenizer", None) or getattr(processor, "tokenizer", None)
        with_images = structure.image_token_id is not None or takes_images(self.model)
        patch_size = getattr(getattr(self.model.config, "vision_config", None), "patch_size", None)
        # Some models keep the embeddings of their image tokens in a second table.
        tables = [table for table in resolve(self.model, structure.embed).parameters() if table.ndim == 2]
        inputs = ModelInputs(
            image_token_id=structure.image_token_id,
            vocab_size=max(structure.vocab_size, sum(map(len, tables))),
            find_images=partial(find_images, self) if with_images else None,
            takes_images=with_images,
            find_sinks=partial(find_sinks, self),
            patch_size=patch_size if isinstance(patch_size, int) else None,
            named=list(self.arguments),
            takes_others=self.takes_others,
        )
        # As in transformers, the processor of a model that takes texts alone is its tokenizer.
        maker = BatchMaker(processor if with_images else tokenizer, tokenizer, inputs)
        super().__init__(wrapped, structure, Origin(name, revision, remote), maker, measure)

    def __repr__(self) -> str:
        s = self.structure
        return f"VLM({self.name!r}, {s.n_layers} layers, width {s.d_model}, {s.n_heads} heads, on {self.device})"

    # Copies

    def __copy__(self) -> VLM:
        new = type(self).__new__(type(self))
        vars(new).update(vars(self))
        return new

    def __deepcopy__(self, memo: dict[int, Any]) -> VLM:
        return copied(self, memo)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return super().__reduce_ex__(protocol) if self.remote else pickled(self)

    def __getstate__(self) -> dict[str, Any]:
        # A trace that names this model is sent with it; see `Unsendable`.
        return {"unsendable": Unsendable(self.name), **vars(self)}

    # Batches and traces

    def prepare(
        self,
        texts: Sequence[str] | None = None,
        images: Sequence[Any] | None = None,
        chat: bool = False,
        spans: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
        encoding: Mapping[str, Any] | None = None,
    ) -> Batch:
        """Make a batch of texts and images, or of a processor's `encoding` (any dict of model inputs, without its labels).

        >>> import interp
        >>> batch = interp.load("toy").prepare(texts=["a red 3 at top ."], spans={"object": "red 3"})
        >>> batch.positions["object"].nonzero().tolist()
        [[0, 2], [0, 3]]

        In a text ``<image>`` stands for an image. `images` has one entry for each text: a picture (a PIL image, a path, bytes,
        an array), a list of several, or None. With `chat`, each text becomes the user's turn in the model's chat template,
        without a system turn.

        `spans` names parts of the texts, which become positions of that name. A span is a string that occurs once, a range
        ``(start, end)`` of the characters you wrote, ints that count real tokens, a Bool mask of tokens, or one of the
        patches of the row's image ``[rows, columns]``. Pass one dict for all rows, ``{"object": "red 3"}``, where a value may
        also be a list with one span for each row, or a list with one dict for each row.

        Raises `InputError` for an empty batch, a path without an image, another number of placeholders than images, an image
        for a language model alone, image tokens without pixels or pixels without image tokens, an encoding without the token
        types that tell the model where images are, ids outside the vocabulary, a span that cannot be found, and a chat
        template that fails or leaves out what you wrote.
        """
        if encoding is not None:
            if texts is not None or images is not None:
                raise InputError("encoding= was passed together with texts= or images=: expected one or the other")
            return self.maker.from_encoding(encoding, spans)
        return self.maker.prepare(texts, images, chat, spans)

    def length_of(self, text: str, images: Sequence[Any] = ()) -> int:
        """About how many tokens a row of this text and these pictures has: rows of similar length make a good batch."""
        return self.maker.length_of(text, images)

    def trace(self, batch: Batch | None = None, **options: Any) -> Any:
        """nnsight's own trace of this batch: ``with vlm.trace(batch) as tracer: state = vlm.layers[3].output.save()``."""
        if batch is not None:
            self.refuse_foreign(batch)
        inputs = {} if batch is None else ready_inputs(self, batch.inputs)
        return self.nnsight.trace(**inputs, **self.trace_options, **options)

    # Running

    def refuse_unfit(self, batch: Any, interventions: Any = ()) -> None:
        """Check a batch and interventions before anything is computed.

        Raises `InputTypeError` for anything but a batch and a list of interventions, `InputError` for a batch of another
        model.
        """
        self.refuse_foreign(batch)
        checked_interventions(interventions)

    def edits_of(self, batch: Batch, interventions: Sequence[Intervention], new: int = 0) -> list[Edit]:
        """All edits of these interventions, in their order, on this batch and `new` tokens after it.

        On an answered batch they are those on its prompt, and the answer's tokens are new ones.
        """
        self.refuse_unfit(batch, interventions)
        prompt = batch
        if isinstance(batch, AnsweredBatch):
            assert batch.prompt is not None
            prompt, new = batch.prompt, batch.tail - 1
        edits = [edit for intervention in interventions for edit in intervention.edits(self, prompt, new)]
        return edits if prompt is batch else as_generated(edits, len(prompt.tokens[0]))

    def logits(
        self, batch: Batch, interventions: Sequence[Intervention] = (), positions: str = "last"
    ) -> Float[Tensor, ...]:
        """The logits at each row's last real token `[batch, vocab]`, or with `positions="all"` `[batch, seq, vocab]`.

        Raises `InputError` where they are NaN or infinite, with the layer where that begins, for a model in training mode, and
        for a row that is longer than the model's table of positions. So do all other runs; a capture counts what is not finite.
        """
        checked_choice(positions, "positions", ("last", "all"))
        return run_forward(self, batch, self.edits_of(batch, interventions), logits=positions)["logits"]

    def generate(self, batch: Batch, max_new_tokens: int = 20, interventions: Sequence[Intervention] = ()) -> list[str]:
        """Continue each row greedily: the new text only, up to the end-of-sequence token, without special tokens.

        Interventions act on the prompt and on every new token, which counts as "text", "content", "all", "last" and
        "after_image". Those of single positions (`Patch`, ints, a mask) act on the prompt alone. Each token is the one that the
        model's own logits prefer, and the cache is used: of the checkpoint's generation config nothing counts but the ids that
        end and pad a row.

        Raises what `logits` raises; the new tokens count among a row's positions. Raises `InputError` for an encoding that is
        padded on the right.
        """
        max_new_tokens = checked_int(max_new_tokens, "max_new_tokens", least=1)
        if self.tokenizer is None:
            raise InputError(f"{self.name!r} was loaded without a tokenizer: pass processor= to read its tokens")
        # The last new token is not fed to the model.
        edits = self.edits_of(batch, interventions, max_new_tokens - 1)
        ids = run_generate(self, batch, edits, max_new_tokens)
        new = ids[:, batch.inputs["input_ids"].shape[1] :].tolist()
        return [self._decode(row) for row in new]

    def _decode(self, ids: list[int]) -> str:
        ends = end_ids(self)["eos_token_id"]
        ends = set(ends) if isinstance(ends, list | tuple) else {ends}
        text = next((ids[:index] for index, token in enumerate(ids) if token in ends), ids)
        return self.tokenizer.decode(text, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def check(self, batch: Batch | None = None) -> CheckReport:
        """Prove this model's layout by effect on `batch`, or on a short prompt made here; see `interp.models.layout.checks`.

        Afterwards `structure` has the traits that were measured. A model that does not run on text alone keeps the batch,
        and traits that are measured at their first use are measured on it.
        """
        self.checked_on = batch if batch is not None else self.checked_on
        report, traits = run_checks(self, batch)
        self.structure = replace(self.structure, **traits)
        return report
