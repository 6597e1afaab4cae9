"""A vision-language model and its parts: a thin layer over nnsight's `TransformersModel`.

A `VLM` adds to nnsight what a VLM needs: where its parts are (`structure`), batches of images and texts with their
positions (`prepare`), and forward passes and generation with interventions. Everything underneath stays in reach, as
`vlm.model`, `vlm.processor`, `vlm.tokenizer` and `vlm.nnsight`.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from interp.errors import InputError, InputTypeError, LayoutError
from interp.models.batch import Batch, BatchMaker
from interp.models.checks import CheckReport, measure, run_checks
from interp.models.encodings import shown
from interp.models.forward import Edit, run_forward, run_generate
from interp.models.pictures import find_images, has_pictures
from interp.models.places import blocks_of
from interp.models.positions import as_ints
from interp.models.structure import Structure, resolve


@runtime_checkable
class Intervention(Protocol):
    """A value that says what to change, where, in which layers; it turns itself into edits of the forward pass.

    `new` is how many tokens of a generation follow the prompt: its edits hold for the positions of these too, where what
    the intervention names goes on in them.
    """

    def edits(self, vlm: VLM, batch: Batch, new: int = 0) -> list[Edit]: ...


class VLM:
    """A vision-language model, its parts and how to run it. Made by `interp.load`.

    >>> import interp
    >>> vlm = interp.load("toy")
    >>> batch = vlm.prepare(texts=["a red 3 at top . what colour is the 3 ?"])
    >>> vlm.generate(batch)
    ['red']
    """

    def __init__(
        self, wrapped: Any, structure: Structure, name: str, revision: str | None = None, remote: Any = False
    ) -> None:
        self.nnsight = wrapped
        self.structure = structure
        self.name, self.revision, self.remote = name, revision, remote
        self.checked_on: Batch | None = None
        # What sweeps have tried on this model, and found; see `interp.patching.cells`.
        self.tried: dict[tuple[Any, ...], Any] = {}
        self.processor: Any = getattr(wrapped, "processor", None)
        self.tokenizer: Any = getattr(wrapped, "tokenizer", None) or getattr(self.processor, "tokenizer", None)
        table = resolve(wrapped._module, structure.embed)
        patch_size = getattr(getattr(self.model.config, "vision_config", None), "patch_size", None)
        self._maker = BatchMaker(
            self.processor,
            self.tokenizer,
            structure.image_token_id,
            # Some models keep the rows of their image tokens in a second table.
            vocab_size=max(structure.vocab_size, sum(len(rows) for rows in table.parameters() if rows.ndim == 2)),
            find_images=partial(find_images, self),
            patch_size=patch_size if isinstance(patch_size, int) else None,
        )

    def __repr__(self) -> str:
        s = self.structure
        return f"VLM({self.name!r}, {s.n_layers} layers, width {s.d_model}, {s.n_heads} heads, on {self.device})"

    # What lies underneath

    @property
    def model(self) -> Any:
        """The transformers model itself."""
        return self.nnsight._module

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the weights: of the first that are no integers, which quantised models begin with."""
        return next(weights.dtype for weights in self.model.parameters() if weights.is_floating_point())

    @property
    def layers(self) -> Any:
        """The decoder's layers as nnsight envoys, to be used inside `trace`; so are `norm`, `head` and `embed`."""
        return resolve(self.nnsight, self.structure.layers)

    @property
    def norm(self) -> Any:
        return resolve(self.nnsight, self.structure.norm)

    @property
    def head(self) -> Any:
        return resolve(self.nnsight, self.structure.head)

    @property
    def embed(self) -> Any:
        return resolve(self.nnsight, self.structure.embed)

    @property
    def readout(self) -> tuple[Any, ...]:
        """What `interp.models.forward.read_out` takes to make this model's logits of a state: its norm and head, and
        what it does to their outcome."""
        made = self.trait("readout")
        return self.norm, self.head, self.structure.vocab_size, made.scale, made.cap, made.suppressed

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
            return self._with_types(self._maker.from_encoding(encoding, spans))
        return self._with_types(self._maker.prepare(texts, images, chat, spans))

    def length_of(self, text: str, images: Sequence[Any] = ()) -> int:
        """About how many tokens a row of this text and these pictures has: rows of like length make a good batch."""
        return self._maker.length_of(text, images)

    def _with_types(self, batch: Batch) -> Batch:
        """The same batch, refused where it has images and not the token types that this model's forward pass takes.

        Some models raise without them; others run all the same and see the image as if it were text.
        """
        taken = [name for name in self._arguments if name.endswith("token_type_ids")]
        missing = [name for name in taken if name not in batch.inputs]
        if missing and has_pictures(batch):
            raise InputError(
                f"the encoding has images but no {missing[0]!r}, by which {self.name!r} knows where they are: pass all that "
                f"its processor gives, with return_{missing[0]}=True"
            )
        return batch

    def trace(self, batch: Batch | None = None, **options: Any) -> Any:
        """nnsight's own trace of this batch: ``with vlm.trace(batch) as tracer: state = vlm.layers[3].output.save()``."""
        inputs = {} if batch is None else self.inputs_of(batch)
        return self.nnsight.trace(**inputs, **self.trace_options, **options)

    def inputs_of(self, batch: Batch) -> dict[str, Any]:
        """The batch's inputs on the model's device, images in its precision."""
        self._refuse_foreign(batch)
        return self.on_device(batch.inputs)

    def _refuse_foreign(self, batch: Any) -> None:
        if not isinstance(batch, Batch):
            raise InputTypeError(f"{type(batch).__name__} is no batch: make one with vlm.prepare")
        made, mine = batch._maker, self._maker
        if made is not None and (made.image_token_id, made.vocab_size) != (mine.image_token_id, mine.vocab_size):
            raise InputError(f"the batch was made for another model than {self.name!r}: make one with its own prepare")

    def on_device(self, given: Mapping[str, Tensor]) -> dict[str, Any]:
        """These inputs on the model's device, what is no integer in its precision."""
        # A model that runs on NDIF has no weights here: its inputs are sent from the CPU.
        device = torch.device("cpu") if self.device.type == "meta" else self.device
        inputs = {}
        for name, value in given.items():
            inputs[name] = value.to(device, self.dtype if value.is_floating_point() else value.dtype)
        return inputs

    @property
    def trace_options(self) -> dict[str, Any]:
        """What every trace of this model is called with beside its inputs."""
        return {"remote": self.remote} if self.remote else {}

    def accepts(self, argument: str) -> bool:
        """Whether the model's forward pass names this argument."""
        return argument in self._arguments

    @property
    def _arguments(self) -> Mapping[str, Any]:
        """The arguments of the forward pass; of what is inside, where a wrapper (PEFT's) hands everything on."""
        inner = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
        return inspect.signature(type(inner).forward).parameters

    def layer_indices(self, layers: int | str | Iterable[int]) -> list[int]:
        """Whatever is taken as `layers=` anywhere in this package, as a list of ints from 0.

        Raises `InputError` for a layer the model does not have.
        """
        return self._numbers(layers, self.structure.n_layers, "layers")

    def block_indices(self, layers: int | str | Iterable[int]) -> list[int]:
        """The same of the blocks of the image tower.

        Raises `InputError` for a block that there is not, `LayoutError` for a model without blocks.
        """
        return self._numbers(layers, len(blocks_of(self)), "blocks in its image tower")

    def _numbers(self, chosen: Any, depth: int, what: str) -> list[int]:
        if isinstance(chosen, str) and chosen == "all":
            return list(range(depth))
        numbers = None if isinstance(chosen, str | Mapping) else as_ints(chosen)
        if numbers is None:
            raise InputError(f"layers={chosen!r}: expected 'all', an int or ints from 0 to {depth - 1}")
        for number in numbers:
            if not -depth <= number < depth:
                raise InputError(f"layer {number!r}: {self.name!r} has {what} 0 to {depth - 1}")
        return [number % depth for number in numbers]

    # Running

    def refuse_unfit(self, batch: Any, interventions: Any = ()) -> None:
        """Refuse, before anything is computed, what is no batch of this model and what are no interventions.

        Raises `InputTypeError` for either, `InputError` for a batch that was made for another model.
        """
        self._refuse_foreign(batch)
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
        """Prove this model's layout by effect on `batch` (or a short prompt made here); see `interp.models.checks`.

        What is measured on the way stands in `structure` afterwards; what is measured later, at its first use, is measured
        on this batch too where the model does not run on text alone.
        """
        self.checked_on = batch if batch is not None else self.checked_on
        findings = run_checks(self, batch)
        self.structure = replace(self.structure, **findings.traits)
        return findings.report

    def trait(self, name: str) -> Any:
        """A trait of the structure that only a run can tell, measured now if it was not yet.

        Raises `LayoutError` where it cannot be, with the reason.
        """
        why = ""
        if getattr(self.structure, name) is None:
            traits, why = measure(self, name)
            self.structure = replace(self.structure, **traits)
        value = getattr(self.structure, name)
        if value is None:
            raise LayoutError(f"{self.name!r}: {name} is not known ({why}), call vlm.check(batch) with an image")
        return value
