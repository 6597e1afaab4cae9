"""Tuning: training some parts of a model, most of all a band of its layers, and measuring what that changes.

A checkpoint is trained on in the parts that you name; all others stay as they are, bit for bit, and cost neither gradients nor
the optimiser's state:

- `trained_parts`: which parameters belong to the layers, the connector, the image tower and the head;
- `tuned_model`: a model for training that shares all other weights with the given one, and the model that comes of it;
- `lora`: adapters of PEFT on the layers of the band alone;
- `tune`: the training itself, on transformers' Trainer (`trainer`), from conversations (`examples`), and its `TuneResult`;
- `bands`, `compare_bands`, `scoring`: bands of layers, tuned on the same rows and asked the same questions (`band_comparison`,
  from `band_answers`; `band_runs` keeps what is done);
- `checkpoints`: an ordinary checkpoint of transformers, written whole or not at all;
- `object_masks`, `token_places`, `patch_alignment`: masks of objects, the image tokens that show them, and a loss that draws
  these towards the words for the object.
"""

from __future__ import annotations

from interp.tuning.band_answers import BandAnswers
from interp.tuning.band_comparison import BandComparison
from interp.tuning.bands import Band, band_of, bands
from interp.tuning.compare_bands import compare_bands
from interp.tuning.object_masks import mask_shares, open_mask
from interp.tuning.patch_alignment import masked_objects, patch_alignment_loss
from interp.tuning.scoring import score
from interp.tuning.tune import tune
from interp.tuning.tune_result import TuneResult

__all__ = [
    "Band",
    "BandAnswers",
    "BandComparison",
    "TuneResult",
    "band_of",
    "bands",
    "compare_bands",
    "mask_shares",
    "masked_objects",
    "open_mask",
    "patch_alignment_loss",
    "score",
    "tune",
]
