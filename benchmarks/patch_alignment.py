"""What patch alignment does to a projector, on the toy: captions alone against captions and masks, the same steps and rows.

``python benchmarks/patch_alignment.py``: from ``toy:base``, whose connector is untrained, each arm trains the connector on
captions of the same scenes (stage 1), and then connector and decoder on the same perception questions (stage 2, short). A seed
draws the connector's first weights, the scenes and their order. Measured on held-out scenes after each stage:
`projector_report`, and the answers to questions about images. Differences from the first arm are paired by object or question
and by seed; their intervals are over other scenes and other seeds (`interp.statistics.crossed_change`, scenes stay whole).
Prints tables in markdown; about 6 minutes on a quiet core. ``--steps``, ``--seeds`` and ``--scenes`` make it smaller.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

import interp
from interp.data.batches import batches_of
from interp.statistics import crossed_change, holm
from interp.tuning import masked_objects, tune
from interp.tuning.examples import Collator, training_rows
from interp.words import dictionary_of, projector_report
from interp.words.projector import projected

ARMS = {"captions": 0.0, "and masks": 0.1}  # beta of each
STAGES = ("stage 1", "stage 2")
# The toy's own recipe (`interp.toy.train`) on a cosine, with less rows in a step.
COMMON = {"adam_beta2": 0.98, "weight_decay": 0.01, "warmup_steps": 0.1}
STAGE1 = {**COMMON, "learning_rate": 2e-3, "per_device_train_batch_size": 32}
STAGE2 = {**COMMON, "learning_rate": 5e-4, "per_device_train_batch_size": 16}


def fresh(seed: int) -> interp.VLM:
    """``toy:base`` with a connector of this seed."""
    base = interp.load("toy:base", device="cpu")
    model = copy.deepcopy(base.model)
    torch.manual_seed(seed)
    for part in model.get_submodule(base.structure.projector).modules():
        if hasattr(part, "reset_parameters"):
            part.reset_parameters()
    return interp.load(model=model, processor=base.processor, device="cpu", check=False)


def captions(n: int, seed: int, split: str = "train") -> list[dict[str, Any]]:
    """Scenes with their captions as answers, and their masks."""
    rows = []
    for scene in interp.toy.scenes(n, seed, split):
        pairs = zip(scene.objects, scene.masks, strict=True)
        masks = [{"words": f"{each.colour} {each.digit}", "mask": mask} for each, mask in pairs]
        rows.append({"id": scene.id, "image": scene.image, "text": "<image>", "answer": scene.caption, "masks": masks})
    return rows


def object_excess(vlm: interp.VLM, rows: list[dict[str, Any]]) -> Tensor:
    """For each object its mean cosine with its own words less that with the words of all objects, Float `[object]`.

    The mean is `projector_report(...).alignment` minus its null, without the draws.
    """
    table = torch.nn.functional.normalize(dictionary_of(vlm, "embed").rows, dim=1)
    parts = [projected(vlm, batch)[1:] for batch in batches_of(vlm, rows, 32)]
    tokens = [own for batch, of in parts for own in (batch[of == row] for row in range(int(of.max()) + 1))]
    means, words = [], []
    for own, objects in zip(tokens, masked_objects(vlm, rows), strict=True):
        for shows, ids in objects:
            means.append(own[shows].mean(dim=0))
            words.append(table[ids].mean(dim=0))
    cosines = torch.nn.functional.normalize(torch.stack(means), dim=1) @ torch.stack(words).T
    return cosines.diagonal() - cosines.mean(dim=1)


def measures(vlm: interp.VLM, rows: list[dict[str, Any]], scenes: int) -> dict[str, Any]:
    """The report, what each object gains from its own words, and the answers about images."""
    report = projector_report(vlm, rows, masked_objects(vlm, rows))
    answers = interp.toy.answer_questions(vlm, n=scenes, seed=1, progress=False)
    answers = answers[answers["modality"] == "image"].reset_index(drop=True)
    collator, examples = Collator(vlm), training_rows(vlm, rows)
    batch = collator([examples[row] for row in range(len(examples))])
    with torch.no_grad():
        loss = vlm.model(**{name: batch[name] for name in batch.keys() - {"row_numbers", "cut_off"}}).loss
    return {"report": report, "excess": object_excess(vlm, rows), "answers": answers, "caption loss": float(loss)}


def run(steps: Mapping[str, int], seeds: int, scenes: int) -> dict[tuple[str, int, str], dict[str, Any]]:
    """All measures by arm, seed and stage."""
    test, found = captions(scenes, seed=1, split="test"), {}
    for seed, (arm, beta) in itertools.product(range(seeds), ARMS.items()):
        start = time.monotonic()
        one = tune(
            fresh(seed), captions(32 * steps["stage 1"], seed), layers=(), connector=True, patch_alignment=beta,
            arguments={**STAGE1, "max_steps": steps["stage 1"], "seed": seed},
        )  # fmt: skip
        found[arm, seed, "stage 1"] = measures(one.vlm, test, scenes)
        two = tune(
            one.vlm, interp.toy.conversations(16 * steps["stage 2"], 1000 + seed), layers="all", connector=True,
            arguments={**STAGE2, "max_steps": steps["stage 2"], "seed": seed},
        )  # fmt: skip
        found[arm, seed, "stage 2"] = measures(two.vlm, test, scenes)
        print(f"<!-- {arm}, seed {seed}: {time.monotonic() - start:.0f} s -->", flush=True)
    return found


def interval(change: Any) -> str:
    """A change with its bounds."""
    return f"{change.value:+.2f} [{change.low:+.2f}, {change.high:+.2f}]"


def print_projector(found: dict[tuple[str, int, str], dict[str, Any]], seeds: int, rows: list[dict[str, Any]]) -> None:
    """The projector after each stage, and the difference of each arm's alignment from the first arm's."""
    first, scenes = next(iter(ARMS)), [row["id"] for row in rows for _ in row["masks"]]
    titles = ["stage", "arm", "alignment", "exchanged words", "largest p", "alignment less exchanged, from captions"]
    print_row([*titles, "entropy", "participation", "neighbours kept", "caption loss"], head=True)
    for stage, arm in itertools.product(STAGES, ARMS):
        own, before = ([found[name, seed, stage] for seed in range(seeds)] for name in (arm, first))
        reports = [each["report"] for each in own]
        numbers = [(r.alignment, r.alignment_null, r.entropy[1], r.participation[1], r.kept[1]) for r in reports]
        mean = [f"{each:.2f}" for each in torch.tensor(numbers, dtype=torch.float64).mean(dim=0).tolist()]
        mean += [f"{sum(each['caption loss'] for each in own) / seeds:.2f}"]
        excess = [torch.stack([each["excess"] for each in some]) for some in (before, own)]
        change = "" if arm == first else interval(crossed_change(*excess, scenes))
        print_row([stage, arm, *mean[:2], f"{max(r.alignment_p for r in reports):.3f}", change, *mean[2:]])
    report = found[first, 0, "stage 1"]["report"]
    before = f"entropy {float(report.entropy[0]):.2f}, participation {float(report.participation[0]):.2f}"
    print(f"\nBefore the projector: {before}. Chance of neighbours kept: {report.kept_chance:.3f}.\n")


def print_answers(found: dict[tuple[str, int, str], dict[str, Any]], seeds: int) -> None:
    """The share of right answers about images after each stage, the difference of each arm from the first, and its p (Holm)."""
    first, *others = ARMS
    print_row(
        ["stage", "questions", *ARMS, *(f"{arm}, {each}" for arm in others for each in ("from captions", "p"))],
        head=True,
    )
    rows, values = [], []
    for stage, group in itertools.product(STAGES, ("perception", "abstraction")):
        right, scenes = {}, []
        for arm in ARMS:
            frames = [found[arm, seed, stage]["answers"] for seed in range(seeds)]
            frames = [frame[frame["group"] == group] for frame in frames]
            right[arm] = torch.stack([torch.tensor(frame["right"].to_numpy(bool)) for frame in frames])
            scenes = frames[0]["scene"].tolist()
        shares = [f"{float(each.double().mean()):.2f}" for each in right.values()]
        changes = [crossed_change(right[first], right[arm], scenes) for arm in others]
        rows.append(([stage, group, *shares], [interval(change) for change in changes]))
        values += [change.p for change in changes]
    corrected = iter(holm(values))
    for cells, changes in rows:
        print_row([*cells, *(each for change in changes for each in (change, f"{float(next(corrected)):.3f}"))])


def print_row(cells: list[str], head: bool = False) -> None:
    """A row of a table in markdown."""
    print(f"| {' | '.join(cells)} |" + f"\n{'|---' * len(cells)}|" * head)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Patch alignment on the toy.")
    parser.add_argument("--steps", type=int, nargs=2, default=(150, 40), help="steps of stage 1 and of stage 2")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--scenes", type=int, default=60, help="held-out scenes")
    options = parser.parse_args()
    torch.set_num_threads(1)
    steps = dict(zip(STAGES, options.steps, strict=True))
    print(f"Steps: {steps}; {options.seeds} seeds; {options.scenes} held-out scenes; {STAGE1=}, {STAGE2=}")
    found = run(steps, options.seeds, options.scenes)
    print_projector(found, options.seeds, captions(options.scenes, seed=1, split="test"))
    print_answers(found, options.seeds)


if __name__ == "__main__":
    main()
