"""The demo's report: one section for each analysis, which says what to look for and what the control is."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from interp.geometry import phase_change
from interp.plots import (
    accuracy_figure,
    alignment_figures,
    bypass_figure,
    diagonal_figure,
    dimension_figure,
    lens_on_image,
    patch_figure,
    probe_figure,
    series_figure,
)
from interp.plots.series import Series
from interp.reports.demo import STAGE1, TUNED, Curve, Demo, group_of, grouped_accuracy
from interp.reports.findings import TAU, Finding, decision, findings, first_above, paragraph
from interp.reports.page import (
    ColumnsBlock,
    FigureBlock,
    Mark,
    NoteBlock,
    Page,
    PictureBlock,
    Section,
    TableBlock,
    TextBlock,
    footer_text,
)
from interp.reports.replication_page import replication_section
from interp.reports.scene_states import MODALITIES, POOLED, PROPERTIES

if TYPE_CHECKING:
    import pandas as pd

    from interp.probes import ProbeResult
    from interp.reports.replication import Replication

_GROUP_NAMES = {"image": "image tokens", "question": "words of the question", "last": "last token"}
_HALF_SAMPLES = "Bands are 95 % intervals from half-samples."
UNITS = {"phase": " layers", "patching": " of the depth"}
DIMENSION_CAPTION = "Two-nearest-neighbours estimate. Bars are one standard error, rings are known to be too low."


def demo_page(demo: Demo, replication: Replication | None = None) -> Page:
    """The report of a demo, with toys of other seeds where there are any."""
    results = findings(demo)
    return Page(
        title="How a vision-language model represents images and captions",
        lead=(
            "A small LLaVA (2 million parameters, 8 layers, 36 image tokens) looks at scenes of coloured digits. "
            f"{STAGE1} has a connector trained on captions; {TUNED} was then tuned on perception questions about images. "
            "Every number below was computed for this page, on scenes that neither model was trained on."
        ),
        sections=[
            Section("Findings", [NoteBlock(paragraph(results)), _verdicts(results)]),
            _answers(demo),
            _lens(demo),
            _patching(demo),
            _probes(demo),
            _geometry(demo),
            *([] if replication is None else [replication_section(replication)]),
        ],
        footer=footer_text(f"interp demo, seed {demo.seed}"),
    )


def summarise_demo(demo: Demo) -> list[tuple[str, ...]]:
    """The main numbers as rows of (quantity, value for stage 1, value for tuned), for the terminal."""
    grouped = grouped_accuracy(demo.responses)
    rows: list[tuple[str, ...]] = []
    for group in ("perception", "abstraction"):
        for modality in ("text", "image"):
            scores = [group_of(grouped, model, modality, group) for model in (STAGE1, TUNED)]
            cells = [f"{score.accuracy:.0%} ({score.low:.0%} to {score.high:.0%})" for score in scores]
            rows.append((f"{group} questions from {modality}, chance {scores[0].chance:.0%}", *cells))
    for what in PROPERTIES:
        probes = [demo.probes[model][what, "image"] for model in (STAGE1, TUNED)]
        cells = [f"{best.accuracy:.0%} at state {best.state}" for best in (probe.best_state() for probe in probes)]
        rows.append((f"probe of the {what} from image tokens, chance {probes[0].chance:.0%}", *cells))
    matrices = [demo.geometry[model].alignment for model in (STAGE1, TUNED)]
    diagonals = [matrix.values.diagonal() for matrix in matrices]
    cells = [f"{float(line.max()):.2f} at state {int(line.argmax())}" for line in diagonals]
    rows.append((f"largest overlap of image and caption, chance {matrices[0].chance:.2f}", *cells))
    before, after = matrices
    change = phase_change(before, after, TAU)
    rows.append(("abstraction phase (states, at one threshold)", _phase(change.before), _phase(change.after)))
    rows.append(("textual state most like visual state 0", *(str(int(matrix.bypass().best[0])) for matrix in matrices)))
    entry = [demo.geometry[model].bypass.verdict.value for model in (STAGE1, TUNED)]
    rows.append(("images enter intermediate layers directly", *entry))
    return rows


def _phase(phase: range | None) -> str:
    return "none" if phase is None else f"{phase.start} to {phase.stop - 1}"


def _verdicts(results: Sequence[Finding]) -> TableBlock:
    rows = []
    for finding in results:
        if not finding.claim:
            continue
        unit = UNITS.get(finding.topic, "")
        text, known = decision(finding, unit), finding.value in ("supported", "contradicted")
        found, effect, smallest = finding.verdict, "", ""
        if found is not None:
            low, high = (f"{bound:.2g}" if math.isfinite(bound) else "no bound" for bound in (found.low, found.high))
            effect = f"{found.estimate:.2g} ({low} to {high}){unit}" if math.isfinite(found.estimate) else ""
            smallest = f"{found.smallest:.2g}{unit}" if found.smallest else "inside the band"
        p = "" if math.isnan(finding.p_holm) else f"{finding.p_holm:.2g}"
        rows.append([finding.claim, Mark(text, finding.value == "supported") if known else text, effect, smallest, p])
    return TableBlock(
        ["claim", "here", "effect (95 % interval)", "smallest of interest", "p, corrected"],
        rows,
        "Supported: the 95 % interval of the effect is above 0, the estimate at least half of the smallest effect "
        "of interest, and p at most 0.05. Contradicted: the smallest effect of interest is excluded, which is not "
        "to say that there is none. p is corrected by Holm's method for the number of claims. A claim that needs "
        "several effects has the least of them; that of a hand-over is the distance into the band. Claims after "
        "Palacios et al., arXiv 2606.03871, which studies models of 7 billion parameters. How they are tested here "
        "is this package's own choice.",
    )


def _series(curves: Mapping[str, Curve]) -> dict[str, Series]:
    return {name: Series(curve.values, curve.low, curve.high, curve.control) for name, curve in curves.items()}


# The sections ------------------------------------------------------------------------------------------------------------


def _answers(demo: Demo) -> Section:
    examples = []
    for index, scene in enumerate(demo.scenes):
        answers = [answer for answer in demo.answers if answer.scene == index]
        rows = [
            [answer.question.text, answer.question.answer]
            + [Mark(text or "(nothing)", text.strip() == answer.question.answer) for text in answer.by_model.values()]
            for answer in answers
        ]
        table = TableBlock(["question", "answer", *(answers[0].by_model if answers else ())], rows)
        examples.append(ColumnsBlock([PictureBlock(scene.image, _plain(scene.caption), width=190), table]))
    return Section(
        "Questions and answers",
        [
            TextBlock(
                "Each question comes with the picture (below) or with the caption instead. Perception questions ask what the "
                "picture shows, abstraction questions ask for a conclusion; abstraction was never trained on images."
            ),
            FigureBlock(
                accuracy_figure(demo.accuracy),
                wide=True,
                caption="Bars are 95 % intervals. Grey marks the accuracy of always giving the most common answer.",
            ),
            _grouped(grouped_accuracy(demo.responses)),
            *examples,
        ],
    )


def _plain(caption: str) -> str:
    return caption.removesuffix(" .")


def _grouped(frame: pd.DataFrame) -> TableBlock:
    rows = [
        [r.model, r.group, r.modality, f"{r.accuracy:.1%}", f"{r.low:.1%} to {r.high:.1%}", f"{r.chance:.1%}", str(r.n)]
        for r in frame.itertuples()
    ]
    return TableBlock(["model", "questions", "from", "right", "95 % interval", "most common answer", "n"], rows)


def _lens(demo: Demo) -> Section:
    scene = demo.scenes[demo.lens_scene]
    naming = series_figure(
        _series(demo.naming), "Object patches read as their digit or colour", "share of patches", y_range=(0, 1.03)
    )
    return Section(
        "Logit lens on the image patches",
        [
            TextBlock(
                "The state of each image token goes through the model's own final norm and unembedding, as if the model stopped "
                "there. Each patch shows its most probable word; a stronger colour means a higher probability. Move the slider "
                "through the layers, and point at a patch to see its five most probable words."
            ),
            ColumnsBlock(
                [
                    PictureBlock(scene.image, f"The scene: {_plain(scene.caption)}", width=240),
                    FigureBlock(lens_on_image(demo.lens, scene.image, demo.lens_grid, title=TUNED)),
                ]
            ),
            FigureBlock(
                naming,
                caption=f"{demo.patches} patches of objects. Bands are 95 % intervals that count an object as one observation. "
                "The dashed control counts the words of an object of another scene.",
            ),
        ],
    )


def _patching(demo: Demo) -> Section:
    patching = demo.patching
    first = patching.pairs[0]
    source = (
        f"chosen from {patching.answered} that the model answers correctly for both pictures"
        if patching.answered
        else "although the model answers none correctly for both pictures"
    )
    several = len(patching.pairs) > 1
    count = f"{len(patching.pairs)} pairs" if several else "1 pair"
    one_of = f"first of {count}, " if several else ""
    groups = series_figure(
        _series({_GROUP_NAMES[name]: curve for name, curve in patching.groups.items()}),
        f"{TUNED}: all positions of a group at once",
        "effect",
        x="layer",
        chance={"corrupted": 0.0, "clean": 1.0},
    )
    return Section(
        "Activation patching: where the answer is",
        [
            TextBlock(
                "Two pictures differ in the colour of one digit, and the question asks for this colour. Patching writes the "
                "state of the clean run at one layer and position into the run on the corrupted picture. The effect is the "
                "share of the clean answer that comes back: 0 is the corrupted run, 1 the clean one."
            ),
            ColumnsBlock(
                [
                    PictureBlock(first.clean.image, f"{one_of}clean: {first.question} {first.answer}", width=190),
                    PictureBlock(
                        first.corrupted.image, f"{one_of}corrupted: {first.question} {first.other}", width=190
                    ),
                ]
            ),
            FigureBlock(
                patch_figure(
                    patching.sweep,
                    labels=patching.labels,
                    title=f"{TUNED}: one position at a time ({'mean of ' * several}{count})",
                ),
                wide=True,
                caption=f"Mean over {count}, all with the changed digit at {patching.place} (●), {source}. Patches count from "
                "the top left.",
            ),
            FigureBlock(groups, caption="Bands are 95 % intervals over pairs."),
        ],
    )


def _probes(demo: Demo) -> Section:
    blocks: list[object] = [
        TextBlock(
            "A logistic regression decodes the digit, or the colour, of scenes with one object from the mean image token, or "
            "from the mean word of the caption, at each state. No combination of digit, colour and place is both trained and "
            "tested on. Dashed lines are the same probe on shuffled labels, bands are 95 % intervals."
        )
    ]
    for what in PROPERTIES:
        named: dict[str, ProbeResult] = {
            f"{model}, {modality} tokens": demo.probes[model][what, modality]
            for model in (STAGE1, TUNED)
            for modality in MODALITIES
        }
        blocks.append(FigureBlock(probe_figure(named, title=f"Probe of the {what}")))
    rows = []
    for model, probes in demo.probes.items():
        for (what, modality), result in probes.items():
            start, best = first_above(result), result.best_state()
            cells = [
                f"{best.accuracy:.0%} ({best.low:.0%} to {best.high:.0%}) at state {best.state}",
                "no state" if start is None else f"state {start}",
            ]
            rows.append([model, what, modality, *cells, result.n_train, result.n_test])
    columns = [
        "model",
        "property",
        "tokens",
        "accuracy at the best state",
        "above chance and control from",
        "trained on",
        "tested on",
    ]
    return Section("Linear probes", [*blocks, TableBlock(columns, rows)])


def _geometry(demo: Demo) -> Section:
    dimensions = {
        f"{model}, {modality}s": demo.geometry[model].dimensions[modality]
        for model in (STAGE1, TUNED)
        for modality in MODALITIES
    }
    matrices = {model: geometry.alignment for model, geometry in demo.geometry.items()}
    matrix = matrices[TUNED]
    retained = series_figure(
        _series({f"{modality}s": curve for modality, curve in demo.retained.items()}),
        f"Neighbours that tuning preserves ({STAGE1} to {TUNED}, same state)",
        "neighbour overlap",
        chance=matrix.chance,
        y_range=(0, 1.03),
    )
    return Section(
        "Geometry of images and captions",
        [
            TextBlock(
                f"{demo.n} scenes, each as a picture alone and as a caption alone. Where images are compared with captions, a "
                f"point is the mean of {POOLED} tokens drawn from the picture, or of {POOLED} drawn from the caption: a mean "
                "of all 36 image tokens would be less noisy than one of nine words. How alike the two are, and where, depends "
                "on this number. "
                f"Neighbour overlap is the share of a scene's {matrix.k} nearest neighbours that two clouds have in common."
            ),
            FigureBlock(
                alignment_figures(matrices, tau=TAU),
                wide=True,
                caption="Similarity of visual states (upwards) and textual states (to the right) of the same scenes. Dots "
                "mark the textual state that is most like each visual one. Point at a cell to see its interval. "
                "Each rectangle is at the threshold of its own model, so that the two do not say which phase is "
                "wider; the verdict above compares both at one threshold.",
            ),
            FigureBlock(diagonal_figure({name: matrices[name] for name in (STAGE1, TUNED)}), caption=_HALF_SAMPLES),
            FigureBlock(
                bypass_figure({name: demo.geometry[name].bypass for name in (STAGE1, TUNED)}),
                caption="Above: how much more similar to a visual state the best intermediate textual state is than textual "
                "state 0. Bars are 95 % intervals from half-samples, rings have a p of 0.05 or more (one test for "
                "each visual state). A bypass would appear at the left end, but so would a textual state 0 that is "
                "a worse readout: the verdict above also asks what is left of the gain beyond states of the image "
                "tower. Below: the most similar textual state.",
            ),
            FigureBlock(retained, caption=f"A point is the mean of all tokens. {_HALF_SAMPLES}"),
            FigureBlock(
                dimension_figure(dimensions), caption=f"A point is the mean of all tokens. {DIMENSION_CAPTION}"
            ),
        ],
    )
