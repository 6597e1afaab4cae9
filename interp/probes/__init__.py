"""Linear probes: what can be read off a representation, layer by layer, and how much of that is the probe's doing.

>>> import numpy as np
>>> states = np.random.default_rng(0).normal(size=(3, 100, 4))
>>> result = probe_layers(states, ["left" if value < 0 else "right" for value in states[2, :, 1]])
>>> int(result.accuracy.argmax())
2
"""

from __future__ import annotations

from interp.probes.batched import fit_batched
from interp.probes.best_state import BestState
from interp.probes.linear import LinearProbe
from interp.probes.probe_change import ProbeChange
from interp.probes.probe_result import ProbeResult
from interp.probes.probing import probe_layers
from interp.statistics.proportions import wilson_interval

__all__ = ["BestState", "LinearProbe", "ProbeChange", "ProbeResult", "fit_batched", "probe_layers", "wilson_interval"]
