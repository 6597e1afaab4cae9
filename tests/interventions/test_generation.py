"""Generation: interventions hold for the prompt and for every new token, as if the growing text were run each time."""

import copy
import functools

import nnsight
import pytest
import torch

import interp
from interp.interventions import Ablate, Knockout, Patch, Project, Reweight, Skip, Steer, Truncate
from interp.models.running.trace import run_generate
from patterned import attention_modules, batch_of
from patterned import load as load_bare

NEW = 7
# The names that a new token belongs to; of all else only the prompt has positions.
GOES_ON = ("text", "last", "all", "after_image")


@functools.cache
def load(name, how="eager"):
    """The tiny model wrapped as one that generates; its processor is another's, and is not used."""
    vlm = copy.copy(load_bare(name, how))
    parts = interp.load("toy", device="cpu", check=False)
    vlm.nnsight = nnsight.TransformersModel(
        vlm.model, task="image-text-to-text", processor=parts.processor, tokenizer=parts.tokenizer
    )
    return vlm


def direction(vlm, seed=0):
    return torch.randn(vlm.structure.d_model, generator=torch.Generator().manual_seed(seed))


# Each takes the positions under their names, or spelled out, and the kinds in which the layers are.
CASES = {
    "image to last": lambda at, vlm: [Knockout(source=at("image"), target=at("last"), layers="all")],
    "image to what follows": lambda at, vlm: [Knockout(source=at("image"), target=at("after_image"), layers=[0, 2])],
    "text to last": lambda at, vlm: [Knockout(source=at("text"), target=at("last"), layers=[1, 2], heads=[0, 3])],
    "itself": lambda at, vlm: [Knockout(source=at("last"), target=at("last"), layers=1, self_edges=True)],
    "after the softmax": lambda at, vlm: [
        Knockout(source=at("image"), target=at("text"), layers=[0, 1], mode="post_softmax")
    ],
    "steered": lambda at, vlm: [Steer(direction=direction(vlm), layers=[1, 2], positions=at("text"), scale=3.0)],
    "projected": lambda at, vlm: [Project(direction=direction(vlm), layers=[1, 2], positions=at("text"))],
    "question steered": lambda at, vlm: [
        Steer(direction=direction(vlm), layers=2, positions=at("question"), scale=5.0)
    ],
    "a head steered": lambda at, vlm: [
        Steer(direction=torch.ones(1, 16), layers=1, positions=at("last"), scale=4.0, site="z", heads=2)
    ],
    "ablated": lambda at, vlm: [Ablate(site="mlp_out", layers=[1, 3], positions=at("last"))],
    "values ablated": lambda at, vlm: [Ablate(site="v", layers=0, positions=at("all"), value=torch.ones(16), heads=1)],
    "skipped": lambda at, vlm: [Skip(layers=[1, 2], positions=at("last"))],
    "truncated": lambda at, vlm: [Truncate(positions=at("image"), from_layer=1)],
    "truncated text": lambda at, vlm: [Truncate(positions=at("text"), from_layer=2)],
    "even": lambda at, vlm: [Reweight(kind="uniform", layers=[0, 2])],
    "several": lambda at, vlm: [
        Skip(layers=2, positions=at("text")),
        Knockout(source=at("image"), target=at("last"), layers=[0, 1], mode="post_softmax", heads=1),
        Steer(direction=direction(vlm), layers=3, positions=at("all"), scale=2.0),
        Ablate(site="z", layers=1, positions=at("last"), value="zero", heads=0),
    ],
}


def grown(vlm, batch, ids):
    """The batch with more text behind it."""
    more = ids.shape[1] - batch.inputs["input_ids"].shape[1]
    inputs = {name: value for name, value in batch.inputs.items() if name != "position_ids"}
    for name, value in inputs.items():
        if name == "attention_mask":
            inputs[name] = torch.nn.functional.pad(value, (0, more), value=1)
        elif name.endswith("token_type_ids"):
            inputs[name] = torch.nn.functional.pad(value, (0, more), value=0)
    return vlm.prepare(encoding={**inputs, "input_ids": ids})


def by_repeated_passes(vlm, batch, case, ends=True):
    """Greedy ids without a cache; at each step every position is spelled out in a mask."""
    ids = batch.inputs["input_ids"]
    length = ids.shape[1]
    for _ in range(NEW):
        now = grown(vlm, batch, ids)

        def at(name, more=ids.shape[1] - length):
            return torch.nn.functional.pad(batch.positions[name], (0, more), value=ends and name in GOES_ON)

        following = vlm.logits(now, case(at, vlm)).argmax(dim=-1)
        ids = torch.cat([ids, following[:, None]], dim=1)
    return ids


def generated(vlm, batch, interventions, new=NEW):
    return run_generate(
        vlm, batch, vlm.edits_of(batch, interventions, new - 1), new, do_sample=False, eos_token_id=None, pad_token_id=0
    )


@functools.cache
def plain(name, how, padded):
    return generated(load(name, how), batch_of(name, padded), [])


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("how", ["eager", "sdpa"])
@pytest.mark.parametrize("case", CASES)
def test_it_is_the_growing_text_run_again(case, how, padded):
    vlm, batch = load("llava", how), batch_of("llava", padded)
    found = generated(vlm, batch, CASES[case](lambda name: name, vlm))
    assert found.shape[1] == batch.inputs["input_ids"].shape[1] + NEW
    assert torch.equal(found, by_repeated_passes(vlm, batch, CASES[case]))


def test_new_tokens_make_a_difference():
    """Most cases would go another way with the prompt alone edited, and nearly all another way than unchanged."""
    vlm, batch = load("llava"), batch_of("llava", padded=True)
    other, without = [], []
    for name, case in CASES.items():
        found = generated(vlm, batch, case(lambda name: name, vlm))
        if not torch.equal(found, plain("llava", "eager", True)):
            other.append(name)
        if name != "itself" and not torch.equal(found, by_repeated_passes(vlm, batch, case, ends=False)):
            without.append(name)
    assert len(other) >= len(CASES) - 2, other
    assert len(without) >= len(CASES) // 2, without


@pytest.mark.parametrize("case", ["image to last", "text to last", "after the softmax", "skipped", "even", "several"])
@pytest.mark.parametrize("name", ["gemma3", "llama4"])
def test_windows_and_chunks(name, case):
    """A window's cache holds the last keys alone; the text grows out of it."""
    vlm, batch = load(name), batch_of(name, padded=True)
    found = generated(vlm, batch, CASES[case](lambda name: name, vlm))
    assert torch.equal(found, by_repeated_passes(vlm, batch, CASES[case]))


@pytest.mark.parametrize("heads", [None, [0, 3]])
def test_no_new_token_attends_to_what_it_is_kept_from(heads):
    """Exactly nothing, in the layers and heads named and in no other."""
    vlm, batch = load("llava"), batch_of("llava", padded=True)
    image = batch.positions["image"]
    seen = {layer: [] for layer in range(4)}
    handles = [
        module.register_forward_hook(lambda module, given, out, layer=layer: seen[layer].append(out[1]))
        for layer, module in attention_modules(vlm).items()
    ]
    try:
        generated(vlm, batch, [Knockout(source="image", target="last", layers=[1, 3], heads=heads)])
    finally:
        for handle in handles:
            handle.remove()
    for layer, steps in seen.items():
        assert len(steps) == NEW
        for weights in steps:  # [batch, head, query, key]
            of_image = weights[:, :, -1, : image.shape[1]].transpose(1, 2)[image]
            cut = torch.tensor([layer in (1, 3) and (heads is None or head in heads) for head in range(4)])
            assert (of_image[:, cut] == 0).all()
            assert (of_image[:, ~cut] > 0).all()
            torch.testing.assert_close(weights[:, :, -1].sum(dim=-1), torch.ones(2, 4))


def test_nothing_to_do_is_transformers_own():
    vlm, batch = load("llava"), batch_of("llava", padded=True)
    own = vlm.model.generate(
        **vlm.inputs_of(batch), max_new_tokens=NEW, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    assert torch.equal(plain("llava", "eager", True), own)
    still = Steer(direction=torch.ones(64), layers="all", positions="all", scale=0)
    assert torch.equal(generated(vlm, batch, [still]), own)


def test_values_for_single_positions_belong_to_the_prompt():
    vlm, batch = load("llava"), batch_of("llava", padded=False)
    length, count = batch.inputs["input_ids"].shape[1], int(batch.positions["text"].sum())
    each = torch.randn(count, 64, generator=torch.Generator().manual_seed(0))
    for change in (
        Patch(site="resid_pre", layers=1, positions="text", value=torch.ones(64)),
        Ablate(site="resid_pre", layers=1, positions="text", value=each),
        Ablate(site="resid_pre", layers=1, positions="text", value="resample"),
        Steer(direction=each, layers=1, positions="text", scale=2.0),
        Steer(direction=torch.ones(64), layers=1, positions=[-1, 0], scale=2.0),
    ):
        places = {int(column) for edit in vlm.edits_of(batch, [change], 4) for column in edit.arguments[1]}
        assert max(places) == length - 1
    named = Steer(direction=torch.ones(64), layers=1, positions="text", scale=2.0)
    places = {int(column) for edit in vlm.edits_of(batch, [named], 4) for column in edit.arguments[1]}
    assert max(places) == length + 3


def test_rows_that_end_early_are_no_news(toy, recwarn):
    scenes = interp.toy.scenes(3, seed=5)
    batch = toy.prepare([scene.questions[0].prompt for scene in scenes], [scene.image for scene in scenes])
    blind = Knockout(source="image", target="after_image", layers="all")
    assert len(toy.generate(batch, max_new_tokens=9, interventions=[blind])) == 3
    assert not [warning for warning in recwarn if "never reached" in str(warning.message)]


def test_it_can_be_sent(toy, remote_toy, mixed):
    for changes in (
        [Knockout(source="image", target="last", layers=[2, 5], mode="post_softmax"), Skip(layers=3, positions="last")],
        [Steer(direction=torch.ones(128), layers=4, positions="all", scale=2.0)],
    ):
        ours, theirs = (
            run_generate(vlm, mixed, vlm.edits_of(mixed, changes, 4), 5, do_sample=False, eos_token_id=None)
            for vlm in (toy, remote_toy)
        )
        assert torch.equal(ours, theirs)
