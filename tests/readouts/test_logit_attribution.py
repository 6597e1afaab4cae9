"""Attribution against sums made by hand with transformers' own modules, and on every architecture against its logit."""

import copy
import functools

import pytest
import torch
from torch import nn

import interp
import zoo
from interp.interventions import Ablate, Skip, Steer
from interp.lens import AttributionResult, Component, direct_logit_attribution
from interp.models.architectures import architectures, language_models
from interp.models.running.attention import eager
from interp.readouts import attention_shares, frozen_norm, logit_attribution
from interp.readouts.frozen_norm import as_it_is, before_norm, freeze, without_mean

TABLE = {row.name: row for row in (*architectures(), *language_models())}
SUPPORTED = [name for name, row in TABLE.items() if row.verdict == "supported"]
UNPROVED = {"gemma4": "mlp_out", "muse_spark": "attn_out", "bloom": "attn_out", "falcon": "attn_out"}
NO_HEADS = {name: r"\(z\) was proved in no layer" for name in ("kosmos-2", "gpt_oss", "mamba")}
NO_HEADS |= {"inkling_mm_model": "the norm after the attention of layer 0"}


SHIPPED = {
    *(
        "keep_last",
        "keep_whole",
        "keep_sources",
        "add_up",
        "terms_of_heads",
        "term",
        "missed",
        "mean_to_keys",
        "even_share",
    ),
    *("freeze", "_fit", "before_norm", "before_linear", "directions_of_logits", "without_mean", "as_it_is"),
}


@functools.cache
def loaded(name):
    vlm = interp.load(model=zoo.build(name), device="cpu", check=False)
    if not TABLE[name].text_alone:
        vlm.check(vlm.prepare(encoding=zoo.encode(name)))
    return vlm


def batch_of(name, **options):
    return loaded(name).prepare(encoding=zoo.encode(name, **options))


@pytest.fixture(scope="module")
def by_hand(toy, mixed):
    """What plain hooks see at the last token of each row, and along what a logit is measured there."""
    seen, handles = {}, []

    def keep(key, _, args, out):
        seen[key] = (args[0] if args else None, out[0] if isinstance(out, tuple) else out)

    language = toy.model.model.language_model
    for index, layer in enumerate(language.layers):
        modules = {"attn": layer.self_attn, "mlp": layer.mlp, "o": layer.self_attn.o_proj, "v": layer.self_attn.v_proj}
        for name, module in modules.items():
            handles.append(module.register_forward_hook(functools.partial(keep, (name, index))))
    handles.append(language.norm.register_forward_hook(functools.partial(keep, "norm")))
    with torch.no_grad(), eager(toy):
        out = toy.model(**toy.inputs_of(mixed), output_attentions=True)
    for handle in handles:
        handle.remove()
    last = seen["norm"][0][:, -1]
    size = (last.square().mean(dim=-1, keepdim=True) + toy.model.config.text_config.rms_norm_eps).sqrt()
    seen["weights"] = out.attentions
    seen["along"] = lambda token: toy.model.lm_head.weight[token] * language.norm.weight / size
    return seen


def token(toy, word):
    return toy.tokenizer.convert_tokens_to_ids(word)


def column(result, name):
    return result.per_row[:, result.components.index(name)]


def test_blocks_are_what_hooks_see(toy, mixed, by_hand):
    result = direct_logit_attribution(toy, mixed, "red")
    along = by_hand["along"](token(toy, "red"))
    for layer in range(8):
        for ours, theirs in (("attn_out", "attn"), ("mlp_out", "mlp")):
            expected = (by_hand[theirs, layer][1][:, -1] * along).sum(dim=-1)
            torch.testing.assert_close(column(result, f"{ours}.{layer}"), expected, atol=1e-4, rtol=1e-4)
    logits = toy.logits(mixed)[:, token(toy, "red")]
    torch.testing.assert_close(result.totals, logits, atol=1e-5, rtol=0)
    torch.testing.assert_close(result.per_row[:, :-1].sum(dim=1), logits, atol=1e-4, rtol=0)
    torch.testing.assert_close(result.values, result.per_row.mean(dim=0))
    assert result.total == pytest.approx(float(logits.mean()), abs=1e-5)


def test_heads_and_what_they_read_are_what_hooks_see(toy, mixed, by_hand):
    result = direct_logit_attribution(toy, mixed, "red", sources=("image", "text"))
    whole = direct_logit_attribution(toy, mixed, "red", heads=True)
    along = by_hand["along"](token(toy, "red"))
    for layer, head in ((0, 0), (5, 1), (7, 3)):
        attention = toy.model.model.language_model.layers[layer].self_attn
        d = attention.head_dim
        mine = attention.o_proj.weight[:, head * d : (head + 1) * d]
        z = by_hand["o", layer][0][:, -1, head * d : (head + 1) * d]
        expected = ((z @ mine.T) * along).sum(dim=-1)
        name = f"attn_out.{layer}.head.{head}"
        torch.testing.assert_close(column(whole, name), expected, atol=1e-4, rtol=1e-4)
        group = head * toy.structure.n_kv_heads // toy.structure.n_heads
        values = by_hand["v", layer][1][..., group * d : (group + 1) * d]
        weights = by_hand["weights"][layer][:, head, -1]
        for source in ("image", "text"):
            mixture = torch.einsum("bk,bkd->bd", weights * mixed.positions[source], values)
            expected = ((mixture @ mine.T) * along).sum(dim=-1)
            torch.testing.assert_close(column(result, f"{name}.{source}"), expected, atol=1e-4, rtol=1e-4)
        parts = sum(column(result, f"{name}.{source}") for source in ("image", "text", "other"))
        torch.testing.assert_close(parts, column(whole, name), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", SUPPORTED)
def test_all_terms_are_the_logit_before_its_cap(name):
    vlm, rows = loaded(name), batch_of(name)
    if name in UNPROVED:
        with pytest.raises(interp.LayoutError, match=f"{UNPROVED[name]} was not proved in layers 0, 1, 2, 3"):
            direct_logit_attribution(vlm, rows, 5)
        return
    logits = vlm.logits(rows)[:, 5].double()
    cap = vlm.trait("readout").cap
    if cap is not None:
        logits = cap * torch.atanh(logits / cap)
    options = [{}] if name in NO_HEADS else [{}, {"heads": True}]
    sources = ("image", "text") if vlm.takes_images else ("text",)
    options += [{"sources": sources}] if name not in NO_HEADS and any(vlm.trait("weighed")) else []
    for option in options:
        result = direct_logit_attribution(vlm, rows, 5, **option)
        torch.testing.assert_close(result.totals.double(), logits, atol=1e-5, rtol=0)
        torch.testing.assert_close(result.per_row[:, :-1].sum(dim=1).double(), logits, atol=1e-5, rtol=0)
        assert not {"between", "edit"} & {part.kind for part in result.parts}


@pytest.mark.parametrize("name", NO_HEADS)
def test_heads_that_cannot_be_parted_are_named(name):
    with pytest.raises(interp.LayoutError, match=NO_HEADS[name]):
        direct_logit_attribution(loaded(name), batch_of(name), 5, heads=True)


def test_layers_without_heads_stay_whole():
    result = direct_logit_attribution(loaded("qwen3_5"), batch_of("qwen3_5"), 5, heads=True)
    assert {part.layer for part in result.parts if part.head is not None} == {3}
    assert {"attn_out.0", "attn_out.1", "attn_out.2"} < set(result.components)


def test_what_is_added_between_layers_is_a_term():
    vlm, encoding = loaded("qwen3_vl"), zoo.encode("qwen3_vl", rows=((3, 0),))
    image = encoding["input_ids"] == vlm.structure.image_token_id
    end = int(image[0].nonzero().max()) + 1  # features are added to image tokens alone: the row ends with one
    cut = {key: value[:, :end] if value.shape == image.shape else value for key, value in encoding.items()}
    rows = vlm.prepare(encoding=cut)
    result = direct_logit_attribution(vlm, rows, 5)
    assert [part.layer for part in result.parts if part.kind == "between"] == [1, 2]
    torch.testing.assert_close(result.per_row[:, :-1].sum(dim=1), vlm.logits(rows)[:, 5], atol=1e-5, rtol=0)


# Controls, pairs, interventions ------------------------------------------------------------------------------------------


def test_the_control_is_the_mean_over_all_tokens(toy, mixed):
    one = mixed.row(1)
    results = [direct_logit_attribution(toy, one, number) for number in range(toy.structure.vocab_size)]
    expected = torch.stack([result.values for result in results]).mean(dim=0)
    torch.testing.assert_close(results[0].control[:-1], expected[:-1], atol=1e-5, rtol=1e-4)


def test_tokens_that_the_model_suppresses_are_no_control():
    vlm, rows = loaded("chameleon"), batch_of("chameleon")
    logits = vlm.logits(rows)
    answers = logits > torch.finfo(logits.dtype).min / 2
    assert not answers.all()
    expected = torch.stack([row[there].mean() for row, there in zip(logits, answers, strict=True)]).mean()
    torch.testing.assert_close(direct_logit_attribution(vlm, rows, 5).control.sum(), expected, atol=1e-5, rtol=0)


def test_a_difference_is_the_difference(toy, mixed):
    red, blue = (direct_logit_attribution(toy, mixed, word) for word in ("red", "blue"))
    both = direct_logit_attribution(toy, mixed, "red", against="blue")
    torch.testing.assert_close(both.per_row, red.per_row - blue.per_row, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(both.control, red.control - blue.values, atol=1e-5, rtol=1e-4)
    assert (both.targets, both.against) == (["red"] * 3, ["blue"] * 3)


def test_interventions_are_seen(toy, mixed):
    red = token(toy, "red")
    direction = torch.randn(toy.structure.d_model, generator=torch.Generator().manual_seed(0))
    changes = [
        Ablate(site="attn_out", layers=2, positions="all"),
        Steer(direction=direction, layers=4, positions="last", scale=0.5),
        Skip(layers=6, positions="last"),
    ]
    result = direct_logit_attribution(toy, mixed, red, changes, heads=True)
    torch.testing.assert_close(result.totals, toy.logits(mixed, interventions=changes)[:, red], atol=1e-5, rtol=0)
    assert column(result, "rounding").abs().max() < 1e-4
    of_layer = {layer: sum(column(result, p.name) for p in result.parts if p.layer == layer) for layer in (2, 6)}
    torch.testing.assert_close(of_layer[6], torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(of_layer[2], column(result, "mlp_out.2"), atol=1e-5, rtol=0)
    assert [part for part in result.parts if part.kind in ("between", "edit")] == [
        Component("edit", 2),
        Component("between", 4),
        Component("edit", 6),
    ]
    assert len(result.provenance.interventions) == 3


def test_a_simulated_server_gives_the_same(toy, remote_toy, mixed):
    for options in ({}, {"sources": ("image", "text")}):
        ours = direct_logit_attribution(toy, mixed, "red", against="blue", **options)
        theirs = direct_logit_attribution(remote_toy, mixed, "red", against="blue", **options)
        torch.testing.assert_close(theirs.per_row, ours.per_row, atol=1e-5, rtol=0)
        assert theirs.components == ours.components


def test_what_runs_in_a_trace_carries_no_annotations():
    functions = [
        each
        for module in (logit_attribution, frozen_norm, attention_shares)
        for each in vars(module).values()
        if callable(each)
    ]
    shipped = {each for each in functions if getattr(each, "__name__", "") in SHIPPED}
    assert len(shipped) == len(SHIPPED)
    assert not any(function.__annotations__ for function in shipped)


# The norm ----------------------------------------------------------------------------------------------------------------


class Gemma(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width) * 0.3)

    def forward(self, x):
        return x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + 1e-6) * (1 + self.weight)


@pytest.mark.parametrize("width", [12, 13])
@pytest.mark.parametrize("kind", [nn.LayerNorm, nn.RMSNorm, Gemma])
def test_a_norm_is_found_by_effect(kind, width):
    torch.manual_seed(0)
    norm = kind(width)
    for parameter in norm.parameters():
        parameter.data += 0.3 * torch.randn(width)
    # Without a mean of their own, states do not tell the two forms apart.
    states = without_mean(torch.randn(3, width)) * torch.tensor([[1.0], [30.0], [0.2]])
    with torch.no_grad():
        slope, centre, bias, misfit = freeze(norm, states)
        part, direction = torch.randn(3, width), torch.randn(3, width)
        added = slope * centre(part) + slope * centre(states - part) + bias
        torch.testing.assert_close(added, norm(states), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(
            (before_norm(direction, slope, centre) * part).sum(-1),
            (direction * slope * centre(part)).sum(-1),
            atol=1e-5,
            rtol=1e-4,
        )
    assert misfit < 1e-5
    assert centre is (without_mean if kind is nn.LayerNorm else as_it_is)


@pytest.mark.parametrize("other", [torch.tanh, lambda x: x.softmax(-1), lambda x: x.roll(1, -1), nn.GroupNorm(4, 12)])
def test_what_is_no_norm_misses(other):
    def along_rows(x):
        return other(x[0])[None] if isinstance(other, nn.Module) else other(x)

    torch.manual_seed(0)
    with torch.no_grad():
        assert freeze(along_rows, torch.randn(4, 12))[3] > 1e-2


def test_half_precision_adds_up_as_well_as_it_can(tiny):
    vlm = interp.load(model=copy.deepcopy(tiny).to(torch.bfloat16), device="cpu", check=False)
    rows = vlm.prepare(encoding={"input_ids": torch.tensor([[11, 12, 13, 14]])})
    result = direct_logit_attribution(vlm, rows, 5, heads=True)
    assert column(result, "rounding").abs().max() < 0.05
    assert result.total == pytest.approx(float(vlm.logits(rows)[0, 5]), abs=1e-2)


# The result --------------------------------------------------------------------------------------------------------------


def test_a_result_is_kept_framed_and_drawn(toy, mixed, tmp_path):
    result = direct_logit_attribution(toy, mixed, "red", sources=("image",))
    again = AttributionResult.load(result.save(tmp_path / "result.safetensors"))
    assert again.components == result.components
    assert (again.low == result.low).all()
    frame = result.to_frame()
    assert frame["value"].to_numpy() == pytest.approx(result.values.numpy())
    assert set(frame["source"].dropna()) == {"image", "other"}
    assert ((result.low <= result.values) & (result.values <= result.high)).all()
    drawn = result.plot().data[0]
    cell = sum(
        float(result.values[index] - result.control[index])
        for index, part in enumerate(result.parts)
        if (part.layer, part.head) == (3, 2)
    )
    assert drawn.z[3][2] == pytest.approx(cell, abs=1e-6)
    from_image = result.components.index("attn_out.3.head.2.image")
    drawn = result.plot(source="image").data[0]
    assert drawn.z[3][2] == pytest.approx(float(result.values[from_image] - result.control[from_image]), abs=1e-6)
    plain = direct_logit_attribution(toy, mixed, "red")
    with pytest.raises(interp.InputError, match="source='image': this result has no such heads, its sources are none"):
        plain.plot(source="image")
    bars = plain.plot()
    assert {trace.name for trace in bars.data} == {"attention", "MLP", "other", "control: the average token"}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"targets": "elephant"}, "'elephant'"),
        ({"targets": ["red", "blue"]}, "2 targets for 3 rows"),
        ({"targets": "red", "against": "elephant"}, "'elephant'"),
        ({"targets": "red", "sources": "image"}, "sources='image': expected names"),
        ({"targets": "red", "sources": ("picture",)}, "'picture' is unknown"),
        ({"targets": "red", "sources": ("text", "question")}, "two of them share a position"),
        ({"targets": "red", "sources": ("text", "text")}, "a name is repeated"),
        ({"targets": "red", "sources": ("image_3",)}, "'image_3' selects nothing in this batch"),
    ],
)
def test_what_cannot_be_attributed(toy, mixed, options, said):
    with pytest.raises(interp.InputError, match=said) as caught:
        direct_logit_attribution(toy, mixed, **options)
    assert "\n" not in str(caught.value)


def test_a_caller_may_be_in_inference_mode(toy, mixed):
    with torch.inference_mode():
        inside = direct_logit_attribution(toy, mixed, "red", heads=True)
    assert torch.equal(inside.per_row, direct_logit_attribution(toy, mixed, "red", heads=True).per_row)


@pytest.mark.parametrize("size", [1e30, 3e38])
def test_states_without_numbers_are_not_blamed_on_the_model(toy, mixed, size):
    broken = Steer(direction=torch.full((128,), size), layers=3, positions="all", scale=1.0)
    with pytest.raises(interp.InputError, match=r"gives no finite numbers in this run of 'toy'[^\n]*$"):
        direct_logit_attribution(toy, mixed, "red", interventions=[broken])


def test_a_figure_says_of_how_many_rows_it_is(toy, mixed):
    several, one = (direct_logit_attribution(toy, batch, "red") for batch in (mixed, mixed.row(0)))
    assert several.plot().layout.title.text.endswith(f"({several.total:.3g}, mean of 3 rows)")
    assert one.plot().layout.title.text.endswith(f"({one.total:.3g})")
