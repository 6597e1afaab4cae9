"""The core of a model: the wrapped module, what is known of it, and its parts as nnsight envoys.

Everything that traces a model or measures it takes a `Core`. It resolves parts, layers and inputs:

    core.layers[3].output           nnsight's envoy of a layer, inside a trace
    core.inputs_of(batch)           what a trace is called with
    core.layer_indices([-1])        [n_layers - 1]
    core.trait("readout")           a trait of the structure, measured at its first use

`interp.models.vlm.VLM` adds interventions, generation and proofs on top.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from interp.arguments import as_ints
from interp.displays import Display
from interp.errors import InputError, InputTypeError, LayoutError, shown
from interp.models.batches.batch import Batch
from interp.models.batches.maker import BatchMaker
from interp.models.batches.positions import is_of_images
from interp.models.running.offloading import run_device
from interp.models.running.readout import Readout
from interp.models.running.structure import Structure, resolve
from interp.models.running.threads import SMALL

# Measures a trait of a model: returns traits by name, and the reason where they cannot be measured.
Measure = Callable[["Core", str], tuple[dict[str, Any], str]]


@dataclass(frozen=True)
class Origin:
    """Which model it is and where it runs. `remote` is what every trace is called with: False, True for NDIF, "local" for its
    simulation, or a server's address."""

    name: str
    revision: str | None = None
    remote: bool | str = False


class Core(Display):
    """A wrapped model, its `structure`, and the ways to its parts.

    `maker` makes batches for it, and `measure` measures a trait that is not known yet.
    """

    def __init__(self, wrapped: Any, structure: Structure, origin: Origin, maker: BatchMaker, measure: Measure) -> None:
        self.nnsight = wrapped
        self.structure = structure
        self.name, self.revision, self.remote = origin.name, origin.revision, origin.remote
        self.maker = maker
        self.processor, self.tokenizer = maker.processor, maker.tokenizer
        self._measure = measure
        self._small: bool | None = None
        # Results of trials on this model that are needed once.
        self.tried: dict[tuple[Any, ...], Any] = {}
        # The batch that traits are measured on where the model does not run on text alone.
        self.checked_on: Batch | None = None
        # Rows of up to so many columns are known to fit into the model's positions.
        self.fitting_columns = 0
        self._noted: set[str] = set()

    # The model underneath

    @property
    def model(self) -> Any:
        """The transformers model itself."""
        return self.nnsight._module

    @property
    def device(self) -> torch.device:
        """Where the model runs, also with offloaded weights; "meta" for a model without weights on this machine."""
        return run_device(self.model)

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the weights: of the first floating-point ones, since quantised models begin with integers."""
        return next(weights.dtype for weights in self.model.parameters() if weights.is_floating_point())

    @property
    def is_small(self) -> bool:
        """Whether the model has so few weights that it runs faster on one thread; see `interp.models.running.threads`."""
        # Kept by hand: a trace that names the model is sent with its class, and a cached property cannot be.
        if self._small is None:
            self._small = sum(weights.numel() for weights in self.model.parameters()) < SMALL
        return self._small

    @property
    def vocab_size(self) -> int:
        """The number of logits at a position."""
        return self.structure.vocab_size

    @property
    def takes_images(self) -> bool:
        """Whether it takes images; a language model alone takes none."""
        return self.maker.model_inputs.takes_images

    def refuse_image_positions(self, positions: Any) -> None:
        """Raise `InputError` where positions are those of images, and the model takes none."""
        if not self.takes_images and isinstance(positions, str) and is_of_images(positions):
            raise InputError(f"positions {positions!r}: {self.name!r} takes no image, pass positions='text' or others")

    # Parts, as envoys to be used inside a trace

    @property
    def layers(self) -> Any:
        """The decoder's layers."""
        return resolve(self.nnsight, self.structure.layers)

    @property
    def norm(self) -> Any:
        """The final norm."""
        return resolve(self.nnsight, self.structure.norm)

    @property
    def head(self) -> Any:
        """The unembedding."""
        return resolve(self.nnsight, self.structure.head)

    @property
    def embed(self) -> Any:
        """The token embedding."""
        return resolve(self.nnsight, self.structure.embed)

    @property
    def blocks(self) -> Any:
        """The blocks of the image tower. Raises `LayoutError` for a model that has none."""
        if self.structure.blocks is None:
            raise LayoutError(f"{self.name!r} has no image tower made of blocks, so it has no site vision")
        return resolve(self.nnsight, self.structure.blocks)

    @property
    def readout(self) -> Readout:
        """The function from a state to logits, with the model's own norm and head."""
        return Readout(self.norm, self.head, self.structure.vocab_size, self.trait("readout"))

    # Inputs of a trace

    @property
    def trace_options(self) -> dict[str, Any]:
        """The options of every trace of this model."""
        return {"remote": self.remote} if self.remote else {}

    @property
    def arguments(self) -> Mapping[str, Any]:
        """The arguments of the forward pass; of the model inside where a wrapper (PEFT's) passes everything on."""
        inner = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
        return inspect.signature(type(inner).forward).parameters

    def accepts(self, argument: str) -> bool:
        """Whether the model's forward pass names this argument."""
        return argument in self.arguments

    def takes(self, argument: str) -> bool:
        """Whether the model's forward pass can be called with this argument, by its name or among any others."""
        return self.accepts(argument) or self.takes_others

    @property
    def takes_others(self) -> bool:
        """Whether the model's forward pass takes arguments that it does not name."""
        return any(each.kind is each.VAR_KEYWORD for each in self.arguments.values())

    def note_once(self, about: str, text: str) -> None:
        """Warn of something, once for each model and each thing that it is `about`."""
        if about not in self._noted:
            self._noted.add(about)
            warnings.warn(text, stacklevel=2)

    def inputs_of(self, batch: Batch) -> dict[str, Any]:
        """The batch's inputs on the model's device, images in its precision. Raises what `refuse_foreign` raises."""
        self.refuse_foreign(batch)
        return self.on_device(batch.inputs)

    def refuse_foreign(self, batch: Any) -> None:
        """Raise `InputTypeError` for anything but a batch, `InputError` for a batch that was made for another model."""
        if not isinstance(batch, Batch):
            raise InputTypeError(f"{type(batch).__name__} is not a batch: make one with vlm.prepare")
        theirs, own = batch._maker and batch._maker.model_inputs, self.maker.model_inputs
        if theirs and (theirs.image_token_id, theirs.vocab_size) != (own.image_token_id, own.vocab_size):
            raise InputError(f"the batch was made for another model than {self.name!r}: make one with its own prepare")

    def on_device(self, inputs: Mapping[str, Tensor]) -> dict[str, Any]:
        """These inputs on the model's device, floating-point ones in its precision."""
        # A model that runs on NDIF has no weights here: its inputs are sent from the CPU.
        device = torch.device("cpu") if self.device.type == "meta" else self.device
        return {
            name: value.to(device, self.dtype if value.is_floating_point() else value.dtype)
            for name, value in inputs.items()
        }

    # Layers and traits

    def layer_indices(self, layers: int | str | Iterable[int]) -> list[int]:
        """The argument `layers=` of any function of this package, as a list of ints from 0.

        Raises `InputError` for a layer the model does not have.
        """
        return self._indices(layers, self.structure.n_layers, "layers")

    def block_indices(self, layers: int | str | Iterable[int]) -> list[int]:
        """The same for the blocks of the image tower.

        Raises `InputError` for a block the tower does not have, `LayoutError` for a model without blocks.
        """
        return self._indices(layers, len(self.blocks), "blocks in its image tower")

    def _indices(self, chosen: Any, depth: int, what: str) -> list[int]:
        if isinstance(chosen, str) and chosen == "all":
            return list(range(depth))
        numbers = None if isinstance(chosen, str | Mapping) else as_ints(chosen)
        if numbers is None:
            raise InputError(f"layers={shown(chosen)}: expected 'all', an int or ints from 0 to {depth - 1}")
        for number in numbers:
            if not -depth <= number < depth:
                raise InputError(f"layer {number!r}: {self.name!r} has {what} 0 to {depth - 1}")
        return [number % depth for number in numbers]

    def trait(self, name: str) -> Any:
        """A trait of the structure that only a run can tell, measured now if it is not known yet.

        Raises `LayoutError` where it cannot be measured, with the reason.
        """
        why = ""
        if getattr(self.structure, name) is None:
            traits, why = self._measure(self, name)
            self.structure = replace(self.structure, **traits)
        value = getattr(self.structure, name)
        if value is None:
            raise LayoutError(f"{self.name!r}: {name} is not known ({why}), call vlm.check(batch) with an image")
        return value
