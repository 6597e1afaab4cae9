"""Screening: which questions does the language model answer from names, and in which words?

``python -m interp.organisms.emoji.screen --out DIR`` asks SmolLM2 every kind of question of ``data/labels.csv`` about
names alone, and writes the table that `interp.organisms.emoji.abstraction` reads. A model of 135 million parameters has to be
asked in words that suit it, so several wordings of each kind are tried, and then the choice among them must not flatter the
score:

- The names of each answer are halved by a seed. The wording is chosen on one half (24 names an answer at most).
- Its score is that on the other half (40 names an answer at most). A kind is kept if at least 80 % of those answers are right,
  and at least 80 % as the mean over the two answers, so that no constant answer passes.
- The wordings to choose from came out of trials on names of both halves. So a score flatters a little, as that of a question that
  was kept always does.
- For the record, 8 names an answer of the first half are also asked without examples: "Is it ...? Answer yes or no." behind the
  name, and the choice in the chat template.

Then it asks the candidates of ``data/retention.csv``, and keeps 200 of those that the model answers.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool

from interp.files import whole_file
from interp.models import VLM
from interp.organisms.emoji.abstraction import LABELS, SCREENING, ChoiceWording, asked_wordings, known_labels
from interp.organisms.emoji.emoji_model import without_template
from interp.organisms.emoji.emoji_scores import choice_margins
from interp.organisms.emoji.retention import RETENTION, retention_candidates
from interp.progress import progress_bar
from interp.statistics.intervals import weighted_share_interval
from interp.tuning.scoring import score

KEPT = 0.8
_CHOOSING, _TESTING, _OTHER_FORMS = 24, 40, 8
_KEPT_NAMES, _KEPT_OTHERS = 80, 120
_WORDINGS = """
animal: animal thing dog hammer; animal object dog hammer; animal machine cow car
food: food animal bread dog; food animal soup horse
living: living machine cat car; born made cat car; grows made tree car
plant: flower animal rose dog; plant animal tree dog
bird: bird mammal eagle dog; feathers fur eagle dog
insect: insect mammal wasp dog; insect animal wasp dog
sea: ocean land shark horse; sea land shark horse
fly: fly walk sparrow dog; fly walk bird dog
farm: farm zoo sheep monkey; farm jungle sheep monkey; tame wild sheep bear
big: huge tiny elephant ant; huge tiny mountain ant; giant tiny elephant ant
vehicle: transport tool car hammer; vehicle tool car hammer
wheels: wheels legs car dog; drive walk car dog
water: water road boat car; sail drive boat car; sea land boat car
air: fly drive plane car; air road plane car; sky road plane car
building: building object house hammer; place object house hammer
wear: wear eat shirt bread; clothing food shirt bread
instrument: instrument tool piano hammer; music tool piano hammer; music work piano hammer
tool: tool food hammer bread; tool toy hammer doll
metal: metal cloth sword shirt; metal fabric sword shirt; steel cotton sword towel
sport: sport office football pencil; sport work football pencil; game work football pencil
kitchen: cook repair plate car; kitchen garage plate car; kitchen workshop plate drill
drink: drink food tea bread; drink eat tea bread
fruit: fruit vegetable apple cabbage; fruit vegetable orange spinach
sweet: dessert dinner cake meat; sugar salt cake meat; sweet salty cake bacon
hot: hot cold fire ice; hot cold summer winter
winter: winter summer snow beach; cold warm snow beach
happy: happy sad smile tears; joy sadness smile tears
dangerous: dangerous safe bomb flower; danger safe bomb flower
"""
WORDINGS: Mapping[str, tuple[ChoiceWording, ...]] = {
    kind: tuple(ChoiceWording(*words.split()) for words in rest.split(";"))
    for kind, rest in (line.split(":") for line in _WORDINGS.strip().splitlines())
}
COLUMNS = "kind form first second first_example second_example chosen_on accuracy balanced low high auc n kept".split()


def screened(
    vlm: VLM, kinds: Sequence[str] | None = None, seed: int = 0, names: Mapping[str, Mapping[str, bool]] | None = None
) -> list[dict[str, Any]]:
    """The table of the screening, a row for each form and wording of each kind.

    ``chosen_on`` is the balanced accuracy on the names that the wording is chosen on. The chosen wording alone has the numbers of
    the other names: accuracy, balanced accuracy with its 95 % interval, the area under the curve of margins, the number of names,
    and whether the kind is kept. `names` are other labels than `known_labels`.
    """
    names, rows = names or known_labels(), list[dict[str, Any]]()
    questions = _questions()
    kinds = list(WORDINGS) if kinds is None else list(kinds)
    with progress_bar("screening", len(kinds), "kinds") as bar:
        for kind in kinds:
            taken = {example for each in WORDINGS[kind] for example in (each.first_example, each.second_example)}
            first, second = _halves({name: label for name, label in names[kind].items() if name not in taken}, seed)
            tried = [(wording, _listed(vlm, wording, first)) for wording in WORDINGS[kind]]
            best = max(tried, key=lambda each: each[1]["balanced"])[0]
            for wording, numbers in tried:
                row = {
                    "kind": kind,
                    "form": "two examples",
                    **vars(wording),
                    "chosen_on": numbers["balanced"],
                    "kept": "no",
                }
                if wording is best:
                    row |= _listed(vlm, wording, second)
                    row["kept"] = "yes" if min(row["balanced"], row["accuracy"]) >= KEPT else "no"
                rows.append(row)
            for form, numbers in _other_forms(vlm, questions[kind], WORDINGS[kind][0], first).items():
                rows.append({"kind": kind, "form": form, "chosen_on": numbers["balanced"], "kept": "no"})
            bar.advance()
    return rows


def _questions() -> dict[str, str]:
    with LABELS.open(encoding="utf-8", newline="") as file:
        return {row["kind"]: row["question"] for row in csv.DictReader(file)}


def _halves(names: Mapping[str, bool], seed: int) -> tuple[dict[str, bool], dict[str, bool]]:
    """The names to choose on and those to test on, of each answer at random."""
    rng = np.random.default_rng(seed)
    halves: tuple[dict[str, bool], dict[str, bool]] = {}, {}
    for label in (True, False):
        known = sorted(name for name in names if names[name] is label)
        known = [known[index] for index in rng.permutation(len(known))]
        middle = len(known) // 2
        halves[0].update(dict.fromkeys(known[:middle][:_CHOOSING], label))
        halves[1].update(dict.fromkeys(known[middle:][:_TESTING], label))
    return halves


def _listed(vlm: VLM, wording: ChoiceWording, names: Mapping[str, bool]) -> dict[str, Any]:
    """The score of the form that is asked: a list with two examples, in both orders."""
    prompts = [prompt for name in names for prompt in wording.prompts(name)]
    pair = f" {wording.first}", f" {wording.second}"
    return _scored(choice_margins(vlm, [(prompt, *pair) for prompt in prompts]).view(-1, 2).mean(dim=1), names)


def _other_forms(
    vlm: VLM, question: str, wording: ChoiceWording, names: Mapping[str, bool]
) -> dict[str, dict[str, Any]]:
    names = {name: label for each in (True, False) for name, label in _first_of(names, each)}
    plain = [(f"<|im_start|>{name}\n{question} Answer yes or no.\nAnswer:", " Yes", " No") for name in names]
    opening, closing = "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"
    one, other = wording.first.capitalize(), wording.second.capitalize()
    chat = [(f"{opening}{name}\n{one} or {wording.second}?{closing}", one, other) for name in names]
    if vlm.tokenizer(one)["input_ids"][0] == vlm.tokenizer(other)["input_ids"][0]:
        chat = []  # a choice that no single token shows
    forms = {form: choices for form, choices in (("yes or no", plain), ("choice, chat", chat)) if choices}
    return {form: _scored(choice_margins(vlm, choices), names) for form, choices in forms.items()}


def _first_of(names: Mapping[str, bool], label: bool) -> list[tuple[str, bool]]:
    return [item for item in names.items() if item[1] is label][:_OTHER_FORMS]


def _scored(margins: torch.Tensor, names: Mapping[str, bool]) -> dict[str, Any]:
    from sklearn.metrics import roc_auc_score

    labels = torch.tensor(list(names.values()))
    hits = (margins > 0) == labels
    weights = torch.where(labels, 0.5 / labels.double().mean(), 0.5 / (~labels).double().mean())
    low, high = weighted_share_interval(hits, weights)
    numbers: dict[str, Any] = {
        "accuracy": hits.double().mean(),
        "balanced": (weights * hits).mean(),
        "low": low,
        "high": high,
    }
    rounded = {name: round(float(value), 3) for name, value in numbers.items()}
    return {**rounded, "auc": round(float(roc_auc_score(labels, margins)), 3), "n": len(labels)}


def name_candidates(names: int = 8, seed: int = 0) -> list[dict[str, str]]:
    """Choices about the names of emoji as candidates for retention: so many for each word of each kind that is asked."""
    rng, rows = np.random.default_rng([seed, 1]), list[dict[str, str]]()
    for kind, wording in asked_wordings().items():
        for is_first in (True, False):
            known = sorted(name for name, label in known_labels()[kind].items() if label is is_first)
            known = [name for name in known if name not in (wording.first_example, wording.second_example)]
            for index in rng.permutation(len(known))[:names]:
                answer = f" {wording.first if is_first else wording.second}"
                rows.append({"kind": "name", "text": wording.prompts(known[index])[0], "answer": answer})
    return rows


def screened_retention(vlm: VLM, candidates: Sequence[Mapping[str, str]], seed: int = 0) -> list[dict[str, str]]:
    """The candidates with `kept`: "yes" for 80 choices about names and 120 others, at random of those that the model answers."""
    right = score(without_template(vlm), [dict(row) for row in candidates])["right"].to_numpy(bool)
    return kept_of(candidates, right, seed)


def kept_of(
    candidates: Sequence[Mapping[str, str]], right: Bool[np.ndarray, " candidate"], seed: int = 0
) -> list[dict[str, str]]:
    """`screened_retention` for answers that are known to be right or wrong."""
    left, kept = {True: _KEPT_NAMES, False: _KEPT_OTHERS}, set[int]()
    for index in np.random.default_rng([seed, 2]).permutation(np.flatnonzero(right)).tolist():
        is_name = candidates[index]["kind"] == "name"
        if left[is_name]:
            left[is_name] -= 1
            kept.add(index)
    return [{**row, "kept": "yes" if index in kept else "no"} for index, row in enumerate(candidates)]


def write_table(rows: Sequence[Mapping[str, Any]], path: Path, columns: Sequence[str]) -> None:
    """Write a table whole or not at all."""
    with whole_file(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def main(arguments: list[str] | None = None) -> None:
    """The command line of the screening."""
    from interp.organisms.emoji.stages import load_emoji

    parser = argparse.ArgumentParser(
        prog="python -m interp.organisms.emoji.screen", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for screening.csv and retention.csv")
    options = parser.parse_args(arguments)
    vlm = load_emoji("stage1")
    options.out.mkdir(parents=True, exist_ok=True)
    write_table(screened(vlm), options.out / SCREENING.name, COLUMNS)
    candidates = [{name: row[name] for name in ("kind", "text", "answer")} for row in retention_candidates()]
    write_table(screened_retention(vlm, candidates), options.out / RETENTION.name, (*candidates[0], "kept"))


if __name__ == "__main__":
    main()
