"""Figures: one function for each kind of result, chosen by the type of the result.

`result.plot()` and `figure(result)` are the same call. Every figure shows what its numbers are compared with: a chance
level, a control, an interval. No statistic is computed here: a figure shows what its result holds.

A drawing function is imported when a result of its kind is first drawn, so importing this package imports neither plotly
nor any method. To draw a result type of your own, call ``figure.register(MyResult)(my_function)``.
"""

from __future__ import annotations

import importlib
from functools import singledispatch
from typing import TYPE_CHECKING, Any

from interp.errors import InputTypeError

if TYPE_CHECKING:
    import plotly.graph_objects as go

# For each module of this package its public functions, each with the result type that `figure` draws with it, if any.
_FUNCTIONS = {
    "accuracy": {"accuracy_figure": "", "probe_change_figure": "ProbeChange", "probe_figure": "ProbeResult"},
    "alignment": {
        "alignment_figure": "AlignmentMatrix",
        "alignment_figures": "",
        "bypass_figure": "BypassResult",
        "diagonal_figure": "",
    },
    "bands": {"bands_figure": "BandComparison"},
    "comparison": {"comparison_figure": "GeometryComparison", "imbalance_figure": ""},
    "dimension": {"dimension_figure": "", "estimates_figure": "Estimate", "scaling_figure": ""},
    "geometry": {
        "correlation_figure": "IdCorrelation",
        "density_figure": "Density",
        "gap_figure": "ModalityGap",
        "pooling_figure": "PoolSizes",
        "peaks_figure": "Peaks",
        "weights_figure": "FeatureWeights",
    },
    "lens": {"lens_figure": "LensResult", "lens_on_image": "", "tuned_lens_figure": "TunedLens"},
    "matrix_change": {"matrix_change_figure": "MatrixChange", "peak_figure": "DiagonalPeak"},
    "patching": {
        "flow_figure": "FlowResult",
        "patch_figure": "",
        "patch_on_image": "",
        "patching_figure": "PatchResult",
        "sweep_figure": "SweepResult",
    },
    "readouts": {
        "attribution_figure": "AttributionResult",
        "distribution_figure": "OffDistribution",
        "heads_figure": "",
        "mass_figure": "MassResult",
        "share_figure": "ShareResult",
    },
    "saving": {"save_figure": ""},
    "series": {"Series": "", "series_figure": ""},
    "tuning": {"tuning_figure": "TuneResult"},
    "words": {
        "decomposition_figure": "DecompositionResult",
        "projector_figure": "ProjectorResult",
        "pursuit_figure": "HeadResult",
        "tokens_figure": "TokenStats",
    },
}
_MODULES = {name: f"{__name__}.{module}" for module, functions in _FUNCTIONS.items() for name in functions}
_DRAWN_BY = {kind: name for functions in _FUNCTIONS.values() for name, kind in functions.items() if kind}
__all__ = ["figure", *_MODULES]


@singledispatch
def _draw(result: Any, **options: Any) -> go.Figure:
    kind = type(result).__name__
    raise InputTypeError(f"a {kind} has no figure: expected one of {', '.join(_DRAWN_BY)}, or a list of Estimate")


def figure(result: Any, **options: Any) -> go.Figure:
    """Draw a result with the function for its type, which gets the `options`.

    A list of `Estimate` becomes a line over depth, or over scale if the estimates were taken at different ranks. Raises
    `InputTypeError` for a type without a figure.

    >>> import numpy as np
    >>> from interp.geometry import intrinsic_dimension
    >>> cloud = np.random.default_rng(0).normal(size=(100, 3))
    >>> figure(intrinsic_dimension(cloud)).layout.title.text
    'Intrinsic dimension'
    """
    # A list has no type of its own to dispatch on, so the type of its first item decides.
    kind = type(result[0]) if isinstance(result, list | tuple) and result else type(result)
    _register(kind)
    return importlib.import_module("interp.plots.theme").fit_title(_draw.dispatch(kind)(result, **options))


figure.register = _draw.register  # type: ignore[attr-defined]


def _register(kind: type) -> None:
    """Import the function that draws this type, or the nearest of its bases, once."""
    for base in kind.__mro__:
        if base in _draw.registry and base is not object:
            return
        if base.__name__ in _DRAWN_BY and base.__module__.startswith("interp."):
            _draw.register(base)(__getattr__(_DRAWN_BY[base.__name__]))
            return


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
