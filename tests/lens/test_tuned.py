"""The tuned lens: on the toy, on a planted change of basis, on other architectures, and kept in a file."""

import copy

import pytest
import torch

import interp
from interp.interventions import Ablate
from interp.lens import TunedLens, logit_lens, tuned_lens
from interp.lens.fitting import Training, fit_translator, kl_to_final, mean_over_rows, split_three_ways
from zoo.table import batch as zoo_batch
from zoo.table import load as zoo_load


@pytest.fixture(scope="module")
def data():
    pictures = interp.toy.scenes(48, seed=5, split="train")
    asked = [(scene.image, scene.questions[0].prompt) for scene in pictures]
    return [*asked, *interp.toy.scenes(24, seed=6, split="train").captions().pairs()]


@pytest.fixture(scope="module")
def lens(toy, data):
    return TunedLens.fit(toy, data, batch_size=24)


def test_it_beats_the_plain_lens_on_rows_it_has_not_seen(toy, lens):
    assert lens.kl_tuned.shape == (9,)
    assert (lens.kl_tuned_high[:-1] < lens.kl_plain_low[:-1]).all()
    assert (lens.kl_tuned[:-1] < lens.kl_plain[:-1] / 1.5).all()
    assert lens.kl_tuned[-1] == lens.kl_plain[-1] == 0
    assert lens.n_held_out == 14
    assert lens.n_train == 72 - 14 - 7
    assert (lens.epochs > 0).all()


def test_its_figure_sets_the_plain_lens_beside_it(lens):
    lines = {trace.name: list(trace.y) for trace in lens.plot().data if trace.mode == "lines+markers"}
    assert lines["tuned"] == pytest.approx(lens.kl_tuned.tolist())
    assert lines["plain"] == pytest.approx(lens.kl_plain.tolist())


def test_its_reading_is_behind_the_translator(toy, lens, mixed):
    with torch.no_grad():
        states = toy.model(**toy.inputs_of(mixed), output_hidden_states=True).hidden_states
        state = states[2][mixed.positions["image"]]
        turned = state + torch.einsum("ij,pj->pi", lens.matrices[2], state) + lens.biases[2]
        wanted = toy.model.lm_head(toy.model.model.language_model.norm(turned)).softmax(dim=-1).topk(5)
    read, plain = tuned_lens(toy, mixed, lens), logit_lens(toy, mixed)
    torch.testing.assert_close(read.top_probs[2], wanted.values, atol=1e-5, rtol=1e-4)
    assert (read.top_ids[2] == wanted.indices).all()
    assert torch.equal(read.top_probs[-1], plain.top_probs[-1])
    assert read.name == "tuned lens"


def test_on_pictures_and_questions_of_the_test_split(toy, lens):
    scenes = interp.toy.scenes(8, seed=77)
    batch = toy.prepare([scene.questions[0].prompt for scene in scenes], [scene.image for scene in scenes])
    read, plain = (each.kl.mean(dim=1) for each in (tuned_lens(toy, batch, lens, "all"), logit_lens(toy, batch, "all")))
    assert (read[:-1] < plain[:-1]).all()


def test_interventions_are_seen(toy, lens, mixed):
    cut = Ablate(site="resid_pre", layers=4, positions="last")
    plain, changed = (tuned_lens(toy, mixed, lens, "last", interventions=edits) for edits in ([], [cut]))
    assert torch.equal(plain.top_probs[:4], changed.top_probs[:4])
    assert not torch.allclose(plain.top_probs[5], changed.top_probs[5])


def test_it_can_be_sent(toy, remote_toy, lens, mixed):
    here, there = (tuned_lens(vlm, mixed, lens, [0, -1]) for vlm in (toy, remote_toy))
    assert torch.equal(here.top_probs, there.top_probs)
    assert torch.equal(here.kl, there.kl)


def test_a_planted_change_of_basis_is_found():
    generator = torch.Generator().manual_seed(0)
    finals = torch.randn(1200, 12, generator=generator)
    turn = torch.eye(12) + 0.3 * torch.randn(12, 12, generator=generator)
    states = (finals - 1.0) @ torch.linalg.inv(turn).T
    words = torch.randn(30, 12, generator=generator)

    def read(state):
        return (state @ words.T).log_softmax(dim=-1)

    train, stop, test = (torch.arange(1200) % 6 == side for side in (0, 1, 2))
    how = Training(epochs=120, learning_rate=0.3, at_once=50, patience=20, seed=0)
    found, _ = fit_translator(states, finals, train, stop, read, how)
    plain = kl_to_final(states[test], finals[test], read, 64).mean()
    tuned = kl_to_final(states[test], finals[test], read, 64, found).mean()
    assert tuned < 0.01 * plain


def test_what_cannot_be_bettered_stays_as_it_is():
    finals = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
    sides = torch.arange(60) % 2 == 0, torch.arange(60) % 2 == 1
    (matrix, bias), epoch = fit_translator(
        finals, finals, *sides, lambda x: x.log_softmax(-1), Training(5, 0.1, 8, 2, 0)
    )
    assert epoch == 0
    assert not matrix.any()
    assert not bias.any()


def test_rows_that_were_held_back_say_when_to_stop():
    """What the model says has nothing to do with the states: what is learnt on some rows is wrong on others, and no
    translator is kept. After `patience` epochs without a gain none is tried."""
    states, finals = torch.randn(2, 60, 8, generator=torch.Generator().manual_seed(0))
    train, stop = torch.arange(60) < 30, torch.arange(60) >= 30
    seen = []

    def read(state):
        seen.append(len(state))
        return (4 * state).log_softmax(-1)

    how = Training(epochs=40, learning_rate=1.0, at_once=30, patience=40, seed=0)
    found, _ = fit_translator(states, finals, train, stop, read, how)
    plain, tuned = (kl_to_final(states[stop], finals[stop], read, 30, each).mean() for each in (None, found))
    assert tuned <= plain
    seen.clear()
    fit_translator(finals, finals, train, stop, read, Training(40, 1.0, 30, 2, 0))
    assert (
        len(seen) == 2 + 2 * 4
    )  # of each a final and a reading: before, and in two epochs one step and one measurement


def test_a_step_does_not_depend_on_the_unit_of_the_states():
    states = torch.randn(60, 8, generator=torch.Generator().manual_seed(0))
    finals = states + torch.arange(8) / 4
    sides = torch.arange(60) % 2 == 0, torch.arange(60) % 2 == 1
    how = Training(3, 0.1, 8, 3, 0)
    (matrix, bias), epoch = fit_translator(states, finals, *sides, lambda x: x.log_softmax(-1), how)
    (same, large), _ = fit_translator(1024 * states, 1024 * finals, *sides, lambda x: (x / 1024).log_softmax(-1), how)
    assert epoch > 0
    torch.testing.assert_close(same, matrix, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(large / 1024, bias, atol=1e-4, rtol=1e-3)


def test_a_model_in_half_precision_has_translators_in_full(data, tmp_path):
    vlm = interp.load("toy", device="cpu", dtype=torch.bfloat16)
    lens = TunedLens.fit(vlm, data[:40], epochs=3, batch_size=20)
    assert lens.matrices.dtype == lens.biases.dtype == torch.float32
    assert (lens.kl_tuned[:4] < lens.kl_plain[:4]).all()
    again = TunedLens.load(lens.save(tmp_path / "lens.safetensors"))
    batch = vlm.prepare(["<image>"], [interp.toy.scenes(1, seed=3)[0].image])
    read = tuned_lens(vlm, batch, again)
    assert (read.kl[:4].mean(dim=1) < logit_lens(vlm, batch).kl[:4].mean(dim=1)).all()
    assert not read.kl[-1].any()


def test_rows_without_a_position_do_not_count(toy, data):
    lens = TunedLens.fit(toy, [*data[-20:], *data[:6]], positions="image", epochs=1)
    assert (lens.n_train, lens.n_held_out) == (4, 1)


def test_the_norm_belongs_to_the_readout_as_the_head_does(toy, lens, mixed):
    other = interp.load("toy", device="cpu")
    with torch.no_grad():
        other.model.get_submodule(other.structure.norm).weight[0] += 1
    with pytest.raises(interp.InputError, match="with norm and head"):
        tuned_lens(other, mixed, lens)


def test_rows_are_split_whole_and_drawn_whole():
    sides = split_three_ways(20, 0.2, seed=3)
    assert [int(side.sum()) for side in sides] == [14, 2, 4]
    assert (torch.stack(sides).sum(dim=0) == 1).all()
    rows = torch.tensor([0, 0, 0, 1])
    mean, low, high = mean_over_rows(torch.tensor([[1.0, 1.0, 1.0, 5.0]]), rows, seed=0)
    assert (mean.item(), low.item()) == (2.0, 0.0)  # two rows say little, and no divergence is below 0
    assert high.item() > 5
    assert mean_over_rows(torch.ones(1, 2), torch.tensor([3, 3]), 0)[1].isnan()


def test_it_is_the_same_for_a_seed_and_kept_in_a_file(toy, data, lens, tmp_path, mixed):
    some = {"epochs": 1, "positions": "last", "batch_size": 24}
    one, two, other = (TunedLens.fit(toy, data, seed=seed, **some) for seed in (0, 0, 1))
    assert torch.equal(one.matrices, two.matrices)
    assert not torch.equal(one.matrices, other.matrices)
    again = TunedLens.load(lens.save(tmp_path / "lens.safetensors"))
    assert torch.equal(tuned_lens(toy, mixed, again).top_probs, tuned_lens(toy, mixed, lens).top_probs)
    assert again.provenance.model == toy.name
    frame = again.to_frame()
    assert frame["kl_tuned"].to_numpy() == pytest.approx(lens.kl_tuned.numpy())
    assert frame["epoch"].tolist() == [*lens.epochs.tolist(), 0]


def test_nothing_of_the_model_is_changed(toy, lens):
    assert all(weights.grad is None for weights in toy.model.parameters())


@pytest.mark.parametrize("name", ["qwen3_5", "lfm2_vl", "gemma4", "cohere_compass"])
def test_other_architectures(name):
    """Hybrids, a scaled readout and a softcap: a few steps, through whatever the model reads its states with."""
    vlm, rows = zoo_load(name), zoo_batch(name)
    found = TunedLens.fit(vlm, [rows] * 4, epochs=3, held_out=0.3)
    read = tuned_lens(vlm, rows, found, positions="all")
    assert (read.kl[-1] == 0).all()
    assert (found.kl_tuned <= found.kl_plain + 1e-6).all()
    assert (found.kl_tuned[:-1] < found.kl_plain[:-1]).any()
    torch.testing.assert_close(read.kl.mean(dim=1)[0], found.kl_tuned[0].float(), rtol=0.5, atol=1e-3)


def test_what_it_does_not_take(toy, stage1, lens, mixed, data, tiny):
    with pytest.raises(interp.InputError, match=r"fitted on 'toy' with norm and head .* those of 'toy:stage1'"):
        tuned_lens(stage1, mixed, lens)
    with pytest.raises(interp.InputError, match=r"is for 8 layers of width 128, .* has 3 of width 32"):
        tuned_lens(interp.load(model=tiny, device="cpu", check=False), mixed, lens)
    with pytest.raises(interp.InputTypeError, match=r"expected a TunedLens, from TunedLens.fit"):
        tuned_lens(toy, mixed, "lens.safetensors")
    with pytest.raises(interp.InputError, match="2 rows"):
        TunedLens.fit(toy, data[:2])
    with pytest.raises(interp.InputError, match=r"row 1 of the data is 7: expected"):
        TunedLens.fit(toy, [data[0], 7])
    with pytest.raises(interp.InputTypeError, match=r"'pictures', and no folder there: expected the path of a folder"):
        TunedLens.fit(toy, "pictures")
    with pytest.raises(interp.InputError, match=r"held_out=0\.9"):
        TunedLens.fit(toy, data, held_out=0.9)
    with pytest.raises(interp.InputError, match="epochs=0"):
        TunedLens.fit(toy, data, epochs=0)
    with pytest.raises(interp.InputError, match="selects no position"):
        TunedLens.fit(toy, data[-5:], positions="image")


@pytest.mark.parametrize(
    ("name", "given"),
    [
        *((name, given) for name in ("epochs", "positions_at_once", "patience", "batch_size") for given in (0, True)),
        *(("learning_rate", given) for given in (0.0, float("inf"), float("nan"), True)),
        ("seed", True),
    ],
)
def test_numbers_that_are_none_are_named(toy, data, name, given):
    with pytest.raises(interp.InputError, match=rf"^{name}={given!r}: expected [^\n]*$"):
        TunedLens.fit(toy, data[:4], **{name: given})


def test_a_mask_that_selects_nothing_is_said_in_one_line(toy, mixed):
    with pytest.raises(interp.InputError, match=r"^positions=Tensor of shape [^\n]* selects no position[^\n]*$"):
        TunedLens.fit(toy, [mixed], positions=torch.zeros_like(mixed.positions["image"]))


def test_a_caller_may_be_in_inference_mode(toy, data):
    with torch.inference_mode():
        inside = TunedLens.fit(toy, data[:4], positions="last", epochs=1)
    assert torch.equal(inside.matrices, TunedLens.fit(toy, data[:4], positions="last", epochs=1).matrices)


@pytest.mark.parametrize("path", ["norm", "head"])
def test_a_readout_that_gives_no_numbers(toy, path):
    """The states are finite, and what they read as is not: nothing could be fitted to it."""
    broken = copy.deepcopy(toy)
    with torch.no_grad():
        broken.model.get_submodule(getattr(broken.structure, path)).weight.view(-1)[0] = torch.inf
    with pytest.raises(interp.InputError, match=r"^the readout of 'toy' has weights that are not finite"):
        TunedLens.fit(broken, interp.toy.scenes(4, seed=0), positions="all", epochs=1)
