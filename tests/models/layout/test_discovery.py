"""Parts are found by what they are, on models that differ in everything a name could tell."""

import copy

import pytest
import torch
from torch import nn

import interp
from interp.models.layout.discovery import find_structure
from interp.models.running.structure import resolve


def test_the_toys_parts(toy):
    s = toy.structure
    assert resolve(toy.model, s.layers) is toy.model.model.language_model.layers
    assert resolve(toy.model, s.norm) is toy.model.model.language_model.norm
    assert resolve(toy.model, s.head) is toy.model.lm_head
    assert resolve(toy.model, s.embed) is toy.model.model.language_model.embed_tokens
    assert resolve(toy.model, s.vision) is toy.model.model.vision_tower
    assert resolve(toy.model, s.projector) is toy.model.model.multi_modal_projector
    assert (s.n_layers, s.d_model, s.n_heads) == (8, 128, 4)
    assert s.vocab_size == len(toy.tokenizer)
    assert s.image_token_id == toy.tokenizer.convert_tokens_to_ids("<image>")


def test_a_model_in_hand_without_a_processor(tiny):
    vlm = interp.load(model=tiny)
    assert (vlm.structure.n_layers, vlm.structure.d_model, vlm.structure.vocab_size) == (3, 32, 90)
    ids = torch.tensor([[1, *[7] * 16, 20, 21]])
    batch = vlm.prepare(encoding={"input_ids": ids, "pixel_values": torch.randn(1, 3, 32, 32)})
    assert batch.positions.grid(0) == [(4, 4)]
    assert set(vlm.check(batch).to_frame()["outcome"]) == {"passed"}
    with pytest.raises(interp.InputError, match="without a tokenizer"):
        vlm.generate(batch)


class Renamed(nn.Module):
    """A decoder whose parts are called otherwise."""

    def __init__(self, old):
        super().__init__()
        self.embed_tokens, self.opening = old.embed_tokens, copy.deepcopy(old.norm)
        self.stack, self.closing = old.layers, old.norm
        self.stack[0].side_projection = nn.Linear(2, 2)  # called like a projector, and none


class Wrapper(nn.Module):
    def __init__(self, old):
        super().__init__()
        self.config, self.body, self.lm_head = old.config, Renamed(old.model.language_model), old.lm_head

    def forward(self, input_ids, pixel_values=None):
        raise NotImplementedError

    def get_decoder(self):
        return self.body

    def get_output_embeddings(self):
        return self.lm_head

    def get_input_embeddings(self):
        return self.body.embed_tokens


def test_parts_do_not_depend_on_their_names(tiny):
    """A decoder whose layers and norm are called otherwise is found all the same."""
    found = find_structure(Wrapper(copy.deepcopy(tiny)))
    assert (found.layers, found.norm, found.head) == ("body.stack", "body.closing", "lm_head")
    assert found.vision is None
    assert found.projector is None


def test_an_encoder_decoder_is_refused_by_name():
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(d_model=16, d_ff=16, d_kv=8, num_layers=1, num_heads=2, vocab_size=20)
    with pytest.raises(interp.LayoutError, match="T5ForConditionalGeneration is an encoder-decoder"):
        interp.load(model=T5ForConditionalGeneration(config).eval())


def test_a_model_whose_images_have_an_input_of_their_own_can_be_given(tiny):
    class OwnInput(Wrapper):
        def forward(self, input_ids, picture=None):
            raise NotImplementedError

    model = OwnInput(copy.deepcopy(tiny))
    model.config = copy.deepcopy(tiny.config)
    with pytest.raises(interp.LayoutError, match="takes no image"):
        find_structure(model)
    assert find_structure(model, {"image_token_id": 7}).image_token_id == 7
