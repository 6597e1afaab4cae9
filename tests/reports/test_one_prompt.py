"""One picture and one question: every number is the same remotely, every part is shown or omitted with a reason."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

from interp.errors import InputError
from interp.reports.one_prompt import analyse_prompt, as_prompt, emerges_at, prompt_page, summarise_prompt
from reports.browser import CHROMIUM, visit

LONG = "what colour is the 3 and which digit is larger , is there a blue 7 at top ?"


@pytest.fixture(scope="module")
def analysis(toy, few):
    return analyse_prompt(toy, few[0].image, LONG)


@pytest.mark.parametrize(
    ("question", "prompt"),
    [("what is it ?", "<image> what is it ?"), (" where <image> ? ", "where <image> ?"), ("<image> x", "<image> x")],
)
def test_the_placeholder_is_put_in_front_where_there_is_none(question, prompt):
    assert as_prompt(question) == prompt


@pytest.mark.parametrize("empty", ["", "  ", "<image>", " <image> "])
def test_an_empty_question_is_refused(empty):
    with pytest.raises(InputError, match="empty"):
        as_prompt(empty)


def test_the_answer_and_what_comes_next_are_the_models_own(analysis, toy, few):
    batch = toy.prepare([f"<image> {LONG}"], [few[0].image])
    shares = toy.logits(batch)[0].softmax(dim=-1)
    best = shares.topk(8)
    assert [share for _, share in analysis.next_words] == pytest.approx(best.values.tolist(), abs=1e-6)
    assert [word for word, _ in analysis.next_words] == [
        toy.tokenizer.decode([token]) for token in best.indices.tolist()
    ]
    assert analysis.answer == toy.generate(batch)[0].strip()


def test_the_lens_ends_in_the_models_own_prediction(analysis):
    assert analysis.emergence.target_probs[-1, 0].item() == pytest.approx(analysis.next_words[0][1], abs=1e-5)
    assert analysis.emergence.target_ranks[-1, 0] == 0


def test_every_number_is_the_same_through_a_remote_model(analysis, remote_toy, few):
    local, remote = analysis.numbers(), analyse_prompt(remote_toy, few[0].image, LONG).numbers()
    assert list(local) == list(remote)
    for name, values in local.items():
        np.testing.assert_allclose(remote[name], values, rtol=0, atol=1e-5, err_msg=name)


def test_emergence_is_the_first_state_from_which_the_answer_stays():
    class Lens:
        def __init__(self, *ranks):
            self.target_ranks = torch.tensor(ranks)[:, None]

    assert emerges_at(Lens(5, 0, 2, 0, 0)) == 3
    assert emerges_at(Lens(0, 0)) == 0
    assert emerges_at(Lens(0, 1)) is None


def test_the_report_gives_a_reason_for_each_omission(analysis, toy, few):
    assert analysis.geometry.separation is not None
    assert "text" not in analysis.geometry.dimensions
    assert "The intrinsic dimension of the text tokens is omitted: the prompt has 1" in analysis.omissions[0]
    short = analyse_prompt(toy, few[0].image, "where ?")
    assert short.geometry.separation is None
    assert len(short.omissions) == 2
    html = prompt_page(short).html()
    assert all(reason.replace("'", "&#x27;") in html for reason in short.omissions)


def test_tokens_apart_and_mixed(analysis):
    separation = analysis.geometry.separation
    assert separation.shape == (9,)
    assert 0.4 < analysis.geometry.chance < 0.5
    assert ((separation >= 0) & (separation <= 1)).all()


def test_the_grid_lies_over_what_the_tower_sees(toy):
    """A wide picture is cropped by the processor: its edges are not among the patches."""
    picture = Image.new("RGB", (192, 96), "blue")
    picture.paste("red", (48, 0, 144, 96))
    processed = analyse_prompt(toy, picture, "where ?").image
    assert processed.size == (48, 48)
    red, green, blue = np.asarray(processed)[:, 4:-4].reshape(-1, 3).mean(axis=0)
    assert red > 250
    assert green < 5
    assert blue < 5


def test_a_model_without_a_rectangle_gets_words_by_layer(analysis):
    flat = dataclasses.replace(analysis, grid=None, omissions=("no rectangle of patches", *analysis.omissions))
    page = prompt_page(flat)
    assert "no rectangle of patches" in page.html()
    lens = next(section for section in page.sections if section.title.startswith("Logit lens"))
    tables = [block for block in lens.blocks if hasattr(block, "rows")]
    assert len(tables[0].rows) == 9


def test_the_summary_says_where_the_answer_leads(analysis):
    assert dict(summarise_prompt(analysis))["image tokens"] == "36"
    assert dict(summarise_prompt(analysis))["proofs of the layout"] == "7 of 7 passed"


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_the_report_opens_in_a_browser(analysis, tmp_path):
    hostile = dataclasses.replace(analysis, question="<script>x</script>", answer="<b>bold</b>", model="a<b")
    target = prompt_page(hostile).write(tmp_path / "own.html")
    visited = visit(target, "document.body.innerText.includes('<b>bold</b>')", "document.title")
    assert visited.complaints == []
    assert visited.outside(target) == []
    assert visited.values == [True, "a<b, one picture, one question"]
