"""The findings of the demo, as sentences that are computed from its numbers.

A `Finding` is one or two sentences. If the paper makes a claim about its topic, it also has a verdict (Palacios et al., arXiv
2606.03871: visual features enter intermediate layers directly; tuning extends and strengthens the abstraction phase). The rule
is that of `interp.statistics.verdict`: a claim is "supported", "contradicted" where an effect of interest is excluded, or
"undecided", and then it says which effect could have been seen. Claims are also tests, and several of them are made here: a
claim is supported only if its p is below 0.05 by Holm's correction over all of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

from interp.geometry import phase_change
from interp.reports.demo import STAGE1, TUNED, group_of, grouped_accuracy
from interp.reports.hand_over import BAND
from interp.reports.scene_states import MODALITIES, PROPERTIES
from interp.statistics import Verdict, holm, verdict
from interp.statistics.half_samples import NORMAL_95
from interp.toy.evaluate import compare_answers

if TYPE_CHECKING:
    from interp.probes import ProbeResult
    from interp.reports.demo import Demo

HALF = 0.5
TAU = 0.8
LEVEL = 0.05
SMALLEST = 0.05  # the smallest effect of interest, as a share of right answers or of common neighbours


@dataclass(frozen=True)
class Finding:
    """Sentences about one `topic`; `claim` is the paper's claim, `verdict` what the numbers say of it, `p` that of its test.

    `p_holm` is the p corrected for the number of claims in the report.
    """

    topic: str
    text: str
    claim: str = ""
    verdict: Verdict | None = None
    p: float = math.nan
    p_holm: float = math.nan

    @property
    def value(self) -> str:
        """ "supported", "contradicted" or "undecided"; empty without a claim, or where nothing could be tested."""
        return "" if self.verdict is None else self.verdict.value


def findings(demo: Demo) -> list[Finding]:
    """The findings in the order of the report's sections, corrected for the number of claims."""
    return corrected(
        [
            _answers(demo),
            _lens(demo),
            _patching(demo),
            _probes(demo),
            *_phase(demo),
            _bypass(demo),
            _dimension(demo),
        ]
    )


def corrected(results: Sequence[Finding]) -> list[Finding]:
    """The findings with Holm's p over all claims; where that is above 0.05, "supported" becomes "undecided"."""
    adjusted = holm([finding.p for finding in results])
    judged = []
    for finding, p in zip(results, adjusted.tolist(), strict=True):
        decision = finding.verdict
        if decision is not None and decision.value == "supported" and p > LEVEL:
            decision = replace(decision, value="undecided")
        judged.append(replace(finding, verdict=decision, p_holm=p))
    return judged


def paragraph(results: Sequence[Finding]) -> str:
    """All findings as one paragraph. It ends with the claims of the paper, by what the numbers say of them."""
    parts = [finding.text for finding in results]
    for value, words in (
        ("supported", "The numbers support the paper's claim that"),
        ("contradicted", "They exclude the smallest effect of interest, and so contradict the claim that"),
        ("undecided", "They leave undecided whether it is so that"),
    ):
        claims = [finding.claim for finding in results if finding.value == value]
        if claims:
            parts.append(f"{words} {_listed(claims)}.")
    return " ".join(parts)


def decision(finding: Finding, unit: str = "") -> str:
    """The verdict in words, with the effect that was excluded or that could not have been seen.

    >>> decision(Finding("phase", "", "it is wider", verdict(0.2, -1.5, 1.9, smallest=1)), " layers")
    'undecided: an effect under 1.7 layers could not have been seen'
    """
    found = finding.verdict
    if found is None:
        return "not tested"
    if found.value == "contradicted":
        return (
            f"contradicted: an effect of {found.smallest:.2g}{unit} is excluded" if found.smallest else "contradicted"
        )
    if found.value == "supported":
        return "supported"
    if finding.p_holm > LEVEL and found.low > 0:
        return f"undecided: p is {finding.p_holm:.2g} after correction for the number of claims"
    if not math.isfinite(found.detectable):
        return "undecided: no effect of any size could have been seen"
    return f"undecided: an effect under {found.detectable:.2g}{unit} could not have been seen"


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{'; that '.join(parts[:-1])}; and that {parts[-1]}"


def _weakest(*of: tuple[float, float, float], smallest: float) -> tuple[Verdict, float]:
    """The verdict on a claim that needs several effects (estimate, low, high), and the largest p of them."""
    value, low, high = (min(parts) for parts in zip(*of, strict=True))
    found = verdict(value, low, high, smallest)
    errors = [(value, (high - low) / 2 / NORMAL_95) for value, low, high in of]
    return found, max(
        min(1.0, 2 * NormalDist().cdf(-value / error)) if error > 0 else math.nan for value, error in errors
    )


# One function for each finding -------------------------------------------------------------------------------------------


def _answers(demo: Demo) -> Finding:
    grouped = grouped_accuracy(demo.responses)

    def get(model: str, modality: str, group: str) -> Any:
        return group_of(grouped, model, modality, group)

    before, after = get(STAGE1, "image", "perception"), get(TUNED, "image", "perception")
    trained = get(TUNED, "image", "abstraction")
    perception_text, abstraction_text = get(TUNED, "text", "perception"), get(TUNED, "text", "abstraction")
    changes = compare_answers(demo.responses[STAGE1], demo.responses[TUNED], by="group")
    change: Any = next(row for row in changes.itertuples() if (row.modality, row.group) == ("image", "abstraction"))
    text = (
        f"{TUNED} answers {after.accuracy:.0%} of the perception questions from images (95 % interval {_span(after)}; "
        f"{perception_text.accuracy:.0%} from captions), {STAGE1} {before.accuracy:.0%}. It answers {trained.accuracy:.0%} "
        f"({_span(trained)}; {abstraction_text.accuracy:.0%} from captions) of the abstraction questions from images, which "
        f"were never trained; always giving the most common answer is right in {trained.chance:.0%}. On the same questions "
        f"{STAGE1} answers {change.before:.0%}: a difference of {100 * change.difference:.0f} points (95 % interval "
        f"{100 * change.low:.0f} to {100 * change.high:.0f}, paired by question, scenes kept whole)."
    )
    # Tuning is credited only for what goes beyond chance and beyond the model that has a connector alone.
    chance = trained.chance
    over_chance = trained.accuracy - chance, trained.low - chance, trained.high - chance
    found, p = _weakest((change.difference, change.low, change.high), over_chance, smallest=SMALLEST)
    claim = "tuning aligns vision with abstractions that the language model already had"
    return Finding("answers", text, claim, found, max(p, change.p))


def _span(row: Any) -> str:
    return f"{row.low:.0%} to {row.high:.0%}"


def _lens(demo: Demo) -> Finding:
    naming = demo.naming[TUNED]
    assert naming.control is not None
    above = (naming.low > naming.control).nonzero().flatten().tolist()
    best = int(naming.values.argmax())
    states = len(naming.values)
    text = (
        f"The logit lens names an object's digit or colour on its patches from state {above[0]} on, most often at state "
        f"{best}: on {naming.values[best]:.0%} of the patches, against {naming.control[best]:.0%} for an object of another scene "
        f"(by uncorrected intervals of {states} states)."
        if above
        else "At none of the states does the interval of how often the logit lens names the digit or colour of an object on its "
        f"patches lie above that for an object of another scene; it reaches up to {naming.high.max():.0%}."
    )
    return Finding("logit lens", text)


def _patching(demo: Demo) -> Finding:
    groups = {name: demo.patching.groups[name] for name in ("image", "last")}
    image, last = ((curve.values >= HALF).nonzero().flatten().tolist() for curve in groups.values())
    if not demo.patching.answered:
        text = f"In no pair does {TUNED} answer rightly for both pictures, which differ in one colour: no answer to restore."
        return Finding("patching", text)
    over, layers = demo.patching.hand_over, len(groups["image"].values)
    where = (
        f"Clean image tokens restore at least half of the answer up to layer {image[-1]} of {layers - 1}, the "
        "clean last token from "
        f"layer {last[0]} on. "
        if image and last
        else ""
    )
    claim = "the language model takes the answer from the image in intermediate layers"
    between = (
        f"The answer moves from the image to the last token at {over.depth:.0%} of the depth (95 % interval {over.low:.0%} to "
        f"{over.high:.0%}, {over.n} pairs). Intermediate is {BAND[0]:.0%} to {BAND[1]:.0%}, which a hand-over at a random depth "
        f"meets with {BAND[1] - BAND[0]:.0%}: {over.verdict.value}."
        if math.isfinite(over.low)
        else f"The answer moves at {over.depth:.0%} of the depth in one pair, which has no interval."
    )
    return Finding("patching", where + between, claim, over.verdict, over.p)


def _probes(demo: Demo) -> Finding:
    parts = []
    for what in PROPERTIES:
        for modality in MODALITIES:
            result = demo.probes[TUNED][what, modality]
            start, best = first_above(result), result.best_state()
            rise = (
                "is not shown to be above chance at any state"
                if start is None
                else f"is above chance from state {start} on"
            )
            parts.append(
                f"{what} from {modality} tokens {rise}, and right in {best.accuracy:.0%} ({best.low:.0%} to {best.high:.0%}) at "
                f"state {best.state}"
            )
    return Finding(
        "probes",
        f"In {TUNED}, a linear probe of {'; of '.join(parts)} (p corrected for the number of states; the best state is chosen on "
        "one half of the test scenes and measured on the other).",
    )


def first_above(result: ProbeResult) -> int | None:
    """The first state at which a probe is above chance and control: by its interval, and by its p among all states."""
    assert result.control is not None
    floor = result.control.clamp(min=result.chance)
    above = result.low > floor
    if result.p_family is not None:
        above &= result.p_family <= LEVEL
    return int(above.nonzero()[0]) if above.any() else None


def _phase(demo: Demo) -> tuple[Finding, Finding]:
    """How strong the abstraction phase is and how wide, after tuning against before, from shared half-samples."""
    before, after = (demo.geometry[name].alignment for name in (STAGE1, TUNED))
    change = phase_change(before, after, TAU, SMALLEST)
    higher, wider = change.strengthens, change.extends
    strength = (
        f"In {_range(change.common)}, where images and captions of the same scenes share most neighbours in "
        "the mean of both models, "
        f"their overlap exceeds chance ({before.chance:.2f}) by {change.levels[0]:.2f} in {STAGE1} and by "
        f"{change.levels[1]:.2f} in "
        f"{TUNED}: a paired difference of {higher.estimate:.3f} (95 % interval {higher.low:.3f} to {higher.high:.3f})."
    )
    width = (
        f"At one threshold, {TAU:.0%} of the largest excess in {STAGE1}, the abstraction phase is "
        f"{_range(change.before)} in {STAGE1} "
        f"and {_range(change.after)} in {TUNED}"
    )
    width += (
        f": a paired difference of {wider.estimate:.1f} layers (95 % interval {wider.low:.1f} to {wider.high:.1f})."
        if math.isfinite(wider.low)
        else f"; without a phase in {STAGE1} there is no threshold."
    )
    return (
        Finding("alignment", strength, "tuning strengthens the abstraction phase", higher, change.strengthens_p),
        Finding("phase", width, "tuning extends the abstraction phase to more layers", wider, change.extends_p),
    )


def _range(phase: range | None) -> str:
    if phase is None:
        return "nowhere"
    return f"state {phase.start}" if len(phase) == 1 else f"states {phase.start} to {phase.stop - 1}"


def _bypass(demo: Demo) -> Finding:
    """Not only a gain of intermediate states, but more than a better readout gives to vision before the language model."""
    matrix, bypass = demo.geometry[TUNED].alignment, demo.geometry[TUNED].bypass
    best, p = int(bypass.best[0]), float(bypass.p[0])
    gain, low, high = (float(part[0]) for part in (bypass.gain, bypass.gain_low, bypass.gain_high))
    found = bypass.verdict
    text = (
        f"The image states that enter the language model of {TUNED} are most similar to textual state {best} of "
        f"{matrix.values.shape[1] - 1} (overlap {bypass.values[0]:.2f}, chance {bypass.chance:.2f}). The gain of the best "
        f"intermediate textual state over the first is {gain:.2f} (95 % interval {low:.2f} to {high:.2f}, p {p:.2g}). "
        + (
            "The least of this gain and of what is left of it beyond states of the image tower, as alike to that "
            "textual state, is "
            f"{found.estimate:.2f} ({found.low:.2f} to {found.high:.2f})."
            if math.isfinite(found.low) and math.isfinite(found.high)
            else "States of the image tower are too little like the captions to say what is left of it beyond a better readout."
        )
    )
    return Finding("bypass", text, "visual features enter intermediate layers directly", found, bypass.entry_p)


def _dimension(demo: Demo) -> Finding:
    peaks = []
    for modality in MODALITIES:
        line = demo.geometry[TUNED].dimensions[modality]
        best = max(range(len(line)), key=lambda state: line[state].value)
        peaks.append(f"of {modality}s that at state {best} ({line[best].value:.1f} ± {line[best].error:.1f})")
    return Finding(
        "dimension",
        f"The largest of {len(line)} estimates of the intrinsic dimension is {' and '.join(peaks)}; the errors are those of "
        "single estimates, and others may be as large.",
    )
