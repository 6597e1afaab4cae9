"""What is known of a model: where its parts are, how large it is, and how its layers behave.

`interp.models.layout.discovery` finds a `Structure`, and a user may give any of its fields instead, which `checked_structure`
checks. `interp.models.layout.checks` proves it by effect and adds the traits that only a run can tell.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any

from torch import nn

from interp.displays import Display
from interp.errors import InputError, shown
from interp.models.running.readout import LogitScaling

# The kinds of attention that a layer may have.
_ATTENTION = ("softmax", "sliding", "chunked", "linear", "convolution", "none")


@dataclass(frozen=True)
class Added:
    """What a layer adds to the stream: the output of its part `module` (dotted path in the layer) times `scale`.

    `flat` is True where the part returns the positions of all rows one after the other, as many mixtures of experts do.
    """

    module: str
    scale: float = 1.0
    flat: bool = False


@dataclass(frozen=True)
class Heads:
    """Where a layer keeps one vector a head: in the "input" or the "output" (`side`) of its part `module` (dotted path in the
    layer).

    The last axis of that tensor is cut into `groups` equal parts. In each part `width` features from `offset` on belong to
    the site; side by side they are its heads, `d_head` features each. This covers queries in a projection of their own (one
    group), in a projection of q, k and v one after the other (one group, three offsets), and in one where each head has its
    q, k and v (one group a head). `turn` counts the parts of the layer's attention in the order in which they run.
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
        """The number of heads."""
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
class Structure(Display):
    """Where the parts of a model are (dotted paths from its root), how large it is, and how its layers behave.

    `layers` is the decoder's list of layers, `norm` the final norm, `head` the unembedding, `embed` the token embedding;
    `vision` is the image tower, `blocks` its list of layers and `projector` the module that maps its states to the stream,
    None where the model has no such module. `n_heads` is the largest number of query heads, and `heads` has the number of
    each layer. Within each layer, `attn` and `mlp` are its mixer of positions and its MLP (None where a layer has none).
    `attention` is how its positions see each other: "softmax", "sliding", "chunked" (softmax within windows or chunks),
    "linear", "convolution" or "none".

    The traits at the end are measured by `interp.models.layout.checks` and None until then:

    - `readout` maps ``head(norm(state))`` to logits.
    - `attn_out` and `mlp_out` are what each layer adds to the stream, None where that could not be proved; `mid` says
      whether the state between the two exists.
    - `q`, `k`, `v` and `z` are where each layer keeps its queries, keys, values and the outputs of its heads, and `pattern`
      is the index of the weights among the outputs of its attention; None where that could not be proved. `weighed` says
      whether z is the mean of v with the weights of the pattern, and nothing else. These six are measured at their first use.
    - `trims` is True where layers leave out positions for which no logits are asked.
    - `continuous` is False where something is added to the stream between layers (DeepStack).
    - `bidirectional_images` is True where an image token sees image tokens after it.
    - `usual_norms` is the median norm of ordinary tokens at each state, measured when sinks are first looked for; see
      `interp.models.running.sinks`.
    - `vision_weighed` has for each block of the tower where its attention weights are, or the reason why that could not be
      proved. It is measured when the tower's weights are first edited.
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
    usual_norms: tuple[float, ...] | None = None
    vision_weighed: tuple[TowerWeights | str, ...] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values, for JSON."""
        readout = None if self.readout is None else {"kind": self.readout.kind, **asdict(self.readout)}
        return {**asdict(self), "readout": readout}


def resolve(root: Any, path: str) -> Any:
    """The part at a dotted path: of a module, or of the nnsight envoy around it."""
    for name in path.split("."):
        # nnsight renames a part whose name every envoy has itself, such as "output".
        beside = f"E_{name}"
        root = root[int(name)] if name.isdigit() else getattr(root, beside if hasattr(root, beside) else name)
    return root


# Fields from a user ------------------------------------------------------------------------------------------------------


def checked_structure(model: Any, structure: Any) -> dict[str, Any]:
    """The fields that a user gives by name or in a whole `Structure`, without its measured traits.

    Raises `InputError` for a field that does not exist, that is measured, or that has a value of another type than the model
    allows: a path that leads to no module, a number that is not an int, a list that is not one entry a layer.
    """
    known = {field.name: field for field in fields(Structure)}
    if isinstance(structure, Structure):
        structure = {name: getattr(structure, name) for name, field in known.items() if field.default is MISSING}
    if not isinstance(structure, Mapping | None):
        raise InputError(f"structure={shown(structure)}: expected its fields by name, as in {{'norm': 'model.norm'}}")
    values = dict(structure or {})
    paths = {path for path, _ in model.named_modules() if path}
    for name, value in values.items():
        if name not in known:
            raise InputError(f"structure has no {name!r}: give any of {', '.join(known)}")
        label, kind, least = (
            f"structure {name}={shown(value)}",
            str(known[name].type),
            int(name not in ("image_token_id", "n_heads", "n_kv_heads")),
        )
        if known[name].default is None:
            raise InputError(f"{label}: this is measured on the model, leave it out")
        if value is None and kind.endswith("| None"):
            continue
        if kind.startswith("str") and not (isinstance(value, str) and value in paths):
            raise InputError(f"{label} is not a module of {type(model).__name__}: give a dotted path")
        if kind.startswith("int") and not _is_int(value, least):
            raise InputError(f"{label}: expected an int from {least} on")
        if kind.startswith("tuple"):
            if not isinstance(value, list | tuple):
                raise InputError(f"{label}: expected a tuple with one entry a layer")
            values[name] = tuple(value)
    return values


def check_layers(layers: Any, depth: int, values: Mapping[str, Any]) -> None:
    """Check a user's layers, and the `values` that have one entry a layer. Raises `InputError` where there are not `depth` of
    them, or where an entry does not fit its layer."""
    if not isinstance(layers, nn.ModuleList | nn.Sequential) or len(layers) != depth:
        raise InputError(
            f"structure layers={values['layers']!r} is not a list of {depth} layers: expected one, or n_layers too"
        )
    for name in (name for name in ("heads", "attn", "mlp", "attention") if name in values):
        if len(values[name]) != depth:
            raise InputError(
                f"structure {name} has {len(values[name])} entries: expected one for each of {depth} layers"
            )
        for index, (layer, entry) in enumerate(zip(layers, values[name], strict=True)):
            choices = _ATTENTION if name == "attention" else [child for child, _ in layer.named_children()]
            fits, expected = entry in choices, f"one of {', '.join(choices)}"
            if name == "heads":
                fits, expected = _is_int(entry, 0), "an int"
            elif name != "attention":
                fits, expected = entry is None or fits, f"None or {expected}"
            if not fits:
                raise InputError(f"structure {name} has {entry!r} for layer {index}: expected {expected}")


def _is_int(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
