"""The toy with planted sinks: the word "top" and one image token of each picture have huge states, and nothing else has."""

import functools
from pathlib import Path

import torch
from transformers import AutoProcessor, LlavaForConditionalGeneration

import interp

WORD, PATCH = "top", 5
WEIGHTS = Path(interp.__file__).parent / "toy" / "weights" / "tuned"


@functools.cache
def planted():
    """Every token "top" enters with an embedding 10,000 times as long, the sixth feature of a picture 1,000 times."""
    model = LlavaForConditionalGeneration.from_pretrained(WEIGHTS, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(WEIGHTS)
    with torch.no_grad():
        model.get_input_embeddings().weight[processor.tokenizer.convert_tokens_to_ids(WORD)] *= 10_000
    scale = torch.ones(36, 1)
    scale[PATCH] = 1000
    model.model.multi_modal_projector.register_forward_hook(lambda module, args, output: output * scale)
    return interp.load(model=model, processor=processor)


def planted_in(batch):
    """Where the planted sinks of a batch are, Bool `[batch, seq]`."""
    words = torch.tensor([[token == WORD for token in row] for row in batch.tokens]) & batch.positions["all"]
    images = batch.positions["image"]
    return words | (images & (images.cumsum(dim=1) == PATCH + 1))
