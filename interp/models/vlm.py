"""A vision-language model and its parts: a thin layer over nnsight's `TransformersModel`.

A `VLM` adds to nnsight what a VLM needs: where its parts are (`structure`), batches of images and texts with their
positions (`prepare`), and forward passes and generation with interventions. Everything underneath stays in reach, as
`vlm.model`, `vlm.processor`, `vlm.tokenizer` and `vlm.nnsight`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from interp.errors import InputError, InputTypeError, shown
from interp.models.batches.batch import Batch, BatchMaker
from interp.models.layout.checks import CheckReport, measure, run_checks
from interp.models.layout.image_positions import find_images
from interp.models.running.core import Core, Origin
from interp.models.running.steps import Edit
from interp.models.running.structure import Structure, resolve
from interp.models.running.trace import run_forward, run_generate


@runtime_checkable
class Intervention(Protocol):
    """A value that says what to change, where, in which layers; it turns itself into edits of the forward pass.

    `new` is how many tokens of a generation follow the prompt: its edits hold for the positions of these too, where what
    the intervention names goes on in them.
    """

    def edits(self, vlm: VLM, batch: Batch, new: int = 0) -> list[Edit]: ...


class VLM(Core):
    """A vision-language model, its parts and how to run it. Made by `interp.load`.

    >>> import interp
    >>> vlm = interp.load("toy")
    >>> batch = vlm.prepare(texts=["a red 3 at top . what colour is the 3 ?"])
    >>> vlm.generate(batch)
    ['red']
    """

    def __init__(
        self, wrapped: Any, structure: Structure, name: str, revision: str | None = None, remote: bool | str = False
    ) -> None:
        model = wrapped._module
        processor = getattr(wrapped, "processor", None)
        table = resolve(model, structure.embed)
        patch_size = getattr(getattr(model.config, "vision_config", None), "patch_size", None)
        maker = BatchMaker(
            processor,
            getattr(wrapped, "tokenizer", None) or getattr(processor, "tokenizer", None),
            structure.image_token_id,
            # Some models keep the rows of their image tokens in a second table.
            vocab_size=max(structure.vocab_size, sum(len(rows) for rows in table.parameters() if rows.ndim == 2)),
            find_images=partial(find_images, self),
            patch_size=patch_size if isinstance(patch_size, int) else None,
        )
        super().__init__(wrapped, structure, Origin(name, revision, remote), maker, measure)
        maker.token_types = [name for name in self.arguments if name.endswith("token_type_ids")]
        # What sweeps have tried on this model, and found; see `interp.patching.cells`.
        self.tried: dict[tuple[Any, ...], Any] = {}

    def __repr__(self) -> str:
        s = self.structure
        return f"VLM({self.name!r}, {s.n_layers} layers, width {s.d_model}, {s.n_heads} heads, on {self.device})"

    # Batches and traces

    def prepare(
        self,
        texts: Sequence[str] | None = None,
        images: Sequence[Any] | None = None,
        chat: bool = False,
        spans: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
        encoding: Mapping[str, Any] | None = None,
    ) -> Batch:
        """Make a batch of texts and images, or from a processor's `encoding` (any dict of model inputs).

        In a text ``<image>`` stands for an image. `images` has one entry a text: a picture, a path, a list of several,
        or None. With `chat`, each text becomes the user's turn in the model's chat template. `spans` names parts of the
        texts, which become positions of that name: a string that stands once, a range ``(start, end)`` of the characters
        you wrote, ints that count real tokens, or a Bool mask; one dict for all rows, ``{"object": "red 3"}``, where a
        value may also be a list with one string a row, or a list with one dict a row.

        Raises `InputError` for an empty batch, a file that is missing or no image, placeholders that are not as many as
        images, image tokens without pixels or the other way round, an encoding without the token types that the model
        knows its images by, ids that the model does not have, a span that cannot be found.
        """
        if encoding is not None:
            if texts is not None or images is not None:
                raise InputError("encoding= was given together with texts= or images=: expected one or the other")
            return self.maker.from_encoding(encoding, spans)
        return self.maker.prepare(texts, images, chat, spans)

    def length_of(self, text: str, images: Sequence[Any] = ()) -> int:
        """About how many tokens a row of this text and these pictures has: rows of like length make a good batch."""
        return self.maker.length_of(text, images)

    def trace(self, batch: Batch | None = None, **options: Any) -> Any:
        """nnsight's own trace of this batch: ``with vlm.trace(batch) as tracer: state = vlm.layers[3].output.save()``."""
        inputs = {} if batch is None else self.inputs_of(batch)
        return self.nnsight.trace(**inputs, **self.trace_options, **options)

    # Running

    def refuse_unfit(self, batch: Any, interventions: Any = ()) -> None:
        """Refuse, before anything is computed, what is no batch of this model and what are no interventions.

        Raises `InputTypeError` for either, `InputError` for a batch that was made for another model.
        """
        self.refuse_foreign(batch)
        if not isinstance(interventions, Sequence) or isinstance(interventions, str):
            raise InputTypeError(f"interventions={shown(interventions)}: expected a list of interventions")
        for intervention in interventions:
            if not isinstance(intervention, Intervention):
                raise InputTypeError(
                    f"{shown(intervention)} is no intervention: expected Patch, Ablate, Knockout or the like"
                )

    def edits_of(self, batch: Batch, interventions: Sequence[Intervention], new: int = 0) -> list[Edit]:
        """All edits of these interventions on this batch and `new` tokens behind it, in the order they are given."""
        self.refuse_unfit(batch, interventions)
        return [edit for intervention in interventions for edit in intervention.edits(self, batch, new)]

    def logits(
        self, batch: Batch, interventions: Sequence[Intervention] = (), positions: str = "last"
    ) -> Float[Tensor, ...]:
        """The logits at each row's last real token `[batch, vocab]`, or with `positions="all"` `[batch, seq, vocab]`."""
        if positions not in ("last", "all"):
            raise InputError(f"positions={positions!r}: logits are given at 'last' or 'all'")
        return run_forward(self, batch, self.edits_of(batch, interventions), logits=positions)["logits"]

    def generate(self, batch: Batch, max_new_tokens: int = 20, interventions: Sequence[Intervention] = ()) -> list[str]:
        """Continue each row greedily: the new text only, up to the end-of-sequence token, without special tokens.

        Interventions act on the prompt and on every new token: each is "text", "all", "last" and "after_image" for them.
        Those that say something for single positions (`Patch`, ints, a mask) act on the prompt alone.
        """
        if not isinstance(max_new_tokens, int) or max_new_tokens < 1:
            raise InputError(f"max_new_tokens={max_new_tokens!r}: expected 1 or more")
        if self.tokenizer is None:
            raise InputError(f"{self.name!r} was loaded without a tokenizer: pass processor= to read what it generates")
        # Greedy whatever the checkpoint's own generation config says: the continuation of the model's own logits.
        greedy = {"do_sample": False, "num_beams": 1, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0}
        # The last new token is not fed to the model.
        edits = self.edits_of(batch, interventions, max_new_tokens - 1)
        ids = run_generate(self, batch, edits, max_new_tokens, **greedy)
        new = ids[:, batch.inputs["input_ids"].shape[1] :].tolist()
        return [self._decode(row) for row in new]

    def _decode(self, ids: list[int]) -> str:
        ends = self.model.generation_config.eos_token_id
        ends = set(ends) if isinstance(ends, list | tuple) else {ends}
        kept = next((ids[:index] for index, token in enumerate(ids) if token in ends), ids)
        return self.tokenizer.decode(kept, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def check(self, batch: Batch | None = None) -> CheckReport:
        """Prove this model's layout by effect on `batch` (or a short prompt made here); see `interp.models.layout.checks`.

        What is measured on the way stands in `structure` afterwards; what is measured later, at its first use, is measured
        on this batch too where the model does not run on text alone.
        """
        self.checked_on = batch if batch is not None else self.checked_on
        findings = run_checks(self, batch)
        self.structure = replace(self.structure, **findings.traits)
        return findings.report
