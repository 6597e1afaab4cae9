"""Head pursuit: a head made to write three words is found, and what is scaled is what the toy answers with."""

import copy
import re
from dataclasses import replace

import pytest
import torch

import interp
from interp.interventions import Scale
from interp.lens import HeadResult, dictionary_of, head_pursuit, scale_heads
from interp.words.head_pursuit import _contributions, _test_examples

COLOURS = ["red", "green", "blue", "yellow", "magenta", "cyan"]


def asked(n, seed, split="test", kind="colour"):
    """Questions of a kind, and their answers."""
    found = [(scene, q) for scene in interp.toy.scenes(n, seed=seed, split=split) for q in scene.questions]
    rows = [(scene, q) for scene, q in found if q.kind == kind]
    return [(scene.image, q.prompt) for scene, q in rows], [q.answer for _, q in rows]


@pytest.fixture(scope="module")
def acts(toy):
    data, _ = asked(120, 1, "train")
    return interp.capture(toy, data, sites=("z", "attn_out"), positions="last", batch_size=40, progress=False)


@pytest.fixture(scope="module")
def result(toy, acts):
    return head_pursuit(toy, acts, COLOURS, k=3, lists=20)


def test_what_heads_add_sums_to_what_attention_adds(toy, acts):
    for layer in (0, 5):
        parts = list(_contributions(toy, layer, acts["z"][layer]))
        assert len(parts) == 4
        torch.testing.assert_close(sum(parts), acts["attn_out"][layer], atol=1e-5, rtol=1e-4)


def test_what_the_projection_adds_whatever_it_gets_is_no_heads(toy, acts):
    model = copy.deepcopy(toy.model)
    shifted = copy.copy(toy)
    shifted.nnsight = interp.load(model=model, processor=toy.processor, check=False).nnsight
    model.get_submodule(f"{toy.structure.layers}.5.self_attn.o_proj").bias = torch.nn.Parameter(torch.ones(128))
    pairs = (_contributions(vlm, 5, acts["z"][5]) for vlm in (toy, shifted))
    for plain, found in zip(*pairs, strict=True):
        torch.testing.assert_close(found, plain, atol=1e-5, rtol=1e-4)


def test_scores_are_of_rows_that_chose_no_word(toy, acts, result):
    test = _test_examples(torch.arange(120), 0.3, 0)
    written = next(_contributions(toy, 4, acts["z"][4]))[test]
    rows = dictionary_of(toy, "head").rows[[toy.tokenizer.convert_tokens_to_ids(word) for word in result.words[4][0]]]
    left = written - (torch.linalg.lstsq(rows.T, written.T).solution.T @ rows)
    assert result.scores[4, 0] == pytest.approx(float(1 - left.square().sum() / written.square().sum()), abs=1e-5)


def test_a_head_that_writes_three_words_is_found(toy, acts):
    model = copy.deepcopy(toy.model)
    planted = interp.load(model=model, processor=toy.processor, check=False)
    planted.structure = toy.structure
    tokens = [toy.tokenizer.convert_tokens_to_ids(word) for word in ("green", "cyan", "red")]
    rows = dictionary_of(toy, "head").rows[tokens]
    mixture = torch.randn(32, 3, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        model.get_submodule(f"{toy.structure.layers}.3.self_attn.o_proj").weight[:, 32:64] = (mixture @ rows).T
    found = head_pursuit(planted, acts, COLOURS, k=3, lists=20)
    assert found.top(1) == [(3, 1)]
    assert found.scores[3, 1] == pytest.approx(1, abs=1e-4)
    assert set(found.words[3][1]) == {"green", "cyan", "red"}
    assert found.p[3, 1] == pytest.approx(1 / 21)
    others = torch.ones(8, 4, dtype=torch.bool)
    others[3, 1] = False
    plain = head_pursuit(toy, acts, COLOURS, k=3, lists=20)
    assert torch.equal(found.scores[others], plain.scores[others])


def test_words_drawn_at_random_score_as_the_null(toy, acts):
    generator = torch.Generator().manual_seed(7)
    drawn = [torch.randperm(70, generator=generator)[:6].add(5).tolist() for _ in range(8)]
    found = [head_pursuit(toy, acts, words, k=3, lists=10) for words in drawn]
    assert abs(torch.stack([each.margin for each in found]).mean()) < 0.01
    assert 0.4 < torch.stack([each.p for each in found]).mean() < 0.7


def test_the_null_is_of_matched_lists_and_says_how_near_they_come(toy, acts, result):
    (note,) = [each for each in result.provenance.notes if "lists of other words" in each]
    assert note.startswith("the null is of 20 lists of other words: mean cosine 0.")
    assert "(the concept's is 0.2), mean norm 1." in note
    assert result.lists == 20
    assert torch.all(result.p_family >= result.p)
    assert result.p_family[4, 0] == pytest.approx(1 / 21)  # the head that writes colours, among all heads


def test_frequencies_are_one_a_token(toy, acts):
    counts = torch.arange(75.0)
    found = head_pursuit(toy, acts.select(layers=[2]), COLOURS, 2, lists=3, frequencies=counts)
    assert found.lists == 3
    with pytest.raises(interp.InputError, match="expected 75 numbers, one a token"):
        head_pursuit(toy, acts, COLOURS, 2, frequencies=counts[1:])


def test_a_concept_without_matched_lists_has_no_p(toy, acts, monkeypatch):
    from interp.words import word_lists

    monkeypatch.setattr(word_lists, "_MOST", 6)  # then none is as coherent as colours are
    found = head_pursuit(toy, acts.select(layers=[2]), COLOURS, 2, lists=5)
    assert found.p.isnan().all()
    assert found.p_family.isnan().all()
    assert not found.null.isnan().any()
    assert any(
        "no list of other words is as coherent as these words, so there is no p" in n for n in found.provenance.notes
    )


def test_the_head_that_writes_colours_carries_them_and_not_places(toy, result):
    def share(data, answers, changes):
        batch = toy.prepare([text for _, text in data], [image for image, _ in data])
        wanted = torch.tensor([toy.tokenizer.convert_tokens_to_ids(answer) for answer in answers])
        return float((toy.logits(batch, changes).argmax(dim=-1) == wanted).float().mean())

    colours, places = asked(40, 0), asked(40, 0, kind="place")
    turned = result.scaling(-1, 1)
    assert share(*colours, result.scaling(1, 1)) == share(*colours, []) > 0.9
    assert share(*colours, turned) < 0.6
    assert share(*places, turned) > 0.85
    others = [share(*colours, scale_heads(result.control(1, seed), -1)) for seed in range(5)]
    assert sorted(others)[2] > 0.9


def test_heads_are_ranked_by_what_random_words_do_not_explain(result):
    ranked = result.top(32)
    margins = [float(result.margin[layer, head]) for layer, head in ranked]
    assert margins == sorted(margins, reverse=True)
    assert not set(result.top(4)) & set(result.control(4, seed=1))
    assert result.control(4, seed=1) == result.control(4, seed=1) != result.control(4, seed=2)
    frame = result.to_frame()
    assert list(zip(frame["layer"], frame["head"], strict=True)) == ranked
    layer, head = ranked[0]
    assert frame["words"][0].split() == list(result.words[layer][head])


@pytest.mark.usefixtures("unchecked")
def test_what_is_no_factor_is_said_at_once(result):
    for factor in ("x", None, True, float("nan"), 1e39):
        with pytest.raises(interp.InputError, match=rf"^factor={re.escape(repr(factor))}: expected a finite number"):
            result.scaling(factor, 1)


def changed(acts, z):
    """Activations whose z is another one."""
    return replace(acts, sites={"z": z})


def test_scores_do_not_depend_on_the_unit_of_z(toy, acts, result):
    tiny = head_pursuit(toy, changed(acts, acts["z"][...] * 2.0**-90), COLOURS, k=3, lists=20)
    torch.testing.assert_close(tiny.scores, result.scores, atol=1e-4, rtol=0)
    assert tiny.words == result.words


@pytest.mark.parametrize("size", [1.0, 1e-4])
def test_a_head_that_always_writes_the_same_changes_nothing(toy, acts, result, size):
    """Centred, what is left of it is rounding, whose direction may be anything."""
    z = acts["z"][...].clone()
    z[3, :, 1] = size * z[3, 0, 1]
    plain, centred = (
        head_pursuit(toy, changed(acts, z), COLOURS, k=3, lists=20, center=each) for each in (False, True)
    )
    assert not plain.scores.isnan().any()
    assert centred.scores.isnan().nonzero().tolist() == [[3, 1]]
    assert centred.p.isnan().nonzero().tolist() == [[3, 1]]
    assert centred.words[3][1] == ()
    assert (3, 1) not in centred.top(31)
    with pytest.raises(interp.InputError, match="n=32: expected a number of heads from 1 to 31"):
        centred.top(32)


def test_scaling_has_an_intervention_a_layer():
    assert scale_heads([(5, 1), (2, 0), (5, 0)], 3.0, "last") == [
        Scale(layers=2, heads=(0,), positions="last", factor=3.0),
        Scale(layers=5, heads=(0, 1), positions="last", factor=3.0),
    ]


def test_rows_are_test_examples_whole():
    rows = torch.arange(10).repeat_interleave(3)
    test = _test_examples(rows, 0.3, 0)
    assert test.sum() == 9
    assert all(len(test[rows == row].unique()) == 1 for row in range(10))


def test_a_part_of_the_layers(toy, acts, result):
    part = head_pursuit(toy, acts.select(layers=[6, 2]), COLOURS, k=3, lists=20)
    assert part.layers == (6, 2)
    torch.testing.assert_close(part.scores, result.scores[[6, 2]])
    assert part.top(1)[0][0] in (6, 2)


def test_the_concept_counts_among_its_lists(result):
    assert float(result.p[4, 0]) == pytest.approx(1 / 21)


def test_the_seed_of_the_split_is_kept(toy, acts):
    found = head_pursuit(toy, acts.select(layers=[2]), COLOURS, k=1, lists=1, seed=7)
    assert (found.provenance.seed, found.provenance.data) == (7, acts.provenance.data)


def test_heads_captured_elsewhere_score_alike(toy, remote_toy):
    data, _ = asked(6, 1, "train")
    here, there = (
        head_pursuit(
            vlm, interp.capture(vlm, data, sites=("z",), positions="last", progress=False), COLOURS, k=3, lists=3
        )
        for vlm in (toy, remote_toy)
    )
    for name in ("scores", "null", "p"):
        torch.testing.assert_close(getattr(there, name), getattr(here, name), atol=1e-5, rtol=0)
    assert there.words == here.words


def test_a_result_is_kept(result, tmp_path):
    again = HeadResult.load(result.save(tmp_path / "heads.safetensors"))
    assert again.top(5) == result.top(5)
    assert again.words == result.words


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"k": 7}, "k=7: expected a number of words from 1 to 6"),
        ({"words": ["red", "red"]}, "names a token more than once"),
        ({"words": ["elephant"]}, "'elephant'"),
        ({"lists": 0}, "lists=0"),
        ({"test_size": 1.0}, "test_size=1.0"),
        ({"words": range(60), "k": 2}, "tokens beside 60 words: expected as many"),
    ],
)
def test_what_cannot_be_pursued(toy, acts, options, words):
    with pytest.raises(interp.InputError, match=words) as caught:
        head_pursuit(toy, acts, **{"words": COLOURS, "k": 1, **options})
    assert "\n" not in str(caught.value)


def test_activations_that_do_not_fit(toy, acts, result):
    with pytest.raises(interp.InputError, match="site 'z' was not captured: only attn_out"):
        head_pursuit(toy, acts.select(sites="attn_out"), COLOURS, k=1)
    with pytest.raises(interp.InputTypeError, match="acts is a Tensor: expected what"):
        head_pursuit(toy, acts["z"][...], COLOURS, k=1)
    with pytest.raises(interp.InputError, match="1 rows of data"):
        head_pursuit(toy, acts.select(rows=[0]), COLOURS, k=1)
    with pytest.raises(interp.InputError, match="n=33: expected a number of heads from 1 to 32"):
        result.top(33)
    with pytest.raises(interp.InputError, match="there are 12 heads beside the top 20"):
        result.control(20)
