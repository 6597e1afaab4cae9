"""The findings of the demo, as sentences that are computed from its numbers.

A `Finding` is one or two sentences. If the paper makes a claim about its topic, it also says whether the numbers agree
(Palacios et al., arXiv 2606.03871: visual features enter intermediate layers directly; tuning extends and strengthens the
abstraction phase). A difference counts only if an interval excludes the value it is compared with, so a finding can also say
that there is no difference.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from interp.reports.demo import MODALITIES, PROPERTIES, STAGE1, TUNED, group_of, grouped_accuracy

if TYPE_CHECKING:
    from interp.geometry import AlignmentMatrix
    from interp.probes import ProbeResult
    from interp.reports.demo import Demo

HALF = 0.5
TAU = 0.8
LEVEL = 0.05


@dataclass(frozen=True)
class Finding:
    """Sentences about one `topic`; `claim` is the paper's claim, and `agrees` says whether the numbers support it."""

    topic: str
    text: str
    claim: str = ""
    agrees: bool | None = None


def findings(demo: Demo) -> list[Finding]:
    """The findings in the order of the report's sections."""
    return [
        _answers(demo),
        _lens(demo),
        _patching(demo),
        _probes(demo),
        _strength(demo),
        _width(demo),
        _bypass(demo),
        _dimension(demo),
    ]


def paragraph(results: Sequence[Finding]) -> str:
    """All findings as one paragraph. It ends with the claims of the paper that the numbers support and do not support."""
    parts = [finding.text for finding in results]
    like = [finding.claim for finding in results if finding.agrees]
    unlike = [finding.claim for finding in results if finding.agrees is False]
    if like:
        parts.append(f"This supports the paper's claim that {_listed(like)}.")
    if unlike:
        parts.append(f"It does not support the paper's claim that {_listed(unlike)}.")
    if not unlike and like:
        parts.append("The numbers support every claim of the paper that the demo tests.")
    return " ".join(parts)


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{'; that '.join(parts[:-1])}; and that {parts[-1]}"


# One function for each finding -------------------------------------------------------------------------------------------


def _answers(demo: Demo) -> Finding:
    grouped = grouped_accuracy(demo.accuracy)

    def get(model: str, modality: str, group: str) -> Any:
        return group_of(grouped, model, modality, group)

    before, after = get(STAGE1, "image", "perception"), get(TUNED, "image", "perception")
    untrained, trained = get(STAGE1, "image", "abstraction"), get(TUNED, "image", "abstraction")
    perception_text, abstraction_text = get(TUNED, "text", "perception"), get(TUNED, "text", "abstraction")
    above = bool(trained.low > trained.chance)
    # Tuning is credited only for what goes beyond the model that has a connector alone.
    gain = bool(trained.low > untrained.high)
    text = (
        f"{TUNED} answers {after.accuracy:.0%} of the perception questions from images (95 % interval {_span(after)}; "
        f"{perception_text.accuracy:.0%} from captions), {STAGE1} {before.accuracy:.0%}. It answers {trained.accuracy:.0%} "
        f"({_span(trained)}; {abstraction_text.accuracy:.0%} from captions) of the abstraction questions from images, which "
        f"were never trained. This interval is {'above' if above else 'not above'} the {trained.chance:.0%} of always giving "
        f"the most common answer, and {'above' if gain else 'not above'} the interval of {STAGE1} ({_span(untrained)})."
    )
    holds = above and gain
    return Finding("answers", text, "tuning aligns vision with abstractions that the language model already had", holds)


def _span(row: Any) -> str:
    return f"{row.low:.0%} to {row.high:.0%}"


def _lens(demo: Demo) -> Finding:
    naming = demo.naming[TUNED]
    assert naming.control is not None
    above = (naming.low > naming.control).nonzero().flatten().tolist()
    best = int(naming.values.argmax())
    text = (
        f"The logit lens names an object's digit or colour on its patches from state {above[0]} on, most often at state "
        f"{best}: on {naming.values[best]:.0%} of the patches, against {naming.control[best]:.0%} for an object of another scene."
        if above
        else "The logit lens never names the digit or colour of an object on its patches more often than by chance."
    )
    return Finding("logit lens", text)


def _patching(demo: Demo) -> Finding:
    image, last = (
        (demo.patching.groups[group].values >= HALF).nonzero().flatten().tolist() for group in ("image", "last")
    )
    if not demo.patching.answered:
        text = (
            f"{TUNED} never distinguishes two pictures that differ in one colour, so patching has no answer to restore."
        )
        return Finding("patching", text)
    claim = "the language model takes the answer from the image in intermediate layers"
    if not image or not last:
        where = "the image tokens" if not image else "the last token"
        text = f"Patching never restores half of the answer at {where}, so the layer that passes it on is unknown."
        return Finding("patching", text, claim, False)
    # The answer moves between the last layer that still reads it from the image and the first that already holds it.
    layers = len(demo.patching.groups["image"].values)
    depth = (image[-1] + 1) / layers, last[0] / layers
    text = (
        f"Clean image tokens restore at least half of the answer up to layer {image[-1]} of {layers - 1}, the clean last "
        f"token from layer {last[0]} on: between these layers the answer moves from the image to the last token."
    )
    return Finding("patching", text, claim, min(depth) > 0.15 and max(depth) < 0.9)


def _probes(demo: Demo) -> Finding:
    parts = []
    for what in PROPERTIES:
        for modality in MODALITIES:
            result = demo.probes[TUNED][what, modality]
            start, best = first_above(result), int(result.accuracy.argmax())
            rise = "never rises above chance" if start is None else f"rises above chance at state {start}"
            parts.append(
                f"{what} from {modality} tokens {rise} and peaks at {result.accuracy[best]:.0%} (state {best})"
            )
    return Finding("probes", f"In {TUNED}, a linear probe of {'; of '.join(parts)}.")


def first_above(result: ProbeResult) -> int | None:
    """The first state at which the interval of a probe is above both chance and control; None if there is none."""
    assert result.control is not None
    floor = result.control.clamp(min=result.chance)
    return next((state for state in range(len(floor)) if result.low[state] > floor[state]), None)


def _peak(matrix: AlignmentMatrix) -> tuple[int, float, float, float]:
    diagonal = matrix.values.diagonal()
    top = int(diagonal.argmax())
    return top, float(diagonal[top]), float(matrix.low[top, top]), float(matrix.high[top, top])


def _strength(demo: Demo) -> Finding:
    before, after = (_peak(demo.geometry[name].alignment) for name in (STAGE1, TUNED))
    chance = demo.geometry[TUNED].alignment.chance
    if after[2] > before[3]:
        verdict = "higher after tuning"
    elif after[3] < before[2]:
        verdict = "lower after tuning"
    else:
        verdict = "not different within the error"
    text = (
        f"Images and captions of the same scenes share most neighbours at state {before[0]} in {STAGE1} (overlap "
        f"{before[1]:.2f}) and at state {after[0]} in {TUNED} ({after[1]:.2f}; chance {chance:.2f}): {verdict}."
    )
    return Finding("alignment", text, "tuning strengthens the abstraction phase", after[2] > before[3])


def _width(demo: Demo) -> Finding:
    """A state counts as gained or lost only if the intervals of both matrices confirm it."""
    before, after = (demo.geometry[name].alignment for name in (STAGE1, TUNED))
    gained, lost = _within(after) & _outside(before), _within(before) & _outside(after)
    change = len(gained) - len(lost)
    verdict = f"{'wider' if change > 0 else 'narrower' if change < 0 else 'no wider'} after tuning"
    if not gained and not lost:
        verdict += " within the error"
    spans = " and ".join(
        f"{_range(matrix.phase(TAU))} in {name}" for name, matrix in ((STAGE1, before), (TUNED, after))
    )
    text = (
        f"The abstraction phase, where the overlap exceeds chance by at least {TAU:.0%} of its maximum excess, is {spans}: "
        f"{verdict}."
    )
    return Finding("phase", text, "tuning extends the abstraction phase to more layers", change > 0)


def _within(matrix: AlignmentMatrix) -> set[int]:
    """The states of the phase whose interval lies entirely at or above the threshold."""
    threshold = _threshold(matrix)
    return {state for state in matrix.phase(TAU) or () if float(matrix.low[state, state]) >= threshold}


def _outside(matrix: AlignmentMatrix) -> set[int]:
    """The states whose interval lies entirely below the threshold; all states if there is no phase."""
    threshold = _threshold(matrix)
    states = range(len(matrix.values))
    return {s for s in states if matrix.phase(TAU) is None or float(matrix.high[s, s]) < threshold}


def _threshold(matrix: AlignmentMatrix) -> float:
    """The lowest overlap that still belongs to the phase."""
    return matrix.chance + TAU * (float(matrix.values.diagonal().max()) - matrix.chance)


def _range(phase: range | None) -> str:
    if phase is None:
        return "nowhere"
    return f"state {phase.start}" if len(phase) == 1 else f"states {phase.start} to {phase.stop - 1}"


def _bypass(demo: Demo) -> Finding:
    """The signature requires an intermediate best state, and a gain that the interval and the permutations confirm."""
    matrix = demo.geometry[TUNED].alignment
    bypass = matrix.bypass()
    best, p = int(bypass.best[0]), float(bypass.p[0])
    gain, low, high = (float(part[0]) for part in (bypass.gain, bypass.gain_low, bypass.gain_high))
    holds = bool(bypass.intermediate) and low > 0 and p < LEVEL
    text = (
        f"The image states that enter the language model of {TUNED} are most similar to textual state {best} of "
        f"{matrix.values.shape[1] - 1} (overlap {bypass.values[0]:.2f}, chance {bypass.chance:.2f}). The gain of the best "
        f"intermediate textual state over the first is {gain:.2f} (95 % interval {low:.2f} to {high:.2f}, p {p:.2g}): the bypass "
        f"signature {'is present' if holds else 'is absent'}."
    )
    return Finding("bypass", text, "visual features enter intermediate layers directly", holds)


def _dimension(demo: Demo) -> Finding:
    peaks = []
    for modality in MODALITIES:
        line = demo.geometry[TUNED].dimensions[modality]
        best = max(range(len(line)), key=lambda state: line[state].value)
        peaks.append(f"{modality}s peaks at state {best} ({line[best].value:.1f} ± {line[best].error:.1f})")
    return Finding("dimension", f"The intrinsic dimension of {' and that of '.join(peaks)}.")
