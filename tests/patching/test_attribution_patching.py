"""Attribution patching against finite differences, against the exact grid of nearby runs, and on scenes of the toy."""

import pytest
import torch

import interp
from interp.interventions import Ablate, Knockout, Reweight, Steer
from interp.models.running.steps import Read, whole
from interp.models.running.trace import run_forward
from interp.patching import PatchResult, attribution_patch, kl_divergence, logit_difference, patch_sweep, probability

WORDS = ("red", "blue")
# Of the way from one state to another: the norms of a model in 64 bits are still computed in 32.
STEP = 0.03


def both(vlm, found):
    """The clean and the corrupted side of some pairs, and the metric that tells them apart."""
    sides = [
        vlm.prepare([pair.prompt for pair in found], [getattr(pair, side).image for pair in found])
        for side in ("clean", "corrupted")
    ]
    return *sides, logit_difference([p.answer for p in found], [p.other for p in found])


@pytest.fixture(scope="module")
def colours(toy):
    return both(toy, interp.toy.pairs(3, seed=1, change="colour"))


@pytest.fixture(scope="module")
def exact(toy, colours):
    clean, corrupted, metric = colours
    return patch_sweep(toy, clean, corrupted, site="mlp_out", metric=metric)


@pytest.fixture(scope="module")
def guess(toy, colours):
    clean, corrupted, metric = colours
    return attribution_patch(toy, clean, corrupted, site="mlp_out", metric=metric)


@pytest.fixture(scope="module")
def precise():
    return interp.load("toy", device="cpu", dtype="float64")


@pytest.fixture(scope="module")
def sentences(precise):
    """Text pairs of two lengths, so that a batch of them is padded."""
    texts = [
        "a {} 3 at top . what colour is the 3 ?",
        "a green 5 at left and a {} 7 at bottom . what colour is the 7 ?",
    ]
    return [precise.prepare([text.format(word) for text in texts]) for word in WORDS]


# Known answers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", ["denoise", "noise"])
@pytest.mark.parametrize(
    ("site", "head"),
    [
        *((site, None) for site in ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "z")),
        *(("z", 2), ("q", 1), ("k", 3), ("v", 0)),
    ],
)
def test_a_cell_is_the_slope_of_the_way_to_the_source(precise, sentences, site, head, direction):
    """In 64 bits, a small step of `Steer` to either side; all tokens but the last are one group, in a padded batch."""
    layer, positions = 3, {"words": "question"}
    source, target = sentences if direction == "denoise" else sentences[::-1]
    result = attribution_patch(
        precise, *sentences, site, layer, positions, head, direction, metric=logit_difference(*WORDS)
    )
    a, b = (precise.tokenizer.convert_tokens_to_ids(word) for word in WORDS)
    for row in range(2):
        ends = [batch.row(row) for batch in (source, target)]
        states = [run_forward(precise, end, reads=[Read(0, site, layer, whole)], logits=None)[0] for end in ends]
        way = (states[0] - states[1])[0, ends[0].positions["question"][0]]
        way = way if head is None else way[:, [head]]
        up, down = (
            precise.logits(
                ends[1],
                [Steer(direction=way, layers=layer, positions="question", scale=scale, site=site, heads=head)],
            )[0]
            for scale in (STEP, -STEP)
        )
        slope = ((up[a] - up[b]) - (down[a] - down[b])).item() / (2 * STEP)
        base = precise.logits(ends[1])[0]
        assert abs(slope) > 1e-3
        found = result.per_row[row].item() - (base[a] - base[b]).item()
        assert found == pytest.approx(slope, rel=1e-2, abs=1e-4)


def test_a_group_is_the_sum_of_its_positions(toy, sentences):
    """To first order changes add up, heads and positions alike."""
    sides = [toy.prepare(batch.texts) for batch in sentences]
    choice = {"site": "z", "layers": [2, 5], "metric": logit_difference(*WORDS)}
    heads = attribution_patch(toy, *sides, positions=[2, 3, -3, -2, -1], heads="all", **choice)
    groups = attribution_patch(toy, *sides, positions={"start": [2, 3], "end": [-3, -2, -1]}, **choice)
    each, both = (
        grid.per_row - grid.corrupted_rows.reshape(2, *[1] * (grid.per_row.ndim - 1)) for grid in (heads, groups)
    )
    each = each.sum(dim=-1)
    expected = torch.stack([each[:, :, :2].sum(dim=-1), each[:, :, 2:].sum(dim=-1)], dim=-1)
    assert (expected[:, :, 1].abs() > 1e-2).all()
    torch.testing.assert_close(both, expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("options", [{}, {"site": "z", "heads": "all"}, {"site": "attn_out", "direction": "noise"}])
def test_of_runs_that_hardly_differ_it_is_the_exact_grid(precise, few, options):
    """To first order nothing is left out: where the source is near, no cell is off."""
    clean = precise.prepare(["<image> what colour is the 3 ?"], [few[0].image])
    noise = torch.randn(clean.inputs["pixel_values"].shape, generator=torch.Generator().manual_seed(0))
    inputs = {**clean.inputs, "pixel_values": clean.inputs["pixel_values"] + 0.002 * noise}
    corrupted = precise.prepare(encoding=inputs)
    choice = {"layers": [0, 3, 7], "positions": [2, 9, 20, -2, -1], "metric": logit_difference(*WORDS), **options}
    grids = [method(precise, clean, corrupted, **choice) for method in (patch_sweep, attribution_patch)]
    assert grids[0].effect.abs().max() > 0.05
    torch.testing.assert_close(grids[1].effect, grids[0].effect, atol=0.03, rtol=0.03)


def test_interventions_hold_in_all_runs(toy, sentences):
    """Again by a step of `Steer`, with weights of attention edited, an edge cut, and a mean that is the row's own."""
    sides = [toy.prepare(batch.texts) for batch in sentences]
    changes = [
        Reweight(kind="uniform", layers=[5]),
        Knockout(source=[0], target="last", layers=[6]),
        Ablate(site="mlp_out", layers=[1], positions="question", value="mean"),
    ]
    choice = {"site": "z", "layers": [5], "positions": "last", "interventions": changes}
    result = attribution_patch(toy, *sides, **choice, metric=logit_difference(*WORDS))
    a, b = (toy.tokenizer.convert_tokens_to_ids(word) for word in WORDS)
    for row in range(2):
        ends = [batch.row(row) for batch in sides]
        read = [Read(0, "z", 5, whole)]
        states = [run_forward(toy, end, toy.edits_of(end, changes), read, logits=None)[0][0, -1:] for end in ends]
        steps = [
            Steer(direction=states[0] - states[1], layers=5, positions="last", scale=scale, site="z")
            for scale in (STEP, -STEP)
        ]
        up, down, base = (toy.logits(ends[1], [*changes, *more])[0] for more in ([steps[0]], [steps[1]], []))
        slope = ((up[a] - up[b]) - (down[a] - down[b])).item() / (2 * STEP)
        assert abs(slope) > 1e-2
        assert result.per_row[row].item() == pytest.approx((base[a] - base[b]).item() + slope, rel=1e-3)


# Against the exact grid --------------------------------------------------------------------------------------------------


def test_it_is_a_grid_of_the_same_kind(guess, exact, tmp_path):
    for name in ("layers", "columns", "tokens", "site", "metric", "direction", "heads"):
        assert getattr(guess, name) == getattr(exact, name)
    assert (guess.method, exact.method) == ("gradient", "exact")
    torch.testing.assert_close(guess.clean_rows, exact.clean_rows, atol=1e-4, rtol=0)
    torch.testing.assert_close(guess.corrupted_rows, exact.corrupted_rows, atol=1e-4, rtol=0)
    assert ((guess.low <= guess.effect) & (guess.effect <= guess.high)).float().mean() > 0.9
    assert guess.provenance.notes[0] == "first order in the states of the corrupted run"
    assert guess.provenance.data == exact.provenance.data
    again = PatchResult.load(guess.save(tmp_path / "guess.safetensors"))
    assert (again.effect == guess.effect).all()
    assert again.method == "gradient"


def test_it_orders_the_cells_as_the_exact_grid_does_and_not_as_that_of_other_pairs(toy, guess, exact):
    clean, corrupted, metric = both(toy, interp.toy.pairs(3, seed=77, change="colour"))
    elsewhere = patch_sweep(toy, clean, corrupted, site="mlp_out", metric=metric)
    assert guess.rank_correlation(exact) > 0.9 > 0.6 > guess.rank_correlation(elsewhere)
    assert guess.top_found(exact, 17) > 0.8 > guess.top_found(elsewhere, 17)


def test_the_top_cells_of_a_grid(guess, exact):
    assert exact.top_found(exact) == 1
    assert guess.top_found(exact, guess.effect.numel()) == 1
    best = int(exact.effect.abs().argmax()) == int(guess.effect.abs().argmax())
    assert guess.top_found(exact, 1) == float(best)
    with pytest.raises(interp.InputError, match="cells=0: expected an int from 1 to 344"):
        guess.top_found(exact, 0)


# Rows, precision, servers ------------------------------------------------------------------------------------------------


def test_rows_do_not_depend_on_those_beside_them(toy, monkeypatch):
    """Two lengths, one batch: as they are, one row at a time, and padded at the other end."""
    texts = [
        "a {} 3 at top . what colour is the 3 ?",
        "a green 5 at left and a {} 7 at bottom . what colour is the 7 ?",
    ]
    sides = [toy.prepare([text.format(word) for text in texts]) for word in WORDS]
    choice = {"positions": [0, 3, -1], "metric": logit_difference([WORDS[0]] * 2, WORDS[1])}
    together = attribution_patch(toy, *sides, **choice)
    right = [toy.prepare(encoding=on_the_right(side.inputs)) for side in sides]
    turned = attribution_patch(toy, *right, **choice)
    monkeypatch.setattr("interp.patching.attribution_patching._POSITIONS_AT_ONCE", 1)
    alone = attribution_patch(toy, *sides, **choice)
    single = attribution_patch(
        toy, *[side.row(1) for side in sides], positions=[0, 3, -1], metric=logit_difference(*WORDS)
    )
    torch.testing.assert_close(turned.per_row, together.per_row, atol=1e-5, rtol=0)
    torch.testing.assert_close(alone.per_row, together.per_row, atol=1e-5, rtol=0)
    torch.testing.assert_close(single.per_row[0], together.per_row[1], atol=1e-5, rtol=0)


def on_the_right(inputs):
    """The same rows with their padding behind them."""
    shifts = (inputs["attention_mask"] == 0).sum(dim=1).tolist()
    names = ("input_ids", "attention_mask")
    return {name: torch.stack([row.roll(-n) for row, n in zip(inputs[name], shifts, strict=True)]) for name in names}


def test_all_rows_share_two_passes(toy, colours, monkeypatch):
    clean, corrupted, metric = colours
    passes = []
    own = toy.model.forward
    monkeypatch.setattr(
        toy.model, "forward", lambda *args, **inputs: passes.append(len(inputs["input_ids"])) or own(*args, **inputs)
    )
    attribution_patch(toy, clean, corrupted, metric=metric)
    assert passes == [3, 3]


def test_a_caller_may_be_in_inference_mode(toy):
    """Nothing made there can take part in a gradient: neither the batches, nor a direction, nor the reference."""
    text = "a {} 3 at top . what colour is the 3 ?"
    with torch.inference_mode():
        clean, corrupted = (toy.prepare(texts=[text.format(word)]) for word in WORDS)
        ahead = [Steer(direction=torch.ones(128), layers=1, positions="last", scale=0.5)]
        metrics = logit_difference(*WORDS), kl_divergence(toy.logits(clean))
        inside = [attribution_patch(toy, clean, corrupted, metric=each, interventions=ahead) for each in metrics]
        assert torch.is_inference_mode_enabled()
    outside = [attribution_patch(toy, clean, corrupted, metric=each, interventions=ahead) for each in metrics]
    assert outside[0].effect.abs().max() > 0.1
    for here, there in zip(inside, outside, strict=True):
        torch.testing.assert_close(here.per_row, there.per_row)


@pytest.mark.parametrize("method", [patch_sweep, attribution_patch])
def test_a_metric_gives_one_number_a_row(toy, colours, method):
    clean, corrupted, _ = colours
    for metric in (torch.mean, torch.sort, torch.nn.Identity()):
        with pytest.raises(interp.InputError, match=r"the metric '.*' gives .* expected a tensor of one number a row"):
            method(toy, clean, corrupted, metric=metric)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision(dtype, guess):
    half = interp.load("toy", device="cpu", dtype=dtype)
    clean, corrupted, metric = both(half, interp.toy.pairs(3, seed=1, change="colour"))
    result = attribution_patch(half, clean, corrupted, site="mlp_out", metric=metric)
    assert result.values.dtype == torch.float32
    assert result.rank_correlation(guess) > 0.9


def test_it_can_be_sent(toy, remote_toy, colours):
    clean, corrupted, _ = colours
    choice = {
        "site": "z",
        "heads": [1, 3],
        "layers": [2, 6],
        "positions": ["image", "last"],
        "metric": probability("red"),
    }
    here, there = (attribution_patch(vlm, clean, corrupted, **choice) for vlm in (toy, remote_toy))
    assert here.effect.shape == (2, 2, 2)
    torch.testing.assert_close(there.per_row, here.per_row, atol=1e-5, rtol=0)


# What is refused ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"direction": "up"}, "direction='up'"),
        ({"site": "mask"}, "site='mask' is unknown"),
        ({"heads": [0]}, "resid_pre has no heads"),
        ({"layers": [9]}, "layer 9"),
        ({"positions": "nowhere"}, "positions='nowhere' is unknown"),
        ({"metric": logit_difference("red", "elephant")}, "'elephant' is not a word of this vocabulary"),
        ({"seed": -1}, "seed=-1: expected an int of 0 or more"),
    ],
)
def test_it_is_refused_as_a_sweep_is_before_anything_is_run(toy, colours, monkeypatch, options, words):
    clean, corrupted, metric = colours
    monkeypatch.setattr(toy.model, "forward", lambda *_, **__: pytest.fail("the model was run"))
    said = []
    for method in (patch_sweep, attribution_patch):
        with pytest.raises(interp.InterpError, match=words) as error:
            method(toy, clean, corrupted, **{"metric": metric, **options})
        said.append(str(error.value))
    assert said[0] == said[1]
    assert "\n" not in said[0]


def test_runs_that_do_not_differ(toy, colours):
    clean, _, metric = colours
    with pytest.raises(interp.InputError, match="expected runs with different answers"):
        attribution_patch(toy, clean, clean, metric=metric)


def test_what_has_no_gradient(toy, colours, monkeypatch):
    clean, corrupted, metric = colours

    def right(logits):
        return (logits.argmax(dim=-1) == 3).float()

    with pytest.raises(
        interp.InputError, match="the metric 'right' has no gradient: expected a differentiable"
    ) as error:
        attribution_patch(toy, clean, corrupted, metric=right)
    assert "\n" not in str(error.value)

    def refuse(*_):
        raise NotImplementedError("the derivative of 'sparse'\nis not implemented")

    class Sparse(torch.autograd.Function):
        forward = staticmethod(lambda ctx, x: x.clone())
        backward = staticmethod(refuse)

    handle = toy.model.model.language_model.layers[4].register_forward_hook(
        lambda module, _, output: Sparse.apply(output)
    )
    with pytest.raises(interp.LayoutError, match=r"'sparse' is not implemented\): patch_sweep needs none") as error:
        attribution_patch(toy, clean, corrupted, metric=metric)
    handle.remove()
    assert "\n" not in str(error.value)
