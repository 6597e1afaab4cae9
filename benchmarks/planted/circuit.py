"""Rows of `circuit`, and of `no_circuit`: the same states and the same attention, of which the answer reads nothing."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from itertools import product

import torch

import interp
from interp.errors import InputError
from interp.interventions import Ablate, Knockout
from interp.lens import attention_share, direct_logit_attribution, logit_lens
from interp.models import VLM
from interp.patching import attribution_patch, flow, logit_difference, patch_sweep
from interp.probes import probe_layers
from interp.toy.language import COLOURS, IDS
from planted import Reading, Row

TRUTH = interp.toy.planted("circuit").truth
(A, B, C), HEADS, DECOYS = TRUTH.layers, set(TRUTH.heads), set(TRUTH.effects["decoys"])
COLOUR_IDS = [IDS[colour] for colour in COLOURS]
LENGTH = 43  # <bos>, 36 patches, "what colour is at PLACE ?"
PAIRS = interp.toy.pairs(60, seed=0, by="place")
METRIC = logit_difference([pair.answer for pair in PAIRS], [pair.other for pair in PAIRS])


@lru_cache(maxsize=4)
def both(vlm: VLM) -> tuple:
    """The clean and the corrupted batch of the pairs."""
    prompts, spans = [pair.prompt for pair in PAIRS], [pair.spans for pair in PAIRS]
    pictures = [[getattr(pair, side).image for pair in PAIRS] for side in ("clean", "corrupted")]
    clean, corrupted = (vlm.prepare(prompts, each, spans=spans) for each in pictures)
    return clean, corrupted


def head_names(heads) -> str:
    """Heads as text, with what they are."""
    kinds = {**dict.fromkeys(HEADS, "path"), **dict.fromkeys(DECOYS, "decoy")}
    named = [f"{layer}.{head} ({kinds.get((layer, head), 'random')})" for layer, head in sorted(heads)]
    return ", ".join(named) or "none"


def every_edge(vlm: VLM) -> str:
    """Each edge of attention, cut alone."""
    edges = [(source, target) for target in range(1, LENGTH) for source in range(target + 1)]
    source, target = (one_each([edge[end] for edge in edges]) for end in range(2))
    cut = Knockout(source=source, target=target, layers=0, heads=0, self_edges=True)
    return each_alone(vlm, cut, len(edges))


def every_head(vlm: VLM) -> str:
    """The output of each head at each position, set to zero alone."""
    cut = Ablate(site="z", positions=one_each(list(range(LENGTH))), layers=0, heads=0)
    return each_alone(vlm, cut, LENGTH)


def one_each(columns: list[int]) -> torch.Tensor:
    """A mask for as many rows: each selects one of these columns."""
    return torch.nn.functional.one_hot(torch.tensor(columns), LENGTH).bool()


def each_alone(vlm: VLM, cut, rows: int) -> str:
    """How many cuts of a head change a colour's logit, and by how much; each row of a batch has another cut."""
    batch = vlm.prepare([PAIRS[0].prompt] * rows, [PAIRS[0].clean.image] * rows)
    whole, lost = vlm.logits(batch)[:, COLOUR_IDS], []
    for layer, head in product(range(vlm.structure.n_layers), range(vlm.structure.n_heads)):
        logits = vlm.logits(batch, interventions=[replace(cut, layers=layer, heads=head)])[:, COLOUR_IDS]
        lost += (whole - logits).abs().amax(dim=1).tolist()
    amounts = [f"{amount:g}" for amount in lost if amount]
    return f"{len(amounts)} of {len(lost):,}" + (f", by {', '.join(amounts)}" if amounts else "")


def patched(vlm: VLM, method=patch_sweep) -> str:
    """The effect of the named object's patches, of the place's word and of the last token, by layer."""
    try:
        result = method(vlm, *both(vlm), positions=["object", "mention", "last"], metric=METRIC)
    except InputError as error:
        return f"refused: {str(error).split(':')[0]}"
    return "; ".join(" ".join(f"{value:.3g}" for value in column) for column in result.effect.T)


def patched_heads(vlm: VLM) -> str:
    """The heads whose patched output moves the answer."""
    try:
        result = patch_sweep(vlm, *both(vlm), site="z", heads="all", positions=["mention", "last"], metric=METRIC)
    except InputError as error:
        return f"refused: {str(error).split(':')[0]}"
    return head_names({(layer, head) for layer, _, head in (result.effect != 0).nonzero().tolist()})


def flows(vlm: VLM) -> str:
    """The change by cutting image to mention, mention to last, and image to last, in each layer alone."""
    edges = [("image", "mention"), ("mention", "last"), ("image", "last")]
    result = flow(vlm, both(vlm)[0], edges=edges, window=1, metric=METRIC)
    curves = "; ".join(" ".join(f"{value:.3g}" for value in curve) for curve in result.values)
    return f"{curves} (n = {len(result.per_row)})"


def attributed(vlm: VLM) -> str:
    """The components with a direct effect on the answer's logit less the other colour's."""
    clean, _ = both(vlm)
    answers, others = ([getattr(pair, name) for pair in PAIRS] for name in ("answer", "other"))
    result = direct_logit_attribution(vlm, clean, answers, against=others, heads=True)
    named = [
        f"{name} {value:.3g} ({low:.3g} to {high:.3g})"
        for name, value, low, high in zip(
            result.components, result.values.tolist(), result.low.tolist(), result.high.tolist(), strict=True
        )
        if abs(value) > 1e-3
    ]
    return ", ".join(named) or "none"


def shares(vlm: VLM) -> str:
    """The heads of the last token that give nearly all attention to the place's word."""
    result = attention_share(vlm, both(vlm)[0], queries="last", keys="mention")
    return head_names({(layer, head) for layer, head in (result.values > 0.9).nonzero().tolist()})


def read_words(vlm: VLM) -> str:
    """The probability of the answer at the last token by state, mean over pairs."""
    result = logit_lens(vlm, both(vlm)[0], positions="last", targets=[pair.answer for pair in PAIRS])
    return " ".join(f"{value:.2f}" for value in result.target_probs.mean(dim=1))


def probed(positions: str, state: int):
    """A row of a probe for the colour at one state."""

    def measure(vlm: VLM) -> Reading:
        result = probe_of(vlm, positions)
        values = (getattr(result, name)[state].item() for name in ("accuracy", "low", "high", "p"))
        return Reading(*values, chance=result.chance)

    return measure


@lru_cache(maxsize=4)
def probe_of(vlm: VLM, positions: str):
    """A probe for the colour that is asked for, at each state; the two pictures of a pair are on one side of the split."""
    batches = list(both(vlm))
    acts = interp.capture(vlm, batches, sites=["resid"], positions=positions, reduce="none")
    colours = [getattr(pair, side) for side in ("answer", "other") for pair in PAIRS]
    return probe_layers(acts, colours, groups=[str(number % len(PAIRS)) for number in range(len(colours))])


def row(detector: str, truth: str, measure) -> Row:
    """A row of both models."""
    return Row("circuit", "no_circuit", detector, truth, measure)


def by_layer(changes: dict[int, str], start: str = "0") -> str:
    """A value for each of the five layers, which changes at some."""
    values = []
    for layer in range(5):
        start = changes.get(layer, start)
        values.append(start)
    return " ".join(values)


ROWS = [
    row("`Knockout` of each single edge: how many change a colour's logit", "3, by 16, 12, 4", every_edge),
    row("`Ablate` of each head's output at each position, zero", "3, by 16, 12, 4", every_head),
    row(
        "`patch_sweep`, effect by layer: object; mention; last",
        "; ".join(
            [
                by_layer({0: "1", A + 1: "0"}),
                by_layer({A + 1: "1", B + 1: "0.25", C + 1: "0"}),
                by_layer({B + 1: "0.75", C + 1: "1"}),
            ]
        ),
        patched,
    ),
    row("`attribution_patch`, the same", "the same", lambda vlm: patched(vlm, attribution_patch)),
    row("`patch_sweep` of z: heads with an effect", "the path", patched_heads),
    row(
        "`flow`, % by layer: image to mention; mention to last; image to last",
        "; ".join([by_layer({A: "-100", A + 1: "0"}), by_layer({B: "-75", B + 1: "0", C: "-25"}), by_layer({})]),
        flows,
    ),
    row("`direct_logit_attribution`: components", "12 and 4 of the last two heads", attributed),
    row("`attention_share` over 0.9, last to mention", "the last two heads of the path", shares),
    row("`logit_lens`, p of the answer at the last token, states 0 to 5", f"from state {B + 1}", read_words),
    row(f"`probe_layers`, colour at the mention, state {A}", "chance", probed("mention", A)),
    row(f"`probe_layers`, colour at the mention, state {A + 1}", "1", probed("mention", A + 1)),
    row(f"`probe_layers`, colour at the last token, state {B}", "chance", probed("last", B)),
    row(f"`probe_layers`, colour at the last token, state {B + 1}", "1", probed("last", B + 1)),
]
