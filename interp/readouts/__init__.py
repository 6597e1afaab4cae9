"""Readouts: which components wrote a logit, where attention heads look, and how far interventions go.

>>> import interp
>>> from interp.readouts import attention_share, direct_logit_attribution
>>> vlm = interp.load("toy")
>>> batch = vlm.prepare(texts=["a red 3 at top . what colour is the 3 ?"])
>>> direct_logit_attribution(vlm, batch, "red").components[1]
'attn_out.0'
>>> attention_share(vlm, batch, queries="last", keys="text").values.shape
torch.Size([8, 4])
"""

from __future__ import annotations

from interp.readouts.attention_shares import MassResult, ShareResult, attention_masses, attention_share
from interp.readouts.logit_attribution import AttributionResult, Component, direct_logit_attribution
from interp.readouts.off_distribution import OffDistribution, off_distribution

__all__ = [
    "AttributionResult",
    "Component",
    "MassResult",
    "OffDistribution",
    "ShareResult",
    "attention_masses",
    "attention_share",
    "direct_logit_attribution",
    "off_distribution",
]
