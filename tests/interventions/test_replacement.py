"""Patch, Ablate and Skip: the identity changes nothing, a patch moves what it should, skipped layers still read what goes
around them, and wrong values are refused."""

import pytest
import torch

import interp
import zoo
from interp.interventions import Ablate, Patch, Skip, Steer
from interp.models.running.steps import Read, reads_of_states, whole
from interp.models.running.trace import run_forward


def states(vlm, batch, *interventions):
    """All states `[state, batch, seq, width]`."""
    edits = vlm.edits_of(batch, interventions)
    seen = run_forward(vlm, batch, edits, reads_of_states(vlm, whole, (), edits), logits=None)
    return torch.stack([seen[state] for state in range(len(seen))])


def hooked(vlm, batch, module, hook):
    handle = module.register_forward_hook(hook, with_kwargs=True)
    try:
        with torch.no_grad():
            return vlm.model(**vlm.inputs_of(batch)).logits[:, -1]
    finally:
        handle.remove()


def states_of(vlm, batch, layer):
    acts = interp.capture(vlm, [batch], sites=("resid_pre",), positions="all", reduce="none", progress=False)
    return acts["resid_pre"][layer]


def test_writing_back_changes_nothing(toy, mixed):
    for site in ("resid_pre", "attn_out", "mlp_out", "resid_post"):
        acts = interp.capture(toy, [mixed], sites=(site,), positions="all", reduce="none", progress=False)
        same = Patch(site=site, layers="all", positions="all", value=acts[site])
        assert (toy.logits(mixed, [same]) == toy.logits(mixed)).all()


def test_a_one_row_batch_gives_its_own_states(toy, mixed):
    row = mixed.row(1)
    other = toy.prepare(["a blue 4 at left . where is the 4 ?"])
    by_batch = Patch(site="resid_post", layers=[1, 3], positions=[2, 5], value=other)
    acts = interp.capture(toy, [other], sites=("resid_post",), positions=[2, 5], reduce="none", progress=False)
    by_tensor = Patch(site="resid_post", layers=[1, 3], positions=[2, 5], value=acts["resid_post"][[1, 3]])
    assert (toy.logits(row, [by_batch]) == toy.logits(row, [by_tensor])).all()
    assert not torch.allclose(toy.logits(row, [by_batch]), toy.logits(row))


def test_iterators_last(toy, mixed):
    """An intervention is a value: its layers and positions may be given as iterators, and it acts every time."""
    plain = toy.logits(mixed)
    for change in (
        lambda: Patch(site="resid_pre", layers=iter([2, 3]), positions=iter([1]), value=torch.zeros(128)),
        lambda: Ablate(site="resid_pre", layers=iter([2, 3]), positions=iter([1])),
        lambda: Ablate(site="resid_pre", layers=(layer for layer in (2, 3)), positions="last", value="mean"),
    ):
        made = change()
        first = toy.logits(mixed, [made])
        assert not torch.allclose(first, plain)
        assert (toy.logits(mixed, [made]) == first).all()


def test_a_batch_as_value_is_one_row_that_fits_each(toy, mixed):
    """3 and 5 tokens are as many as twice 4, and yet no state of the value would land on its own position."""
    texts = ["a red 3 at top .", "a blue 4 at left ."]
    batch = toy.prepare(texts, spans=[{"x": [0, 1, 2]}, {"x": [0, 1, 2, 3, 4]}])
    value = toy.prepare(texts[:1], spans={"x": [0, 1, 2, 3]})

    def patch(**changes):
        return toy.logits(
            batch, [Patch(**{"site": "resid_pre", "layers": 1, "positions": "x", "value": value, **changes})]
        )

    with pytest.raises(
        interp.InputError, match="'x' selects 3 positions in row 0 and 4 in the batch that is its value"
    ):
        patch()
    with pytest.raises(interp.InputError, match=r"value is a batch of 2 rows: expected one row, take row\(i\)"):
        patch(value=batch)
    assert not torch.allclose(patch(positions=[0, -1]), toy.logits(batch))


def test_ablations(toy, mixed):
    mask = mixed.positions["text"]
    count = int(mask.sum())
    for value, expected in [
        ("zero", torch.zeros(count, 128)),
        ("mean", states_of(toy, mixed, 2)[mask[mixed.positions["all"]]].mean(0).expand(count, -1)),
        (torch.ones(128), torch.ones(count, 128)),
    ]:
        cut = Ablate(site="resid_pre", layers=2, positions="text", value=value)
        acts = interp.capture(
            toy, [mixed], sites=("resid_pre",), positions="text", reduce="none", interventions=[cut], progress=False
        )
        torch.testing.assert_close(acts["resid_pre"][2], expected, atol=1e-5, rtol=0)


def test_without_the_image_the_answer_is_lost(toy):
    """Generation takes interventions, and on the toy the picture is what carries the answer."""
    asked = [(scene, q) for scene in interp.toy.scenes(20, seed=4) for q in scene.questions if q.kind == "colour"]
    batch = toy.prepare([q.prompt for _, q in asked], [scene.image for scene, _ in asked])

    def right(*interventions):
        answers = toy.generate(batch, max_new_tokens=2, interventions=interventions)
        return sum(answer == q.answer for answer, (_, q) in zip(answers, asked, strict=True)) / len(asked)

    assert right() >= 0.9
    assert right(Ablate(site="resid_pre", layers=0, positions="image", value="mean")) <= 0.5


@pytest.mark.parametrize(
    ("intervention", "words"),
    [
        (Patch(site="hook", layers=0, positions="last", value=torch.zeros(1)), "site='hook' is unknown"),
        (Patch(site="resid_pre", layers=9, positions="last", value=torch.zeros(1)), "layer 9"),
        (Patch(site="resid_pre", layers=0, positions="last", value=torch.zeros(7)), r"does not fit \(1, 3, 128\)"),
        (Patch(site="resid_pre", layers=0, positions="last", value=3.0), "value is a float"),
        (Ablate(site="resid_pre", layers=0, positions="last", value="noise"), "value='noise'"),
        (Ablate(site="resid_pre", layers=0, positions="image_7"), "'image_7' selects nothing in this batch"),
        (
            Ablate(site="resid_pre", layers=0, positions=[], value="mean"),
            r"positions=\[\] selects nothing in this batch",
        ),
    ],
)
def test_what_cannot_be_written(toy, mixed, intervention, words):
    with pytest.raises(interp.InterpError, match=words):
        toy.logits(mixed, [intervention])


@pytest.mark.parametrize("value", ["zero", "mean", torch.zeros(1)])
def test_no_position_is_no_intervention(toy, mixed, value):
    text = mixed.row(1)
    changes = [Ablate(site="resid_pre", layers=0, positions="image", value=value)]
    if isinstance(value, torch.Tensor):
        changes.append(Patch(site="resid_pre", layers=0, positions=text.positions["image"], value=value))
    for change in changes:
        with pytest.raises(interp.InputError, match="selects nothing in this batch, expected at least one") as caught:
            toy.logits(text, [change])
        assert "\n" not in str(caught.value)


# Skip --------------------------------------------------------------------------------------------------------------------


def test_in_all_layers_visual_states_stay_what_they_were_at_first(toy, mixed):
    image = mixed.positions["image"]
    found = states(toy, mixed, Skip(layers="all", positions="image"))
    assert (found[:, image] == found[0, image]).all()
    assert not torch.allclose(found[-1, ~image], states(toy, mixed)[-1, ~image])


@pytest.mark.parametrize("name", ["llava", "gemma3", "gemma4", "qwen3_5", "cohere2_vision", "qwen3_vl"])
def test_only_what_is_added_between_layers_reaches_what_skips_all_of_them(name):
    """So under DeepStack alone the visual states move."""
    vlm = interp.load(model=zoo.build(name), check=False)
    batch = vlm.prepare(encoding=zoo.encode(name))
    vlm.check(batch)
    image = batch.positions["image"]
    found = states(vlm, batch, Skip(layers="all", positions="image"))
    assert bool((found[:, image] == found[0, image]).all()) == vlm.structure.continuous == (name != "qwen3_vl")


@pytest.mark.parametrize("name", ["llava", "gemma3", "qwen3_vl", "gemma4", "qwen3_5", "cohere2_vision", "chameleon"])
def test_it_is_what_a_hook_does(name):
    vlm = interp.load(model=zoo.build(name), check=False)
    batch = vlm.prepare(encoding=zoo.encode(name))
    mask = batch.positions["text"][..., None]
    layer = vlm.model.get_submodule(f"{vlm.structure.layers}.1")

    def around(module, args, kwargs, out):
        entered = args[0] if args else kwargs["hidden_states"]
        changed = torch.where(mask, entered, out[0] if isinstance(out, tuple) else out)
        return (changed, *out[1:]) if isinstance(out, tuple) else changed

    found = vlm.logits(batch, [Skip(layers=1, positions="text")])
    torch.testing.assert_close(found, hooked(vlm, batch, layer, around), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(found, vlm.logits(batch), atol=1e-4)


def test_keys_and_values_of_what_skips_stay_readable(toy, mixed):
    """The layer's own attention gives what it gave; only what is added at these positions is gone."""
    reads = [Read(site, site, 3, whole) for site in ("z", "attn_out", "mlp_out", "resid_pre", "resid_post")]
    edits = toy.edits_of(mixed, [Skip(layers=3, positions="image")])
    plain, found = (run_forward(toy, mixed, e, reads, logits=None) for e in ((), edits))
    for site in ("z", "attn_out", "mlp_out"):
        assert torch.equal(plain[site], found[site])
    image = mixed.positions["image"]
    assert torch.equal(found["resid_post"][image], plain["resid_pre"][image])
    assert torch.equal(found["resid_post"][~image], plain["resid_post"][~image])


def test_what_is_edited_on_its_way_in_leaves_as_it_entered(toy, mixed):
    ahead = Steer(direction=torch.ones(128), layers=2, positions="all", scale=1.0)
    found = states(toy, mixed, Skip(layers=2), ahead)
    assert torch.equal(found[3][mixed.positions["all"]], found[2][mixed.positions["all"]])
    assert not torch.allclose(found[2], states(toy, mixed)[2])


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"layers": []}, r"layers=\[\] names no layer"),
        ({"layers": 8}, "layer 8: 'toy' has layers 0 to 7"),
        ({"layers": 0, "positions": []}, r"positions=\[\] selects nothing in this batch"),
        ({"layers": 0, "positions": "picture"}, "positions='picture' is unknown"),
    ],
)
def test_no_layer_and_no_position_to_skip(toy, mixed, wrong, words):
    with pytest.raises(interp.InputError, match=words):
        toy.logits(mixed, [Skip(**wrong)])


def test_a_mask_of_nothing_is_no_position_to_skip(toy, mixed):
    with pytest.raises(interp.InputError, match=r"positions=Tensor of shape \(3, 49\) selects nothing in this batch"):
        toy.logits(mixed, [Skip(layers=0, positions=torch.zeros_like(mixed.positions["all"]))])
