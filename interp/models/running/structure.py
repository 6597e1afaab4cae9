"""What is known of a model: where its parts are, how large it is, and how its layers behave.

A `Structure` is what `interp.models.layout.discovery` finds, what a user may say instead, field by field, and what
`interp.models.layout.checks` proves by effect and completes with the traits that only a run can tell.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from torch import nn

from interp.errors import InputError, shown
from interp.models.running.readout import LogitScaling

# The fields of `Structure` by what they hold, and those that may be None.
_PATHS = ("layers", "norm", "head", "embed", "vision", "blocks", "projector")
_NUMBERS = ("image_token_id", "n_layers", "d_model", "n_heads", "n_kv_heads", "d_vision", "vocab_size")
_EACH_LAYER = ("heads", "attn", "mlp", "attention")
_HEADED = ("q", "k", "v", "z", "pattern")
_MEASURED = (
    *("readout", "attn_out", "mlp_out", "mid", *_HEADED, "weighed"),
    *("trims", "continuous", "bidirectional_images", "vision_weighed"),
)
_MAY_BE_NONE = ("vision", "blocks", "projector", "image_token_id", "d_vision")
_ATTENTION = ("softmax", "sliding", "chunked", "linear", "convolution", "none")


@dataclass(frozen=True)
class Added:
    """What a layer adds to the stream: the output of its part `module` (dotted path in the layer) times `scale`.

    `flat` is True where the part gives the positions of all rows one after the other, as many mixtures of experts do.
    """

    module: str
    scale: float = 1.0
    flat: bool = False


@dataclass(frozen=True)
class Heads:
    """Where a layer keeps one vector a head: in what its part `module` (dotted path in the layer) is given or gives.

    `side` is "input" or "output". The last axis of what stands there is cut into `groups` equal parts, of each of which
    the features from `offset` on, `width` of them, belong to the site; put side by side they are its heads, `d_head`
    features each. So one form says where the queries are in a projection of their own (one group), in one of q, k and v
    behind each other (one group, three offsets), and in one where each head has its q, k and v (a group a head).
    `turn` counts the parts of the layer's attention in the order in which they run.
    """

    module: str
    side: str
    groups: int
    offset: int
    width: int
    d_head: int
    turn: int

    @property
    def number(self) -> int:
        """How many heads there are."""
        return self.groups * self.width // self.d_head


@dataclass(frozen=True)
class TowerWeights:
    """Where the attention weights of a block of the image tower are. The block's z is the mean of its v with these weights.

    `module` is the attention (dotted path in the block); `v` and `z` say where it keeps its values and the outputs of its
    heads. `visibility` says who may see whom: "mask" (what the mask argument allows, everyone without one), "chunks"
    (tokens between the same two bounds of the chunk argument) or "all". `weights_at` is the index of the weights among the
    outputs of the attention. Where it is None the weights are the softmax of `q` and `k`, which are first rotated by the
    angles that the attention takes if `rotary`.
    """

    module: str
    visibility: str
    v: Heads
    z: Heads
    weights_at: int | None = None
    q: Heads | None = None
    k: Heads | None = None
    rotary: bool = False


@dataclass(frozen=True)
class Structure:
    """Where the parts of a model are (dotted paths from its root), how large it is, and how its layers behave.

    `layers` is the decoder's list of layers, `norm` the final norm, `head` the unembedding, `embed` the token embedding;
    `vision` is the image tower, `blocks` its list of layers and `projector` what takes its states to the stream, None
    where there is no such module. `n_heads` is the largest number of query heads, `heads` says how many each layer has.
    Within each layer, `attn` and `mlp` are its mixer of positions and its MLP (None where a layer has none), and
    `attention` says how its positions see each other: "softmax", "sliding", "chunked" (softmax within windows or
    chunks), "linear", "convolution" or "none".

    The traits at the end are measured by `interp.models.layout.checks`, None until then. `readout` takes ``head(norm(state))`` to
    logits. `attn_out` and `mlp_out` say for each layer what it adds to the stream, None where that could not be proved;
    `mid` for each whether the state between the two exists. `q`, `k`, `v` and `z` say where each layer keeps its queries,
    keys, values and what its heads give, `pattern` which of the things that its attention gives are the weights; None
    for a layer where that could not be proved. `weighed` says for each whether its z is the mean of its v with the weights
    of its pattern, and no more. These six are measured when one is first used. `trims` is True where
    layers leave positions out of which no logits are asked for. `continuous` is False where something is added to the
    stream between layers (DeepStack); `bidirectional_images` is True where an image token sees image tokens behind it.
    `vision_weighed` says for each block of the tower how it weighs, or in a few words why that could not be proved; it is
    measured when the tower's weights are first edited.
    """

    layers: str
    norm: str
    head: str
    embed: str
    vision: str | None
    blocks: str | None
    projector: str | None
    image_token_id: int | None
    n_layers: int
    d_model: int
    n_heads: int
    n_kv_heads: int
    d_vision: int | None
    vocab_size: int
    heads: tuple[int, ...]
    attn: tuple[str | None, ...]
    mlp: tuple[str | None, ...]
    attention: tuple[str, ...]
    readout: LogitScaling | None = None
    attn_out: tuple[Added | None, ...] | None = None
    mlp_out: tuple[Added | None, ...] | None = None
    mid: tuple[bool, ...] | None = None
    q: tuple[Heads | None, ...] | None = None
    k: tuple[Heads | None, ...] | None = None
    v: tuple[Heads | None, ...] | None = None
    z: tuple[Heads | None, ...] | None = None
    pattern: tuple[int | None, ...] | None = None
    weighed: tuple[bool, ...] | None = None
    trims: bool | None = None
    continuous: bool | None = None
    bidirectional_images: bool | None = None
    vision_weighed: tuple[TowerWeights | str, ...] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values, for JSON."""
        readout = None if self.readout is None else {"kind": self.readout.kind, **asdict(self.readout)}
        return {**asdict(self), "readout": readout}


def resolve(root: Any, path: str) -> Any:
    """The part at a dotted path: of a module, or of the nnsight envoy around it."""
    for name in path.split("."):
        # A part that bears a name which every envoy serves itself, as "output", stands beside it.
        beside = f"E_{name}"
        root = root[int(name)] if name.isdigit() else getattr(root, beside if hasattr(root, beside) else name)
    return root


# What is given -----------------------------------------------------------------------------------------------------------


def check_given(model: Any, given: Any) -> dict[str, Any]:
    """The given fields, each of the kind that it must be."""
    names = [field.name for field in fields(Structure)]
    if isinstance(given, Structure):
        given = {name: getattr(given, name) for name in names if name not in _MEASURED}
    if not isinstance(given, Mapping | None):
        raise InputError(f"structure={shown(given)}: expected its fields by name, as in {{'norm': 'model.norm'}}")
    given = dict(given or {})
    paths = {path for path, _ in model.named_modules() if path}
    for name, value in given.items():
        if name not in names:
            raise InputError(f"structure has no {name!r}: give any of {', '.join(names)}")
        if name in _MEASURED:
            raise InputError(f"structure {name}={shown(value)}: this is measured on the model, leave it out")
        if value is None and name in _MAY_BE_NONE:
            continue
        if name in _PATHS and not (isinstance(value, str) and value in paths):
            raise InputError(
                f"structure {name}={shown(value)} is no module of {type(model).__name__}: give a dotted path"
            )
        least = 0 if name == "image_token_id" else 1
        if name in _NUMBERS and not _is_int(value, least):
            raise InputError(f"structure {name}={shown(value)}: expected an int from {least} on")
        if name in _EACH_LAYER:
            if not isinstance(value, list | tuple):
                raise InputError(f"structure {name}={shown(value)}: expected a tuple with one entry a layer")
            given[name] = tuple(value)
    return given


def check_layers(layers: Any, depth: int, given: Mapping[str, Any]) -> None:
    """Refuse given layers that are no list of as many, and what is given for each layer and does not fit them."""
    if not isinstance(layers, nn.ModuleList | nn.Sequential) or len(layers) != depth:
        raise InputError(
            f"structure layers={given['layers']!r} is no list of {depth} layers: expected one, or n_layers too"
        )
    for name in (name for name in _EACH_LAYER if name in given):
        if len(given[name]) != depth:
            raise InputError(
                f"structure {name} has {len(given[name])} entries: expected one for each of {depth} layers"
            )
        for index, (layer, entry) in enumerate(zip(layers, given[name], strict=True)):
            if name == "heads":
                fits, expected = _is_int(entry, 0), "an int"
            elif name == "attention":
                fits, expected = entry in _ATTENTION, f"one of {', '.join(_ATTENTION)}"
            else:
                children = [child for child, _ in layer.named_children()]
                fits, expected = entry is None or entry in children, f"None or one of {', '.join(children)}"
            if not fits:
                raise InputError(f"structure {name} has {entry!r} for layer {index}: expected {expected}")


def _is_int(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
