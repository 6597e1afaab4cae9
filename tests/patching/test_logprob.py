"""Metrics of answers of several tokens, against transformers' own generation and against passes made by hand."""

import math
from dataclasses import dataclass
from itertools import product

import pytest
import torch
from transformers import LogitsProcessor, LogitsProcessorList

import interp
import processors
import zoo
from alphabets import TOKENIZERS
from interp.interventions import Ablate, Edit, Knockout, Patch, Reweight, Skip, Steer, Truncate
from interp.models.batches.answered import AnsweredBatch, put_behind
from interp.models.batches.targets import answers_of
from interp.models.running.greedy import AsTheyAre
from interp.models.running.readiness import ready_inputs
from interp.patching import (
    attribution_patch,
    flow,
    layer_sweep,
    logit_difference,
    logprob,
    logprob_difference,
    patch_sweep,
    probability,
)
from interp.patching.metrics import bind_to_batches
from interp.patching.window_sweeps import MetricRuns
from models.batches.test_targets import Words, encoded, read_on
from models.test_families import model, picture
from patching.test_cells import SUPPORTED, pair_of

# Whose padded rows transformers computes otherwise with its cache than in one pass, and one that generates in its own way.
ALONE = ("kosmos-2", "kosmos-2.5", "minimax_m3_vl", "mistral_large4", "dots3_note", "janus")
ANSWERS = [[11, 12, 13], [14, 15]]


class Given(LogitsProcessor):
    """Makes generation choose these tokens `[row, token]`."""

    def __init__(self, tokens, start):
        self.tokens, self.start = tokens, start

    def __call__(self, ids, scores):
        chosen = self.tokens[:, ids.shape[1] - self.start]
        return torch.full_like(scores, -1e9).scatter(1, chosen[:, None], 0.0)


def by_generation(vlm, batch, answers):
    """The log-probabilities of answers as transformers generates them, with its cache."""
    inputs, longest = ready_inputs(vlm, batch.inputs, 2), max(map(len, answers))
    ids = torch.tensor([[*answer, *answer[:1] * (longest - len(answer))] for answer in answers])
    options = {"logits_processor": LogitsProcessorList([Given(ids, inputs["input_ids"].shape[1])])}
    options |= {"max_new_tokens": longest, "output_logits": True, "return_dict_in_generate": True, "eos_token_id": None}
    with torch.no_grad():
        steps = vlm.model.generate(**inputs, **options, do_sample=False).logits
    each = torch.stack(steps, dim=1).float().log_softmax(-1).gather(-1, ids[..., None])[..., 0]
    return torch.stack([own[: len(answer)].sum() for own, answer in zip(each, answers, strict=True)])


def by_cache(vlm, batch, answers):
    """The log-probability of the answer of one row, token by token with the model's own cache."""
    (answer,), length = answers, len(batch.tokens[0])
    with torch.no_grad():
        run = vlm.model(**batch.inputs, use_cache=True)
        steps = [run.logits[0, -1]]
        for count, token in enumerate(answer[:-1], start=1):
            mask = torch.ones(1, length + count, dtype=torch.long)
            new = {"input_ids": torch.tensor([[token]]), "attention_mask": mask}
            steps.append(vlm.model(**new, past_key_values=run.past_key_values, use_cache=True).logits[0, -1])
    return sum(step.log_softmax(-1)[token] for step, token in zip(steps, answer, strict=True))[None]


def value(vlm, batch, metric, interventions=()):
    (bound,) = bind_to_batches(metric, vlm, [batch])
    return MetricRuns(vlm, bound, interventions).values()


def by_hand(vlm, text, answer, interventions=(), image=None):
    """The log-probability of an answer from one pass of the whole text, whose words are the toy's tokens."""
    batch = vlm.prepare([f"{text} {answer}"], None if image is None else [image])
    ids, size = batch.inputs["input_ids"][0], len(answer.split())
    logs = vlm.logits(batch, interventions, positions="all")[0].log_softmax(-1)
    return sum(logs[len(ids) - size - 1 + step, ids[len(ids) - size + step]] for step in range(size)).item()


# One pass is what generation computes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in SUPPORTED if name not in (*ALONE, "diffusion_gemma")])
def test_it_is_what_generation_would_give_these_tokens(name):
    vlm = interp.load(model=zoo.build(name), check=False)
    batch = vlm.prepare(encoding=zoo.encode(name))  # rows of different length, padded on the left
    expected = by_generation(vlm, batch, ANSWERS)
    torch.testing.assert_close(value(vlm, batch, logprob(ANSWERS)), expected, atol=1e-4, rtol=0)
    together = value(vlm, batch, logprob_difference(ANSWERS, 9))
    torch.testing.assert_close(together, expected - by_generation(vlm, batch, [[9], [9]]), atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ALONE)
def test_a_row_alone_is_what_generation_would_give(name):
    vlm = interp.load(model=zoo.build(name), check=False)
    batch = vlm.prepare(encoding=zoo.encode(name, ((3, 6),)))
    expected = (by_cache if name == "janus" else by_generation)(vlm, batch, ANSWERS[:1])
    torch.testing.assert_close(value(vlm, batch, logprob(ANSWERS[:1])), expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("name", ["llava", "gemma3", "qwen3_vl", "paligemma", "lfm2_vl", "gemma4", "mistral_large4"])
@pytest.mark.parametrize("site", ["resid_pre", "attn_out"])
def test_cells_of_other_families_are_whole_passes(name, site):
    """Resumed from a layer and a position, from a layer, and not at all."""
    vlm, clean, corrupted = pair_of(name)
    metric = logprob_difference([[11, 12, 13]], [[14, 15]])
    layers, columns = [1, vlm.structure.n_layers - 1], [1, -1]
    swept = patch_sweep(vlm, clean, corrupted, site, layers, columns, metric=metric, progress=False)
    for i, layer in enumerate(layers):
        for j, position in enumerate(columns):
            patch = Patch(site=site, layers=layer, positions=[position], value=clean)
            expected = value(vlm, corrupted, metric, [patch])
            torch.testing.assert_close(swept.per_row[:, i, j], expected, atol=2e-4, rtol=0)


def test_a_model_of_a_prefix_is_told_where_the_answer_begins():
    """PaliGemma's prompt sees all of itself; without another token type the answer would be a part of it."""
    vlm = interp.load(model=zoo.build("paligemma"), check=False)
    batch, answers = vlm.prepare(encoding=zoo.encode("paligemma")), torch.tensor([[11, 12, 13], [14, 15, -1]])
    seen, told = (vlm.logits(put_behind(batch, answers, kind))[:, 0] for kind in (None, 1))
    torch.testing.assert_close(told, vlm.logits(batch), atol=1e-5, rtol=0)
    assert (seen - told).abs().max() > 0.1
    half = interp.load(model=zoo.make(zoo.build("paligemma").config).to(torch.bfloat16), check=False)
    value(half, half.prepare(encoding=zoo.encode("paligemma")), logprob(ANSWERS))
    assert half.tried["answered", True] == 1  # also where roundings are as large as what is seen


def test_a_model_that_looks_ahead_is_refused_in_one_line():
    vlm = interp.load(model=zoo.build("diffusion_gemma"), check=False)
    batch = vlm.prepare(encoding=zoo.encode("diffusion_gemma"))
    with pytest.raises(interp.LayoutError, match=r"cannot judge answers of several tokens .* targets of one token"):
        value(vlm, batch, logprob(ANSWERS))
    assert value(vlm, batch, logprob([11, 14])).shape == (2,)


def test_half_precision_differs_by_its_roundings():
    wide, half = zoo.build("qwen2_vl"), zoo.make(zoo.build("qwen2_vl").config).to(torch.bfloat16)
    wide, half = (interp.load(model=each, check=False) for each in (wide, half))
    batch = wide.prepare(encoding=zoo.encode("qwen2_vl"))
    ours = value(half, half.prepare(encoding=zoo.encode("qwen2_vl")), logprob(ANSWERS))
    torch.testing.assert_close(ours, value(wide, batch, logprob(ANSWERS)), atol=0.3, rtol=0.02)
    assert ours.dtype == torch.float32


def add_noise(value, past, width):
    """Noise that depends on the shape of what is computed together, and on the number of positions before."""
    generator = torch.Generator().manual_seed(past)
    return value + width * torch.randn(value.shape, generator=generator).to(value)


@dataclass(frozen=True)
class Noise:
    """An intervention as a user writes it, which knows nothing of answers."""

    def edits(self, vlm, batch, new=0):
        return [Edit("resid_mid", 1, add_noise, (0.5,), ("past",))]


CHANGES = {
    "none": [],
    "Steer": [Steer(direction=torch.linspace(-2, 2, 64), layers=2, positions="all", scale=1.0)],
    "Ablate": [Ablate(site="resid_pre", layers=2, positions="last", value="zero")],
    "mean": [Ablate(site="mlp_out", layers=1, positions="text", value="mean")],
    "Knockout": [Knockout(source="image", target="last", layers=[1])],
    "Skip": [Skip(layers=2, positions="image")],
    "Truncate": [Truncate(positions="image", from_layer=2)],
    "head": [Ablate(site="z", layers=1, positions=[-1], heads=0)],
    "weights": [Knockout(source="image", target="last", layers=[1, 2], heads=[0], mode="post_softmax")],
    "one head's mask": [Knockout(source="image", target="last", layers=[1, 2], heads=[0])],
    "random weights": [Reweight(kind="random", layers=[1, 2], seed=3)],
    "shuffled weights": [Reweight(kind="shuffled", layers=[2])],
    "of one's own": [Noise()],
    "several": [Reweight(kind="uniform", layers=[2]), Truncate(positions="image", from_layer=2), Noise()],
}
# In layers with a window random weights are drawn for the keys of the window, when a token comes alone.
CHANGES_BRIEFLY = ("none", "Ablate", "mean", "Skip", "Truncate", "of one's own")


@pytest.mark.parametrize(
    ("family", "change"), [*product(["llava"], CHANGES), *product(["gemma3", "qwen2_vl"], CHANGES_BRIEFLY)]
)
def test_interventions_act_on_an_answer_as_on_generated_tokens(family, change, monkeypatch):
    """The value of the greedy answer is the sum over the steps in which it was generated under the same interventions."""
    vlm = interp.load(model=model(family), processor=processors.build(family), device="cpu", check=False)
    batch = vlm.prepare(["<image> hello you", "<image> hello"], [picture(), picture()])
    steps, own = [], AsTheyAre.__call__
    monkeypatch.setattr(
        AsTheyAre, "__call__", lambda self, ids, logits: (steps.append(logits.clone()), own(self, ids, logits))[1]
    )
    monkeypatch.setattr(vlm.model.generation_config, "eos_token_id", None)
    vlm.generate(batch, 4, CHANGES[change])
    best = torch.stack(steps, dim=1).log_softmax(-1).max(-1)
    ours = value(vlm, batch, logprob(best.indices.tolist()), CHANGES[change])
    torch.testing.assert_close(ours, best.values.sum(1), atol=1e-4, rtol=0)
    if change != "none" and family == "llava":
        assert (ours - value(vlm, batch, logprob(best.indices.tolist()))).abs().max() > 1e-3


# Closed forms and tokens -------------------------------------------------------------------------------------------------


def test_closed_forms():
    steps = torch.tensor([[[0.5, 0.5], [0.25, 0.75]], [[0.1, 0.9], [0.2, 0.8]]]).log()
    expected = torch.tensor([math.log(0.5 * 0.75), math.log(0.9)])
    torch.testing.assert_close(logprob([[0, 1], [1]])(steps), expected)
    torch.testing.assert_close(logprob(1)(steps[:, 0]), torch.tensor([0.5, 0.9]).log())
    torch.testing.assert_close(logprob_difference([[0, 1], [1, 1]], [[1, 1], [0, 0]])(steps)[0], torch.tensor(0.0))
    torch.testing.assert_close(logprob_difference(0, 1)(steps[:, 0]), logit_difference(0, 1)(steps[:, 0]))
    with pytest.raises(interp.InputError, match="answers of 2 tokens and logits that judge 1"):
        logprob([[0, 1]])(steps[:, 0])
    with pytest.raises(interp.InputError, match="needs token ids"):
        logprob("light blue")(steps)


@pytest.mark.parametrize("name", ["byte_level", "single_digits", "llama", "gemma", "unigram"])
def test_the_tokens_of_an_answer_are_those_with_which_the_text_goes_on(name):
    tokenizer = TOKENIZERS[name]()
    for prompt, before in (("the colour is", " "), ("colour:\n", ""), ("answer: (", ""), ("What colour is it?", " ")):
        (ids,) = answers_of(Words(tokenizer), [encoded(tokenizer, prompt)], "light blue")
        assert ids[0].tolist() == read_on(tokenizer, prompt, f"{before}light blue")


def test_each_row_has_its_own_answer_and_batches_share_them_out(toy, mixed):
    answers = ["red", "top at left", "two red"]
    whole = value(toy, mixed, logprob(answers))
    rows = [value(toy, mixed.row(row), logprob(answers[row])) for row in range(3)]
    torch.testing.assert_close(whole, torch.cat(rows), atol=1e-4, rtol=0)
    bound = bind_to_batches(logprob(answers), toy, [mixed.part([0]), mixed.part([1, 2])])
    assert [each.batches[0].tail for each in bound] == [1, 3]
    parts = [MetricRuns(toy, each, []).values() for each in bound]
    torch.testing.assert_close(whole, torch.cat(parts), atol=1e-4, rtol=0)
    pairs = value(toy, mixed, logprob_difference(answers, "blue red"))
    torch.testing.assert_close(pairs, whole - value(toy, mixed, logprob("blue red")), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("a", "b", "runs"),
    [
        ("red", "blue", 1),
        ("top at left", "top at red", 1),
        ("top at left", "top red", 1),
        ("red", "top at red", 1),
        (["red", "top at left", "two red"], ["top at red", "blue", "two blue"], 1),
        ("top left", "red left", 2),
        (["red", "top at left", "two red"], "two blue", 2),
    ],
)
def test_two_answers_share_a_run_where_the_model_reads_the_same(toy, mixed, a, b, runs):
    (bound,) = bind_to_batches(logprob_difference(a, b), toy, [mixed])
    assert len(bound.batches) == runs
    expected = value(toy, mixed, logprob(a)) - value(toy, mixed, logprob(b))
    torch.testing.assert_close(value(toy, mixed, logprob_difference(a, b)), expected, atol=1e-4, rtol=0)
    for row in range(3):
        own = [answer if isinstance(answer, str) else answer[row] for answer in (a, b)]
        alone = value(toy, mixed.row(row), logprob_difference(*own))
        torch.testing.assert_close(alone, expected[[row]], atol=1e-4, rtol=0)


def test_what_is_right_is_told_from_a_shared_run(toy):
    batch = toy.prepare([CLEAN, CLEAN])
    best = toy.logits(batch).argmax(-1).tolist()
    for first, second in ((best, [[each, 20] for each in best]), ([[each, 20] for each in best], best)):
        (bound,) = bind_to_batches(logprob_difference(first, second), toy, [batch])
        logits = MetricRuns(toy, bound, []).logits()
        assert bound.right(logits[0]).all() == (first is best)


@pytest.mark.parametrize("answers", [("at {0}", "at {1}"), ("{0} at", "{1} at"), ("{0}<eos>", "{1}")])
def test_rows_that_are_right_on_both_sides_are_counted_kept_and_have_donors(toy, answers):
    pairs = interp.toy.pairs(4, seed=1, change="colour")
    clean, corrupted = (
        toy.prepare([pair.prompt for pair in pairs], [getattr(pair, side).image for pair in pairs])
        for side in ("clean", "corrupted")
    )
    words = [(pair.answer, pair.other) if row != 1 else (pair.other, pair.answer) for row, pair in enumerate(pairs)]
    metric = logprob_difference(*([answer.format(*pair) for pair in words] for answer in answers))
    options = {"layers": [1, 7], "positions": ["image", "last"], "metric": metric, "progress": False}
    for sweep in (patch_sweep, attribution_patch):
        found = sweep(toy, clean, corrupted, **options)
        sides = found.clean_rows > 0, found.corrupted_rows < 0
        assert (found.right_clean.tolist(), found.right_corrupted.tolist()) == tuple(side.tolist() for side in sides)
        assert not found.right_clean[1]
        kept = sweep(toy, clean, corrupted, keep="right", control=True, **options)
        assert kept.kept.tolist() == (sides[0] & sides[1]).tolist()
        torch.testing.assert_close(kept.per_row, found.per_row[kept.kept], atol=1e-3, rtol=1e-4)
        assert kept.control.isfinite().all()


def test_an_answer_may_hold_the_end(toy):
    text = "a red 3 at top . what colour is the 3 ?"
    batch = toy.prepare([text])
    ended = value(toy, batch, logprob("red at<eos>")).item()
    assert ended == pytest.approx(by_hand(toy, text, "red at <eos>"), abs=1e-4)
    assert ended < value(toy, batch, logprob("red at")).item()


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ("", "answer '' adds no token to a text"),
        ("red elephant", r"answer 'red elephant' has a word outside this vocabulary, it becomes \['red', '<unk>'\]"),
        ([[]] * 3, r"answer \[\] of row 0 has no token"),
        ([[5, 99]] * 3, "target 99: token ids go from 0 to 74"),
        ([["red"]] * 3, "target 'red': expected"),
        (["red"], "1 targets for 3 rows"),
        (None, "target None: expected"),
    ],
)
def test_what_is_no_answer(toy, mixed, answer, words):
    with pytest.raises(interp.InputError, match=words):
        value(toy, mixed, logprob(answer))


def test_one_token_metrics_point_to_it(toy, mixed):
    with pytest.raises(interp.InputError, match=r"'red green' is 2 tokens.*interp.patching.logprob"):
        value(toy, mixed, probability("red green"))


def test_padding_behind_the_prompt_is_refused(toy):
    ids = torch.tensor([[1, 20, 21, 22], [1, 20, 3, 3]])
    batch = toy.prepare(encoding={"input_ids": ids, "attention_mask": (ids != 3).long()})
    with pytest.raises(interp.InputError, match="row 1 ends in padding"):
        value(toy, batch, logprob([[20, 21], [20, 21]]))
    assert value(toy, batch, logprob([20, 21])).shape == (2,)


# Callers -----------------------------------------------------------------------------------------------------------------

CLEAN, CORRUPTED = (f"a {colour} 3 at top . what colour is the 3 ?" for colour in ("red", "blue"))


@pytest.fixture(scope="module")
def sides(toy):
    return toy.prepare([CLEAN]), toy.prepare([CORRUPTED])


def test_of_one_token_it_is_the_logarithm_of_the_probability_in_every_caller(toy, sides):
    options = {"layers": [0, 3], "positions": [2, -1], "progress": False}
    one, log = (patch_sweep(toy, *sides, metric=metric("red"), **options) for metric in (probability, logprob))
    for field in ("per_row", "clean_rows", "corrupted_rows"):
        torch.testing.assert_close(getattr(log, field), getattr(one, field).log(), atol=1e-5, rtol=0)
    one, log = (attribution_patch(toy, *sides, metric=metric("red"), **options) for metric in (probability, logprob))
    slope = (one.per_row - one.corrupted_rows) / one.corrupted_rows  # d log p = dp / p
    torch.testing.assert_close(log.per_row - log.corrupted_rows, slope, atol=1e-4, rtol=1e-4)
    one, log = (
        flow(toy, sides[0], edges=[("question", "last")], metric=metric("red"), progress=False)
        for metric in (probability, logprob)
    )
    torch.testing.assert_close(log.per_row, one.per_row.log(), atol=1e-5, rtol=0)
    torch.testing.assert_close(log.values, one.values, atol=1e-3, rtol=1e-4)  # both the change of a probability
    torch.testing.assert_close(log.pooled, one.pooled, atol=1e-3, rtol=1e-4)
    one, log = (
        layer_sweep(toy, sides[0], positions=[2], metric=metric("red"), progress=False)
        for metric in (probability, logprob)
    )
    torch.testing.assert_close(log.per_row, one.per_row.log(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("site", ["resid_pre", "mlp_out", "z", "resid_post"])
def test_cells_are_passes_of_the_whole_text(toy, sides, site):
    """The oracle patches the prompt's tokens in the text that has the answer in it."""
    answer, other = "red at top", "blue green"
    sweeps = [
        patch_sweep(toy, *sides, site=site, layers=[2, 7], positions=[2, -1], metric=metric, progress=False)
        for metric in (logprob(answer), logprob_difference(answer, other))
    ]
    assert all(sweep.provenance.notes[0] == "each cell was resumed from where it first differs" for sweep in sweeps)
    length = len(sides[0].tokens[0])
    for i, layer in enumerate([2, 7]):
        for j, position in enumerate([2, length - 1]):
            donor = toy.prepare([CLEAN])
            patch = [Patch(site=site, layers=layer, positions=[position], value=donor)]
            own, others = (by_hand(toy, CORRUPTED, each, patch) for each in (answer, other))
            assert sweeps[0].values[i, j].item() == pytest.approx(own, abs=2e-4)
            assert sweeps[1].values[i, j].item() == pytest.approx(own - others, abs=4e-4)
    assert sweeps[0].clean_rows.item() == pytest.approx(by_hand(toy, CLEAN, answer), abs=1e-4)


def test_cells_with_pictures_and_interventions_are_whole_passes(toy, few):
    pair = interp.toy.pairs(1, seed=1, change="colour")[0]
    clean, corrupted = (toy.prepare([pair.prompt], [side.image]) for side in (pair.clean, pair.corrupted))
    steer = [Steer(direction=torch.linspace(-1, 1, 128), layers=1, positions="last", scale=1.0)]
    metric = logprob_difference(f"{pair.answer} at", f"{pair.other} at")
    options = {"layers": [1, 5], "positions": ["image", "last"], "progress": False}
    plain, steered = (
        patch_sweep(toy, clean, corrupted, metric=metric, interventions=each, **options) for each in ([], steer)
    )
    patch = Patch(site="resid_pre", layers=5, positions="image", value=clean)
    assert plain.values[1, 0].item() == pytest.approx(value(toy, corrupted, metric, [patch]).item(), abs=1e-3)
    assert steered.clean_rows.item() == pytest.approx(value(toy, clean, metric, steer).item(), abs=1e-4)
    assert (steered.values - plain.values).abs().max() > 1e-3


def test_the_gradient_is_that_of_the_whole_sum(toy, sides):
    """By hand: the slope of the answer's log-probability in the states of the corrupted run."""
    answer = "red at top"
    guess = attribution_patch(toy, *sides, layers=[3], positions=[2, -1], metric=logprob(answer), progress=False)
    text = toy.prepare([f"{CORRUPTED} {answer}"])
    ids, states = text.inputs["input_ids"], {}

    def keep(module, args, kwargs):
        states["own"] = (args[0] if args else kwargs["hidden_states"]).detach().requires_grad_()
        return ((states["own"], *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": states["own"]})

    layer = interp.models.running.structure.resolve(toy.model, f"{toy.structure.layers}.3")
    hook = layer.register_forward_pre_hook(keep, with_kwargs=True)
    logs = toy.model(**text.inputs).logits[0].log_softmax(-1)
    hook.remove()
    total = sum(logs[-4 + step, ids[0, -3 + step]] for step in range(3))
    slope = torch.autograd.grad(total, states["own"])[0][0]
    clean = interp.capture(toy, sides[0], positions="all", reduce="none", progress=False)["resid"][3]
    for column, position in enumerate([2, len(sides[0].tokens[0]) - 1]):
        change = ((clean[position] - states["own"][0, position].detach()) * slope[position]).sum()
        assert guess.values[0, column].item() == pytest.approx((total.detach() + change).item(), abs=1e-3)


def test_rows_with_answers_of_different_lengths_share_a_gradient(toy):
    clean, corrupted = (
        toy.prepare([f"a {colour} 3 at {place} . what colour is the 3 ?" for place in ("top", "left")])
        for colour in ("red", "blue")
    )
    metric = logprob_difference(["red", "red at top"], ["blue", "blue"])
    options = {"layers": [2, 6], "positions": [2, -1], "progress": False}
    guess = attribution_patch(toy, clean, corrupted, metric=metric, **options)
    for row, answer in enumerate(("red", "red at top")):
        alone = attribution_patch(
            toy, clean.row(row), corrupted.row(row), metric=logprob_difference(answer, "blue"), **options
        )
        torch.testing.assert_close(guess.per_row[row], alone.per_row[0], atol=1e-3, rtol=1e-4)


def test_the_gradient_of_a_difference_is_that_of_both_runs(toy, sides):
    options = {"layers": [2, 6], "positions": [2, -1], "progress": False}
    a, b, both = (
        attribution_patch(toy, *sides, metric=metric, **options)
        for metric in (logprob("red at"), logprob("blue top"), logprob_difference("red at", "blue top"))
    )
    torch.testing.assert_close(both.per_row, a.per_row - b.per_row, atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(both.clean_rows, a.clean_rows - b.clean_rows, atol=1e-3, rtol=1e-4)


def test_flow_counts_rows_whose_whole_answer_is_right(toy):
    batch = toy.prepare([CLEAN, "a red 3 at top . where is the 3 ?"])
    best = ["red<eos>", "top<eos>"]
    curves = flow(toy, batch, edges=[("question", "last")], metric=logprob(best), control=False, progress=False)
    assert curves.kept.all()
    wrong = flow(toy, batch, edges=[("question", "last")], metric=logprob(["red<eos>", "top red"]), progress=False)
    assert wrong.kept.tolist() == [True, False]
    cut = Knockout(source="question", target="last", layers=range(1, 8))
    torch.testing.assert_close(curves.per_row[:, 0, 5], value(toy, batch, logprob(best), [cut]), atol=1e-4, rtol=1e-4)


def test_a_layer_sweep_takes_it(toy, sides):
    swept = layer_sweep(
        toy, sides[0], Ablate, site="mlp_out", positions="last", metric=logprob("red at top"), progress=False
    )
    ablated = Ablate(site="mlp_out", layers=[4], positions="last", value="zero")
    assert swept.values[4].item() == pytest.approx(
        value(toy, sides[0], logprob("red at top"), [ablated]).item(), abs=1e-4
    )
    assert swept.baseline == pytest.approx(by_hand(toy, CLEAN, "red at top"), abs=1e-4)


def test_a_server_gives_the_same(toy, remote_toy, sides):
    for metric in (logprob("red at top"), logprob_difference("red at top", "blue")):
        options = {"metric": metric, "layers": [2, 5], "positions": [2, -1], "progress": False}
        for call in (patch_sweep, attribution_patch):
            ours, theirs = (call(vlm, *sides, **options) for vlm in (toy, remote_toy))
            torch.testing.assert_close(ours.per_row, theirs.per_row, atol=1e-4, rtol=1e-4)
        here, there = (layer_sweep(vlm, sides[0], metric=metric, progress=False) for vlm in (toy, remote_toy))
        torch.testing.assert_close(here.per_row, there.per_row, atol=1e-4, rtol=1e-4)


def test_an_answered_batch_gives_its_rows_back(toy, mixed):
    answers = torch.tensor([[20, 21, 22], [23, 24, -1], [25, -1, -1]])
    batch = put_behind(mixed, answers)
    assert isinstance(batch, AnsweredBatch)
    assert batch.tail == 3
    assert isinstance(batch.row(1), AnsweredBatch)
    assert batch.row(1).tail == 2
    assert not isinstance(batch.row(2), AnsweredBatch)
    assert batch.row(2).tokens == mixed.row(2).tokens
    assert len(batch.row(0).repeat(3)) == 3
    logits, twice = toy.logits(batch.row(0)), toy.logits(batch.row(0).repeat(2))
    torch.testing.assert_close(twice, logits.expand(2, -1, -1), atol=1e-4, rtol=0)
    assert all(mask.shape == batch.inputs["input_ids"].shape for mask in batch.positions.masks.values())
