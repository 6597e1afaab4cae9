"""Where visual features enter: is the gain of an intermediate textual layer more than the better readout of the two?

Visual state 0 has a gain where it is more like an intermediate textual layer j than like textual layer 0, S[0, j] > S[0, 0].
Wherever textual layer 0 is the worse readout of what image and caption share (noisier, of other content, ruled by lengths of
rows), *everything* with that content has a gain. Each of these rival accounts has its control, an `AlignmentMatrix` with the
same textual stack and the same half-samples:

- **placebo**: vision that the language model never touched, such as the states of the image tower or of an untrained connector
  for the same pictures (`entry_controls`). State 0 and placebo are made equally like layer j: whichever is more like it is mixed
  with its own shuffled rows until it is no more. The contrast is how much less like textual layer 0 state 0 then is: the
  difference of the two gains.
- **ceiling**: how alike *anything* is to a textual layer, such as other captions of the same meaning. With c[j] the most that
  they reach there above chance, the contrast is S[0, j] - S[0, 0] c[j] / c[0], both above chance.
- **matched**: the gain among rows of one length, so that lengths of rows in textual layer 0 play no part.

Simulated with 300 examples and neighbour overlap, on clouds that merely share content (textual layer 0 noisier or of other
content): the gain alone is beyond doubt in 95 to 100 % of draws, and beyond a placebo in under 5 %. A planted entry into an
intermediate layer is beyond both in over 90 %. Clouds may also stretch their content in ways of their own, by accident more as
one textual layer does than as another. Several placebos, each of which has to be exceeded, guard against that; measures that few
directions rule, such as "cka", need them most.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from scipy.stats import t
from torch import Tensor

from interp.errors import InputError
from interp.geometry.clouds import Cloud, as_cloud, as_layers
from interp.geometry.phase import LayerValues, check_same_halves, floor_of
from interp.statistics.half_samples import generator, standard_error
from interp.statistics.verdicts import Verdict, verdict

COLUMNS = ["control", "textual", "estimate", "low", "high", "p", "reach"]
# How much of its own shuffled rows is mixed into a cloud, as multiples of its spread.
DILUTIONS = (0.0, 0.3, 0.6, 0.9, 1.3, 1.8, 2.6, 4.0)
_SAME = 1e-4  # the values of one pair of clouds, computed twice
# What a control has in common with its matrix besides the half-samples. Captions of the ceiling may have ids of their own.
_ALSO = {"ceiling": ("preprocess", "strata"), "matched": ("examples",)}


def entry_controls(entry: Cloud, *placebos: Any, seed: int = 0) -> Float[Tensor, "row example feature"]:
    """Visual state 0 and placebos, each mixed more and more with its own shuffled rows, as a stack for `alignment_matrix`.

    Row t of a cloud x is ``mean + (x - mean + a[t] (x - mean)[shuffled]) / sqrt(1 + a[t]^2)`` with a from 0 (x itself) to 4: the
    spread stays the same, while less and less of a row is its own. `entry` is visual state 0, `[example, feature]`; a placebo is
    a cloud of the same examples, or a stack of several. Narrower clouds get columns of zeros.

    >>> import torch
    >>> from interp.geometry import alignment_matrix
    >>> content, *noise = torch.randn(5, 400, 8, generator=torch.Generator().manual_seed(0))
    >>> text = torch.stack([content + noise[0], content, content])  # layer 0 is a noisy readout
    >>> image, tower = content + noise[1] / 2, content + noise[2] / 2
    >>> matrix = alignment_matrix(image[None], text)
    >>> bypass = matrix.bypass(placebo=alignment_matrix(entry_controls(image, tower), text))
    >>> float(bypass.p[0]) < 0.01, bypass.verdict.value  # more like layer 1, as anything with this content is
    (True, 'contradicted')

    Raises `InputError` without a placebo, for examples that are not paired, and for clouds that are not finite.
    """
    clouds = [as_cloud(entry, "entry")]
    for number, placebo in enumerate(placebos):
        clouds += as_layers(placebo, f"placebo {number}")
    if len(clouds) < 2:
        raise InputError(
            "no placebo: pass vision that the language model never touched, such as states of the image tower"
        )
    rng, width = generator(seed), max(cloud.shape[1] for cloud in clouds)
    rows = []
    for number, cloud in enumerate(clouds):
        if len(cloud) != len(clouds[0]):
            raise InputError(
                f"entry has {len(clouds[0])} examples and placebo {number - 1} {len(cloud)}: rows must be paired"
            )
        centre = cloud.mean(dim=0)
        own = cloud - centre
        other = own[torch.from_numpy(rng.permutation(len(cloud))).to(own.device)]
        mixed = [cloud if not a else centre + (own + a * other) / math.hypot(1, a) for a in DILUTIONS]
        rows += [torch.nn.functional.pad(each, (0, width - each.shape[1])).to(clouds[0]) for each in mixed]
    return torch.stack(rows)


def entry_contrasts(
    matrix: LayerValues, middle: Bool[Tensor, " textual"], controls: Mapping[str, LayerValues]
) -> pd.DataFrame:
    """The gain of visual state 0 at each intermediate textual layer, as it is and beyond each control.

    Columns: control ("none" for the gain itself), textual, estimate, low, high, p and reach, the most that the contrast could
    have shown. The 95 % bounds, by Student's t of the number of halves, hold for all intermediate layers at once
    (Bonferroni), as do the p values, of two sides.
    """
    layers = middle.nonzero().flatten()
    rows: list[list[Any]] = []
    if not len(layers):
        return pd.DataFrame(rows, columns=COLUMNS)
    for name, values, parts, reach in _contrasts(matrix, layers, controls):
        error, law = torch.full_like(values, torch.nan), t(1)
        if parts is not None and len(parts) > 1:
            error, law = standard_error(parts, matrix.n), t(len(parts) - 1)
        for layer, value, of_value, most in zip(layers, values, error, reach, strict=True):
            estimate, width = float(value), float(law.isf(0.025 / len(layers))) * float(of_value)
            p = min(1.0, 2 * len(layers) * float(law.sf(estimate / of_value))) if of_value > 0 else math.nan
            rows.append([name, int(layer), estimate, estimate - width, estimate + width, p, float(most)])
    return pd.DataFrame(rows, columns=COLUMNS)


def entry_verdict(contrasts: pd.DataFrame, smallest: float) -> tuple[Verdict, float]:
    """Whether some intermediate layer is ahead of textual layer 0 beyond every control, and the p of this.

    The claim is as strong as its weakest contrast: bounds and estimate are the least over controls, then the most over layers, so
    no correction for the number of controls is due. It is not "supported" without a placebo. A contrast that could not have shown
    `smallest` does not contradict.
    """
    frame = contrasts.assign(
        low=contrasts["low"].where(contrasts["reach"] >= smallest / 2, -math.inf).fillna(-math.inf),
        high=contrasts["high"].where(contrasts["reach"] >= smallest, math.inf).fillna(math.inf),
        p=contrasts["p"].where(contrasts["reach"] >= smallest / 2, 1.0),
    )
    by_layer = frame.groupby("textual")
    estimate, low, high = (by_layer[name].min() for name in ("estimate", "low", "high"))
    if not len(low):
        return Verdict("undecided", math.nan, -math.inf, math.inf, smallest, math.inf), math.nan
    best = int((low if np.isfinite(low).any() else estimate).to_numpy().argmax())
    least, value, most = float(low.iloc[best]), float(estimate.iloc[best]), float(high.max())
    p = float(by_layer["p"].max().min())
    if not contrasts["control"].str.startswith("placebo").any():
        least, p = least if most < smallest else -math.inf, math.nan
    if math.isfinite(least) and math.isfinite(most):
        return verdict(value, least, most, smallest), p
    known: Literal["contradicted", "undecided"] = "contradicted" if most < smallest else "undecided"
    return Verdict(known, value, least, most, smallest, math.inf), p


def _contrasts(
    matrix: LayerValues, layers: Tensor, controls: Mapping[str, LayerValues]
) -> Iterator[tuple[str, Tensor, Tensor | None, Tensor]]:
    """Name, values `[layer]`, values of half-samples `[half, layer]` and reach `[layer]` of each contrast."""
    unbounded = torch.full((len(layers),), math.inf)
    values, parts = _raised(matrix)
    # A state that is like no textual layer has no gain wherever vision enters.
    alike = torch.maximum(values[0, layers], values[0, 0])
    yield "none", _gain(values, layers), _gain(parts, layers), alike
    for name, other in controls.items():
        check_same_halves(matrix, other, name, *_ALSO.get(name, ()))
        of_other, parts_of_other = _raised(other)
        if name == "matched":
            yield name, _gain(of_other, layers), _gain(parts_of_other, layers), unbounded
        elif name == "ceiling":
            top = of_other.argmax(dim=0)
            known = float(other.low[top[0], 0]) > float(floor_of(other)[top[0], 0])
            yield (
                name,
                _below_ceiling(values, of_other, top, layers),
                None if parts is None else _below_ceiling(parts, parts_of_other, top, layers),
                unbounded if known else torch.zeros(len(layers), dtype=torch.float64),
            )
        else:
            count = _checked_placebo(matrix, other)
            for number in range(1, count):
                contrast, reach = _beyond_placebo(of_other, number, layers)
                of_parts = None if parts_of_other is None else _beyond_placebo(parts_of_other, number, layers)[0]
                yield name if count == 2 else f"{name} {number - 1}", contrast, of_parts, reach


def _raised(matrix: LayerValues) -> tuple[Tensor, Any]:
    """The values, and those of the half-samples, above chance."""
    floor = floor_of(matrix)
    return matrix.values - floor, None if matrix.parts is None else matrix.parts - floor


def _gain(raised: Any, layers: Tensor) -> Any:
    return None if raised is None else raised[..., 0, layers] - raised[..., 0, :1]


def _below_ceiling(raised: Tensor, ceiling: Tensor, top: Tensor, layers: Tensor) -> Float[Tensor, "... layer"]:
    most = ceiling[..., top, torch.arange(len(top))]
    return raised[..., 0, layers] - raised[..., 0, :1] * most[..., layers] / most[..., :1]


def _checked_placebo(matrix: LayerValues, placebo: LayerValues) -> int:
    """The number of clouds in a matrix of `entry_controls`, the first of which has to be visual state 0."""
    rows = len(placebo.values)
    if rows % len(DILUTIONS) or rows < 2 * len(DILUTIONS):
        raise InputError(
            f"placebo has {rows} rows: expected alignment_matrix(entry_controls(visual[0], placebo), textual)"
        )
    difference = float((placebo.values[0] - matrix.values[0]).abs().max())
    if not difference <= _SAME:
        raise InputError(
            f"row 0 of placebo differs from visual state 0 by up to {difference:.2g}: expected both matrices with the same "
            "visual[0], textual states and preprocess="
        )
    return rows // len(DILUTIONS)


def _beyond_placebo(
    raised: Float[Tensor, "... row textual"], number: int, layers: Tensor
) -> tuple[Float[Tensor, "... layer"], Float[Tensor, "... layer"]]:
    """How much less like textual layer 0 the entry is than a placebo equally like layer j, and how like it the placebo is."""
    steps = len(DILUTIONS)
    own, other = (
        raised[..., :steps, :].mT,
        raised[..., number * steps : (number + 1) * steps, :].mT,
    )  # [..., textual, step]
    level = torch.minimum(own[..., layers, 0], other[..., layers, 0])
    first, second = (_first_crossing(curves[..., layers, :], curves[..., :1, :], level) for curves in (own, other))
    return second - first, second


def _first_crossing(
    falling: Float[Tensor, "... layer step"], along: Float[Tensor, "... one step"], level: Float[Tensor, "... layer"]
) -> Float[Tensor, "... layer"]:
    """The value of `along` where `falling` first comes down to `level`, between two steps in proportion."""
    reached = falling <= level[..., None]
    reached[..., -1] = True
    step = reached.to(torch.int8).argmax(dim=-1, keepdim=True)
    before = (step - 1).clamp(min=0)
    along = along.expand_as(falling)
    (a, b), (x, y) = ([each.gather(-1, at)[..., 0] for at in (before, step)] for each in (falling, along))
    share = ((a - level) / (a - b).where(a != b, torch.ones_like(a))).clamp(0, 1)
    return x + share * (y - x)
