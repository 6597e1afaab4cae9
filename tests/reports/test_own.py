"""A picture and a question of the user's own: every number the same remotely, every part shown or said to be left out."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

from interp.errors import InputError
from interp.reports.own import emerges_at, own_page, read_question, study, summary
from reports.browser import CHROMIUM, visit

LONG = "what colour is the 3 and which digit is larger , is there a blue 7 at top ?"


@pytest.fixture(scope="module")
def found(toy, few):
    return study(toy, few[0].image, LONG)


@pytest.mark.parametrize(
    ("given", "prompt"),
    [("what is it ?", "<image> what is it ?"), (" where <image> ? ", "where <image> ?"), ("<image> x", "<image> x")],
)
def test_the_placeholder_is_put_in_front_where_there_is_none(given, prompt):
    assert read_question(given) == prompt


@pytest.mark.parametrize("empty", ["", "  ", "<image>", " <image> "])
def test_an_empty_question_is_refused(empty):
    with pytest.raises(InputError, match="empty"):
        read_question(empty)


def test_the_answer_and_what_comes_next_are_the_models_own(found, toy, few):
    batch = toy.prepare([f"<image> {LONG}"], [few[0].image])
    shares = toy.logits(batch)[0].softmax(dim=-1)
    best = shares.topk(8)
    assert [share for _, share in found.next_words] == pytest.approx(best.values.tolist(), abs=1e-6)
    assert [word for word, _ in found.next_words] == [toy.tokenizer.decode([token]) for token in best.indices.tolist()]
    assert found.answer == toy.generate(batch)[0].strip()


def test_the_lens_ends_in_the_models_own_prediction(found):
    assert found.emergence.target_probs[-1, 0].item() == pytest.approx(found.next_words[0][1], abs=1e-5)
    assert found.emergence.target_ranks[-1, 0] == 0


def test_every_number_is_the_same_through_a_remote_model(found, remote_toy, few):
    local, remote = found.numbers(), study(remote_toy, few[0].image, LONG).numbers()
    assert list(local) == list(remote)
    for name, values in local.items():
        np.testing.assert_allclose(remote[name], values, rtol=0, atol=1e-5, err_msg=name)


def test_emergence_is_the_first_state_from_which_the_answer_stays():
    class Read:
        def __init__(self, *ranks):
            self.target_ranks = torch.tensor(ranks)[:, None]

    assert emerges_at(Read(5, 0, 2, 0, 0)) == 3
    assert emerges_at(Read(0, 0)) == 0
    assert emerges_at(Read(0, 1)) is None


def test_what_is_left_out_is_said(found, toy, few):
    assert found.geometry.apart is not None
    assert "text" not in found.geometry.dimensions
    assert "The intrinsic dimension of the text tokens is left out: 1" in found.left_out[0]
    short = study(toy, few[0].image, "where ?")
    assert short.geometry.apart is None
    assert len(short.left_out) == 2
    html = own_page(short).html()
    assert all(reason.replace("'", "&#x27;") in html for reason in short.left_out)


def test_tokens_apart_and_mixed(found):
    apart = found.geometry.apart
    assert apart.shape == (9,)
    assert 0.4 < found.geometry.chance < 0.5
    assert ((apart >= 0) & (apart <= 1)).all()


def test_the_grid_lies_over_what_the_tower_sees(toy):
    """A wide picture is cropped by the processor: its edges are not among the patches."""
    picture = Image.new("RGB", (192, 96), "blue")
    picture.paste("red", (48, 0, 144, 96))
    seen = study(toy, picture, "where ?").image
    assert seen.size == (48, 48)
    red, green, blue = np.asarray(seen)[:, 4:-4].reshape(-1, 3).mean(axis=0)
    assert red > 250
    assert green < 5
    assert blue < 5


def test_a_model_without_a_rectangle_gets_words_by_layer(found):
    flat = dataclasses.replace(found, grid=None, left_out=("no rectangle of patches", *found.left_out))
    page = own_page(flat)
    assert "no rectangle of patches" in page.html()
    lens = next(section for section in page.sections if section.title.startswith("Logit lens"))
    tables = [block for block in lens.blocks if hasattr(block, "rows")]
    assert len(tables[0].rows) == 9


def test_the_summary_says_where_the_answer_leads(found):
    assert dict(summary(found))["image tokens"] == "36"
    assert dict(summary(found))["proofs of the layout"] == "7 of 7 passed"


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_the_report_opens_in_a_browser(found, tmp_path):
    hostile = dataclasses.replace(found, question="<script>x</script>", answer="<b>bold</b>", model="a<b")
    target = own_page(hostile).write(tmp_path / "own.html")
    seen = visit(target, "document.body.innerText.includes('<b>bold</b>')", "document.title")
    assert seen.complaints == []
    assert seen.outside(target) == []
    assert seen.values == [True, "a<b, one picture, one question"]
