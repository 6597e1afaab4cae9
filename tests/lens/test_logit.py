"""The logit lens against transformers' own pieces, and on a picture whose patches are known."""

import math

import pytest
import torch

import interp
from interp.interventions import Ablate
from interp.lens import LensResult, logit_lens


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
        "Ablate(site='resid_pre', layers=4, positions='last', value='zero', heads=None, seed=0)",
    )


def test_chunks_change_nothing(toy, mixed, monkeypatch):
    from interp.lens import logit

    whole = logit_lens(toy, mixed, positions="all", targets="red")
    monkeypatch.setattr(logit, "_POSITIONS_AT_ONCE", 7)
    parts = logit_lens(toy, mixed, positions="all", targets="red")
    torch.testing.assert_close(parts.top_probs, whole.top_probs, atol=1e-6, rtol=0)
    torch.testing.assert_close(parts.target_probs, whole.target_probs, atol=1e-6, rtol=0)


def test_a_result_is_kept_and_framed(toy, mixed, tmp_path):
    lens = logit_lens(toy, mixed, targets="red")
    again = LensResult.load(lens.save(tmp_path / "lens.safetensors"))
    assert again.words(8, 3) == lens.words(8, 3)
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
