"""What the emoji organism can do and what is inside of it: the tables of docs/organisms.md about it.

    SMOLLM2=FOLDER python benchmarks/emoji.py                  # all tables, from the shipped weights
    SMOLLM2=FOLDER python benchmarks/emoji.py --only inside    # one of them; the others on the page stay

`--weights` takes the folder of another training, `--style` an atlas of other drawings (`interp.organisms.emoji.drawing`), and
`--out` keeps the answers of each stage, which are asked for once.
"""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import torch

import interp
from interp.geometry import alignment_matrix, entry_controls
from interp.lens import logit_lens
from interp.organisms.emoji.emoji_model import without_template
from interp.organisms.emoji.emoji_scores import answer_emoji_questions, compare_emoji_answers, score_emoji_answers
from interp.organisms.emoji.picture import EmojiPicture, pictures
from interp.organisms.emoji.questions import CAPTION_PROMPT
from interp.organisms.emoji.retention import retention_questions
from interp.organisms.emoji.stages import STAGES, WEIGHTS, load_emoji
from interp.patching import flow, probability
from interp.probes import probe_layers
from interp.statistics import holm, paired_change
from interp.tuning import score

PAGE = Path(__file__).parents[1] / "docs" / "organisms.md"
PICTURES, SEED = 300, 0
FLOW_ROWS, FLOW_WINDOW = 40, 6
BEFORE, AFTER = "stage1", "tuned"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Tables about the emoji organism.")
    parser.add_argument("--only", choices=list(TABLES), help="one table")
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="the folder of another training")
    parser.add_argument("--style", type=Path, help="an atlas of other drawings")
    parser.add_argument("--out", type=Path, default=Path("emoji-answers"), help="where answers are kept")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in list(TABLES) if options.only is None else [options.only]:
        start = time.monotonic()
        text = TABLES[name](Stages(options.weights, options.out, options.style))
        print(f"\n{text}\n<!-- {name}: {time.monotonic() - start:.0f} s -->", flush=True)
        write_table(f"emoji {name}", text)


class Stages:
    """The organism's stages, and what each answers."""

    def __init__(self, weights: Path, out: Path, style: Path | None) -> None:
        self.weights, self.out, self.style = weights, out, style
        self.names = [name for name in STAGES if _is_there(weights, name)]

    def model(self, name: str) -> Any:
        return _loaded(name, self.weights)

    def answers(self, name: str, style: Path | None = None) -> pd.DataFrame:
        """The answers of a stage, asked for once."""
        path = self.out / f"{name.replace(':', '-')}{'-style' if style else ''}.csv"
        if not path.is_file():
            self.out.mkdir(parents=True, exist_ok=True)
            answer_emoji_questions(self.model(name), PICTURES, SEED, style=style).to_csv(path, index=False)
        return pd.read_csv(path)

    def retained(self, name: str) -> pd.DataFrame:
        """Which of the questions in words a stage answers."""
        path = self.out / f"{name.replace(':', '-')}-text.csv"
        if not path.is_file():
            self.out.mkdir(parents=True, exist_ok=True)
            score(without_template(self.model(name)), retention_questions()).to_csv(path, index=False)
        return pd.read_csv(path)


def _is_there(weights: Path, name: str) -> bool:
    stem = weights / name.replace(":", "-")
    return stem.is_dir() or stem.with_suffix(".safetensors").is_file()


@cache
def _loaded(name: str, weights: Path) -> Any:
    return load_emoji(name, weights=weights, check=False)


# What it answers ---------------------------------------------------------------------------------------------------------


def accuracy(stages: Stages) -> str:
    """Each stage's accuracy for each kind of question, with chance and the blank picture; names also in the other style."""
    scores = {name: score_emoji_answers(stages.answers(name)) for name in stages.names}
    columns = {name: [cell(row) for row in each.itertuples()] for name, each in scores.items()}
    first = scores[stages.names[0]]
    lines = [
        [row.modality, row.group, row.kind, f"{row.chance:.2f}", *(column[place] for column in columns.values())]
        for place, row in enumerate(first.itertuples())
    ]
    top5 = {name: each.set_index(["modality", "kind"])["top5"] for name, each in scores.items()}
    lines += [
        [
            "image",
            "perception",
            f"{kind}, first token among five",
            "",
            *(f"{top5[name]['image', kind]:.2f}" for name in top5),
        ]
        for kind in ("name", "caption")
    ]
    if stages.style is not None:
        other = {name: score_emoji_answers(stages.answers(name, stages.style)) for name in (BEFORE, AFTER)}
        for kind in ("name", "caption"):
            cells = []
            for name in stages.names:
                rows = other[name].query("modality == 'image' and kind == @kind") if name in other else ()
                cells.append(cell(next(rows.itertuples())) if len(rows) else "")
            lines.append(["image", "perception", f"{kind}, the other style", "", *cells])
    return table(["from", "group", "kind", "chance", *(f"`{name}`" for name in stages.names)], lines)


def abstraction(stages: Stages) -> str:
    """Choices from the name, and from the picture at stage 1 and tuned: paired, question by question."""
    asked = {name: stages.answers(name).query("group == 'abstraction'") for name in (BEFORE, AFTER)}
    text, image = ({name: each[each["modality"] == kind] for name, each in asked.items()} for kind in ("text", "image"))
    lines = []
    for title, one, other in (
        (f"from the name, `{BEFORE}`, to the picture, `{BEFORE}`", text[BEFORE], image[BEFORE]),
        (f"from the name, `{AFTER}`, to the picture, `{AFTER}`", text[AFTER], image[AFTER]),
        (f"from the picture, `{BEFORE}`, to the picture, `{AFTER}`", image[BEFORE], image[AFTER]),
        (f"from the name, `{BEFORE}`, to the name, `{AFTER}`", text[BEFORE], text[AFTER]),
    ):
        one, other = (each.assign(model="", modality="image") for each in (one, other))
        for by in ("group", "kind"):
            for row in compare_emoji_answers(one, other, by=by).itertuples():
                kind = row.kind if by == "kind" else "all"
                p = f"{row.p_holm:.3f}" if by == "kind" else f"{row.p:.3f}"
                lines.append([title, kind, *change_cells(row), p, str(row.n)])
    return table(["change", "kind", "before", "after", "difference", "p (Holm over kinds)", "n"], lines)


def bands(stages: Stages) -> str:
    """What each band gained on perception and on abstraction, and lost on words: paired with stage 1, and with full tuning."""
    lines, ps = [], []
    for name in [name for name in stages.names if name != BEFORE]:
        for title, one, other in _measured(stages, name):
            for against, change in ((BEFORE, one), (AFTER, other)):
                if against != name:
                    lines.append([f"`{name}`", title, f"`{against}`", *change_cells(change)])
                    ps.append(float(change.p))
    for line, p in zip(lines, holm(ps), strict=True):
        line.append(f"{float(p):.3f}")
    return table(["band", "questions", "against", "before", "after", "difference", "p (Holm)"], lines)


def _measured(stages: Stages, name: str) -> Any:
    def part(each: str, group: str) -> pd.DataFrame:
        return (
            stages.answers(each).query("modality == 'image' and group == @group and kind != 'caption'").assign(model="")
        )

    for group in ("perception", "abstraction"):
        changes = [
            next(compare_emoji_answers(part(against, group), part(name, group), by="group").itertuples())
            for against in (BEFORE, AFTER)
        ]
        yield f"{group}, from pictures", *changes
    right = {each: torch.tensor(stages.retained(each)["right"].to_numpy(float)) for each in (BEFORE, AFTER, name)}
    yield "in words alone", *(paired_change(right[against], right[name]) for against in (BEFORE, AFTER))


# What is inside ----------------------------------------------------------------------------------------------------------


def inside(stages: Stages) -> str:
    """Alignment, probes, lens and flow on held-out pictures of one thing, stage 1 beside tuned."""
    drawn = pictures(PICTURES, SEED + 1, things=1)
    parts = {name: readings(stages.model(name), drawn) for name in (BEFORE, AFTER)}
    rows = [[title, *(parts[name][title] for name in parts)] for title in parts[BEFORE]]
    change = parts[BEFORE].matrix.change(parts[AFTER].matrix)
    rows.append(["alignment, change from the one to the other", "", _change(change)])
    return table(["reading", *(f"`{name}`" for name in parts)], rows)


class Readings(dict):
    """Cells by title, and the matrix that they are about."""

    matrix: Any


def readings(vlm: Any, drawn: Sequence[EmojiPicture]) -> Readings:
    """What the tools read of these pictures in one model."""
    vlm = without_template(vlm)
    said, cells = list(shown_batches(vlm, drawn)), Readings()
    texts = [f"{CAPTION_PROMPT.replace('<image>', '')} {picture.things[0].emoji.name}" for picture in drawn]
    visual = interp.capture(vlm, said, sites=("resid",), positions="thing", progress=False)["resid"]
    textual = interp.capture(vlm, texts, sites=("resid",), positions="last", progress=False)["resid"]
    tower = interp.capture(vlm, said, sites=("vision",), reduce="none", progress=False)["vision"]
    blocks = tower[-1].unflatten(0, (len(drawn), -1))
    placebo = torch.stack(
        [(each[picture.patches == 0]).mean(dim=0) for each, picture in zip(blocks, drawn, strict=True)]
    )
    matrix = alignment_matrix(visual, textual, progress=False)
    cells.matrix = matrix
    control = alignment_matrix(entry_controls(visual[0], placebo), textual, progress=False)
    bypass, phase = matrix.bypass(placebo=control), matrix.phase()
    best = int(bypass.best[0])
    cells["alignment of state 0 with textual state 0"] = (
        f"{matrix.values[0, 0]:.3f} (chance {float(matrix.chance):.3f})"
    )
    cells["... with the textual state most like it"] = f"state {best}: {matrix.values[0, best]:.3f}"
    cells["... gain"] = (
        f"{bypass.gain[0]:.3f} [{bypass.gain_low[0]:.3f}, {bypass.gain_high[0]:.3f}], p {float(bypass.p[0]):.3f}"
    )
    cells["... more than the tower itself (bypass)"] = bypass.verdict.value
    cells["phase of the diagonal"] = "none" if phase is None else f"states {phase.start} to {phase.stop - 1}"
    groups = [picture.things[0].emoji.group for picture in drawn]
    probed = probe_layers(visual, groups, transfer=textual, progress=False)
    top = int(probed.accuracy.argmax())
    for title, state in (("state 0", 0), ("best state", top), ("last state", visual.shape[0] - 1)):
        share = f"{probed.accuracy[state]:.2f} [{probed.low[state]:.2f}, {probed.high[state]:.2f}]"
        controls = f"shuffled {probed.control[state]:.2f}; the same probe on the name {probed.transfer[state]:.2f}"
        cells[f"group, linear probe, {title}"] = f"{state}: {share} ({controls})"
    cells |= lens_cells(vlm, drawn)
    cells |= flow_cells(vlm, drawn[: 4 * FLOW_ROWS])
    return cells


def shown_batches(vlm: Any, drawn: Sequence[EmojiPicture], size: int = 50) -> Any:
    """Captions' prompts with pictures; "thing" are the patches of the thing. The image's tokens follow the begin token."""
    for start in range(0, len(drawn), size):
        part = drawn[start : start + size]
        spans = [{"thing": [1 + int(patch) for patch in (each.patches == 0).nonzero()]} for each in part]
        yield vlm.prepare([CAPTION_PROMPT] * len(part), [each.image for each in part], spans=spans)


def lens_cells(vlm: Any, drawn: Sequence[EmojiPicture]) -> dict[str, str]:
    """How often the first token of the name is among the five words that the lens reads at the thing's patches."""
    own, other = [], []
    ids = [
        int(vlm.tokenizer(f" {each.things[0].emoji.name}", add_special_tokens=False)["input_ids"][0]) for each in drawn
    ]
    start = 0
    for batch in shown_batches(vlm, drawn):
        mine = ids[start : start + len(batch)]
        for targets, into in ((mine, own), (mine[1:] + mine[:1], other)):
            into.append(logit_lens(vlm, batch, positions="thing", targets=targets).target_ranks < 5)
        start += len(batch)
    share, chance = (torch.cat(each, dim=1).double().mean(dim=1) for each in (own, other))
    best = int(share.argmax())
    return {
        "logit lens, first token of the name among five, state 0": f"{share[0]:.2f} (another picture's name {chance[0]:.2f})",
        "... best state": f"{best}: {share[best]:.2f} (another picture's name {chance[best]:.2f})",
    }


def flow_cells(vlm: Any, drawn: Sequence[EmojiPicture]) -> dict[str, str]:
    """Which window of layers the answer needs which edge in: the largest loss, with the loss of as many random keys."""
    ids = [
        int(vlm.tokenizer(f" {each.things[0].emoji.name}", add_special_tokens=False)["input_ids"][0]) for each in drawn
    ]
    batch = vlm.prepare([CAPTION_PROMPT] * len(drawn), [each.image for each in drawn])
    right = (vlm.logits(batch).argmax(dim=-1) == torch.tensor(ids)).nonzero().flatten().tolist()[:FLOW_ROWS]
    title = "flow, first token of the name, rows answered"
    if len(right) < 10:
        return {title: f"{len(right)} of {len(drawn)}: too few"}
    batch = vlm.prepare([CAPTION_PROMPT] * len(right), [drawn[row].image for row in right])
    edges = {
        "image to the words": ("image", "question"),
        "image to the last": ("image", "last"),
        "words to the last": ("question", "last"),
    }
    result = flow(vlm, batch, edges, FLOW_WINDOW, metric=probability([ids[row] for row in right]), progress=False)
    cells = {title: str(len(right))}
    for edge, name in enumerate(edges):
        most = int(result.values[edge].argmin())
        layers = result.windows[most]
        cells[f"... {name}"] = (
            f"layers {layers.start} to {layers.stop - 1}: {result.values[edge, most]:.0f} % "
            f"[{result.low[edge, most]:.0f}, {result.high[edge, most]:.0f}] (random keys {result.control[edge, most]:.0f} %)"
        )
    return cells


def _change(change: Any) -> str:
    low, high = change.low[0], change.high[0]
    best = int(change.values[0].abs().argmax())
    return f"state 0 with textual state {best}: {change.values[0, best]:+.3f} [{low[best]:+.3f}, {high[best]:+.3f}]"


# The page ----------------------------------------------------------------------------------------------------------------


def cell(row: Any) -> str:
    """An accuracy with its interval."""
    return f"{row.accuracy:.3f} ({row.low:.2f} to {row.high:.2f})"


def change_cells(row: Any) -> list[str]:
    """Before, after and the difference of a paired change."""
    return [
        f"{float(row.before):.3f}",
        f"{float(row.after):.3f}",
        f"{float(row.difference):+.3f} [{float(row.low):+.3f}, {float(row.high):+.3f}]",
    ]


def table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in markdown."""
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write_table(name: str, text: str) -> None:
    """Put a table between its marks on the page, where it has some."""
    marks, page = (f"<!-- table {name} -->", f"<!-- end {name} -->"), PAGE.read_text()
    written = re.sub(f"{marks[0]}.*{marks[1]}", lambda _: f"{marks[0]}\n{text}\n{marks[1]}", page, flags=re.S)
    if written != page:
        PAGE.write_text(written)


TABLES: dict[str, Callable[[Stages], str]] = {
    "accuracy": accuracy,
    "abstraction": abstraction,
    "bands": bands,
    "inside": inside,
}

if __name__ == "__main__":
    main()
