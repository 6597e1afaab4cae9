"""Greedy generation is the argmax of the model's own logits, whatever the checkpoint's generation config holds."""

import copy
import logging

import pytest
import torch
from transformers import GenerationConfig

import interp
import processors
import zoo
from interp.interventions import Ablate, Knockout, Skip, Steer, Truncate
from interp.models.running.greedy import GreedyConfig, end_ids
from models.test_families import model, picture

ENDS = ("eos_token_id", "pad_token_id", "bos_token_id")
FIELDS = [name for name in vars(GenerationConfig()) if name not in ENDS]
# Values that mean something in one field or another, and nothing in most.
ODD = (True, False, 3, 0.3, "static", [[5]], {(5,): -50.0})


@pytest.fixture
def config(toy):
    """The toy's generation config, which is afterwards as it was."""
    config, before = toy.model.generation_config, dict(vars(toy.model.generation_config))
    yield config
    vars(config).clear()
    vars(config).update(before)


def by_argmax(vlm, batch, new):
    """The growing text, one whole forward pass a token."""
    ids, mask = batch.inputs["input_ids"], batch.inputs["attention_mask"]
    inputs = {name: value for name, value in batch.inputs.items() if name != "position_ids"}
    for _ in range(new):
        with torch.no_grad():
            logits = vlm.model(**{**inputs, "input_ids": ids, "attention_mask": mask}, use_cache=False).logits[:, -1]
        ids, mask = torch.cat([ids, logits.argmax(-1)[:, None]], 1), torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
    return ids[:, batch.inputs["input_ids"].shape[1] :].tolist()


def test_no_field_of_the_checkpoints_config_counts(toy, few, config, caplog, recwarn):
    """Neither the text nor a warning depends on one, no value raises, and the config stays as it is."""
    batch = toy.prepare(["<image> what colour is the 3 ?"], [few[0].image])
    expected = toy.generate(batch, max_new_tokens=2)
    assert expected == [toy._decode(row) for row in by_argmax(toy, batch, 2)]
    recwarn.clear()
    with caplog.at_level(logging.WARNING):
        for number, name in enumerate([*FIELDS, "of_my_own"]):
            before = vars(config).get(name)
            for odd in (ODD[number % len(ODD)], ODD[(number + 3) % len(ODD)]):
                setattr(config, name, odd)
                fields = copy.deepcopy(vars(config))
                assert toy.generate(batch, max_new_tokens=2) == expected, (name, odd)
                assert vars(config) == fields
            setattr(config, name, before)
    assert not caplog.records
    assert not recwarn.list


def test_settings_that_change_greedy_text_elsewhere(toy, few, config):
    """Those that transformers itself follows: with all of them at once the text is that of the logits."""
    batch = toy.prepare(["<image> what colour is the 3 ?"], [few[0].image])
    expected, best = toy.generate(batch, max_new_tokens=3), toy.logits(batch).argmax(-1).tolist()
    settings = {"suppress_tokens": best, "bad_words_ids": [best], "sequence_bias": {tuple(best): -100.0}}
    settings |= {"forced_eos_token_id": best[0], "min_new_tokens": 9, "repetition_penalty": 50.0, "use_cache": False}
    settings |= {"guidance_scale": 3.0, "stop_strings": ["x"], "num_return_sequences": 2, "max_length": 3}
    settings |= {"return_dict_in_generate": True, "output_scores": True, "cache_implementation": "static"}
    settings |= {"do_sample": True, "num_beams": 4, "penalty_alpha": 0.6, "prompt_lookup_num_tokens": 2}
    vars(config).update(settings)
    assert toy.generate(batch, max_new_tokens=3) == expected


def test_the_ends_of_rows_are_the_checkpoints(toy, few, config):
    batch = toy.prepare(["<image> what colour is the 3 ?"], [few[0].image])
    (answer,) = toy.generate(batch, max_new_tokens=3)
    assert answer
    config.eos_token_id = [99, int(toy.logits(batch).argmax())]
    assert toy.generate(batch, max_new_tokens=3) == [""]
    config.pad_token_id = None
    assert end_ids(toy)["pad_token_id"] == 99
    config.eos_token_id = None
    assert end_ids(toy)["pad_token_id"] is end_ids(toy)["eos_token_id"] is None
    assert toy.generate(batch, max_new_tokens=1) == [toy._decode(row) for row in by_argmax(toy, batch, 1)]


def test_the_model_inside_tells_where_the_outer_one_does_not():
    """BLIP-2 generates with its language model, whose config may be the only one with an end."""
    hf = copy.deepcopy(zoo.build("blip-2"))
    hf.generation_config.eos_token_id, hf.language_model.generation_config.eos_token_id = None, [7, 8]
    assert end_ids(interp.load(model=hf, check=False))["eos_token_id"] == [7, 8]


CHANGES = {
    "Steer": Steer(direction=torch.linspace(-2, 2, 64), layers=2, positions="all", scale=1.0),
    "Ablate": Ablate(site="resid_pre", layers=2, positions="last", value="zero"),
    "Knockout": Knockout(source="image", target="last", layers=[1]),
    "Skip": Skip(layers=2, positions="image"),
    "Truncate": Truncate(positions="image", from_layer=2),
}


@pytest.mark.parametrize("change", CHANGES)
def test_interventions_run_with_the_cache(change):
    """A config without the cache is usual after training with gradient checkpointing."""
    hf = copy.deepcopy(model("llava"))
    vlm = interp.load(model=hf, processor=processors.build("llava"), device="cpu", check=False)
    batch = vlm.prepare(["<image> hello"], [picture()])
    expected = vlm.generate(batch, max_new_tokens=6, interventions=[CHANGES[change]])
    for config in (hf.config, hf.config.text_config, hf.generation_config):
        config.use_cache = False
    hf.gradient_checkpointing_enable()
    assert vlm.generate(batch, max_new_tokens=6, interventions=[CHANGES[change]]) == expected
    assert hf.generation_config.use_cache is False


def test_steered_text_is_that_of_hooks_on_the_growing_text():
    vlm = interp.load(model=model("llava"), processor=processors.build("llava"), device="cpu", check=False)
    batch, direction = vlm.prepare(["<image> hello"], [picture()]), torch.linspace(-2, 2, 64)
    layer = vlm.model.model.language_model.layers[2]
    hook = layer.register_forward_pre_hook(
        lambda m, args, kwargs: ((args[0] + direction, *args[1:]), kwargs), with_kwargs=True
    )
    expected = by_argmax(vlm, batch, 5)
    hook.remove()
    assert vlm.generate(batch, 5, [CHANGES["Steer"]]) == [vlm._decode(row) for row in expected]


def test_a_greedy_config_is_filled_from_nowhere():
    config = GreedyConfig(max_new_tokens=3)
    assert config.update(defaults_only=True, allow_custom_entries=True, min_length=9, other=1) == {}
    assert config.min_length is None
    assert not hasattr(config, "other")
    assert config.update(max_new_tokens=5, pixel_values=2) == {"pixel_values": 2}
    assert config.max_new_tokens == 5


def test_the_simulation_of_a_server_follows_no_config_either(remote_toy, toy, few):
    batch = remote_toy.prepare(["<image> what colour is the 3 ?"], [few[0].image])
    config = remote_toy.model.generation_config
    before = config.suppress_tokens
    config.suppress_tokens = toy.logits(batch).argmax(-1).tolist()
    try:
        assert remote_toy.generate(batch, 2) == toy.generate(batch, 2)
    finally:
        config.suppress_tokens = before


def test_padding_on_the_right_is_refused(toy):
    """The first new token would be the one that follows the padding."""
    texts = ["where is the 3 ?", "a red 3 at top . what colour is the 3 ?"]
    batch = toy.prepare(texts=texts)
    rows = [row[real] for row, real in zip(batch.inputs["input_ids"], batch.positions["all"], strict=True)]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    real = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    right = toy.prepare(encoding={"input_ids": ids, "attention_mask": real})
    torch.testing.assert_close(toy.logits(right), toy.logits(batch))
    with pytest.raises(interp.InputError, match="row 0 ends in padding, behind which nothing can be generated"):
        toy.generate(right)
    assert [toy.generate(right.row(row)) for row in range(2)] == [toy.generate(batch.row(row)) for row in range(2)]
    left = toy.prepare(encoding=batch.inputs)
    assert toy.generate(left) == toy.generate(batch)
