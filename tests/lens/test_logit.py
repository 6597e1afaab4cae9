"""The logit lens against transformers' own pieces, and on a picture whose patches are known."""

import math
from types import SimpleNamespace

import pytest
import torch

import interp
from interp import plots
from interp.interop import to_transformer_lens
from interp.interventions import Ablate, Steer
from interp.lens import LensResult, logit_lens, unnormed_lens
from interp.lens.reading import divergence


def test_the_last_state_is_the_models_prediction(toy, mixed):
    lens = logit_lens(toy, mixed, positions="last", top_k=3)
    expected = toy.logits(mixed).softmax(dim=-1).topk(3)
    torch.testing.assert_close(lens.top_probs[-1], expected.values, atol=1e-5, rtol=0)
    assert (lens.top_ids[-1] == expected.indices).all()


def test_inner_states_are_normed_once_and_read(toy, mixed):
    with torch.no_grad():
        states = toy.model(**toy.inputs_of(mixed), output_hidden_states=True).hidden_states
        expected = toy.model.lm_head(toy.model.model.language_model.norm(states[5])).softmax(dim=-1)
    image = mixed.positions["image"]
    lens = logit_lens(toy, mixed, targets=["red", 3, "top"])
    rows = image.nonzero()[:, 0]
    aims = torch.tensor([toy.tokenizer.convert_tokens_to_ids(word) for word in ("red", "<unk>", "top")])[rows]
    probs = expected[image]
    torch.testing.assert_close(lens.target_probs[5], probs.gather(1, aims[:, None])[:, 0], atol=1e-6, rtol=1e-4)
    assert (lens.target_ranks[5] == (probs > probs.gather(1, aims[:, None])).sum(1)).all()
    torch.testing.assert_close(lens.entropy[5], -(probs * probs.log()).sum(-1), atol=1e-4, rtol=1e-4)
    assert (lens.rows == rows).all()
    assert (lens.columns == image.nonzero()[:, 1]).all()
    assert lens.tokens == ["<image>"] * 72
    assert lens.words(5, 0)[0] == toy.tokenizer.decode([probs[0].argmax().item()])


def test_probabilities_and_entropy_are_in_range(toy, mixed):
    lens = logit_lens(toy, mixed, positions="all", top_k=75)
    torch.testing.assert_close(lens.top_probs.sum(-1), torch.ones(lens.entropy.shape), atol=1e-4, rtol=0)
    assert (lens.entropy >= 0).all()
    assert lens.entropy.max() <= math.log(lens.vocab_size) + 1e-4
    assert lens.target_probs is None


def test_interventions_are_seen(toy, mixed):
    plain = logit_lens(toy, mixed, positions="last")
    cut = logit_lens(toy, mixed, positions="last", interventions=[Ablate(site="resid_pre", layers=4, positions="last")])
    assert (plain.top_probs[:4] == cut.top_probs[:4]).all()
    assert not torch.allclose(plain.top_probs[5], cut.top_probs[5])
    assert cut.provenance.interventions == (
        "Ablate(site='resid_pre', layers=4, positions='last', value='zero', heads=None, seed=0, by=None)",
    )


def test_chunks_change_nothing(toy, mixed, monkeypatch):
    from interp.lens import reading

    whole = logit_lens(toy, mixed, positions="all", targets="red")
    monkeypatch.setattr(reading, "_LOGITS_AT_ONCE", 7 * toy.structure.vocab_size)
    parts = logit_lens(toy, mixed, positions="all", targets="red")
    torch.testing.assert_close(parts.top_probs, whole.top_probs, atol=1e-6, rtol=0)
    torch.testing.assert_close(parts.target_probs, whole.target_probs, atol=1e-6, rtol=0)
    torch.testing.assert_close(parts.kl, whole.kl, atol=1e-5, rtol=0)


def test_a_result_is_kept_and_framed(toy, mixed, tmp_path):
    lens = logit_lens(toy, mixed, targets="red")
    again = LensResult.load(lens.save(tmp_path / "lens.safetensors"))
    assert again.words(8, 3) == lens.words(8, 3)
    assert lens.words(-1, 3) == lens.words(8, 3)
    for state, position in ((9, 0), (-10, 0), (0, 10_000)):
        with pytest.raises(interp.InputError, match=r"(state|position)=.*: expected an int from -\d+ to \d+$"):
            lens.words(state, position)
    assert (again.target_ranks == lens.target_ranks).all()
    frame = lens.to_frame()
    assert len(frame) == lens.entropy.numel()
    assert frame["target_prob"].to_numpy() == pytest.approx(lens.target_probs.flatten().numpy())


def test_what_cannot_be_read(toy, mixed):
    with pytest.raises(interp.InputError, match="selects no position"):
        logit_lens(toy, mixed.row(1))
    with pytest.raises(interp.InputError, match="top_k=0"):
        logit_lens(toy, mixed, top_k=0)
    with pytest.raises(interp.InputError, match="'elephant'"):
        logit_lens(toy, mixed, targets="elephant")
    with pytest.raises(interp.InputError, match=r"^top_k=True: expected a number of words from 1 to 75$"):
        logit_lens(toy, mixed, top_k=True)
    with pytest.raises(interp.InputError, match=r"^positions=Tensor of shape [^\n]* selects no position[^\n]*$"):
        logit_lens(toy, mixed, positions=torch.zeros_like(mixed.positions["image"]))


def test_the_divergence_is_from_the_models_own_prediction(toy, mixed):
    with torch.no_grad():
        states = toy.model(**toy.inputs_of(mixed), output_hidden_states=True).hidden_states
        last = toy.model.lm_head(states[-1])  # transformers' last one is normed
        inner = toy.model.lm_head(toy.model.model.language_model.norm(states[3]))
    real = mixed.positions["all"]
    wanted = torch.nn.functional.kl_div(
        inner[real].log_softmax(-1), last[real].log_softmax(-1), log_target=True, reduction="none"
    ).sum(-1)
    lens = logit_lens(toy, mixed, positions="all")
    torch.testing.assert_close(lens.kl[3], wanted, atol=1e-4, rtol=1e-4)
    assert (lens.kl[-1] == 0).all()
    assert lens.to_frame()["kl"].to_numpy() == pytest.approx(lens.kl.flatten().numpy())


def test_words_that_are_left_out_add_nothing():
    final, read = torch.tensor([[0.5, 0.5, 0.0]]).log(), torch.tensor([[0.25, 0.5, 0.25]]).log()
    torch.testing.assert_close(divergence(final, read), torch.tensor([0.5 * math.log(2)]))
    assert divergence(final, torch.tensor([[0.5, 0.5, 0.0]]).log()) == 0


def test_a_state_without_numbers_is_not_taken_for_a_sure_one(toy, mixed):
    half = Steer(direction=torch.full((128,), 3e38), layers=3, positions="all", scale=1.0)
    with pytest.raises(
        interp.InputError, match="the readings of 'toy' are not finite in float32, though the states of"
    ):
        logit_lens(toy, mixed, positions="last", targets="red", interventions=[half, half])


def test_without_the_norm(toy, mixed):
    with torch.no_grad():
        states = toy.model(**toy.inputs_of(mixed), output_hidden_states=True).hidden_states
        wanted = toy.model.lm_head(states[4]).softmax(dim=-1)[mixed.positions["image"]].topk(5)
    plain, bare = logit_lens(toy, mixed), unnormed_lens(toy, mixed)
    torch.testing.assert_close(bare.top_probs[4], wanted.values, atol=1e-6, rtol=1e-4)
    assert (bare.top_ids[4] == wanted.indices).all()
    assert bare.kl[-1].min() > 0
    assert plain.name != bare.name
    assert bare.provenance.notes == ("read without the final norm",)


def test_transformer_lens_reads_the_same(toy, mixed):
    """Its own logit lens over the same states, with the toy's norm and head where it keeps a bridge's."""
    acts = interp.capture(toy, [mixed], positions="all", reduce="none", progress=False)
    head = toy.model.lm_head
    bridge = SimpleNamespace(
        cfg=SimpleNamespace(n_layers=8, d_model=128, normalization_type="RMS"),
        ln_final=toy.model.model.language_model.norm,
        unembed=head,
        W_U=head.weight.T.detach(),
        b_U=torch.zeros(head.weight.shape[0]),
    )
    theirs = to_transformer_lens(acts, bridge).logit_lens(return_type="probs", top_k=5, positions=None)
    real, ours = mixed.positions["all"], logit_lens(toy, mixed, positions="all")
    torch.testing.assert_close(ours.top_probs, theirs.values[:, real], atol=1e-4, rtol=0)
    torch.testing.assert_close(ours.entropy, theirs.readout.entropy[:, real], atol=1e-4, rtol=0)


def test_it_can_be_sent(toy, remote_toy, mixed):
    for lens in (logit_lens, unnormed_lens):
        here, there = (lens(vlm, mixed, positions=[0, -1], targets="red") for vlm in (toy, remote_toy))
        for name in ("top_ids", "top_probs", "entropy", "kl", "target_ranks"):
            assert torch.equal(getattr(here, name), getattr(there, name)), name


def test_positions_have_their_role_and_their_patch(toy, mixed):
    """Across rows of different length, padding among them."""
    lens = logit_lens(toy, mixed, positions=torch.ones_like(mixed.positions["all"]))
    frame = lens.to_frame()
    frame = frame[frame.state == 0]
    for name in ("image", "special", "padding", "last"):
        mask = mixed.positions[name]
        assert frame["role"].eq(name).tolist() == mask.flatten().tolist()
    patches = frame[(frame.row == 2) & (frame.role == "image")]
    assert list(zip(patches.patch_row, patches.patch_column, strict=True)) == [divmod(n, 6) for n in range(36)]
    assert frame["patch_row"].notna().tolist() == mixed.positions["image"].flatten().tolist()


def test_figures_say_of_how_many_rows_they_are(toy, mixed, few):
    lens = logit_lens(toy, mixed)
    assert "(mean of 72 positions in 2 rows)" in lens.plot().layout.title.text
    assert "(mean of 36 positions)" in logit_lens(toy, mixed.row(0)).plot().layout.title.text
    on_image = plots.lens_on_image(lens, few[1].image, (6, 6), row=2).layout.title.text
    assert "on the image patches of row 2: state 8 of 8" in on_image
    alone = plots.lens_on_image(logit_lens(toy, mixed.row(0)), few[0].image, (6, 6)).layout.title.text
    assert "on the image patches: state 8 of 8" in alone
