"""A model, a picture and a question of the user's own: the parts of the demo that need no labels.

What the model answers and how sure it is; what the logit lens reads off the image patches; at which depth the final
answer emerges at the last position; whether the model's layout holds on this very prompt; and, where the prompt has
tokens enough, how image tokens and words lie to each other. What could not be done is said, with the reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from interp.activations import capture
from interp.errors import InputError
from interp.geometry import Estimate, distinct_rows, intrinsic_dimension, label_overlap
from interp.lens import LensResult, logit_lens
from interp.models.batches.prompts import PLACEHOLDER
from interp.models.batches.targets import word_of
from interp.plots import dimension_figure, lens_figure, lens_on_image, series_figure
from interp.plots.series import Series
from interp.provenance import package_versions
from interp.reports.demo import few_threads
from interp.reports.page import Columns, Figure, Mark, Note, Page, Picture, Section, Table, Text

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
    """The tokens of one prompt as two clouds: dimensions per state, and how far tokens keep to their own modality.

    `apart[state]` is the share of a token's `neighbours` nearest ones that are of its modality (1 apart, `chance` mixed).
    """

    dimensions: Mapping[str, list[Estimate]]
    apart: Tensor | None
    chance: float
    neighbours: int
    counts: Mapping[str, int]


@dataclass(frozen=True)
class Study:
    """Everything that was measured on one prompt; `left_out` says what was not, and why."""

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
    left_out: tuple[str, ...]

    def numbers(self) -> dict[str, np.ndarray]:
        """Every number of the report under a name of its own, to compare one run with another."""
        found: dict[str, Any] = {
            "next": [share for _, share in self.next_words],
            "lens/entropy": self.lens.entropy,
            "lens/top_probs": self.lens.top_probs,
            "emergence": self.emergence.target_probs,
        }
        if self.geometry.apart is not None:
            found["geometry/apart"] = self.geometry.apart
        for name, line in self.geometry.dimensions.items():
            found[f"geometry/{name}"] = [[item.value, item.error] for item in line]
        return {name: np.asarray(value, dtype=float) for name, value in found.items()}


def read_question(question: str) -> str:
    """The question with the image placeholder in front of it, where it has none of its own.

    Raises `InputError` for an empty question.
    """
    words = question.strip()
    if not words.replace(PLACEHOLDER, "").strip():
        raise InputError(f"the question {question!r} is empty: expected a few words, as in --question 'What is this?'")
    return words if PLACEHOLDER in words else f"{PLACEHOLDER} {words}"


def study(vlm: VLM, image: Any, question: str, step: Callable[[str], None] = lambda name: None) -> Study:
    """Run the analyses that need no labels on one picture and one question; `step` is told each of `STEPS`."""
    with few_threads(vlm):
        step("answer")
        prompt = read_question(question)
        # A model tuned on conversations answers in its own form of them; others read the words as they are.
        chat = bool(getattr(vlm.processor, "chat_template", None))
        batch = vlm.prepare([prompt], [image], chat=chat)
        if not batch.positions["image"].any():
            raise InputError(
                f"{vlm.name!r} has no image token in its stream for this prompt: expected a model that reads images"
            )
        logits = vlm.logits(batch)[0].float().cpu()
        shares = logits.softmax(dim=-1)
        best = shares.topk(min(8, len(shares)))
        words = [word_of(vlm, token) for token in best.indices.tolist()]
        answer = vlm.generate(batch, max_new_tokens=20)[0].strip()
        step("logit lens")
        lens = logit_lens(vlm, batch, positions="image", top_k=min(5, len(shares)))
        step("emergence")
        emergence = logit_lens(vlm, batch, positions="last", targets=int(best.indices[0]), top_k=min(5, len(shares)))
        step("proofs")
        checks = vlm.check(batch)
        step("geometry")
        geometry, left_out = _token_geometry(vlm, batch)
    grids = batch.positions.grid(0)
    grid = grids[0] if len(grids) == 1 else None
    count = len(lens.columns)
    if grid is None:
        left_out.insert(
            0, "The words are not laid over the picture: the image tokens of this model are no rectangle of patches."
        )
    elif count > _MOST_PATCHES:
        left_out.insert(0, f"The words are not laid over the picture: {count} patches are too many to read.")
        grid = None
    return Study(
        model=vlm.name,
        structure=vlm.structure,
        image=_as_seen(vlm, batch),
        question=question,
        prompt=prompt,
        answer=answer,
        next_words=tuple(zip(words, best.values.tolist(), strict=True)),
        lens=lens,
        grid=grid,
        emergence=emergence,
        checks=checks,
        geometry=geometry,
        left_out=tuple(left_out),
    )


def _as_seen(vlm: VLM, batch: Batch) -> Image:
    """The picture as the vision tower gets it, cropped and scaled, where the pixels say so; else as it was given.

    The patch grid lies over this picture: a processor that crops leaves a part of the given one unseen.
    """
    from PIL import Image

    pixels = batch.inputs.get("pixel_values")
    processor = getattr(vlm.processor, "image_processor", None)
    mean, deviation = getattr(processor, "image_mean", None), getattr(processor, "image_std", None)
    if pixels is None or pixels.ndim != 4 or len(pixels) != 1 or pixels.shape[1] != 3 or not mean or not deviation:
        return batch.images[0][0]
    scaled = pixels[0].float() * torch.tensor(deviation)[:, None, None] + torch.tensor(mean)[:, None, None]
    return Image.fromarray((scaled.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy())


def _token_geometry(vlm: VLM, batch: Batch) -> tuple[TokenGeometry, list[str]]:
    """Dimensions of either modality's tokens, and whether they are neighbours of each other, as far as tokens reach."""
    states, counts, left_out = {}, {}, []
    for name in ("image", "text"):
        if not batch.positions[name].any():
            counts[name] = 0
            continue
        acts = capture(vlm, [batch], positions=name, reduce="none", dtype=torch.float32, progress=False)["resid"]
        # Equal tokens are equal points until their positions tell them apart; equal points have no dimension.
        states[name] = acts[:, distinct_rows(acts)]
        counts[name] = states[name].shape[1]
    dimensions = {}
    for name, count in counts.items():
        if count < FEWEST_FOR_DIMENSION:
            left_out.append(
                f"The intrinsic dimension of the {name} tokens is left out: {count} distinct ones, at least "
                f"{FEWEST_FOR_DIMENSION} are needed."
            )
        else:
            dimensions[name] = [intrinsic_dimension(state) for state in states[name]]
    fewest = min(counts.values())
    apart, neighbours, chance = None, 0, float("nan")
    if fewest < FEWEST_FOR_OVERLAP:
        scarce = min(counts, key=lambda name: counts[name])
        left_out.append(
            f"Whether image tokens and words mix is left out: {fewest} distinct {scarce} tokens, at least "
            f"{FEWEST_FOR_OVERLAP} are needed."
        )
    else:
        neighbours = min(_MOST_NEIGHBOURS, fewest // 2)
        labels = ["image"] * counts["image"] + ["text"] * counts["text"]
        both = torch.cat([states["image"], states["text"]], dim=1)
        apart = torch.tensor([label_overlap(state, labels, k=neighbours) for state in both], dtype=torch.float64)
        total = len(labels)
        chance = float(np.mean([(counts[name] - 1) / (total - 1) for name in ("image", "text")]))
    return TokenGeometry(dimensions, apart, chance, neighbours, counts), left_out


def emerges_at(emergence: LensResult) -> int | None:
    """The first state from which the final answer stays the most probable word; None where it is not even at the end."""
    assert emergence.target_ranks is not None
    ranks = emergence.target_ranks[:, 0].tolist()
    first = len(ranks)
    while first and ranks[first - 1] == 0:
        first -= 1
    return first if first < len(ranks) else None


# The page ----------------------------------------------------------------------------------------------------------------


def own_page(found: Study) -> Page:
    """The report of one study."""
    versions = ", ".join(f"{name} {version}" for name, version in package_versions().items())
    size = found.structure
    return Page(
        title=f"{found.model}, one picture, one question",
        lead=(
            f"{size.n_layers} layers, width {size.d_model}, {size.n_heads} heads, {size.vocab_size} words; "
            f"{len(found.lens.columns)} image tokens in this prompt. A single prompt has no labels: the parts of the demo that "
            "need many labelled examples are not here."
        ),
        sections=[_answer(found), _lens(found), _emergence(found), _tokens(found), _proofs(found)],
        footer=f"interp demo. {versions}.",
    )


def summary(found: Study) -> list[tuple[str, str]]:
    """The main numbers as rows of (what, value), for the terminal."""
    word, share = found.next_words[0]
    first = emerges_at(found.emergence)
    states = found.emergence.top_ids.shape[0] - 1
    proofs = found.checks.checks
    return [
        ("answer", found.answer or "(nothing)"),
        ("most probable next token", f"{word!r}, {share:.1%}"),
        ("it leads from", "never" if first is None else f"state {first} of {states}"),
        ("image tokens", str(len(found.lens.columns))),
        ("proofs of the layout", f"{sum(check.outcome == 'passed' for check in proofs)} of {len(proofs)} passed"),
    ]


def _answer(found: Study) -> Section:
    table = Table(["next token", "probability"], [[repr(word), f"{share:.2%}"] for word, share in found.next_words])
    return Section(
        "What the model sees and answers",
        [
            Columns([Picture(found.image, f"As the model gets it. Prompt: {found.prompt}", width=420), table]),
            Note(f"{found.question} {found.answer or '(nothing)'}"),
        ],
    )


def _lens(found: Study) -> Section:
    blocks: list[Any] = [
        Text(
            "Each image token's state goes through the model's own final norm and unembedding, as if the model stopped there. "
            "State 0 enters layer 0."
        ),
        *[Text(reason, muted=True) for reason in found.left_out[:1] if found.grid is None],
    ]
    if found.grid is not None:
        wide = found.grid[1] > 12
        size = 860 if wide else 560
        blocks.append(Figure(lens_on_image(found.lens, found.image, found.grid, size=size), wide=wide))
    blocks += [Figure(lens_figure(found.lens)), _common_words(found.lens)]
    return Section("Logit lens on the image patches", blocks)


def _common_words(lens: LensResult) -> Table:
    """For each state, the words that most patches are read as."""
    rows = []
    positions = lens.top_ids.shape[1]
    for state in range(lens.top_ids.shape[0]):
        counted = Counter(lens.words(state, position)[0] for position in range(positions))
        rows.append(
            [state, ", ".join(f"{word.strip() or repr(word)} ({count})" for word, count in counted.most_common(8))]
        )
    return Table(
        ["state", "patches read as"], rows, f"Top words of the {positions} image tokens, with how many patches read so."
    )


def _emergence(found: Study) -> Section:
    first = emerges_at(found.emergence)
    word = found.next_words[0][0]
    said = (
        "The lens at the last position does not give the model's own first token at any depth: its logits are "
        "changed after the head."
        if first is None
        else f"The model's first token, {word!r}, is the most probable one at the last position from state {first} on."
    )
    states = range(found.emergence.top_ids.shape[0])
    rows = [
        [
            state,
            ", ".join(
                f"{w.strip() or repr(w)} {p:.0%}"
                for w, p in zip(
                    found.emergence.words(state, 0), found.emergence.top_probs[state, 0].tolist(), strict=True
                )
            ),
        ]
        for state in states
    ]
    return Section(
        "Where in depth the answer emerges",
        [
            Note(said),
            Figure(lens_figure(found.emergence, title="Probability of the first token of the answer, last position")),
            Table(["state", "read at the last position"], rows),
        ],
    )


def _tokens(found: Study) -> Section:
    geometry = found.geometry
    counts = " and ".join(f"{count} distinct {name} tokens" for name, count in geometry.counts.items())
    blocks: list[Any] = [Text(f"The tokens of this prompt as points: {counts}.")]
    if geometry.dimensions:
        figure = dimension_figure({f"{name} tokens": line for name, line in geometry.dimensions.items()})
        blocks.append(
            Figure(
                figure,
                caption="Two-nearest-neighbours estimate; bars are one standard error, rings are known to be too low.",
            )
        )
    if geometry.apart is not None:
        figure = series_figure(
            {"own modality": Series(values=geometry.apart)},
            f"Neighbours of the same modality (k = {geometry.neighbours})",
            "share of neighbours",
            chance={"mixed": geometry.chance, "apart": 1.0},
            y_range=(0, 1.05),
        )
        blocks.append(
            Figure(figure, caption="Of a token's nearest neighbours in the prompt; one prompt, so without an interval.")
        )
    blocks += [Text(reason, muted=True) for reason in found.left_out[found.grid is None :]]
    return Section("Image tokens and words in this prompt", blocks)


def _outcome(outcome: str) -> Any:
    """A proof's outcome; one that is pending is neither right nor wrong."""
    return outcome if outcome == "pending" else Mark(outcome, outcome == "passed")


def _proofs(found: Study) -> Section:
    rows = [
        [check.name, _outcome(check.outcome), f"{check.error:.3g}", check.bound, check.detail]
        for check in found.checks.checks
    ]
    return Section(
        "Does the layout hold?",
        [
            Text("What was found of the model's parts, tried on this very prompt."),
            Table(["proof", "outcome", "measured", "expected", "what it says"], rows),
            Table(
                ["part", "where"],
                [
                    [name, str(getattr(found.structure, name))]
                    for name in ("layers", "norm", "head", "embed", "vision", "projector")
                ],
            ),
        ],
    )
