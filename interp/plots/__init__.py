"""Figures: one function per kind of result, found by the result's type.

``result.plot()`` and ``figure(result)`` are the same call. Every figure shows what the number has to be read against:
its chance level, its control, its interval. Nothing is computed here that a result does not carry already.

The functions are registered when a result of their kind is first drawn, so importing this package imports neither
plotly nor any method. A result type of your own is added with ``figure.register(MyResult)(my_function)``.
"""

from __future__ import annotations

import importlib
from functools import singledispatch
from typing import TYPE_CHECKING, Any

from interp.errors import InputTypeError

if TYPE_CHECKING:
    import plotly.graph_objects as go

_DRAWN_BY = {
    "PatchResult": ("interp.plots.patching", "patching_figure"),
    "FlowResult": ("interp.plots.sweeps", "flow_figure"),
    "SweepResult": ("interp.plots.sweeps", "sweep_figure"),
    "LensResult": ("interp.plots.lens", "lens_figure"),
    "TunedLens": ("interp.plots.lens", "tuned_lens_figure"),
    "AttributionResult": ("interp.plots.readouts", "attribution_figure"),
    "ShareResult": ("interp.plots.readouts", "share_figure"),
    "MassResult": ("interp.plots.readouts", "mass_figure"),
    "DecompositionResult": ("interp.plots.words", "decomposition_figure"),
    "HeadResult": ("interp.plots.words", "pursuit_figure"),
    "ProjectorResult": ("interp.plots.words", "projector_figure"),
    "TokenStats": ("interp.plots.words", "tokens_figure"),
    "ProbeResult": ("interp.plots.accuracy", "probe_figure"),
    "Estimate": ("interp.plots.dimension", "estimates_figure"),
    "AlignmentMatrix": ("interp.plots.alignment", "alignment_figure"),
    "BypassResult": ("interp.plots.alignment", "bypass_figure"),
    "GeometryComparison": ("interp.plots.comparison", "comparison_figure"),
    "ModalityGap": ("interp.plots.geometry", "gap_figure"),
    "IdCorrelation": ("interp.plots.geometry", "correlation_figure"),
    "Peaks": ("interp.plots.geometry", "peaks_figure"),
    "Density": ("interp.plots.geometry", "density_figure"),
    "FeatureWeights": ("interp.plots.geometry", "weights_figure"),
}
_EXPORTS = {
    "accuracy_figure": "interp.plots.accuracy",
    "alignment_figure": "interp.plots.alignment",
    "alignment_figures": "interp.plots.alignment",
    "attribution_figure": "interp.plots.readouts",
    "bypass_figure": "interp.plots.alignment",
    "comparison_figure": "interp.plots.comparison",
    "correlation_figure": "interp.plots.geometry",
    "decomposition_figure": "interp.plots.words",
    "density_figure": "interp.plots.geometry",
    "diagonal_figure": "interp.plots.alignment",
    "dimension_figure": "interp.plots.dimension",
    "flow_figure": "interp.plots.sweeps",
    "gap_figure": "interp.plots.geometry",
    "heads_figure": "interp.plots.readouts",
    "imbalance_figure": "interp.plots.comparison",
    "lens_figure": "interp.plots.lens",
    "lens_on_image": "interp.plots.lens",
    "mass_figure": "interp.plots.readouts",
    "patch_figure": "interp.plots.patching",
    "patch_on_image": "interp.plots.patching",
    "peaks_figure": "interp.plots.geometry",
    "probe_figure": "interp.plots.accuracy",
    "projector_figure": "interp.plots.words",
    "pursuit_figure": "interp.plots.words",
    "scaling_figure": "interp.plots.dimension",
    "series_figure": "interp.plots.series",
    "share_figure": "interp.plots.readouts",
    "sweep_figure": "interp.plots.sweeps",
    "tokens_figure": "interp.plots.words",
    "tuned_lens_figure": "interp.plots.lens",
    "weights_figure": "interp.plots.geometry",
}
__all__ = ["figure", *_EXPORTS]


@singledispatch
def _draw(result: Any, **options: Any) -> go.Figure:
    seen = type(result).__name__
    raise InputTypeError(f"a {seen} has no figure: expected one of {', '.join(_DRAWN_BY)}, or a list of Estimate")


def figure(result: Any, **options: Any) -> go.Figure:
    """The figure of this result; `options` go to the function that draws its kind.

    A list of `Estimate` is drawn as a line over depth, or over scale where they are of unlike ranks. Raises
    `InputTypeError` for anything that has no figure.
    """
    # A list has no type of its own to dispatch on: it is drawn as what it holds.
    kind = type(result[0]) if isinstance(result, list | tuple) and result else type(result)
    _register(kind)
    return _draw.dispatch(kind)(result, **options)


figure.register = _draw.register  # type: ignore[attr-defined]


def _register(kind: type) -> None:
    """Import the function that draws this type, or the nearest of its bases, once."""
    for base in kind.__mro__:
        if base in _draw.registry and base is not object:
            return
        if base.__name__ in _DRAWN_BY and base.__module__.startswith("interp."):
            module, name = _DRAWN_BY[base.__name__]
            _draw.register(base)(getattr(importlib.import_module(module), name))
            return


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(importlib.import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module 'interp.plots' has no attribute {name!r}")
