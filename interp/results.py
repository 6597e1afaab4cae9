"""The base class of all results.

A result is a frozen dataclass of tensors, arrays and plain values. `to_frame()` returns a tidy pandas frame, and `plot()` a
plotly figure, drawn by `interp.plots` from the numbers of the result. `save()` writes one safetensors file that holds the
arrays and, as JSON in its header, everything else. No pickle is involved.
"""

from __future__ import annotations

import importlib
import json
import os
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from interp.displays import Display
from interp.errors import InputError
from interp.files import whole_file
from interp.provenance import Provenance

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

_FORMAT = "interp-result-1"


@dataclass(frozen=True)
class Result(Display):
    """The base class of every result. A subclass adds fields and `to_frame`, and checks shapes in `__post_init__`."""

    provenance: Provenance = field(default_factory=Provenance, kw_only=True, repr=False, compare=False)

    def to_frame(self) -> pd.DataFrame:
        """This result as a tidy frame, with one row for each number."""
        raise TypeError(f"{type(self).__name__} has no to_frame: its class must define one")

    def plot(self, **options: Any) -> go.Figure:
        """This result as a plotly figure, drawn by the function of `interp.plots` for its type."""
        # Imported by name, so that results depend on no figures and plotly is loaded only when a figure is drawn.
        return importlib.import_module("interp.plots").figure(self, **options)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write this result as one safetensors file and return its path. An existing file is replaced.

        Raises `InputError` if the file cannot be written, or if a field holds something that cannot be saved.
        """
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        target = Path(path)
        tensors: dict[str, Any] = {}
        state = {item.name: _encode(getattr(self, item.name), item.name, tensors) for item in _saved_fields(self)}
        header = {"format": _FORMAT, "type": type(self).__name__, "fields": json.dumps(state)}
        try:
            with whole_file(target) as partial:
                save_file(tensors, partial, metadata=header)
        except (OSError, SafetensorError) as error:
            raise InputError(f"{str(target)!r} cannot be written ({error}): choose another path") from error
        return target

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a result that `save` wrote. `Result.load` reads results of any type whose module has been imported.

        Raises `InputError` if the file does not exist, does not hold a result, or holds a result of another type.
        """
        from safetensors import SafetensorError, safe_open

        if not Path(path).is_file():
            raise InputError(f"{str(path)!r} is not a file: expected one that a result's save() wrote")
        try:
            with safe_open(str(path), framework="pt") as file:
                header = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise InputError(
                f"{str(path)!r} is not a safetensors file ({error}): expected one that save() wrote"
            ) from error
        if header.get("format") != _FORMAT:
            raise InputError(
                f"{str(path)!r} has format {header.get('format')!r}: expected {_FORMAT!r}, as save() writes it"
            )
        kinds = {kind.__name__: kind for kind in _family(cls)}
        if header["type"] not in kinds:
            raise InputError(
                f"{str(path)!r} holds a {header['type']!r}, expected {' or '.join(sorted(kinds))}: import its module "
                "first, or load it by its own class"
            )
        kind = kinds[header["type"]]
        return kind(**{name: _decode(value, tensors) for name, value in json.loads(header["fields"]).items()})


class StoredValue:
    """The base of the values that results save with them, such as a fitted probe: a dataclass, or a class with its own
    `get_state` and `from_state`.

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


def _saved_fields(result: Result) -> list[Field[Any]]:
    """The fields of a result, without those that say ``metadata={"saved": False}``, such as a model: they have a default."""
    return [item for item in fields(result) if item.metadata.get("saved", True)]


def _family(cls: type) -> list[type]:
    """The class and all of its subclasses."""
    children: list[type] = type.__subclasses__(cls)
    return [cls, *(descendant for child in children for descendant in _family(child))]


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
            item.name: _encode(getattr(value, item.name), f"{path}.{item.name}", tensors)
            for item in _saved_fields(value)
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
