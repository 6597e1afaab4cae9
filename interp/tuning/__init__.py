"""Tuning: training some parts of a model, most of all a band of its layers, and measuring what that changes.

A checkpoint is trained on in the parts that you name; all others stay as they are, bit for bit, and cost neither gradients nor
the optimiser's state:

- `trained_parts`: which parameters belong to the layers, the connector, the image tower and the head;
- `tuned_model`: a model for training that shares all other weights with the given one, and the model that comes of it;
- `lora`: adapters of PEFT on the layers of the band alone;
- `checkpoints`: an ordinary checkpoint of transformers, written whole or not at all.
"""

from __future__ import annotations
