"""Which parameters are trained: those of some layers, the connector, the image tower, and the head.

A part is named as everywhere in this package: `layers` are the decoder's, the connector is `structure.projector`, the tower
`structure.vision` and the head the final norm with the unembedding. Where the projector stands inside the tower (Qwen-VL, GLM-V)
it belongs to the connector alone. What else takes features of the tower to the stream, such as the mergers of DeepStack,
belongs to the tower. The token embedding, and loose parameters such as the vector of a line's end, belong to no part and
always stay as they are, with one exception: in many models head and embedding are one tensor, and whoever trains the one
trains the other.

    names = trained_names(vlm, layers=range(2, 6), connector=True)

A gradient is computed from the logits down to the lowest trained part and no further. So a band of late layers is cheap; the
connector, the tower and a tied head lie below all layers, and with them the backward pass goes through all of these.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn

from interp.arguments import checked_flag
from interp.errors import InputError, InputTypeError, shown
from interp.models import VLM
from interp.models.copying import refuse_spread


def trained_names(
    vlm: VLM,
    layers: int | str | Iterable[int] = "all",
    connector: bool = False,
    vision: bool = False,
    head: bool = False,
) -> list[str]:
    """The names of the parameters of these parts, in the order of the model, each once.

    >>> import interp
    >>> names = trained_names(interp.load("toy"), layers=range(2, 6), head=True)
    >>> len(names), names[0], names[-1]
    (38, 'model.language_model.layers.2.self_attn.q_proj.weight', 'lm_head.weight')

    `layers` is an int, ints, or "all"; ``()`` for none. `head` is the final norm and the unembedding.

    Raises `InputError` where nothing is chosen, for a layer that the model does not have, a part that it lacks or that has no
    weights, weights that layers share with a part that is not chosen, and weights that cannot be trained: they are quantised,
    spread over devices by accelerate, made within torch.inference_mode(), or not on this machine.
    """
    if not isinstance(vlm, VLM):
        raise InputTypeError(f"vlm is a {type(vlm).__name__}: expected a model, as interp.load gives it")
    numbers = vlm.layer_indices(layers)
    flags = {"connector": connector, "vision": vision, "head": head}
    wanted = [name for name, flag in flags.items() if checked_flag(flag, name)]
    if not numbers and not wanted:
        raise InputError(
            f"layers={shown(layers)} and no other part: expected something to train, as in layers='all' or connector=True"
        )
    _refuse_untrainable(vlm)
    parts: list[int | str] = [*numbers, *wanted]
    chosen = {name for part in parts for name in _names_of(vlm, part)}
    _refuse_shared(vlm, chosen)
    return [names[0] for names in _all_names(vlm).values() if not chosen.isdisjoint(names)]


def training_notes(vlm: VLM, names: Sequence[str]) -> tuple[str, ...]:
    """What a reader of the result must know of this selection.

    >>> import interp
    >>> vlm = interp.load("toy")
    >>> training_notes(vlm, trained_names(vlm, layers=3))
    ()
    """
    if any(is_within(name, vlm.structure.embed) for name in names):
        return (
            "head and embedding are one tensor: the embedding was trained too, and the backward pass went down to it",
        )
    return ()


def is_within(name: str, path: str | None) -> bool:
    """Whether a parameter belongs to the part at this path."""
    return path is not None and name.startswith(f"{path}.")


def layer_of(vlm: VLM, name: str) -> int | None:
    """The number of the layer that a parameter belongs to; None for one of another part."""
    if not is_within(name, vlm.structure.layers):
        return None
    return int(name.removeprefix(f"{vlm.structure.layers}.").partition(".")[0])


def _all_names(vlm: VLM) -> dict[int, list[str]]:
    """The names of each parameter, by its id: one that several parts share has several, the first one is its own."""
    names: dict[int, list[str]] = {}
    for name, parameter in vlm.model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return names


def _names_of(vlm: VLM, part: int | str) -> list[str]:
    """All names in a part: a layer by its number, or "connector", "vision" or "head".

    Raises `InputError` where the model lacks it, or where it has no weights.
    """
    s = vlm.structure
    paths = {"connector": (s.projector,), "vision": (s.vision,), "head": (s.norm, s.head)}
    others = {"connector": s.vision, "vision": s.projector}
    within = (f"{s.layers}.{part}",) if isinstance(part, int) else paths[part]
    # A part that stands inside another one is the inner one's alone.
    inner = others.get(str(part))
    inner = inner if inner and any(path and is_within(inner, path) for path in within) else None
    names = [
        name
        for alike in _all_names(vlm).values()
        for name in alike
        if any(is_within(name, path) for path in within) and not is_within(name, inner)
    ]
    if not names:
        what = f"layer {part}" if isinstance(part, int) else {"vision": "image tower"}.get(part, part)
        raise InputError(f"{vlm.name!r} has no {what} with weights of its own: leave it out")
    return names


def _refuse_shared(vlm: VLM, chosen: set[str]) -> None:
    """Raise `InputError` where a weight is also a part's that is not chosen, and would be trained there unasked."""
    s = vlm.structure
    for names in _all_names(vlm).values():
        ours = [name for name in names if name in chosen]
        others = [name for name in names if name not in chosen and not is_within(name, s.embed)]
        if (
            ours
            and any(is_within(name, s.embed) for name in names)
            and not any(is_within(name, s.head) for name in ours)
        ):
            others = [name for name in names if name not in ours]
        if ours and others:
            raise InputError(
                f"{ours[0]} and {others[0]} are one tensor, and only one of them was chosen: train both parts or neither"
            )


def _refuse_untrainable(vlm: VLM) -> None:
    refuse_spread(vlm, "trained")
    if any(weights.is_meta for weights in vlm.model.parameters()):
        raise InputError(f"{vlm.name!r} has no weights here: training needs the model loaded on this machine")
    if any(weights.is_inference() for weights in vlm.model.parameters()):
        raise InputError(
            f"{vlm.name!r} was loaded within torch.inference_mode(): load it outside, no gradient passes here"
        )
    coarse = next((name for name, weights in vlm.model.named_parameters() if _is_coarse(weights)), None)
    if coarse is not None or getattr(vlm.model, "is_quantized", False):
        raise InputError(
            f"{vlm.name!r} is quantised ({coarse or 'by its config'}): expected weights in float32, bfloat16 or float16, "
            "load it with dtype='bfloat16'"
        )


def _is_coarse(weights: nn.Parameter | Any) -> bool:
    return not weights.is_floating_point() or weights.element_size() < 2
