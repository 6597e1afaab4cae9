"""The one place that runs a trace: edits are applied and sites are read in the order in which the model computes them.

A method says *what* it wants as `Edit`s and `Read`s (`interp.models.running.steps`). `run_forward` and `run_generate` carry
them out in one nnsight trace, and nothing leaves the trace but what was asked for:

    run_forward(vlm, batch, [Edit("resid_pre", 4, torch.zeros_like)], [Read("state", "resid_post", 7, whole)])

returns the logits under "logits" and the state under "state". Before the places of sites are known, `run_for_visits` and
`run_for_shapes` show what chosen modules take and return: a visit is one run of a module within a trace.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import nnsight
import torch
from torch import Tensor

from interp.arguments import checked_choice
from interp.displays import dtype_name
from interp.errors import InputError
from interp.models.running.finite import cause_of, holds_no_numbers
from interp.models.running.greedy import NOT_FINITE, greedy_options
from interp.models.running.masks import PATTERNED
from interp.models.running.places import BEFORE_LAYERS
from interp.models.running.readiness import ready_inputs
from interp.models.running.slots import InputSlot, first, is_feature_list
from interp.models.running.steps import Edit, Read, Step, follow, schedule, take_each, whole
from interp.models.running.surroundings import around_run

if TYPE_CHECKING:
    from interp.models.batches.batch import Batch
    from interp.models.running.core import Core


@dataclass(frozen=True)
class Visit:
    """The first input and the first output of a module when it ran, None where that is not a floating-point tensor, and the
    `others` among its outputs."""

    input: Tensor | None
    output: Tensor | None
    others: tuple[Tensor | None, ...] = ()


@dataclass(frozen=True)
class Shapes:
    """The shape of the first input of a module and those of all its outputs, on one visit. `is_list` says whether the
    output was a list of features."""

    input: tuple[int, ...] | None
    outputs: list[tuple[int, ...]]
    is_list: bool


# Forward passes ----------------------------------------------------------------------------------------------------------


def inputs_for_logits(core: Core, batch: Batch, logits: Any, inspected: bool) -> tuple[dict[str, Any], Any]:
    """The inputs of a run that returns these logits (as `run_forward` takes them), and the selection for `logits_at`.

    Where every row ends with its last real token, the model computes no other logits, unless its layers are `inspected` (read
    or edited) and it would leave out positions of its last layers too.
    """
    if isinstance(logits, str):
        checked_choice(logits, "logits", ("last", "all"))
    core.refuse_foreign(batch)
    inputs, last = ready_inputs(core, batch.inputs), isinstance(logits, str) and logits == "last"
    if last and bool(batch.positions["last"][:, -1].all()):
        trims = core.structure.trims is not False and inspected
        kept = {"logits_to_keep": batch.tail} if core.accepts("logits_to_keep") and not trims else {}
        return {**inputs, **kept}, "end" if batch.tail == 1 else batch.tail
    mask = batch.positions["last"] if last else logits
    return inputs, mask.nonzero(as_tuple=True) if isinstance(mask, Tensor) else mask


def run_forward(
    core: Core,
    batch: Batch,
    edits: Sequence[Edit] = (),
    reads: Sequence[Read] = (),
    logits: str | Tensor | None = "last",
) -> dict[Any, Tensor]:
    """One forward pass: the value of each read under its key, and under ``"logits"`` the logits.

    `logits` is "last" (of each row's last real token, `[batch, vocab]`; of an answered batch those that judge its answers,
    `[batch, token, vocab]`), "all" (`[batch, seq, vocab]`), a Bool `[batch, seq]` (`[position, vocab]`, row after row) or None
    (not computed further than the last read needs).

    Raises `InputError` where logits are NaN or infinite, with the place where that begins (`run_unrefused` does not); reads are
    returned as they are.

    A read or an edit of "pattern" makes the decoder's attention eager for this run, one of "vision_pattern" the tower's; see
    `interp.models.running.attention`.
    """
    saved = run_unrefused(core, batch, edits, reads, logits)
    if "logits" in saved:
        top = saved["logits"].amax(dim=-1)  # it is NaN or infinite where any logit is
        every = isinstance(logits, str) and logits == "all"
        refuse_no_numbers(core, batch, top[batch.positions["all"].to(top.device)] if every else top, "logits")
    return saved


def run_unrefused(
    core: Core,
    batch: Batch,
    edits: Sequence[Edit] = (),
    reads: Sequence[Read] = (),
    logits: str | Tensor | None = "last",
) -> dict[Any, Tensor]:
    """`run_forward`, whose logits may be NaN or infinite."""
    model = core.nnsight
    inputs, selection = inputs_for_logits(core, batch, logits, inspected=bool(edits or reads))
    steps = schedule(core, len(batch), edits, reads)
    with around_run(core, inputs, edits, reads), model.trace(**inputs, **core.trace_options) as tracer:
        saved = nnsight.save({})
        follow(steps, saved)
        if selection is None:
            tracer.stop()
        else:
            saved["logits"] = logits_at(model.output.logits, selection)
    return dict(saved)


def refuse_no_numbers(core: Core, batch: Batch, values: Tensor, what: str) -> None:
    """Raise `no_numbers` where the values of a run of this batch are NaN or plus infinity; `what` they are, in words."""
    if holds_no_numbers(values):
        raise no_numbers(core, batch, what)


def no_numbers(core: Core, batch: Batch, what: str) -> InputError:
    """The error of a run of this batch whose values (`what`, in words) are not finite: it says where that begins."""
    return InputError(
        cause_not_finite(core, batch)
        or f"the {what} of {core.name!r} are not finite in {dtype_name(core)}, though the states of its untouched run are: "
        "make what is written into them smaller, or load it with another dtype"
    )


def cause_not_finite(core: Core, batch: Batch) -> str:
    """Where the untouched run of a batch stops being finite, in one line; empty where its states and weights are."""
    return cause_of(core, lambda reads: run_forward(core, batch, reads=reads, logits=None), batch.has_images)


def run_until_layers(core: Core, inputs: Mapping[str, Tensor], edits: Sequence[Edit] = ()) -> Tensor:
    """What enters layer 0, `[batch, seq, width]`, for inputs whose positions are not known; the rest is not computed."""
    return run_until_reads(core, inputs, [Read("state", "resid_pre", 0, whole)], edits)["state"]


def run_until_reads(
    core: Core, inputs: Mapping[str, Tensor], reads: Sequence[Read], edits: Sequence[Edit] = ()
) -> dict[Any, Tensor]:
    """The value of each read under its key, for inputs whose positions are not known; the rest is not computed."""
    steps = schedule(core, len(inputs["input_ids"]), edits, reads)
    options = {**ready_inputs(core, inputs), **core.trace_options}
    with around_run(core, inputs, edits, reads), core.nnsight.trace(**options) as tracer:
        saved = nnsight.save({})
        follow(steps, saved)
        tracer.stop()
    return dict(saved)


# Visits ------------------------------------------------------------------------------------------------------------------


def run_for_visits(
    core: Core, inputs: Mapping[str, Tensor], envoys: Sequence[Any], **options: Any
) -> dict[str, list[Visit]]:
    """One forward pass: the visits to these modules by their nnsight paths, in the order in which they began."""
    options = {**ready_inputs(core, inputs), **options, **core.trace_options}
    with around_run(core, inputs), core.nnsight.trace(**options) as tracer:
        cache = tracer.cache(modules=list(envoys), include_inputs=True).save()
    return {
        path: [Visit(_tensor(value), _tensor(output), _others(output)) for value, output in visits]
        for path, visits in visits_in(cache).items()
    }


def run_for_shapes(core: Core, inputs: Mapping[str, Tensor], envoys: Sequence[Any]) -> dict[str, list[Shapes]]:
    """The shapes at each visit to these modules before layer 0, by their nnsight paths; nothing else leaves the trace."""
    options = {**ready_inputs(core, inputs), **core.trace_options}
    # The step is made here: a trace that names the core would be sent with all of it.
    steps = [Step(core.layers[0], InputSlot())]
    with around_run(core, inputs), core.nnsight.trace(**options) as tracer:
        cache = tracer.cache(modules=list(envoys), include_inputs=True)
        follow(steps, {})
        shapes = nnsight.save(shapes_of(cache))
        tracer.stop()
    return {
        path: [Shapes(inputs[0] if inputs else None, outputs, is_list) for inputs, outputs, is_list in visits]
        for path, visits in shapes.items()
    }


def _tensor(value: Any) -> Tensor | None:
    value = first(value) if isinstance(value, tuple | list | dict) and len(value) else value
    return value if isinstance(value, Tensor) and value.is_floating_point() else None


def _others(value: Any) -> tuple[Tensor | None, ...]:
    if not isinstance(value, tuple | list):
        return ()
    return tuple(_tensor(other) if isinstance(other, Tensor) else None for other in value[1:])


# Generation --------------------------------------------------------------------------------------------------------------


def run_generate(core: Core, batch: Batch, edits: Sequence[Edit], max_new_tokens: int, **ends: Any) -> Tensor:
    """Greedy generation with these edits in every forward pass: the ids of prompt and continuation `[batch, seq]`.

    `ends` are the ids that end and pad a row where they are not the checkpoint's (`interp.models.running.greedy`).

    The first pass is of the prompt, each later one of one new token. The cache keeps the keys and values as they were made,
    edits and all. So the result is that of passes of the growing text in which every position is edited as it was when it
    came.

    Raises `InputError` for a row that ends in padding.
    """
    core.refuse_foreign(batch)
    _refuse_padding_behind(batch)
    # The last new token is not fed to the model.
    model, inputs = core.nnsight, ready_inputs(core, batch.inputs, max_new_tokens - 1)
    options = greedy_options(core, max_new_tokens, **ends)
    length = batch.inputs["input_ids"].shape[1]
    # The image tower runs with the prompt alone.
    tower_steps = schedule(core, len(batch), [edit for edit in edits if edit.site in BEFORE_LAYERS], ())
    steps = schedule(core, len(batch), [edit for edit in edits if edit.site not in BEFORE_LAYERS], ())
    if edits and core.structure.trims is not False and core.accepts("logits_to_keep"):
        options = {**options, "logits_to_keep": 0}  # or some layers would have their last position alone
    options |= core.trace_options
    values: dict[int, Tensor] = {}
    rounds = max_new_tokens if steps else min(1, len(tower_steps))
    # Rows that all end early end the loop and everything after it in its block: the ids are read in another block.
    with around_run(core, inputs, edits), warnings.catch_warnings():
        # Every row may end before the last step.
        warnings.filterwarnings("ignore", message=".*was never reached: the loop asked for a step the run did not make")
        try:
            with model.generate(**options) as tracer:
                with tracer.invoke(**inputs):
                    for step in tracer.iter[:rounds]:
                        follow([] if step else tower_steps, {})
                        follow(steps, {}, length + step - 1 if step else 0, values)
                with tracer.invoke():
                    ids = nnsight.save(tracer.result)
        except ValueError as error:
            if NOT_FINITE not in str(error):
                raise
            raise no_numbers(core, batch, "logits") from error
    return ids


def _refuse_padding_behind(batch: Batch) -> None:
    """The next token is read at the last column: behind padding, no token of the row would have chosen it."""
    padded = (~batch.positions["all"][:, -1]).nonzero().flatten().tolist()
    if padded:
        raise InputError(
            f"row {padded[0]} ends in padding, behind which nothing can be generated: expected padding on the left, pass "
            "padding_side='left' to the processor, or texts= to prepare"
        )


# Who sees whom -----------------------------------------------------------------------------------------------------------


def visible(core: Core, batch: Batch, layers: int | str | Iterable[int] = "all") -> list[Tensor | None]:
    """Who may attend to whom in each of `layers`: Bool `[batch, query, key]`, None for a layer without softmax attention.

    >>> import interp
    >>> vlm = interp.load("toy")
    >>> batch = vlm.prepare(texts=["where is the 3 ?"])
    >>> visible(vlm, batch, layers=0)[0][0, 2].int().tolist()
    [1, 1, 1, 0, 0, 0]

    It is read from the masks that reach the layers, so windows, chunks, prefixes and image blocks are in it whatever the
    architecture. A pair is visible where one head or more may attend; a layer that picks its keys itself (sparse attention
    with an indexer) uses only some of them. Rows of padding have no meaning. One trace, ended at the last of the layers.

    Raises `InputError` for a layer the model does not have and for flash and flex attention.
    """
    chosen = core.layer_indices(layers)
    patterned = sorted({layer for layer in chosen if core.structure.attention[layer] in PATTERNED})
    reads = [Read(layer, "mask", layer, any_head) for layer in patterned]
    masks = run_forward(core, batch, reads=reads, logits=None) if reads else {}
    return [masks[layer].cpu() if layer in masks else None for layer in chosen]


# Plain torch, run inside the trace ---------------------------------------------------------------------------------------


def logits_at(logits, selection):
    """The logits of the last column ("end"), of so many last ones, of all positions ("all"), or of these rows and columns."""
    if selection == "end":
        return logits[:, -1]
    if isinstance(selection, int):
        return logits[:, -selection:]
    if selection == "all":
        return logits
    rows, columns = selection
    return take_each(logits, rows, columns, None)


def any_head(allowed):
    """`[batch, heads, query, key]` to `[batch, query, key]`: True where some head may attend."""
    return allowed.any(dim=1)


def visits_in(cache):
    """The visits to each module in a cache, as pairs of its input and its output."""
    visits = {}
    for path in cache.keys():  # noqa: SIM118  a cache's iteration is over what is below it, by number
        module = cache[path]
        once = len(module) == 1
        visits[path] = [(module.input, module.output)] if once else list(zip(module.input, module.output, strict=True))
    return visits


def shapes_of(cache):
    """For each module in a cache, each of its visits: the shapes of its inputs and of its outputs, and whether these are
    a list of features."""
    return {
        path: [(shapes_in(value), shapes_in(output), is_feature_list(output)) for value, output in visits]
        for path, visits in visits_in(cache).items()
    }


def shapes_in(value):
    """The shapes of the tensors among what a module takes or returns; of named ones only that of the first."""
    value = first(value) if isinstance(value, dict) and len(value) else value
    values = value if isinstance(value, tuple | list) else [value]
    return [tuple(each.shape) for each in values if isinstance(each, torch.Tensor)]
