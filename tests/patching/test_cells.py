"""Cells resumed against one whole forward pass each, on every architecture; and what happens where the two disagree."""

import pytest
import torch

import interp
import zoo
from interp.interventions import Knockout, Patch, Reweight
from interp.models.architectures import architectures, language_models
from interp.models.running.resume import leftmost
from interp.patching import attribution_patch, cells, logit_difference, patch_sweep
from interp.patching.agreement import allowed_difference, largest_difference
from interp.patching.metrics import bind_to_rows
from zoo.table import load, report

SUPPORTED = [row.name for row in (*architectures(), *language_models()) if row.verdict == "supported"]
# Recurrences and convolutions see no single positions, and indexers keep more than keys and values.
FROM_LAYERS = {
    *("dots3_note", "inkling_mm_model", "lfm2_vl", "lfm3_vl", "minicpm_ocr", "minicpmv4_6", "minicpmv4_7"),
    *("nemotron_h_omni", "qwen3_5", "qwen3_5_moe", "mamba", "qwen3_next"),
}
# Layers that hand their keys and values, or what they have indexed, to later layers; a bias made for the rows of one batch.
WHOLE = {"gemma4", "mistral_large4", "bloom"}
POSITION, LAYER = list(cells._WAYS)


def two_logits(logits):
    return logits[:, 7] - logits[:, 11]


def pair_of(name):
    """Two encodings of one layout: the second has other words and a darker picture."""
    vlm = load(name)
    report(name)
    given = zoo.encode(name, rows=((3, 6),))
    clean = vlm.prepare(encoding=given)
    ids = given["input_ids"].clone()
    for row, column in clean.positions["text"].nonzero()[[1, 4]].tolist():
        ids[row, column] = 3 + (ids[row, column] - 2) % 20
    other = {**given, "input_ids": ids}
    if "pixel_values" in given:
        other["pixel_values"] = given["pixel_values"] * 0.6
    return vlm, clean, vlm.prepare(encoding=other)


def one_by_one(vlm, clean, corrupted, site, layers, columns, metric, heads=None, interventions=()):
    """Each cell as a whole forward pass of one row, by the intervention that says the same."""
    each = [None] if heads is None else heads
    values = [
        metric(
            vlm.logits(
                corrupted,
                [*interventions, Patch(site=site, layers=layer, positions=[column], value=clean, heads=head)],
            )
        ).item()
        for layer in layers
        for column in columns
        for head in each
    ]
    return torch.tensor(values).reshape(len(layers), len(columns), *([len(each)] if heads else []))


@pytest.mark.parametrize("name", SUPPORTED)
def test_a_cell_is_a_whole_forward_pass_on_every_architecture(name):
    vlm, clean, corrupted = pair_of(name)
    layers, columns = sorted({0, 1, vlm.structure.n_layers - 1}), [1, 4, -3, -1]
    vlm.tried.clear()
    swept = patch_sweep(vlm, clean, corrupted, layers=layers, positions=columns, metric=two_logits)
    expected = one_by_one(
        vlm, clean, corrupted, "resid_pre", layers, [column for (column,) in swept.columns], two_logits
    )
    torch.testing.assert_close(swept.values, expected, atol=1e-4, rtol=0)
    note = swept.provenance.notes[0]
    way = cells._WHOLE if name in WHOLE else LAYER if name in FROM_LAYERS else POSITION
    assert note.startswith(f"{way}:") or note == way
    assert (swept.values - swept.corrupted).abs().max() > 1e-3  # or nothing would have been compared


@pytest.mark.parametrize("name", ["llava", "gemma3", "qwen3_vl", "cohere2_vision", "glm4v_moe", "chameleon"])
@pytest.mark.parametrize("site", ["attn_out", "mlp_out", "resid_post", "z", "v"])
def test_cells_inside_a_layer(name, site):
    """Flat experts, parallel branches, norms behind a part: the site is found again in a layer that is called anew."""
    vlm, clean, corrupted = pair_of(name)
    heads = [1] if site == "z" else None
    layers, columns = [0, vlm.structure.n_layers - 1], [2, -1]
    swept = patch_sweep(vlm, clean, corrupted, site, layers, columns, heads, metric=two_logits)
    at = [column for (column,) in swept.columns]
    expected = one_by_one(vlm, clean, corrupted, site, layers, at, two_logits, heads)
    torch.testing.assert_close(swept.values, expected, atol=1e-4, rtol=0)
    assert swept.provenance.notes[0].startswith(POSITION)


@pytest.mark.parametrize("name", ["hunyuan_vl", "minicpm_ocr"])
def test_rows_that_are_not_the_same_among_others_run_alone(name):
    """The towers of these see all pictures of a batch at once, or take no encoding repeated."""
    vlm, clean, corrupted = pair_of(name)
    blind = Knockout(source=[0], target="last", layers=[vlm.structure.n_layers - 1])
    swept = patch_sweep(vlm, clean, corrupted, layers=[1], positions=[2, -1], metric=two_logits, interventions=[blind])
    at = [column for (column,) in swept.columns]
    expected = one_by_one(vlm, clean, corrupted, "resid_pre", [1], at, two_logits, interventions=[blind])
    torch.testing.assert_close(swept.values, expected, atol=1e-5, rtol=0)


@pytest.fixture(scope="module")
def colour(toy):
    (pair,) = interp.toy.pairs(1, seed=4, change="colour")
    clean, corrupted = (toy.prepare([pair.prompt], [scene.image]) for scene in (pair.clean, pair.corrupted))
    return clean, corrupted, logit_difference(pair.answer, pair.other)


@pytest.fixture
def fresh(toy):
    """The toy as if nothing had been swept on it."""
    kept = dict(toy.tried)
    toy.tried.clear()
    yield toy
    toy.tried.clear()
    toy.tried.update(kept)


def test_what_disagrees_is_not_used(fresh, colour, monkeypatch):
    """Kept keys that are wrong are seen, and the layers are called at all positions; wrong states are, and none are."""
    clean, corrupted, metric = colour
    right = patch_sweep(fresh, clean, corrupted, layers=[2, 5], positions=[20, -1], metric=metric)
    assert right.provenance.notes[0] == POSITION
    fresh.tried.clear()
    own = interp.models.running.replay.put_before
    monkeypatch.setattr("interp.models.running.replay.put_before", lambda old, new, start: own(old * 0.9, new, start))
    layered = patch_sweep(fresh, clean, corrupted, layers=[2, 5], positions=[20, -1], metric=metric)
    assert layered.provenance.notes[0].startswith(f"{LAYER}: logits of resumed cells were off by")
    torch.testing.assert_close(layered.values, right.values, atol=1e-4, rtol=0)
    fresh.tried.clear()
    monkeypatch.setattr("interp.models.running.resume.call_layer", lambda *given: given[2] * 1.1)
    whole = patch_sweep(fresh, clean, corrupted, layers=[2, 5], positions=[20, -1], metric=metric)
    assert whole.provenance.notes[0].startswith(f"{cells._WHOLE}: logits of resumed cells were off by")
    torch.testing.assert_close(whole.values, right.values, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["gemma4", "qwen3_5", "dots3_note", "mistral_large4"])
def test_what_was_seen_of_a_few_layers_is_not_trusted_for_more(name):
    """The last layer alone can be called again, the others not: they share keys, or have a state that is no keys."""
    vlm, clean, corrupted = pair_of(name)
    vlm.tried.clear()
    last = vlm.structure.n_layers - 1
    few = patch_sweep(vlm, clean, corrupted, layers=[last], positions=[-1], metric=two_logits)
    layers = list(range(last + 1))
    swept = patch_sweep(vlm, clean, corrupted, layers=layers, positions=[1, 4, -1], metric=two_logits)
    at = [column for (column,) in swept.columns]
    expected = one_by_one(vlm, clean, corrupted, "resid_pre", layers, at, two_logits)
    torch.testing.assert_close(swept.values, expected, atol=1e-4, rtol=0)
    assert swept.provenance.notes != few.provenance.notes or name == "mistral_large4"


def test_a_sweep_that_reaches_further_is_tried_anew(fresh, colour, monkeypatch):
    """Lower layers and positions before the last are; what lies within something that was tried is not."""
    clean, corrupted, metric = colour
    tried = []
    own = cells._first_that_agrees
    monkeypatch.setattr(cells, "_first_that_agrees", lambda *given: (tried.append(given[2].cells), own(*given))[1])
    for layers, positions, count in [
        ([6], [-1], 1),  # the last position of an upper layer
        ([7], [-1], 1),
        ([6, 7], [20, -1], 2),  # more than the last position
        ([2, 7], [-1], 3),  # lower layers
        ([2, 7], [20], 4),
        ("all", "image", 5),
        ([3, 4], "all", 5),
    ]:
        patch_sweep(fresh, clean, corrupted, layers=layers, positions=positions, metric=metric)
        assert len(tried) == count
    assert {cell.layer for cell in tried[2]} == {2, 7}
    assert 0 in {cell.layer for cell in tried[4]}


def test_the_ends_of_a_sweep_are_among_what_is_tried(fresh, colour, monkeypatch):
    clean, corrupted, metric = colour
    tried = []
    own = cells._first_that_agrees
    monkeypatch.setattr(cells, "_first_that_agrees", lambda *given: (tried.append(given[2].cells), own(*given))[1])
    for seed in range(4):
        fresh.tried.clear()
        patch_sweep(fresh, clean, corrupted, positions=[20, 30, -1], metric=metric, seed=seed)
        assert min(cell.layer for cell in tried[-1]) == 0
        assert min(cell.group for cell in tried[-1]) == 0


def test_layers_below_the_first_that_differs_are_tried_too():
    """The last word is the same in both runs, so that nothing differs in the lowest layer, which cannot be called again."""
    vlm, clean, corrupted = pair_of("qwen3_5")
    vlm.tried.clear()
    last = vlm.structure.n_layers - 1
    swept = patch_sweep(vlm, clean, corrupted, layers=[0, last], positions=[-1], metric=two_logits)
    assert swept.provenance.notes[0].startswith(LAYER)


def test_many_positions_are_few_rows_of_a_whole_pass(toy, colour, monkeypatch):
    clean, corrupted, metric = colour
    rows = []
    own = cells.run_forward

    def counted(vlm, batch, *given):
        rows.append(len(batch))
        return own(vlm, batch, *given)

    monkeypatch.setattr(cells, "run_forward", counted)
    monkeypatch.setattr(cells, "POSITIONS_AT_ONCE", 3 * len(clean.tokens[0]) + 1)
    late = Knockout(source="image", target="last", layers=[4, 5])
    patch_sweep(toy, clean, corrupted, layers=[2, 3], positions=[20, 21, -1], metric=metric, interventions=[late])
    assert max(rows) == 3


@pytest.mark.parametrize("kind", ["random", "shuffled"])
def test_what_is_drawn_for_each_row_is_drawn_once_for_all_cells(fresh, colour, kind):
    """Among other cells a row would be drawn other weights than alone, whatever is known of rows without them."""
    clean, corrupted, metric = colour
    late = Knockout(source="image", target="last", layers=[4, 5])
    patch_sweep(fresh, clean, corrupted, layers=[2], positions=[20, -1], metric=metric, interventions=[late])
    drawn = interp.interventions.Reweight(kind=kind, layers=[3])
    swept = patch_sweep(
        fresh, clean, corrupted, layers=[1, 4], positions=[20, -1], metric=metric, interventions=[drawn]
    )
    ids = [[fresh.tokenizer.convert_tokens_to_ids(word)] for word in metric.targets]
    options = {"positions": "all", "reduce": "none", "interventions": [drawn], "progress": False}
    given = interp.capture(fresh, [clean], sites=("resid_pre",), **options)["resid_pre"]
    for i, layer in enumerate([1, 4]):
        for j, (column,) in enumerate(swept.columns):
            patch = Patch(site="resid_pre", layers=layer, positions=[column], value=given[layer, column])
            patched = logit_difference(*ids)(fresh.logits(corrupted, [drawn, patch]))
            assert swept.values[i, j].item() == pytest.approx(patched.item(), abs=1e-4)


def test_tokens_that_are_ruled_out_hide_no_disagreement(toy):
    """The lowest number of a precision would make any difference look small, and infinity any agreement a NaN."""
    logits = torch.tensor([[3.0, -4.0, torch.finfo(torch.float32).min, -torch.inf]])
    assert allowed_difference(toy, logits) == pytest.approx(4e-4)
    assert largest_difference(logits, logits) == 0
    assert largest_difference(logits + torch.tensor([0, 0.5, 0, 0]), logits) == 0.5
    assert largest_difference(logits.masked_fill(logits == 3, torch.nan), logits) == torch.inf


def test_memory_that_runs_out_says_nothing_about_the_model(fresh, colour, monkeypatch):
    clean, corrupted, metric = colour

    def full(*_):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr("interp.models.running.resume.run_pass", full)
    with pytest.raises(torch.OutOfMemoryError):
        patch_sweep(fresh, clean, corrupted, layers=[2], positions=[20], metric=metric)
    assert ("resumed", "resid_pre", True) not in fresh.tried


def test_a_layer_that_fails_after_the_comparison_costs_time_and_no_result(fresh, colour, monkeypatch):
    clean, corrupted, metric = colour
    right = patch_sweep(fresh, clean, corrupted, layers=[2], positions=[20, -1], metric=metric)

    def fails(*_):
        raise RuntimeError("no such key")

    monkeypatch.setattr("interp.models.running.resume.run_pass", fails)
    swept = patch_sweep(fresh, clean, corrupted, layers=[2], positions=[20, -1], metric=metric)
    torch.testing.assert_close(swept.values, right.values, atol=1e-4, rtol=0)
    assert swept.provenance.notes[0] == f"{cells._WHOLE}: its layers cannot be called so (no such key)"


def test_only_cells_that_differ_are_run_and_only_where_they_may(fresh, colour, monkeypatch):
    """Before the first patch that differs no cell is run, and words enter layer 0 alike; each pass begins at its column."""
    clean, corrupted, metric = colour
    patch_sweep(fresh, clean, corrupted, layers=[0, 1], metric=metric)
    ran = []
    own = interp.models.running.resume.run_pass

    def counted(run, readout, versions, start):
        ran.extend((cell.layer, int(versions.groups[cell.group]), start) for cell in versions.cells)
        return own(run, readout, versions, start)

    monkeypatch.setattr("interp.models.running.resume.run_pass", counted)
    patch_sweep(fresh, clean, corrupted, layers=[0, 1], metric=metric)
    image = clean.positions["image"][0]
    assert all(column == start for _, column, start in ran)
    assert {column for layer, column, _ in ran if layer == 0} <= set(image.nonzero().flatten().tolist())
    assert {column for layer, column, _ in ran if layer == 1} > {len(image) - 1}
    assert len(set(ran)) == len(ran)


def test_a_mask_that_layers_share_is_looked_at_once(fresh, monkeypatch):
    """Two thousand positions squared in eighty layers would take longer than the cells."""
    looked = []
    own = interp.models.running.resume.as_allowed
    monkeypatch.setattr("interp.models.running.resume.as_allowed", lambda *given: (looked.append(1), own(*given))[1])
    clean, corrupted = (fresh.prepare([f"a {word} 3 at top . what colour is the 3 ?"]) for word in ("red", "blue"))
    metric = logit_difference("red", "blue")
    swept = patch_sweep(fresh, clean, corrupted, positions=[2, -1], metric=metric)
    assert swept.provenance.notes[0] == POSITION
    assert len(looked) == 2  # in the sweep, and in what was tried before it


def test_how_many_cells_share_a_pass_makes_no_difference(fresh, colour, monkeypatch):
    clean, corrupted, metric = colour
    together = patch_sweep(fresh, clean, corrupted, positions=[10, 20, -1], metric=metric)
    monkeypatch.setattr("interp.models.running.resume.ROWS_AT_ONCE", 3)
    few = patch_sweep(fresh, clean, corrupted, positions=[10, 20, -1], metric=metric)
    torch.testing.assert_close(few.values, together.values, atol=1e-5, rtol=0)


@pytest.mark.parametrize("site", ["resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "q", "k", "v", "z"])
def test_a_sweep_can_be_sent(toy, remote_toy, colour, site):
    clean, corrupted, metric = colour
    heads = "all" if site in ("q", "z") else None
    here, there = (
        patch_sweep(vlm, clean, corrupted, site, [3], [20, -1], heads, metric=metric) for vlm in (toy, remote_toy)
    )
    torch.testing.assert_close(there.values, here.values, atol=1e-5, rtol=0)
    assert there.provenance.notes[0] == here.provenance.notes[0] == POSITION


def test_interventions_hold_in_all_runs(toy, colour):
    clean, corrupted, metric = colour
    late = Knockout(source="image", target="last", layers=[4, 5])
    swept = patch_sweep(toy, clean, corrupted, layers=[2], positions=[20, -1], metric=metric, interventions=[late])
    ids = [[toy.tokenizer.convert_tokens_to_ids(word)] for word in metric.targets]
    plain = logit_difference(*ids)
    options = {"positions": "all", "reduce": "none", "interventions": [late], "progress": False}
    given = interp.capture(toy, [clean], sites=("resid_pre",), **options)
    for index, (column,) in enumerate(swept.columns):
        state = given["resid_pre"][2, column]
        patched = toy.logits(corrupted, [late, Patch(site="resid_pre", layers=2, positions=[column], value=state)])
        assert swept.values[0, index].item() == pytest.approx(plain(patched).item(), abs=1e-4)
    assert swept.clean == pytest.approx(plain(toy.logits(clean, [late])).item(), abs=1e-4)
    assert swept.provenance.notes[0].startswith(cells._WHOLE)
    assert "Knockout" in swept.provenance.interventions[0]


def test_what_is_drawn_for_each_row_is_drawn_for_one(toy, colour):
    """Random weights differ from row to row of a batch, so cells under them are not rows of one."""
    clean, corrupted, metric = colour
    drawn = Reweight(kind="random", layers=[5], seed=3)
    swept = patch_sweep(toy, clean, corrupted, layers=[2], positions=[20, 40], metric=metric, interventions=[drawn])
    (plain,) = bind_to_rows(metric, toy, clean)
    for index, (column,) in enumerate(swept.columns):
        patch = Patch(site="resid_pre", layers=2, positions=[column], value=clean)
        expected = plain(toy.logits(corrupted, [drawn, patch])).item()
        assert swept.values[0, index].item() == pytest.approx(expected, abs=1e-5)


def test_eager_attention_and_half_precision_are_resumed_too(colour):
    clean, corrupted, metric = colour
    for options in ({"attn_implementation": "eager"}, {"dtype": "bfloat16"}):
        vlm = interp.load("toy", device="cpu", **options)
        swept = patch_sweep(vlm, clean, corrupted, layers=[1, 6], positions=[10, 20, -1], metric=metric)
        assert swept.provenance.notes[0] == POSITION


@pytest.mark.gpu
def test_on_a_gpu_as_on_a_cpu(toy, colour):
    """Cells resumed there, gradients and windows: the numbers of the CPU to what single precision leaves."""
    clean, corrupted, metric = colour
    there = interp.load("toy", device="cuda")
    swept, expected = (
        patch_sweep(vlm, clean, corrupted, positions=[10, 20, -1], metric=metric) for vlm in (there, toy)
    )
    torch.testing.assert_close(swept.values, expected.values, atol=1e-3, rtol=0)
    assert swept.provenance.notes[0] == POSITION
    guess, own = (attribution_patch(vlm, clean, corrupted, positions=[20, -1], metric=metric) for vlm in (there, toy))
    torch.testing.assert_close(guess.values, own.values, atol=1e-3, rtol=0)


# Where a version begins --------------------------------------------------------------------------------------------------


def causal(length):
    return torch.ones(length, length, dtype=torch.bool).tril()


def test_a_causal_version_begins_at_its_position():
    window = causal(6).triu(-2)
    assert leftmost([causal(6), window]) == list(range(6))


def test_a_version_begins_at_the_first_that_sees_it():
    block = causal(8)
    block[2:5, 2:5] = True  # an image block sees both ways
    assert leftmost([causal(8), block]) == [0, 1, 2, 2, 2, 5, 6, 7]
    prefix = causal(8)
    prefix[:4, :4] = True
    assert leftmost([prefix]) == [0, 0, 0, 0, 4, 5, 6, 7]


def test_what_sees_it_is_followed():
    """Position 6 is seen by 4, which another layer shows to 1: what differs at 6 differs at 1 in the end."""
    one, other = causal(8), causal(8)
    one[4, 6] = True
    other[1, 4] = True
    assert leftmost([one, other])[6] == 1
