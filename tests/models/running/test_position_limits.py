"""Rows longer than a model's positions: refused where there is a table, noted where there are angles."""

import copy

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import interp
import zoo
from interp.models.running.position_limits import Limit, position_limit, refuse_too_long
from zoo.table import load


@pytest.mark.parametrize(
    ("name", "limit"),
    [
        ("blip-2", Limit(512, True, False)),  # OPT's table has two rows more
        ("llava", Limit(512, False, False)),
        ("gemma3", Limit(512, False, False)),  # angles of its own for windows
        ("qwen2_vl", Limit(512, False, False)),
        ("kosmos-2", None),  # sinusoids
        ("nemotron_h_omni", None),  # no positions at all
    ],
)
def test_limits(name, limit):
    assert position_limit(load(name)) == limit


class Stub:
    """As much of a core as a limit needs, around a language model alone."""

    fitting_columns = 0

    def __init__(self, kind, layers, embed, **config):
        config = AutoConfig.for_model(kind, vocab_size=50, **config)
        self.model, self.name = AutoModelForCausalLM.from_config(config).eval(), kind
        parts = {"layers": layers, "embed": embed, "vision": None, "projector": None}
        self.structure = type("Structure", (), parts)
        self.notes = []

    def note_once(self, about, text):
        self.notes.append(text)


TABLES = {
    "gpt2": ("transformer.h", "transformer.wte", {"n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 12}),
    "opt": (
        "model.decoder.layers",
        "model.decoder.embed_tokens",
        {
            "hidden_size": 8,
            "word_embed_proj_dim": 8,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "ffn_dim": 8,
            "max_position_embeddings": 12,
        },
    ),
    "roberta": (
        "roberta.encoder.layer",
        "roberta.embeddings.word_embeddings",
        {
            "hidden_size": 8,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 8,
            "max_position_embeddings": 14,
            "is_decoder": True,
        },
    ),
}


@pytest.mark.parametrize("kind", TABLES)
def test_the_limit_of_a_table_is_where_the_model_fails(kind):
    """The oracle is the model: it runs rows of that length and not one token more."""
    layers, embed, config = TABLES[kind]
    core = Stub(kind, layers, embed, **config)
    limit = position_limit(core)
    assert limit.table
    ids = torch.full((1, limit.positions), 5)
    refuse_too_long(core, {"input_ids": ids})
    with torch.no_grad():
        core.model(input_ids=ids)
        longer = torch.full((1, limit.positions + 1), 5)
        with pytest.raises((IndexError, RuntimeError)):
            core.model(input_ids=longer)
    with pytest.raises(interp.InputError, match=rf"row 0 has {limit.positions + 1} tokens, .*positions end at 12"):
        refuse_too_long(core, {"input_ids": longer})


def test_padding_counts_where_the_model_counts_it():
    """OPT counts real tokens; GPT-2 numbers all columns, unless it is told where tokens stand."""
    ids, mask = torch.full((2, 15), 5), torch.ones(2, 15, dtype=torch.long)
    mask[:, :5], mask[1, :9] = 0, 0
    inputs = {"input_ids": ids, "attention_mask": mask}
    opt, gpt = (Stub(kind, *TABLES[kind][:2], **TABLES[kind][2]) for kind in ("opt", "gpt2"))
    refuse_too_long(opt, inputs)
    with torch.no_grad():
        opt.model(**inputs)
        with pytest.raises((IndexError, RuntimeError)):
            gpt.model(**inputs)
    with pytest.raises(
        interp.InputError, match="row 0 has 10 tokens and 5 of padding, this model's positions end at 12"
    ):
        refuse_too_long(gpt, inputs)
    refuse_too_long(gpt, {**inputs, "position_ids": torch.zeros_like(ids)})
    with pytest.raises(interp.InputError, match="row 0 has 10 tokens and 3 new ones, this"):
        refuse_too_long(opt, inputs, new=3)


def longer(encoding, more):
    """An encoding whose rows go on with `more` tokens."""
    new = torch.full((len(encoding["input_ids"]), more), 5)
    ids = torch.cat([encoding["input_ids"], new], 1)
    return {
        **encoding,
        "input_ids": ids,
        "attention_mask": torch.cat([encoding["attention_mask"], torch.ones_like(new)], 1),
    }


def test_a_row_beyond_the_table_is_refused_before_it_runs():
    vlm, encoding = interp.load(model=zoo.build("blip-2"), check=False), zoo.encode("blip-2")
    with pytest.raises(interp.InputError, match="row 0 has 617 tokens, this model's positions end at 512"):
        vlm.logits(vlm.prepare(encoding=longer(encoding, 600)))
    fits = vlm.prepare(encoding=longer(encoding, 495))
    assert fits.positions["all"].sum(dim=1).max() == 512
    assert vlm.logits(fits).isfinite().all()


def test_new_tokens_count_too(toy):
    vlm, encoding = interp.load(model=zoo.build("blip-2"), processor=toy.processor, check=False), zoo.encode("blip-2")
    vlm.model.generation_config.eos_token_id = vlm.model.language_model.generation_config.eos_token_id = None
    fits = vlm.prepare(encoding=longer(encoding, 493))  # 510 tokens; the last new one is not fed
    assert len(vlm.generate(fits, max_new_tokens=3)) == 2
    with pytest.raises(
        interp.InputError, match="row 0 has 510 tokens and 3 new ones, this model's positions end at 512"
    ):
        vlm.generate(fits, max_new_tokens=4)


def test_a_model_with_angles_goes_on_with_one_warning(tiny, recwarn):
    hf = copy.deepcopy(tiny)
    hf.config.text_config.max_position_embeddings = 6
    vlm = interp.load(model=hf, check=False, device="cpu")
    recwarn.clear()
    ids = torch.arange(10, 17)[None]
    fits, beyond = (vlm.prepare(encoding={"input_ids": each}) for each in (ids[:, :6], ids))
    vlm.logits(fits)
    assert not recwarn.list
    with pytest.warns(UserWarning, match="row 0 has 7 tokens, and 'Llava.*' was trained on 6 positions"):
        vlm.logits(beyond)
    recwarn.clear()
    vlm.logits(beyond)
    assert not recwarn.list


def test_a_model_without_positions_says_nothing(recwarn):
    vlm = interp.load(model=zoo.build("kosmos-2"), check=False)
    encoding = longer(zoo.encode("kosmos-2"), 510)
    places = encoding["image_embeds_position_mask"]
    encoding["image_embeds_position_mask"] = torch.cat([places, places.new_zeros(len(places), 510)], 1)
    recwarn.clear()
    vlm.logits(vlm.prepare(encoding=encoding))
    assert not [each for each in recwarn.list if "positions" in str(each.message)]
