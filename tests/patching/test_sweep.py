"""Patching against a plain PyTorch hook, against what must hold by causality, and on scenes with a known answer."""

import numpy as np
import pytest
import torch

import interp
from interp.interventions import Ablate, Knockout, Patch
from interp.patching import PatchResult, attribution_patch, logit_difference, patch_sweep
from interp.patching.metrics import bind_to_rows


@pytest.fixture(scope="module")
def colours(toy):
    """Three pairs of pictures that differ in one colour, and the metric that tells them apart."""
    found = interp.toy.pairs(3, seed=1, change="colour")
    prompts = [pair.prompt for pair in found]
    clean = toy.prepare(prompts, [pair.clean.image for pair in found])
    corrupted = toy.prepare(prompts, [pair.corrupted.image for pair in found])
    return found, clean, corrupted, logit_difference([p.answer for p in found], [p.other for p in found])


@pytest.fixture(scope="module")
def swept(toy, colours):
    _, clean, corrupted, metric = colours
    return patch_sweep(toy, clean, corrupted, metric=metric)


def test_a_cell_is_what_a_plain_hook_gives(toy, colours, swept):
    """The oracle knows nothing of this package: transformers' own forward pass with one PyTorch hook."""
    found, clean, corrupted, _ = colours
    layer, column = 3, 20
    inputs = {name: value[1:2] for name, value in corrupted.inputs.items()}
    with torch.no_grad():
        kept = toy.model(**{n: v[1:2] for n, v in clean.inputs.items()}, output_hidden_states=True).hidden_states[layer]

        def hook(_, arguments):
            arguments[0][:, column] = kept[:, column]

        handle = toy.model.model.language_model.layers[layer].register_forward_pre_hook(hook)
        logits = toy.model(**inputs).logits[0, -1]
        handle.remove()
    a, b = (toy.tokenizer.convert_tokens_to_ids(word) for word in (found[1].answer, found[1].other))
    assert swept.per_row[1, layer, column].item() == pytest.approx((logits[a] - logits[b]).item(), abs=1e-4)


def test_the_ends_of_the_scale(toy, colours, swept):
    found, clean, corrupted, _metric = colours
    ids = [
        [toy.tokenizer.convert_tokens_to_ids(word) for word in words]
        for words in zip(*[(p.answer, p.other) for p in found], strict=True)
    ]
    plain = logit_difference(*ids)
    torch.testing.assert_close(swept.clean_rows, plain(toy.logits(clean)), atol=1e-4, rtol=0)
    torch.testing.assert_close(swept.corrupted_rows, plain(toy.logits(corrupted)), atol=1e-4, rtol=0)
    assert swept.clean > 0 > swept.corrupted  # the toy answers both pictures rightly
    assert swept.effect.shape == (8, clean.inputs["input_ids"].shape[1])
    torch.testing.assert_close(swept.values.mean(), swept.per_row.mean())


def test_what_causality_asks_for(colours, swept):
    """Before the first patch that differs nothing can be restored; at layer 0 only those patches and those behind can."""
    _, clean, corrupted, _ = colours
    differs = (clean.inputs["pixel_values"] != corrupted.inputs["pixel_values"]).any(dim=1)
    assert swept.effect[:, 0].abs().max() < 1e-4  # <bos> is the same in both
    image = clean.positions["image"][0]
    assert swept.effect[0, ~image].abs().max() < 1e-4  # the words of the prompt enter layer 0 as they are
    assert differs.any()


def test_all_positions_at_once_restore_everything(toy, colours):
    """Control: with every position of one layer patched the run is the clean one."""
    _found, clean, corrupted, _ = colours
    everything = Patch(site="resid_pre", layers=[4], positions="all", value=clean.row(0))
    torch.testing.assert_close(toy.logits(corrupted.row(0), [everything]), toy.logits(clean.row(0)), atol=2e-5, rtol=0)


def test_the_answer_passes_from_the_object_to_the_last_token(toy, colours, swept):
    """The known answer: the colour enters at the changed object's patches and leaves at the last token."""
    found, *_ = colours
    rows = [pair.clean.patch_labels.flatten() == pair.changed for pair in found]
    shares = (swept.per_row - swept.corrupted_rows[:, None, None]) / (swept.clean_rows - swept.corrupted_rows)[
        :, None, None
    ]
    at_object = torch.stack(
        [share[0, 1:37][torch.from_numpy(mask)].max() for share, mask in zip(shares, rows, strict=True)]
    )
    elsewhere = torch.stack(
        [share[0, 1:37][torch.from_numpy(~mask)].abs().max() for share, mask in zip(shares, rows, strict=True)]
    )
    assert (at_object > elsewhere).all()
    assert swept.effect[7, -1] > 0.9
    assert swept.effect[0, -1].abs() < 0.05


def test_the_other_direction_is_on_the_same_scale(toy, colours, swept):
    _, clean, corrupted, metric = colours
    noised = patch_sweep(toy, clean, corrupted, metric=metric, direction="noise", layers=[7], positions=[0, -1])
    assert noised.effect[0, 0].item() == pytest.approx(1, abs=1e-4)
    assert noised.effect[0, 1] < 0.1
    assert noised.clean == pytest.approx(swept.clean, abs=1e-4)


def test_other_sites_and_text(toy):
    found = interp.toy.pairs(2, seed=2, change="digit")
    texts = list(zip(*(pair.text_prompts for pair in found), strict=True))
    clean, corrupted = (toy.prepare(list(side)) for side in texts)
    metric = logit_difference([p.answer for p in found], [p.other for p in found])
    for site in ("attn_out", "mlp_out", "resid_post"):
        result = patch_sweep(toy, clean, corrupted, site=site, layers=[2], positions="last", metric=metric)
        assert result.site == site
        assert result.values.shape == (1, 1)


def test_groups_are_patched_together(toy, colours):
    """Names, and masks that differ from row to row: the patches of the object that changed."""
    found, clean, corrupted, metric = colours
    image = clean.positions["image"]
    mask = torch.zeros_like(image)
    for row, pair in enumerate(found):
        mask[row, image[row]] = torch.from_numpy((pair.clean.patch_labels == pair.changed).flatten())
    groups = {"object": mask, "question": "question", "last": [-1]}
    swept = patch_sweep(toy, clean, corrupted, layers=[0, 5], positions=groups, metric=metric)
    assert swept.tokens == ["object", "question", "last"]
    assert swept.columns[:2] == [[], list(range(37, 42))]  # the object is elsewhere in each row
    for row in range(len(found)):
        everything = Patch(site="resid_pre", layers=[0], positions=mask[row : row + 1], value=clean.row(row))
        logits = toy.logits(corrupted.row(row), [everything])
        (plain,) = bind_to_rows(logit_difference(*(words[row] for words in metric.targets)), toy, clean.row(row))
        assert swept.per_row[row, 0, 0].item() == pytest.approx(plain(logits).item(), abs=1e-4)
    assert swept.effect[0, 0] > 0.9  # the object's patches carry its colour into layer 0
    assert swept.effect[0, 1:].abs().max() < 1e-4  # the words are the same in both
    assert swept.low[0, 0] <= swept.effect[0, 0] <= swept.high[0, 0]
    names = patch_sweep(toy, clean, corrupted, layers=[5], positions=["question", "last"], metric=metric)
    torch.testing.assert_close(names.effect, swept.effect[1:, 1:], atol=1e-5, rtol=0)


def test_heads_are_patched_one_at_a_time(toy, colours):
    found, clean, corrupted, metric = colours
    swept = patch_sweep(toy, clean, corrupted, "z", layers=[2, 3], positions=["last"], heads="all", metric=metric)
    assert swept.values.shape == (2, 1, 4)
    some = patch_sweep(toy, clean, corrupted, "z", layers=[3], positions="last", heads=[-1, 0], metric=metric)
    assert some.heads == [3, 0]
    torch.testing.assert_close(some.values[0, 0], swept.values[1, 0, [3, 0]], atol=1e-5, rtol=0)
    one = Patch(site="z", layers=3, positions="last", value=clean.row(1), heads=0)
    (plain,) = bind_to_rows(logit_difference(found[1].answer, found[1].other), toy, clean.row(1))
    expected = plain(toy.logits(corrupted.row(1), [one])).item()
    assert some.per_row[1, 0, 0, 1].item() == pytest.approx(expected, abs=1e-4)
    frame = some.to_frame()
    assert frame["head"].tolist() == [3, 0]
    assert frame["value"].tolist() == pytest.approx(some.values.flatten().tolist())


def test_patches_know_where_they_lie_on_the_picture(toy, colours):
    _, clean, corrupted, metric = colours
    swept = patch_sweep(toy, clean, corrupted, layers=[1], positions="all", metric=metric)
    assert swept.picture is None  # each pair has its own
    assert swept.boxes[1].tolist() == pytest.approx([0, 0, 1 / 6, 1 / 6])
    assert swept.boxes[[0, -1]].isnan().all()
    one = patch_sweep(
        toy, clean.row(0), corrupted.row(0), layers=1, metric=logit_difference(*(w[0] for w in metric.targets))
    )
    assert (one.picture.numpy() == np.array(clean.images[0][0])).all()
    assert patch_sweep(toy, clean, corrupted, layers=[1], positions="last", metric=metric).picture is None


def test_the_interval_narrows_with_agreement(toy, colours):
    """Rows that all come back whole leave nothing to be unsure of."""
    _, clean, corrupted, metric = colours
    swept = patch_sweep(toy, clean, corrupted, layers=[7], positions={"everything": "all"}, metric=metric)
    torch.testing.assert_close(
        torch.stack([swept.low, swept.effect, swept.high]).flatten(), torch.ones(3), atol=1e-4, rtol=0
    )


def test_a_result_is_kept_and_framed(swept, tmp_path):
    again = PatchResult.load(swept.save(tmp_path / "patch.safetensors"))
    assert (again.effect == swept.effect).all()
    assert again.tokens == swept.tokens
    assert again.provenance == swept.provenance
    frame = swept.to_frame()
    assert len(frame) == swept.effect.numel()
    assert frame["effect"].to_numpy() == pytest.approx(swept.effect.flatten().numpy())


def test_runs_that_do_not_differ_are_refused_and_no_cell_is_run(toy, colours, monkeypatch):
    _, clean, _, metric = colours
    monkeypatch.setattr("interp.models.running.resume.run_pass", lambda *_: pytest.fail("a cell was run"))
    with pytest.raises(interp.InputError, match="expected runs with different answers"):
        patch_sweep(toy, clean, clean, metric=metric)


def test_one_row_has_no_interval(toy, colours):
    found, clean, corrupted, _ = colours
    metric = logit_difference(found[0].answer, found[0].other)
    result = patch_sweep(toy, clean.row(0), corrupted.row(0), layers=0, positions=[-1], metric=metric)
    assert result.low.isnan().all()


def test_what_cannot_be_patched(toy, colours, mixed):
    _found, clean, corrupted, metric = colours
    with pytest.raises(interp.InputError, match="equal layouts"):
        patch_sweep(toy, clean.row(0), mixed.row(1), metric=logit_difference("red", "blue"))
    with pytest.raises(interp.InputError, match="3 clean and 1 corrupted"):
        patch_sweep(toy, clean, corrupted.row(0), metric=metric)
    with pytest.raises(interp.InputError, match="expected runs with different answers"):
        patch_sweep(toy, clean, clean, layers=0, positions=[-1], metric=metric)
    with pytest.raises(interp.InputError, match="direction='up'"):
        patch_sweep(toy, clean, corrupted, direction="up", metric=metric)
    with pytest.raises(interp.InputError, match="resid_pre has no heads"):
        patch_sweep(toy, clean, corrupted, heads=[0], metric=metric)
    with pytest.raises(interp.InputError, match="head 4: layer 0"):
        patch_sweep(toy, clean, corrupted, "z", heads=[4], metric=metric)
    nothing, some = torch.zeros_like(clean.positions["all"]), clean.positions["last"].clone()
    with pytest.raises(interp.InputError, match="group 'nothing' selects nothing in row 0"):
        patch_sweep(toy, clean, corrupted, positions={"nothing": nothing}, metric=metric)
    some[1, 3] = True
    with pytest.raises(interp.InputError, match=r"selects \[1, 2, 1\] positions"):
        patch_sweep(toy, clean, corrupted, positions=some, metric=metric)
    with pytest.raises(interp.InputError, match="layer 8"):
        patch_sweep(toy, clean, corrupted, layers=8, metric=metric)
    with pytest.raises(interp.InputError, match="names no layer"):
        patch_sweep(toy, clean, corrupted, layers=[], metric=metric)
    with pytest.raises(interp.InputError, match="site='mask' is unknown"):
        patch_sweep(toy, clean, corrupted, site="mask", metric=metric)
    with pytest.raises(interp.InputError, match=r"positions=\{\} names no group"):
        patch_sweep(toy, clean, corrupted, positions={}, metric=metric)
    with pytest.raises(interp.InputError, match="names 'image' more than once"):
        patch_sweep(toy, clean, corrupted, positions=["image", "last", "image"], metric=metric)
    with pytest.raises(interp.InputError, match="seed=-1: expected an int"):
        patch_sweep(toy, clean, corrupted, metric=metric, seed=-1)


@pytest.mark.parametrize(
    "held",
    [
        lambda image: Knockout(source=image, target="last", layers=[4]),
        lambda image: Ablate(site="resid_pre", layers=[2], positions="image", value="resample"),
    ],
)
def test_what_holds_in_no_row_alone_is_refused_before_anything_is_run(toy, colours, monkeypatch, held):
    """A mask of the whole batch, and the states of another row: a sweep takes the rows one by one."""
    _, clean, corrupted, metric = colours
    monkeypatch.setattr("interp.patching.sweep.run_forward", lambda *_: pytest.fail("something was run"))
    for sweep in (patch_sweep, attribution_patch):
        with pytest.raises(interp.InputError, match=r"must hold in each row alone, .* and in row 0 they do not: "):
            sweep(toy, clean, corrupted, metric=metric, interventions=[held(clean.positions["image"])])


@pytest.mark.parametrize(
    "wrong",
    [lambda logits: logits.mean(), lambda logits: logits[:, :1], lambda logits: 3.0, lambda logits: logits[:1, 0]],
)
@pytest.mark.parametrize("sweep", [patch_sweep, attribution_patch])
def test_a_metric_gives_one_number_a_row(toy, colours, sweep, wrong):
    """Of one row as of many: a mean over rows would mix the cells that are run together."""
    _, clean, corrupted, _ = colours
    with pytest.raises(
        interp.InputError, match=r"the metric '<lambda>' gives .* expected a tensor of one number a row"
    ):
        sweep(toy, clean.row(0), corrupted.row(0), layers=[2], positions=[20, -1], metric=wrong)


def test_a_metric_that_counts_or_compares(toy, colours):
    found, clean, corrupted, _ = colours
    answer = toy.tokenizer.convert_tokens_to_ids(found[0].answer)
    for right in (lambda logits: logits.argmax(-1) == answer, lambda logits: (logits.argmax(-1) == answer).long()):
        swept = patch_sweep(toy, clean.row(0), corrupted.row(0), layers=[7], positions=[20, -1], metric=right)
        assert swept.effect.tolist() == [[0, 1]]
