"""What the demo found, in words that are computed from its numbers.

Each `Finding` is one sentence or two and, where the paper claims something of the kind (Palacios et al., arXiv
2606.03871: visual features enter intermediate layers directly; tuning extends and strengthens the abstraction phase),
whether the numbers look like it. A difference counts only where an interval clears what it is compared with, so a
finding can also say that nothing was found.
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
    """What was found on one `topic`; `claim` is the paper's and `agrees` whether the numbers look like it."""

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


def paragraph(found: Sequence[Finding]) -> str:
    """All findings as one paragraph, with what does and does not look like the paper at its end."""
    parts = [finding.text for finding in found]
    like = [finding.claim for finding in found if finding.agrees]
    unlike = [finding.claim for finding in found if finding.agrees is False]
    if like:
        parts.append(f"This looks like the paper's claim that {_listed(like)}.")
    if unlike:
        parts.append(f"It does not look like the paper's claim that {_listed(unlike)}.")
    if not unlike and like:
        parts.append("None of the paper's claims that could be tried here failed.")
    return " ".join(parts)


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{'; that '.join(parts[:-1])}; and that {parts[-1]}"


# One function a finding --------------------------------------------------------------------------------------------------


def _answers(demo: Demo) -> Finding:
    grouped = grouped_accuracy(demo.accuracy)

    def get(model: str, modality: str, group: str) -> Any:
        return group_of(grouped, model, modality, group)

    seen, read = get(TUNED, "image", "perception"), get(TUNED, "text", "perception")
    before, ready = get(STAGE1, "image", "perception"), get(STAGE1, "image", "abstraction")
    carried, told = get(TUNED, "image", "abstraction"), get(TUNED, "text", "abstraction")
    above = bool(carried.low > carried.chance)
    # What the connector alone had brought is no work of tuning.
    holds = above and bool(carried.low > ready.high)
    verdict = f"{'above' if above else 'not above'} the {carried.chance:.0%} that the most common answers would get"
    gain = "beyond what" if holds else "not beyond the error of what"
    text = (
        f"{TUNED} answers {seen.accuracy:.0%} of the perception questions from images (95 % interval {_span(seen)}; "
        f"{read.accuracy:.0%} from captions), {STAGE1} answered {before.accuracy:.0%}. Of the abstraction questions about "
        f"images, which were never trained, it answers {carried.accuracy:.0%} ({_span(carried)}; {told.accuracy:.0%} from "
        f"captions), {verdict} and {gain} {STAGE1} answered ({_span(ready)})."
    )
    return Finding("answers", text, "tuning aligns vision with abstractions that the language model already had", holds)


def _span(row: Any) -> str:
    return f"{row.low:.0%} to {row.high:.0%}"


def _lens(demo: Demo) -> Finding:
    naming = demo.naming[TUNED]
    above = [state for state in range(len(naming.share)) if naming.low[state] > naming.control[state]]
    best = int(naming.share.argmax())
    if not above:
        text = "The logit lens never names the digit or colour of an object on its patches more often than by chance."
        return Finding("logit lens", text)
    text = (
        f"The logit lens names an object's digit or colour on its patches from state {above[0]} on, most at state {best}: "
        f"{naming.share[best]:.0%} of patches, {naming.control[best]:.0%} with the words of another scene."
    )
    return Finding("logit lens", text)


def _patching(demo: Demo) -> Finding:
    groups = demo.patching.groups
    layers = len(groups["image"].effect)
    image = [layer for layer in range(layers) if groups["image"].effect[layer] >= HALF]
    last = [layer for layer in range(layers) if groups["last"].effect[layer] >= HALF]
    if not demo.patching.answered:
        text = (
            f"{TUNED} tells no pair of pictures that differ in one colour apart, so patching has no answer to restore."
        )
        return Finding("patching", text)
    claim = "what an image says is taken over in intermediate layers"
    if not image or not last:
        where = "the image tokens" if not image else "the last token"
        text = f"Patching never restores half of the answer at {where}, so the layer that hands it over was not found."
        return Finding("patching", text, claim, False)
    # The answer is handed over between the last layer that still reads it off the image and the first that has it.
    depth = (image[-1] + 1) / layers, last[0] / layers
    text = (
        f"Clean image tokens restore at least half of the answer up to layer {image[-1]} of {layers - 1}, the clean last "
        f"token from layer {last[0]} on: between them the answer moves from the picture to the place where it is given."
    )
    return Finding("patching", text, claim, min(depth) > 0.15 and max(depth) < 0.9)


def _probes(demo: Demo) -> Finding:
    said = []
    for what in PROPERTIES:
        for modality in MODALITIES:
            result = demo.probes[TUNED][what, modality]
            start, best = first_above(result), int(result.accuracy.argmax())
            leaves = "never leaves chance" if start is None else f"leaves chance at state {start}"
            said.append(
                f"{what} from {modality} tokens {leaves} and peaks at {result.accuracy[best]:.0%} (state {best})"
            )
    return Finding("probes", f"In {TUNED}, a linear probe of {'; of '.join(said)}.")


def first_above(result: ProbeResult) -> int | None:
    """The first state at which a probe's interval lies above chance and above its control; None where there is none."""
    assert result.control is not None
    floor = result.control.clamp(min=result.chance)
    above = [state for state in range(len(floor)) if result.low[state] > floor[state]]
    return above[0] if above else None


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
        verdict = "no different within the error"
    text = (
        f"Image and caption of one scene share most neighbours at state {before[0]} in {STAGE1} (overlap {before[1]:.2f}) "
        f"and at state {after[0]} in {TUNED} ({after[1]:.2f}; chance {chance:.2f}), {verdict}."
    )
    return Finding("alignment", text, "tuning strengthens the abstraction phase", after[2] > before[3])


def _width(demo: Demo) -> Finding:
    """A state counts as gained or lost only where both matrices say so beyond their intervals."""
    before, after = (demo.geometry[name].alignment for name in (STAGE1, TUNED))
    gained, lost = _within(after) & _outside(before), _within(before) & _outside(after)
    change = len(gained) - len(lost)
    comparison = (
        "wider after tuning" if change > 0 else "narrower after tuning" if change < 0 else "no wider after tuning"
    )
    if not gained and not lost:
        comparison += " within the error"
    said = " and ".join(f"{_range(matrix.phase(TAU))} in {name}" for name, matrix in ((STAGE1, before), (TUNED, after)))
    text = (
        f"The abstraction phase, where this overlap keeps at least {TAU:.0%} of its greatest height above chance, is {said}: "
        f"{comparison}."
    )
    return Finding("phase", text, "tuning extends the abstraction phase to more layers", change > 0)


def _within(matrix: AlignmentMatrix) -> set[int]:
    """The states of the phase whose whole interval reaches the phase's threshold."""
    threshold = _threshold(matrix)
    return {state for state in matrix.phase(TAU) or () if float(matrix.low[state, state]) >= threshold}


def _outside(matrix: AlignmentMatrix) -> set[int]:
    """The states whose whole interval lies below the phase's threshold; all of them where there is no phase."""
    threshold = _threshold(matrix)
    states = range(len(matrix.values))
    return {s for s in states if matrix.phase(TAU) is None or float(matrix.high[s, s]) < threshold}


def _threshold(matrix: AlignmentMatrix) -> float:
    """The overlap at which the phase ends."""
    return matrix.chance + TAU * (float(matrix.values.diagonal().max()) - matrix.chance)


def _range(phase: range | None) -> str:
    if phase is None:
        return "nowhere"
    return f"state {phase.start}" if len(phase) == 1 else f"states {phase.start} to {phase.stop - 1}"


def _bypass(demo: Demo) -> Finding:
    """The signature takes an intermediate best state, and a gain that both the interval and the permutations confirm."""
    matrix = demo.geometry[TUNED].alignment
    found = matrix.bypass()
    best, p = int(found.best[0]), float(found.p[0])
    gain, low, high = (float(part[0]) for part in (found.gain, found.gain_low, found.gain_high))
    holds = bool(found.intermediate) and low > 0 and p < LEVEL
    text = (
        f"What enters the language model of {TUNED} from the image is most like textual state {best} of "
        f"{matrix.values.shape[1] - 1} (overlap {found.values[0]:.2f}, chance {found.chance:.2f}); the gain of the best "
        f"intermediate textual state over the first is {gain:.2f} (95 % interval {low:.2f} to {high:.2f}, p {p:.2g}): the bypass "
        f"signature {'holds' if holds else 'does not hold'}."
    )
    return Finding("bypass", text, "visual features enter intermediate layers directly", holds)


def _dimension(demo: Demo) -> Finding:
    said = []
    for modality in MODALITIES:
        line = demo.geometry[TUNED].dimensions[modality]
        best = max(range(len(line)), key=lambda state: line[state].value)
        said.append(f"{modality}s peaks at state {best} ({line[best].value:.1f} ± {line[best].error:.1f})")
    return Finding("dimension", f"The intrinsic dimension of {' and of '.join(said)}.")
