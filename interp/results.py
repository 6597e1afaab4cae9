"""The base of all results: what was computed, where it came from, and how it is kept.

A result is a frozen dataclass of tensors, arrays and plain values. `to_frame()` gives it as a tidy pandas frame,
`plot()` as a plotly figure (drawn in `interp.plots`, the statistic is never computed there), `save()` writes one
safetensors file that holds the arrays and, as JSON in its header, everything else; no pickle is involved.
"""

from __future__ import annotations

import importlib
import json
import os
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from interp.errors import InputError
from interp.provenance import Provenance

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

_FORMAT = "interp-result-1"


@dataclass(frozen=True)
class Result:
    """The base of every result. A subclass adds its fields and `to_frame`, and checks its shapes in `__post_init__`."""

    provenance: Provenance = field(default_factory=Provenance, kw_only=True, repr=False, compare=False)

    def to_frame(self) -> pd.DataFrame:
        """This result as a tidy frame: one row a number."""
        raise TypeError(f"{type(self).__name__} does not say how it becomes a frame")

    def plot(self, **options: Any) -> go.Figure:
        """This result as a plotly figure, drawn by the function that `interp.plots` has for its type."""
        # Results know no figures: the room that draws them is looked up by its name, and only when one is wanted.
        return importlib.import_module("interp.plots").figure(self, **options)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write this result as one safetensors file and return its path; an existing file is replaced whole.

        Raises `InputError` where the file cannot be written.
        """
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        target = Path(path)
        tensors: dict[str, Any] = {}
        state = {item.name: _encode(getattr(self, item.name), item.name, tensors) for item in fields(self)}
        header = {"format": _FORMAT, "type": type(self).__name__, "fields": json.dumps(state)}
        partial = target.with_name(f".{target.name}.partial")
        try:
            save_file(tensors, partial, metadata=header)
            partial.replace(target)
        except (OSError, SafetensorError) as error:
            partial.unlink(missing_ok=True)
            raise InputError(f"{str(target)!r} cannot be written ({error}): choose another path") from error
        return target

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a result that `save` wrote; `Result.load` reads any kind whose module has been imported.

        Raises `InputError` where the file is missing, is no result, or holds another kind.
        """
        from safetensors import SafetensorError, safe_open

        if not Path(path).is_file():
            raise InputError(f"{str(path)!r} is no file: expected one that a result's save() wrote")
        try:
            with safe_open(str(path), framework="pt") as stored:
                header = stored.metadata() or {}
                tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise InputError(f"{str(path)!r} is no safetensors file ({error})") from error
        if header.get("format") != _FORMAT:
            raise InputError(f"{str(path)!r} holds no result of this package: format {header.get('format')!r}")
        kinds = {kind.__name__: kind for kind in _family(cls)}
        if header["type"] not in kinds:
            raise InputError(f"{str(path)!r} holds a {header['type']!r}, expected {' or '.join(sorted(kinds))}")
        kind = kinds[header["type"]]
        return kind(**{name: _decode(value, tensors) for name, value in json.loads(header["fields"]).items()})


class StoredValue:
    """The base of what stands in a result and is saved with it, such as a fitted probe: a dataclass, or a class that says
    itself what its state is.

    A file names the class, without its module. Only a class derived from this one, of a module that has been imported, is
    made again from a file.
    """

    def get_state(self) -> dict[str, Any]:
        """What the value is made of, as arrays and plain values."""
        return {item.name: getattr(self, item.name) for item in fields(self)}  # type: ignore[arg-type]

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Self:
        """The value that `get_state` described."""
        return cls(**state)


def _family(cls: type) -> list[type]:
    """The class and everything that derives from it."""
    family: list[type] = [cls]
    children: list[type] = type.__subclasses__(cls)
    for child in children:
        family += _family(child)
    return family


def _value_class(name: str) -> type[StoredValue]:
    """The class of a stored value, by its name alone: a file must not choose what is imported.

    Older files write "module:name". The module may have moved since, so it does not count.
    """
    classes = {kind.__name__: kind for kind in _family(StoredValue) if kind is not StoredValue}
    kind = classes.get(name.rpartition(":")[2])
    if kind is None:
        raise InputError(
            f"a result file names {name!r}: expected a class of values, one of {', '.join(sorted(classes))}"
        )
    return kind


# Encoding: arrays go into `tensors` under the path of their field, the rest becomes JSON ---------------------------------


def _encode(value: Any, path: str, tensors: dict[str, Any]) -> Any:
    import numpy as np
    import pandas as pd
    import torch

    if isinstance(value, torch.Tensor | np.ndarray):
        tensors[path] = torch.as_tensor(value).detach().cpu().contiguous().clone()
        return {"$": "tensor" if isinstance(value, torch.Tensor) else "array", "path": path}
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, range):
        return {"$": "range", "of": [value.start, value.stop, value.step]}
    if isinstance(value, tuple | list):
        items = [_encode(item, f"{path}.{index}", tensors) for index, item in enumerate(value)]
        return {"$": "tuple", "of": items} if isinstance(value, tuple) else items
    if isinstance(value, pd.DataFrame):
        columns = {str(name): _encode(value[name].tolist(), f"{path}.{name}", tensors) for name in value.columns}
        return {"$": "frame", "of": columns}
    if isinstance(value, dict):
        return {"$": "dict", "of": {str(key): _encode(item, f"{path}.{key}", tensors) for key, item in value.items()}}
    if isinstance(value, Provenance):
        return {
            "$": "provenance",
            "of": {item.name: _encode(getattr(value, item.name), "", {}) for item in fields(value)},
        }
    if isinstance(value, Result):
        state = {
            item.name: _encode(getattr(value, item.name), f"{path}.{item.name}", tensors) for item in fields(value)
        }
        return {"$": "result", "type": type(value).__name__, "of": state}
    if isinstance(value, StoredValue):
        state = {key: _encode(item, f"{path}.{key}", tensors) for key, item in value.get_state().items()}
        return {"$": "object", "type": type(value).__name__, "of": state}
    raise InputError(f"a {type(value).__name__} at {path!r} cannot be kept in a result file")


def _decode(value: Any, tensors: dict[str, Any]) -> Any:
    import pandas as pd

    if isinstance(value, list):
        return [_decode(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    kind, inside = value["$"], value.get("of", ())
    if kind in ("tensor", "array"):
        tensor = tensors[value["path"]]
        return tensor if kind == "tensor" else tensor.numpy()
    if kind == "range":
        return range(*inside)
    if kind == "tuple":
        return tuple(_decode(item, tensors) for item in inside)
    decoded = {key: _decode(item, tensors) for key, item in inside.items()}
    if kind == "frame":
        return pd.DataFrame(decoded)
    if kind == "provenance":
        return Provenance(**decoded)
    if kind == "object":
        return _value_class(value["type"]).from_state(decoded)
    if kind == "result":
        return {child.__name__: child for child in _family(Result)}[value["type"]](**decoded)
    return decoded
