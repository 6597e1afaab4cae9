"""The demo's report: one section an analysis, each with what to look for and what stands against it as a control."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

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
from interp.provenance import package_versions
from interp.reports.demo import MODALITIES, PROPERTIES, STAGE1, TUNED, Demo, group_of, grouped_accuracy
from interp.reports.findings import TAU, Finding, findings, first_above, paragraph
from interp.reports.page import Columns, Figure, Mark, Note, Page, Picture, Section, Table, Text

if TYPE_CHECKING:
    import pandas as pd

    from interp.probes import ProbeResult

_GROUP_NAMES = {
    "image": "image tokens",
    "question": "words of the question",
    "last": "last token",
}


def demo_page(demo: Demo) -> Page:
    """The report of a demo."""
    found = findings(demo)
    versions = ", ".join(f"{name} {version}" for name, version in package_versions().items())
    return Page(
        title="What images and captions become inside a vision-language model",
        lead=(
            "A small LLaVA (2 million parameters, 8 layers, 36 image tokens) looks at scenes of coloured digits. "
            f"{STAGE1} has a connector trained on captions; {TUNED} was then tuned on perception questions about images. "
            "Every number below was computed when this page was made, on scenes neither model has seen."
        ),
        sections=[
            Section("What was found", [Note(paragraph(found)), _verdicts(found)]),
            _answers(demo),
            _lens(demo),
            _patching(demo),
            _probes(demo),
            _geometry(demo),
        ],
        footer=f"interp demo, seed {demo.seed}. {versions}.",
    )


def summary(demo: Demo) -> list[tuple[str, ...]]:
    """The main numbers as rows of (what, in stage 1, tuned), for the terminal."""
    grouped = grouped_accuracy(demo.accuracy)
    rows: list[tuple[str, ...]] = []
    for group in ("perception", "abstraction"):
        for modality in ("text", "image"):
            cells = [group_of(grouped, model, modality, group) for model in (STAGE1, TUNED)]
            shown = [f"{cell.accuracy:.0%} ({cell.low:.0%} to {cell.high:.0%})" for cell in cells]
            rows.append((f"{group} questions from {modality}, chance {cells[0].chance:.0%}", *shown))
    for what in PROPERTIES:
        probes = [demo.probes[model][what, "image"] for model in (STAGE1, TUNED)]
        shown = [f"{float(probe.accuracy.max()):.0%} at state {int(probe.accuracy.argmax())}" for probe in probes]
        rows.append((f"probe of the {what} from image tokens, chance {probes[0].chance:.0%}", *shown))
    matrices = [demo.geometry[model].alignment for model in (STAGE1, TUNED)]
    diagonals = [matrix.values.diagonal() for matrix in matrices]
    shown = [f"{float(line.max()):.2f} at state {int(line.argmax())}" for line in diagonals]
    rows.append((f"overlap of image and caption, chance {matrices[0].chance:.2f}", *shown))
    rows.append(("abstraction phase (states)", *(_phase(matrix.phase(TAU)) for matrix in matrices)))
    rows.append(("textual state most like visual state 0", *(str(int(matrix.bypass().best[0])) for matrix in matrices)))
    return rows


def _phase(phase: range | None) -> str:
    return "none" if phase is None else f"{phase.start} to {phase.stop - 1}"


def _verdicts(found: Sequence[Finding]) -> Table:
    rows = [
        [finding.claim, Mark("looks like it" if finding.agrees else "does not", bool(finding.agrees))]
        for finding in found
        if finding.claim
    ]
    return Table(
        ["claim", "here"],
        rows,
        "Claims after Palacios et al., arXiv 2606.03871, which is about models of 7 billion parameters; the forms in which "
        "they are tried here are this package's own.",
    )


# The sections ------------------------------------------------------------------------------------------------------------


def _answers(demo: Demo) -> Section:
    shown = []
    for index, scene in enumerate(demo.scenes):
        asked = [item for item in demo.asked if item.scene == index]
        rows = [
            [item.question.text, item.question.answer]
            + [Mark(answer or "(nothing)", answer.strip() == item.question.answer) for answer in item.answers.values()]
            for item in asked
        ]
        table = Table(["question", "answer", *(asked[0].answers if asked else ())], rows)
        shown.append(Columns([Picture(scene.image, _plain(scene.caption), width=190), table]))
    return Section(
        "What the model sees and answers",
        [
            Text(
                "Each question is put to the model with the picture (below) or with the caption in its stead. Perception asks "
                "for what can be seen, abstraction for what must be worked out; abstraction was never trained on images."
            ),
            Figure(
                accuracy_figure(demo.accuracy),
                wide=True,
                caption="Bars are Wilson's 95 % intervals, grey marks what the most common answer would get.",
            ),
            _grouped(grouped_accuracy(demo.accuracy)),
            *shown,
        ],
    )


def _plain(caption: str) -> str:
    return caption.removesuffix(" .")


def _grouped(frame: pd.DataFrame) -> Table:
    rows = [
        [
            row.model,
            row.group,
            row.modality,
            f"{row.accuracy:.1%}",
            f"{row.low:.1%} to {row.high:.1%}",
            f"{row.chance:.1%}",
            str(row.n),
        ]
        for row in frame.itertuples()
    ]
    return Table(["model", "questions", "from", "right", "95 % interval", "most common answer", "n"], rows)


def _lens(demo: Demo) -> Section:
    scene = demo.scenes[demo.lens_scene]
    naming = {
        name: Series(values=item.share, low=item.low, high=item.high, control=item.control)
        for name, item in demo.naming.items()
    }
    patches = demo.naming[TUNED].patches
    return Section(
        "Logit lens on the image patches",
        [
            Text(
                "Each image token's state goes through the model's own final norm and unembedding, as if the model stopped "
                "there. The word on a patch is the most probable one; the stronger its colour, the more probable. Move the "
                "slider through the layers; point at a patch for its five best words."
            ),
            Columns(
                [
                    Picture(scene.image, f"The scene: {_plain(scene.caption)}", width=240),
                    Figure(lens_on_image(demo.lens, scene.image, demo.lens_grid, title=TUNED)),
                ]
            ),
            Figure(
                series_figure(
                    naming, "Object patches read as their digit or colour", "share of patches", y_range=(0, 1.03)
                ),
                caption=f"{patches} patches of objects; bands are 95 % intervals with an object as one observation, dashed is "
                "the control: the same count with the words of an object of another scene.",
            ),
        ],
    )


def _patching(demo: Demo) -> Section:
    patching = demo.patching
    groups = {
        _GROUP_NAMES[name]: Series(values=group.effect, low=group.low, high=group.high)
        for name, group in patching.groups.items()
    }
    first = patching.pairs[0]
    source = (
        f"out of {patching.answered} that the model answers rightly on both sides"
        if patching.answered
        else "none of which the model answers rightly on both sides"
    )
    many = "1 pair" if len(patching.pairs) == 1 else f"{len(patching.pairs)} pairs"
    return Section(
        "Activation patching: where the answer is",
        [
            Text(
                "Two pictures differ in the colour of one digit, and the question asks for it. The state of one layer and one "
                "position of the clean run is written into the run on the corrupted picture; the effect is the share of the "
                "clean answer that comes back (0 the corrupted run, 1 the clean one)."
            ),
            Columns(
                [
                    Picture(first.clean.image, f"clean: {first.question} {first.answer}", width=190),
                    Picture(first.corrupted.image, f"corrupted: {first.question} {first.other}", width=190),
                ]
            ),
            Figure(
                patch_figure(patching.sweep, labels=patching.labels, title=f"{TUNED}: one position at a time ({many})"),
                wide=True,
                caption=f"Mean over {many}, all with the changed digit at {patching.place} (●), {source}. Patches count from "
                "the top left.",
            ),
            Figure(
                series_figure(
                    groups,
                    f"{TUNED}: all positions of a group at once",
                    "effect",
                    x="layer",
                    chance={"corrupted": 0.0, "clean": 1.0},
                ),
                caption="Bands are 95 % intervals over pairs.",
            ),
        ],
    )


def _probes(demo: Demo) -> Section:
    blocks: list[object] = [
        Text(
            "A logistic regression reads the digit, or the colour, of a scene of one object off the mean image token, or off "
            "the mean word of its caption, at each state. Combinations of digit, colour and place that are tested on are not "
            "trained on. Dashed lines are the same probe on shuffled labels, bands 95 % intervals."
        )
    ]
    for what in PROPERTIES:
        named: dict[str, ProbeResult] = {
            f"{model}, {modality} tokens": demo.probes[model][what, modality]
            for model in (STAGE1, TUNED)
            for modality in MODALITIES
        }
        blocks.append(Figure(probe_figure(named, title=f"Probe of the {what}")))
    rows = []
    for model, probes in demo.probes.items():
        for (what, modality), result in probes.items():
            start, best = first_above(result), int(result.accuracy.argmax())
            cells = [
                f"{float(result.accuracy[best]):.0%} at state {best}",
                "never" if start is None else f"state {start}",
            ]
            rows.append([model, what, modality, *cells, result.n_train, result.n_test])
    columns = [
        "model",
        "property",
        "tokens",
        "best accuracy",
        "above chance and control from",
        "trained on",
        "tested on",
    ]
    return Section("Linear probes", [*blocks, Table(columns, rows)])


def _geometry(demo: Demo) -> Section:
    dimensions = {
        f"{model}, {modality}s": demo.geometry[model].dimensions[modality]
        for model in (STAGE1, TUNED)
        for modality in MODALITIES
    }
    matrices = {model: geometry.alignment for model, geometry in demo.geometry.items()}
    matrix = matrices[TUNED]
    retained = {
        f"{modality}s": Series(values=overlap[0], low=overlap[1], high=overlap[2])
        for modality, overlap in demo.retained.items()
    }
    return Section(
        "Geometry of images and captions",
        [
            Text(
                f"{demo.n} scenes, each once as a picture alone and once as a caption alone; a point is the mean image token or "
                f"the mean word. Neighbour overlap is the share of its {matrix.k} nearest neighbours that a scene keeps from "
                "one cloud to the other."
            ),
            Figure(
                alignment_figures(matrices, tau=TAU),
                wide=True,
                caption="How alike visual state (upwards) and textual state (to the right) see the same scenes. Dots right "
                "of the diagonal in the lower rows: the picture enters past the early textual layers. Point at a cell "
                "for its interval.",
            ),
            Figure(
                diagonal_figure({name: matrices[name] for name in (STAGE1, TUNED)}),
                caption="Bands are 95 % intervals from half-samples.",
            ),
            Figure(
                bypass_figure({name: matrices[name].bypass() for name in (STAGE1, TUNED)}),
                caption="Above: by how much an intermediate textual state is more like a visual state than textual state 0 "
                "is; bars are 95 % intervals from half-samples, rings have a p of 0.05 or more. A bypass shows at the left "
                "end. Below: the most similar textual state.",
            ),
            Figure(
                series_figure(
                    retained,
                    f"Neighbours that tuning kept ({STAGE1} to {TUNED}, same state)",
                    "neighbour overlap",
                    chance=matrix.chance,
                    y_range=(0, 1.03),
                ),
                caption="Bands are 95 % intervals from half-samples.",
            ),
            Figure(
                dimension_figure(dimensions),
                caption="Two-nearest-neighbours estimate; bars are one standard error, rings are known to be too low.",
            ),
        ],
    )
