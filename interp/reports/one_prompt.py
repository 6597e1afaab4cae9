"""One picture and one question, on any model: the analyses of the demo that need no labels.

`analyse_prompt` reports what the model answers and with which probability, what the logit lens reads from the image patches,
at which depth the answer emerges at the last position, whether the proofs of the model's layout pass on this prompt, and, if
the prompt has enough tokens, the geometry of its image tokens and words. The report gives a reason for each analysis that it
omits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from interp.activations import capture
from interp.errors import InputError
from interp.geometry import Estimate, distinct_rows, intrinsic_dimension, label_overlap
from interp.lens import LensResult, logit_lens
from interp.models.batches.chats import has_chat_template
from interp.models.batches.prompts import PLACEHOLDER
from interp.models.batches.targets import word_of
from interp.models.running.threads import few_threads
from interp.plots import dimension_figure, lens_figure, lens_on_image, series_figure
from interp.plots.series import Series
from interp.reports.demo_page import DIMENSION_CAPTION
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

if TYPE_CHECKING:
    from PIL.Image import Image

    from interp.models import VLM, Batch, CheckReport

STEPS = ("answer", "logit lens", "emergence", "proofs", "geometry")
FEWEST_FOR_DIMENSION = 30
FEWEST_FOR_OVERLAP = 8
_MOST_NEIGHBOURS = 10
_MOST_PATCHES = 2500


@dataclass(frozen=True)
class TokenGeometry:
    """The tokens of one prompt as two clouds: their dimensions at each state, and how separate the modalities are.

    `separation[state]` is the share of a token's `neighbours` nearest neighbours that have its modality: 1 if the clouds are
    separate, `chance` if they mix. `counts` are the numbers of distinct tokens.
    """

    dimensions: Mapping[str, list[Estimate]]
    separation: Tensor | None
    chance: float
    neighbours: int
    counts: Mapping[str, int]


@dataclass(frozen=True)
class PromptAnalysis:
    """All results for one prompt; `omissions` names the analyses that were omitted, with the reasons."""

    model: str
    structure: Any
    image: Image
    question: str
    prompt: str
    answer: str
    next_words: tuple[tuple[str, float], ...]
    lens: LensResult
    grid: tuple[int, int] | None
    emergence: LensResult
    checks: CheckReport
    geometry: TokenGeometry
    omissions: tuple[str, ...]

    def numbers(self) -> dict[str, np.ndarray]:
        """Every number of the report by name, to compare one run with another."""
        numbers: dict[str, Any] = {
            "next": [share for _, share in self.next_words],
            "lens/entropy": self.lens.entropy,
            "lens/top_probs": self.lens.top_probs,
            "emergence": self.emergence.target_probs,
        }
        if self.geometry.separation is not None:
            numbers["geometry/apart"] = self.geometry.separation
        for name, line in self.geometry.dimensions.items():
            numbers[f"geometry/{name}"] = [[item.value, item.error] for item in line]
        return {name: np.asarray(value, dtype=float) for name, value in numbers.items()}


def as_prompt(question: str) -> str:
    """The question as a prompt, with the image placeholder in front of it if it contains none.

    Raises `InputError` for an empty question.

    >>> as_prompt("What is this?")
    '<image> What is this?'
    """
    words = question.strip()
    if not words.replace(PLACEHOLDER, "").strip():
        raise InputError(f"the question {question!r} is empty: expected a few words, as in --question 'What is this?'")
    return words if PLACEHOLDER in words else f"{PLACEHOLDER} {words}"


def analyse_prompt(
    vlm: VLM, image: Any, question: str, step: Callable[[str], None] = lambda name: None
) -> PromptAnalysis:
    """Run the analyses that need no labels on one picture and one question; `step(name)` is called for each of `STEPS`."""
    with few_threads(vlm):
        step("answer")
        prompt = as_prompt(question)
        # A model that was tuned on conversations needs their format; other models read the words as they are.
        chat = has_chat_template(vlm.processor)
        batch = vlm.prepare([prompt], [image], chat=chat)
        if not batch.positions["image"].any():
            raise InputError(f"{vlm.name!r} has no image tokens in this prompt: expected a model that reads images")
        shares = vlm.logits(batch)[0].float().cpu().softmax(dim=-1)
        best = shares.topk(min(8, len(shares)))
        words = [word_of(vlm, token) for token in best.indices.tolist()]
        answer = vlm.generate(batch, max_new_tokens=20)[0].strip()
        top_k = min(5, len(shares))
        step("logit lens")
        lens = logit_lens(vlm, batch, positions="image", top_k=top_k)
        step("emergence")
        emergence = logit_lens(vlm, batch, positions="last", targets=int(best.indices[0]), top_k=top_k)
        step("proofs")
        checks = vlm.check(batch)
        step("geometry")
        geometry, omissions = _token_geometry(vlm, batch)
    grids = batch.positions.grid(0)
    grid, patches = grids[0] if len(grids) == 1 else None, len(lens.columns)
    if grid is None:
        omissions.insert(
            0, "The words are not shown on the picture: the image tokens do not form one rectangle of patches."
        )
    elif patches > _MOST_PATCHES:
        omissions.insert(0, f"The words are not shown on the picture: {patches} patches are too many to read.")
        grid = None
    return PromptAnalysis(
        model=vlm.name,
        structure=vlm.structure,
        image=_processed_image(vlm, batch),
        question=question,
        prompt=prompt,
        answer=answer,
        next_words=tuple(zip(words, best.values.tolist(), strict=True)),
        lens=lens,
        grid=grid,
        emergence=emergence,
        checks=checks,
        geometry=geometry,
        omissions=tuple(omissions),
    )


def _processed_image(vlm: VLM, batch: Batch) -> Image:
    """The picture that the image tower gets, cropped and scaled; the original if the pixels cannot be converted back.

    The patch grid lies on this picture: if the processor crops, a part of the original has no patches.
    """
    from PIL import Image

    pixels = batch.inputs.get("pixel_values")
    processor = getattr(vlm.processor, "image_processor", None)
    mean, deviation = getattr(processor, "image_mean", None), getattr(processor, "image_std", None)
    if pixels is None or pixels.ndim != 4 or len(pixels) != 1 or pixels.shape[1] != 3 or not mean or not deviation:
        return batch.images[0][0]
    centre, scale = (torch.tensor(each, dtype=torch.float32) for each in (mean, deviation))
    image = rearrange(pixels[0].float().cpu(), "colour y x -> y x colour") * scale + centre
    return Image.fromarray((image.clamp(0, 1) * 255).round().byte().numpy())


def _token_geometry(vlm: VLM, batch: Batch) -> tuple[TokenGeometry, list[str]]:
    """Dimensions of both modalities and their separation, and reasons for what the tokens are too few for."""
    clouds, counts, omissions = {}, {}, []
    for name in ("image", "text"):
        counts[name] = 0
        if batch.positions[name].any():
            acts = capture(vlm, [batch], positions=name, reduce="none", dtype=torch.float32, progress=False)["resid"]
            # Equal tokens are equal points until their positions distinguish them, and equal points have no dimension.
            clouds[name] = acts[:, distinct_rows(acts)]
            counts[name] = clouds[name].shape[1]
    dimensions = {}
    for name, count in counts.items():
        if count >= FEWEST_FOR_DIMENSION:
            dimensions[name] = [intrinsic_dimension(cloud) for cloud in clouds[name]]
        else:
            omissions.append(
                f"The intrinsic dimension of the {name} tokens is omitted: the prompt has {count} distinct ones, and at least "
                f"{FEWEST_FOR_DIMENSION} are needed."
            )
    scarce = min(counts, key=lambda name: counts[name])
    if counts[scarce] < FEWEST_FOR_OVERLAP:
        omissions.append(
            f"The separation of image tokens and words is omitted: the prompt has {counts[scarce]} distinct {scarce} tokens, "
            f"and at least {FEWEST_FOR_OVERLAP} are needed."
        )
        return TokenGeometry(dimensions, None, float("nan"), 0, counts), omissions
    neighbours = min(_MOST_NEIGHBOURS, counts[scarce] // 2)
    labels = ["image"] * counts["image"] + ["text"] * counts["text"]
    both = torch.cat([clouds["image"], clouds["text"]], dim=1)
    separation = torch.tensor([label_overlap(cloud, labels, k=neighbours) for cloud in both], dtype=torch.float64)
    chance = float(np.mean([(count - 1) / (len(labels) - 1) for count in counts.values()]))
    return TokenGeometry(dimensions, separation, chance, neighbours, counts), omissions


def emerges_at(emergence: LensResult) -> int | None:
    """The first state from which the final answer stays the most probable word; None if it is not so at the last state."""
    assert emergence.target_ranks is not None
    ranks = emergence.target_ranks[:, 0].tolist()
    first = len(ranks)
    while first and ranks[first - 1] == 0:
        first -= 1
    return first if first < len(ranks) else None


# The page ----------------------------------------------------------------------------------------------------------------


def prompt_page(analysis: PromptAnalysis) -> Page:
    """The report on one prompt."""
    structure = analysis.structure
    return Page(
        title=f"{analysis.model}, one picture, one question",
        lead=(
            f"{structure.n_layers} layers, width {structure.d_model}, {structure.n_heads} heads, {structure.vocab_size} words; "
            f"{len(analysis.lens.columns)} image tokens in this prompt. Analyses that need many labelled examples are not part "
            "of this report."
        ),
        sections=[_answer(analysis), _lens(analysis), _emergence(analysis), _tokens(analysis), _proofs(analysis)],
        footer=footer_text("interp demo"),
    )


def summarise_prompt(analysis: PromptAnalysis) -> list[tuple[str, str]]:
    """The main numbers as rows of (quantity, value), for the terminal."""
    word, share = analysis.next_words[0]
    first = emerges_at(analysis.emergence)
    states = analysis.emergence.top_ids.shape[0] - 1
    checks = analysis.checks.checks
    return [
        ("answer", analysis.answer or "(nothing)"),
        ("most probable next token", f"{word!r}, {share:.1%}"),
        ("leads from", "no state" if first is None else f"state {first} of {states}"),
        ("image tokens", str(len(analysis.lens.columns))),
        ("proofs of the layout", f"{sum(check.outcome == 'passed' for check in checks)} of {len(checks)} passed"),
    ]


def _answer(analysis: PromptAnalysis) -> Section:
    rows = [[repr(word), f"{share:.2%}"] for word, share in analysis.next_words]
    picture = PictureBlock(analysis.image, f"As the model gets it. Prompt: {analysis.prompt}", width=420)
    return Section(
        "Question and answer",
        [
            ColumnsBlock([picture, TableBlock(["next token", "probability"], rows)]),
            NoteBlock(f"{analysis.question} {analysis.answer or '(nothing)'}"),
        ],
    )


def _lens(analysis: PromptAnalysis) -> Section:
    blocks: list[Any] = [
        TextBlock(
            "The state of each image token goes through the model's own final norm and unembedding, as if the model stopped "
            "there. State 0 enters layer 0."
        )
    ]
    if analysis.grid is None:
        blocks += [TextBlock(reason, muted=True) for reason in analysis.omissions[:1]]
    else:
        wide = analysis.grid[1] > 12
        figure = lens_on_image(analysis.lens, analysis.image, analysis.grid, size=860 if wide else 560)
        blocks.append(FigureBlock(figure, wide=wide))
    blocks += [FigureBlock(lens_figure(analysis.lens)), _common_words(analysis.lens)]
    return Section("Logit lens on the image patches", blocks)


def _common_words(lens: LensResult) -> TableBlock:
    """For each state, the words that the lens reads from most patches."""
    positions = range(lens.top_ids.shape[1])
    rows = []
    for state in range(lens.top_ids.shape[0]):
        counts = Counter(lens.words(state, position)[0] for position in positions).most_common(8)
        rows.append([state, ", ".join(f"{word.strip() or repr(word)} ({count})" for word, count in counts)])
    caption = f"Most probable words of the {len(positions)} image tokens, with the number of patches for each word."
    return TableBlock(["state", "words of patches"], rows, caption)


def _emergence(analysis: PromptAnalysis) -> Section:
    lens = analysis.emergence
    first = emerges_at(lens)
    note = (
        "The lens at the last position does not give the model's own first token at any depth: its logits are changed "
        "after the head."
        if first is None
        else f"From state {first} on, the model's first token, {analysis.next_words[0][0]!r}, is the most probable one at the "
        "last position."
    )
    rows = []
    for state in range(lens.top_ids.shape[0]):
        words = zip(lens.words(state, 0), lens.top_probs[state, 0].tolist(), strict=True)
        rows.append([state, ", ".join(f"{word.strip() or repr(word)} {share:.0%}" for word, share in words)])
    figure = lens_figure(lens, title="Probability of the first token of the answer, last position")
    table = TableBlock(["state", "words at the last position"], rows)
    return Section("Where in depth the answer emerges", [NoteBlock(note), FigureBlock(figure), table])


def _tokens(analysis: PromptAnalysis) -> Section:
    geometry = analysis.geometry
    counts = " and ".join(f"{count} distinct {name} tokens" for name, count in geometry.counts.items())
    blocks: list[Any] = [TextBlock(f"The tokens of this prompt as points: {counts}.")]
    if geometry.dimensions:
        figure = dimension_figure({f"{name} tokens": line for name, line in geometry.dimensions.items()})
        blocks.append(FigureBlock(figure, caption=DIMENSION_CAPTION))
    if geometry.separation is not None:
        figure = series_figure(
            {"own modality": Series(values=geometry.separation)},
            f"Neighbours of the same modality (k = {geometry.neighbours})",
            "share of neighbours",
            chance={"mixed": geometry.chance, "apart": 1.0},
            y_range=(0, 1.05),
        )
        caption = "Among the nearest neighbours of a token in this prompt. A single prompt gives no interval."
        blocks.append(FigureBlock(figure, caption=caption))
    blocks += [TextBlock(reason, muted=True) for reason in analysis.omissions[analysis.grid is None :]]
    return Section("Image tokens and words in this prompt", blocks)


def _proofs(analysis: PromptAnalysis) -> Section:
    def outcome_cell(outcome: str) -> Any:
        return outcome if outcome == "pending" else Mark(outcome, outcome == "passed")

    checks = [
        [check.name, outcome_cell(check.outcome), check.measured, check.bound, check.detail]
        for check in analysis.checks.checks
    ]
    names = ("layers", "norm", "head", "embed", "vision", "projector")
    parts = [[name, str(getattr(analysis.structure, name))] for name in names]
    return Section(
        "Proofs of the layout",
        [
            TextBlock("The parts of the model, and the proofs of the layout on this prompt."),
            TableBlock(["proof", "outcome", "measured", "expected", "claim"], checks),
            TableBlock(["part", "where"], parts),
        ],
    )
