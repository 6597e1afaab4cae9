"""What a sweep over windows of layers needs: the windows, and the batches of a data set.

*Windows.* Often a layer on its own is not missed, because its neighbours do the same work. So a sweep changes a *window*, a
few layers next to each other, and moves it through the depth of the model. Windows are half-open ranges of layers:

- *centred* windows, one for each layer, cut off at the ends of the model (Geva et al. 2023). They give a curve with a point
  a layer, in which the windows at the ends are narrower than the others;
- *sliding* windows of equal width, from ``range(0, width)`` to the one that ends with the last layer;
- windows *to the end*, from each layer to the last, for what cannot be undone later, such as dropping tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from interp.arguments import checked_int
from interp.errors import InputError, InputTypeError, shown
from interp.models import VLM, Batch
from interp.models.running.trace import run_forward
from interp.patching.metrics import BatchMetric


def centred_windows(n_layers: int, width: Any) -> list[range]:
    """For each layer the window of `width` layers around it; an even width has one more layer before it than after it.

    >>> centred_windows(4, 3)
    [range(0, 2), range(0, 3), range(1, 4), range(2, 4)]
    """
    width = _checked_width(width)
    before, after = width // 2, (width + 1) // 2
    return [range(max(0, layer - before), min(n_layers, layer + after)) for layer in range(n_layers)]


def sliding_windows(n_layers: int, width: Any) -> list[range]:
    """Every window of `width` layers. Raises `InputError` if the model has fewer layers.

    >>> sliding_windows(4, 2)
    [range(0, 2), range(1, 3), range(2, 4)]
    """
    width = _checked_width(width)
    if width > n_layers:
        raise InputError(f"window={width!r}: the model has {n_layers} layers, expected at most as many")
    return [range(start, start + width) for start in range(n_layers - width + 1)]


def windows_to_end(n_layers: int) -> list[range]:
    """The window from each layer to the last.

    >>> windows_to_end(3)
    [range(0, 3), range(1, 3), range(2, 3)]
    """
    return [range(start, n_layers) for start in range(n_layers)]


def _checked_width(width: Any) -> int:
    return checked_int(width, "window", 1, what="a number of layers")


def as_batches(batch: Any) -> list[Batch]:
    """A batch or a list of batches, as a list. Raises `InputTypeError` for anything else, `InputError` for an empty list."""
    batches = [batch] if isinstance(batch, Batch) else batch
    if not isinstance(batches, list | tuple) or not all(isinstance(each, Batch) for each in batches):
        raise InputTypeError(f"batch={shown(batch)}: expected a batch, as vlm.prepare makes it, or a list of them")
    if not batches:
        raise InputError("batch is an empty list: expected at least one batch")
    return list(batches)


class MetricRuns:
    """The runs in which a metric of a batch is measured, all with these interventions."""

    def __init__(self, vlm: VLM, metric: BatchMetric, interventions: Sequence[Any]):
        self.vlm, self.metric = vlm, metric
        self._edits = [vlm.edits_of(batch, interventions) for batch in metric.batches]

    def logits(self, more: Sequence[Any] = ()) -> list[Tensor]:
        """The logits of each run that the metric needs, with `more` interventions behind the others."""
        runs = zip(self.metric.batches, self._edits, strict=True)
        return [run_forward(self.vlm, each, [*edits, *self.vlm.edits_of(each, more)])["logits"] for each, edits in runs]

    def values(self, more: Sequence[Any] = ()) -> Tensor:
        """The metric of each row, Float `[batch]`, with `more` interventions behind the others."""
        return self.metric(*self.logits(more))
