"""One frame over models from a frame of each: what holds for five toys, and how far the next one may be from it.

Each model was put to the same analysis, and its frame has a number for each cell (a kind of question, a layer, a pair of states)
with its interval. `mean_over_models` puts the mean over models in each cell, by `interp.statistics.random_effects`.

Whether the models had the same rows makes a difference. With rows of its own for each model (another seed of the data), errors
are independent, and how much models differ shows all of them. On the same rows, models err together where a row is odd, and
their spread shows nothing of that. Intervals do not tell how much of an error is shared, so all of it is taken to be: then the
mean's interval is rather too wide, tau holds what errors of measuring are not shared, and `p` is rather too large. For right
and wrong answers `interp.toy.score_models` and `crossed_share` take the two parts apart.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from interp.arguments import checked_choice
from interp.errors import InputError, InputTypeError, shown
from interp.statistics.corrections import holm
from interp.statistics.half_samples import NORMAL_95
from interp.statistics.random_effects import random_effects

if TYPE_CHECKING:
    import pandas as pd

_SLACK = 1e-6  # of float32


def mean_over_models(
    results: Any, value: str = "value", by: Sequence[str] | None = None, *, rows: str = "same"
) -> pd.DataFrame:
    """The mean of `value` over models in each cell, with 95 % bounds, how far models differ, and where the next one would be.

    >>> import pandas as pd
    >>> layers = {"layer": [0, 1], "low": [0.1, 0.6], "high": [0.3, 0.8]}
    >>> sweeps = {f"seed {n}": pd.DataFrame({**layers, "value": [0.2 + n / 90, 0.7]}) for n in range(5)}
    >>> mean_over_models(sweeps, rows="own")[["layer", "models", "mean", "low", "high"]].round(2).values.tolist()
    [[0.0, 5.0, 0.22, 0.18, 0.27], [1.0, 5.0, 0.7, 0.66, 0.74]]

    `results` are the results or frames of several models, by name or in a list, or one frame with a column `model`, such as
    `interp.toy.evaluate` makes of several. `by` names the columns that say which cell a number is in: without it, all but floats,
    `model` and `n`. The error of a number is its column `error`, or (high - low) / 3.92 with the bounds ``{value}_low`` and
    ``{value}_high``, or `low` and `high`. `rows` says whether the models had the "same" rows or each its "own".

    Columns: those of `by`, models (how many), mean, low, high, next_low, next_high (where the next model would be measured, on
    the same rows where rows are the same), tau (the standard deviation between models), tau_low, tau_high, p (that all models
    have one true value), p_holm (over all cells), smallest, largest, and the means of `chance` and `control` where they are.

    Bounds and p are NaN for one model: nothing is known of the next.

    Raises `InputError` without a model, for frames of other cells, without this value or its bounds, or with bounds of another
    column; `InputTypeError` for what has no frame.
    """
    import pandas as pd

    checked_choice(rows, "rows", ("own", "same"))
    frames = _frames(results)
    first = next(iter(frames.values()))
    keys = _keys(first, by)
    for name, frame in frames.items():
        _check(frame, name, value, keys)
        if not frame[keys].equals(first[keys]):
            raise InputError(
                f"{name!r} has other cells than {next(iter(frames))!r} in {shown(keys)}: expected the same of each"
            )
    values, errors = (
        torch.stack(each) for each in zip(*(_numbers(frame, value) for frame in frames.values()), strict=True)
    )
    found = random_effects(values, errors)
    p = found.p
    if rows == "same":
        found = random_effects(values, torch.zeros_like(errors), shared=errors.square().mean(dim=0).sqrt())
    tau = {"tau": found.tau2, "tau_low": found.tau2_low, "tau_high": found.tau2_high}
    columns = {name: getattr(found, name) for name in ("mean", "low", "high", "next_low", "next_high")}
    columns |= {name: each.sqrt() for name, each in tau.items()}
    columns |= {
        "p": p,
        "p_holm": torch.as_tensor(holm(p)),
        "smallest": values.amin(dim=0),
        "largest": values.amax(dim=0),
    }
    controls = [name for name in ("chance", "control") if name in first and name not in keys]
    columns |= {name: torch.stack([_column(frame, name) for frame in frames.values()]).mean(dim=0) for name in controls}
    table = pd.DataFrame({name: each.numpy() for name, each in columns.items()})
    return pd.concat([first[keys].assign(models=len(frames)), table], axis=1)


def _frames(results: Any) -> dict[str, pd.DataFrame]:
    """The frame of each model by its name, with its rows numbered from 0."""
    import pandas as pd

    if isinstance(results, pd.DataFrame):
        if "model" not in results:
            raise InputError("one frame without a column 'model': expected that column, or a frame for each model")
        results = {str(name): part for name, part in results.groupby("model", sort=False)}
    elif not isinstance(results, Mapping):
        if isinstance(results, str) or not isinstance(results, Iterable):
            raise InputTypeError(f"results={shown(results)}: expected results or frames by the names of their models")
        results = {f"model {number}": each for number, each in enumerate(results)}
    frames = {}
    for name, each in results.items():
        frame = each if isinstance(each, pd.DataFrame) else getattr(each, "to_frame", lambda: None)()
        if not isinstance(frame, pd.DataFrame):
            raise InputTypeError(f"{name!r} is a {type(each).__name__}: expected a result or a frame")
        frames[str(name)] = frame.reset_index(drop=True)
    if not frames:
        raise InputError("results of no model: expected those of one or more")
    return frames


def _keys(frame: pd.DataFrame, by: Sequence[str] | None) -> list[str]:
    from pandas.api.types import is_float_dtype

    if by is not None:
        return [by] if isinstance(by, str) else list(by)
    return [name for name in map(str, frame) if name not in ("model", "n") and not is_float_dtype(frame[name])]


def _check(frame: pd.DataFrame, name: str, value: str, keys: list[str]) -> None:
    missing = [column for column in (value, *keys) if column not in frame]
    if missing:
        raise InputError(f"{name!r} has no column {missing[0]!r}: expected one of {shown(list(frame))}")
    twice = frame[keys].duplicated()
    if twice.any() or (not keys and len(frame) > 1):
        raise InputError(
            f"{name!r} has several rows of one cell in {shown(keys)}: name in by= the columns that tell cells apart"
        )


def _numbers(frame: pd.DataFrame, value: str) -> tuple[Float[Tensor, " cell"], Float[Tensor, " cell"]]:
    """The values of a frame and their standard errors."""
    values = _column(frame, value)
    own = (f"{value}_low", f"{value}_high")
    if own[0] not in frame and "error" in frame:
        return values, _column(frame, "error")
    bounds = own if own[0] in frame else ("low", "high")
    if not all(name in frame for name in bounds):
        raise InputError(
            f"{value!r} has no bounds: expected columns 'error', {own[0]!r} and {own[1]!r}, or 'low' and 'high'"
        )
    low, high = (_column(frame, name) for name in bounds)
    slack = _SLACK * torch.maximum(low.abs(), high.abs())
    if ((values < low - slack) | (values > high + slack)).any():
        raise InputError(
            f"{value!r} is outside {bounds[0]!r} and {bounds[1]!r}, which are those of another column: name that"
        )
    return values, (high - low) / 2 / NORMAL_95


def _column(frame: pd.DataFrame, name: str) -> Float[Tensor, " cell"]:
    try:
        return torch.tensor(frame[name].to_numpy("float64", na_value=math.nan), dtype=torch.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"column {name!r} holds {frame[name].dtype}: expected numbers") from error
