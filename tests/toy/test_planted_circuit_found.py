"""Each detector finds the path of `circuit`, takes no decoy for it, and finds nothing in `no_circuit`."""

from functools import lru_cache

import pytest
import torch

import interp
from interp.lens import attention_share, direct_logit_attribution, logit_lens
from interp.patching import attribution_patch, flow, logit_difference, patch_sweep
from interp.probes import probe_layers

LAYERS, PLACES = 5, ["object", "mention", "last"]


@lru_cache(maxsize=4)
def organism(name="circuit", seed=1):
    return interp.toy.planted(name, seed)


@lru_cache(maxsize=2)
def asked(n):
    return tuple(interp.toy.pairs(n, seed=2, by="place"))


def both(planted, pairs):
    prompts, spans = [pair.prompt for pair in pairs], [pair.spans for pair in pairs]
    pictures = [[getattr(pair, side).image for pair in pairs] for side in ("clean", "corrupted")]
    return [planted.vlm.prepare(prompts, each, spans=spans) for each in pictures]


def metric_of(pairs):
    return logit_difference([pair.answer for pair in pairs], [pair.other for pair in pairs])


def expected_effects(truth):
    """The effect of the object, the mention and the last token at the input of each layer."""
    first, second, third = truth.layers
    effects = torch.zeros(LAYERS, 3)
    effects[: first + 1, 0] = 1
    effects[first + 1 : second + 1, 1] = 1
    effects[second + 1 : third + 1, 1:] = torch.tensor([0.25, 0.75])
    effects[third + 1 :, 2] = 1
    return effects


# A gradient passes a saturated softmax as rounding, times scores of hundreds.
@pytest.mark.parametrize(("method", "near"), [(patch_sweep, 1e-6), (attribution_patch, 1e-3)])
def test_patching_has_the_stated_effects(method, near):
    planted, pairs = organism(), asked(3)
    result = method(planted.vlm, *both(planted, pairs), positions=PLACES, metric=metric_of(pairs))
    torch.testing.assert_close(result.effect, expected_effects(planted.truth), atol=near, rtol=0)


def test_patching_single_tokens_finds_the_one_patch():
    planted, pairs = organism(), asked(1)
    clean, corrupted = both(planted, pairs)
    result = patch_sweep(planted.vlm, clean, corrupted, layers=[0, 1], positions="image", metric=metric_of(pairs))
    patch = planted.truth.effects["patch"][pairs[0].clean.objects[pairs[0].changed].place]
    assert result.effect.nonzero().tolist() == [[0, patch - 1], [1, patch - 1]]  # <bos> stands before the patches


def test_patching_heads_takes_no_decoy_for_the_path():
    planted, pairs = organism(), asked(3)
    clean, corrupted = both(planted, pairs)
    result = patch_sweep(
        planted.vlm, clean, corrupted, site="z", heads="all", positions=PLACES[1:], metric=metric_of(pairs)
    )
    found = {
        (layer, head): result.effect[layer, at, head].item() for layer, at, head in result.effect.nonzero().tolist()
    }
    assert found == dict(zip(planted.truth.heads, (1.0, 0.75, 0.25), strict=True))


def test_flow_finds_the_layers_and_nothing_from_the_image_to_the_last_token():
    planted, pairs = organism(), asked(6)
    edges = [("image", "mention"), ("mention", "last"), ("image", "last")]
    result = flow(planted.vlm, both(planted, pairs)[0], edges=edges, window=1, metric=metric_of(pairs))
    expected = torch.zeros(3, LAYERS)
    first, second, third = planted.truth.layers
    expected[0, first], expected[1, second], expected[1, third] = -100, -75, -25
    assert torch.equal(result.values, expected)


def test_attribution_gives_each_head_its_part_of_the_logit():
    planted, pairs = organism(), asked(3)
    answers = [pair.answer for pair in pairs]
    result = direct_logit_attribution(planted.vlm, both(planted, pairs)[0], answers, heads=True)
    (_, _), second, third = planted.truth.heads
    parts = {(part.layer, part.head): value for part, value in zip(result.parts, result.values.tolist(), strict=True)}
    assert {key: round(value, 4) for key, value in parts.items() if abs(value) > 1e-4} == {second: 12.0, third: 4.0}


def test_a_decoy_looks_where_its_head_looks():
    planted, pairs = organism(), asked(3)
    clean, _ = both(planted, pairs)
    for queries, keys, steps in (("mention", "object", [0]), ("last", "mention", [1, 2])):
        share = attention_share(planted.vlm, clean, queries=queries, keys=keys)
        for step in steps:
            (layer, head), (_, decoy) = planted.truth.heads[step], planted.truth.effects["decoys"][step]
            assert torch.equal(share.per_row[:, layer, head], share.per_row[:, layer, decoy])
            assert (share.per_row[:, layer, head] == 1).all()
        full = {tuple(each) for each in (share.values > 0.9).nonzero().tolist()}
        assert full == {each[step] for step in steps for each in (planted.truth.heads, planted.truth.effects["decoys"])}


def test_the_lens_reads_the_answer_from_where_it_arrives():
    planted, pairs = organism(), asked(6)
    clean, _ = both(planted, pairs)
    start, _ = planted.truth.effects["states"]["last"]
    for positions, first in (("last", start), ("mention", LAYERS + 1)):
        lens = logit_lens(planted.vlm, clean, positions=positions, targets=[pair.answer for pair in pairs])
        assert (lens.target_probs[first:] > 0.9).all()
        assert (lens.target_probs[:first] < 0.1).all()


@pytest.mark.parametrize("name", ["circuit", "no_circuit"])
def test_probes_find_the_colour_where_it_stands_and_not_before_used_or_not(name):
    planted, pairs = organism(name), asked(40)
    batches, colours = both(planted, pairs), [getattr(pair, side) for side in ("answer", "other") for pair in pairs]
    groups = [str(number % len(pairs)) for number in range(len(colours))]
    states = organism().truth.effects["states"]
    for positions in ("mention", "last"):
        acts = interp.capture(planted.vlm, batches, sites=["resid"], positions=positions, reduce="none")
        start, _ = states[positions]
        # Before the colour arrives, the two pictures of a pair have one state, bit for bit.
        clean, corrupted = acts["resid"].unflatten(1, (2, -1)).unbind(1)
        assert [torch.equal(a, b) for a, b in zip(clean, corrupted, strict=True)] == [
            state < start for state in range(LAYERS + 1)
        ]
        found = probe_layers(acts, colours, groups=groups, permutations=100, control=False)
        assert (found.accuracy[start:] > 0.9).all()
        assert (found.accuracy[:start] < 0.5).all()
        assert (found.p[start:] < 0.02).all()


def test_the_opposite_has_the_same_states_and_attention_and_says_one_colour():
    one, other = organism(), organism("no_circuit")
    pairs = asked(6)
    of_one, of_other = both(one, pairs), both(other, pairs)
    weights = [each.vlm.model.state_dict() for each in (one, other)]
    assert [name for name in weights[0] if not torch.equal(weights[0][name], weights[1][name])] == ["lm_head.weight"]
    logits = [other.vlm.logits(batch) for batch in of_other]
    guess = {other.vlm.tokenizer.decode(token) for each in logits for token in each.argmax(dim=1)}
    assert guess == {other.truth.effects["guess"]}
    with pytest.raises(interp.InputError, match="expected runs with different answers"):
        patch_sweep(other.vlm, *of_other, positions=PLACES, metric=metric_of(pairs))
    found = direct_logit_attribution(other.vlm, of_other[0], other.truth.effects["guess"], heads=True)
    assert {
        part.name: round(value, 4) for part, value in zip(found.parts, found.values.tolist(), strict=True) if value
    } == {"embed": 16.0}
    assert of_one[0].inputs["input_ids"].equal(of_other[0].inputs["input_ids"])
