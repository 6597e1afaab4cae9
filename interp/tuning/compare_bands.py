"""Comparing bands: every band is tuned with every seed on the same rows, and asked the same questions.

Bands share data, their order, schedule, settings and seeds, so that nothing but the trained layers differs. The model before
tuning, which must be the one after stage 1 (with a connector that is trained), answers the same questions as their control.

Times need care: runs of one comparison lie hours apart, and a machine has busy hours. So after the last run bands take a few
steps in turns, some rounds of them, and are compared round by round.

With `out=` each run is a file when it is over, and goes on from its last checkpoint when it was stopped. The tuned models
themselves are not kept: twenty models of 7 billion parameters are 300 GB. `tune` with the same layers, arguments and seed
makes one again.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.arguments import as_int, as_ints, checked_flag, checked_int, checked_seed
from interp.errors import InputError, InputTypeError, shown
from interp.progress import progress_bar, quiet
from interp.provenance import Provenance
from interp.statistics import few_rows
from interp.tuning.band_answers import CHANCE, FULL, UNTUNED, BandAnswers
from interp.tuning.band_comparison import COUNTED, BandComparison
from interp.tuning.band_runs import RESULT, BandRun, RunFolder
from interp.tuning.bands import Band, checked_bands
from interp.tuning.bands import bands as bands_of_model
from interp.tuning.examples import Collator, TrainingRows
from interp.tuning.lora import adapter_config, plain_config
from interp.tuning.scoring import frame_of, picture_key, question_rows, refuse_shared, right_answers, rows_of
from interp.tuning.step_costs import PHASES
from interp.tuning.training_arguments import changed_fields, training_arguments
from interp.tuning.tune import tune
from interp.tuning.tune_result import TuneResult
from interp.tuning.tuned_model import autocast_precision, fingerprints

if TYPE_CHECKING:
    from interp.models import VLM

# Steps of a round: the first is counted and not timed.
_STEPS = 3
_MANY = 5
_OPTIONS = ("lora", "max_length", "patch_alignment")


def compare_bands(
    vlm: VLM,
    data: Any,
    bands: Any = None,
    seeds: Any = 3,
    *,
    test: Any,
    text: Any = None,
    connector: bool = False,
    head: bool = False,
    arguments: Any = None,
    out: Any = None,
    resume: bool = False,
    timing_rounds: int = 6,
    progress: bool = True,
    **options: Any,
) -> BandComparison:
    """Tune each band with each seed on `data`, and compare what they answer, what they lose on text and what they cost.

    >>> import interp
    >>> vlm, rows = interp.load("toy:stage1"), interp.toy.conversations(4, seed=0, questions=2)
    >>> questions = interp.toy.questions(2, seed=0, group="perception")
    >>> brief = {"max_steps": 1, "per_device_train_batch_size": 2}
    >>> middle = {"middle": range(2, 6)}
    >>> comparison = compare_bands(vlm, rows, middle, seeds=1, test=questions, arguments=brief, timing_rounds=0)
    >>> comparison.table()["band"].tolist()
    ['full', 'middle', 'untuned', 'chance']

    `vlm` is the model after stage 1. `bands` maps names to a `Band` or to layers; a function of the seed does so for each; None
    stands for `bands` of half the layers, with other random layers for each seed. Full tuning, which the others are a share
    of, is added where no band is named "full". `connector` and `head` hold for all bands that do not say it themselves.
    `seeds` are so many, or a list; three is little and five is better (`interp.statistics.crossed`).

    `test` are questions with one answer each (`score`), which must not be trained on; their columns kind and group, where they
    have them, are the kinds that are told apart and what belongs together. `text` are such questions without a picture: what the
    model may lose. `data`, `arguments` and the `options` lora, max_length and patch_alignment are those of `tune`; questions are
    answered `per_device_eval_batch_size` at a time (8 by default).

    With `out`, a folder, a comparison that died goes on with ``resume=True``, also within a run. In each of `timing_rounds`
    every band takes three steps anew, the last two of which are timed; 0 measures no times. A random band is timed with the
    layers of the first seed.

    Raises `InputError` or `InputTypeError` before anything runs for bands, seeds, data, settings and folders that cannot be
    used, for questions that are trained on, and where a folder holds a comparison of other arguments; later what `tune` raises.
    """
    seeds, rounds = _checked_seeds(seeds), checked_int(timing_rounds, "timing_rounds")
    drawn = _drawn_bands(vlm, bands, seeds, checked_flag(connector, "connector"), checked_flag(head, "head"))
    training = _checked_training(vlm, data, arguments, options)
    given = {name: each for name, each in (("test", test), ("text", text)) if each is not None}
    sets = {name: question_rows(vlm, each, name) for name, each in given.items()}
    rows = rows_of(vlm, data, "data")
    notes = [note for name, each in sets.items() for note in refuse_shared(rows, each, name)]
    plan = training.plan() | {"seeds": seeds, "timing_rounds": rounds, "data": _digest(rows)}
    plan |= {f"band {name}": [asdict(each) for each in several] for name, several in drawn.items()}
    plan |= {name: _digest(each) for name, each in sets.items()}
    folder = RunFolder(out, plan, resume) if checked_flag(resume, "resume") or out is not None else None
    with quiet(not checked_flag(progress, "progress")):
        before = training.answers(vlm, sets)
        runs = _runs(training, drawn, seeds, sets, folder)
        measure = partial(_times, training, [several[0] for several in drawn.values()], seeds[0], rounds)
        times = measure() if folder is None or not rounds else folder.times(measure)
    answers = {
        name: BandAnswers(
            tuple(drawn),
            frame_of(each),
            torch.stack([torch.stack([run.answers[name] for run in of_band]) for of_band in runs.values()]),
            before[name],
        )
        for name, each in sets.items()
    }
    comparison = BandComparison(
        bands=drawn,
        seeds=seeds,
        test=answers["test"],
        text=answers.get("text"),
        costs=_costs(runs, seeds),
        loss=torch.stack([torch.stack([run.result.loss for run in of_band]) for of_band in runs.values()]),
        seconds=times,
        provenance=Provenance(vlm.name, vlm.revision, plan["data"], notes=(*notes, *_notes(drawn, runs, answers))),
    )
    if folder is not None:
        comparison.save(folder.path / RESULT)
    return comparison


# What is asked for -------------------------------------------------------------------------------------------------------


def _checked_seeds(seeds: Any) -> list[int]:
    count = as_int(seeds)
    several = as_ints(seeds) if count is None else list(range(count))
    if not several or len(set(several)) < len(several):
        raise InputError(f"seeds={shown(seeds)}: expected how many, 1 or more, or a list of different seeds")
    return [checked_seed(seed) for seed in several]


def _drawn_bands(vlm: VLM, bands: Any, seeds: list[int], connector: bool, head: bool) -> dict[str, list[Band]]:
    """The bands by name, one for each seed, with full tuning among them."""
    n_layers = vlm.structure.n_layers
    everything = {FULL: Band(range(n_layers))}
    if bands is None:
        bands = partial(bands_of_model, n_layers, None)
    of_seeds = [
        {name: band.resolved(connector, head) for name, band in (everything | checked_bands(each)).items()}
        for each in ([bands(seed) for seed in seeds] if callable(bands) else [bands] * len(seeds))
    ]
    names = list(of_seeds[0])
    if any(list(each) != names for each in of_seeds):
        raise InputError(f"bands has the names {shown(names)} for seed {seeds[0]} and others for another seed")
    for name, band in ((name, each[name]) for each in of_seeds for name in names):
        if name in (UNTUNED, CHANCE):
            raise InputError(f"bands has the name {name!r}, that of a control: choose another one")
        if max(band.layers, default=0) >= n_layers:
            raise InputError(
                f"bands[{name!r}] has layer {max(band.layers)}: {vlm.name!r} has layers 0 to {n_layers - 1}"
            )
        if not (band.layers or band.connector or band.vision or band.head):
            raise InputError(f"bands[{name!r}] trains nothing: expected layers, or connector=True")
        if name == FULL and len(band.layers) < n_layers:
            raise InputError(f"bands[{FULL!r}] has {len(band.layers)} layers: expected all {n_layers}, or another name")
    return {name: [each[name] for each in of_seeds] for name in names}


def _checked_training(vlm: VLM, data: Any, arguments: Any, options: Mapping[str, Any]) -> _Training:
    unknown = [name for name in options if name not in _OPTIONS]
    if unknown:
        raise InputTypeError(
            f"compare_bands() got {unknown[0]}=: expected {', '.join(_OPTIONS)} beside its own arguments"
        )
    if isinstance(arguments, Mapping) and {"seed", "data_seed"} & arguments.keys():
        raise InputError("arguments has a seed: leave it out, seeds= says which")
    if options.get("lora") is not None:
        adapter_config(options["lora"])
    Collator(vlm, options.get("max_length"))
    training = _Training(vlm, data, arguments, options)
    training.made()
    return training


@dataclass(frozen=True)
class _Training:
    """How every band is tuned."""

    vlm: VLM
    data: Any
    arguments: Any
    options: Mapping[str, Any]

    def made(self) -> Any:
        """transformers' arguments; raises what they raise."""
        return training_arguments(self.arguments, self.vlm.device, autocast_precision(self.vlm), None)

    def plan(self) -> dict[str, Any]:
        """What a run that goes on must have in common with the one that began."""
        weights = fingerprints(self.vlm.model, [name for name, _ in self.vlm.model.named_parameters()])
        digest = hashlib.sha256(json.dumps(weights, sort_keys=True).encode()).hexdigest()
        plan = {"model": self.vlm.name, "weights": digest, "arguments": changed_fields(self.made())}
        return plan | {name: plain_config(value) for name, value in self.options.items()}

    def answers(self, vlm: Any, sets: Mapping[str, TrainingRows]) -> dict[str, Bool[Tensor, " question"]]:
        """Which questions a model answers rightly; the logits of so many rows are in memory at once."""
        size = self.made().per_device_eval_batch_size
        return {name: right_answers(vlm, rows, size) for name, rows in sets.items()}

    def tune(self, band: Band, seed: int, changes: Mapping[str, Any], **folder: Any) -> TuneResult:
        """A training of this band, with further arguments."""
        changes = {**changes, "seed": seed}
        if self.arguments is None or isinstance(self.arguments, Mapping):
            arguments = {**(self.arguments or {}), **changes}
        else:
            arguments = copy.copy(self.arguments)
            for name, value in changes.items():
                setattr(arguments, name, value)
        parts: dict[str, Any] = {"connector": band.connector, "vision": band.vision, "head": band.head}
        options = {name: value for name, value in self.options.items() if name != "lora" or band.layers}
        return tune(self.vlm, self.data, band.layers, **parts, **options, arguments=arguments, **folder)


# Runs --------------------------------------------------------------------------------------------------------------------


def _runs(
    training: _Training,
    drawn: Mapping[str, list[Band]],
    seeds: list[int],
    sets: Mapping[str, TrainingRows],
    folder: RunFolder | None,
) -> dict[str, list[BandRun]]:
    """The runs of each band, one for each seed; all bands with one seed before the next seed."""
    runs: dict[str, list[BandRun]] = {name: [] for name in drawn}
    with progress_bar("comparing bands", len(drawn) * len(seeds), "runs") as bar:
        for index, seed in enumerate(seeds):
            for place, (name, bands) in enumerate(drawn.items()):
                train = partial(_run, training, bands[index], seed, sets)
                run = train() if folder is None else folder.run(place, name, seed, train)
                runs[name].append(run)
                bar.advance(remark=f"{name}, seed {seed}")
    return runs


def _run(training: _Training, band: Band, seed: int, sets: Mapping[str, TrainingRows], **folder: Any) -> BandRun:
    result = training.tune(band, seed, {}, **folder)
    return BandRun(replace(result, vlm=None), training.answers(result.vlm, sets))


def _times(training: _Training, bands: Sequence[Band], seed: int, rounds: int) -> Float[Tensor, "band round phase"]:
    """The seconds of a step of each band, in turns; in each round the bands stand in another order."""
    seconds = torch.zeros(len(bands), rounds, len(PHASES), dtype=torch.float64)
    with progress_bar("timing steps", len(bands) * rounds, "runs") as bar:
        for number in range(rounds):
            for place in range(len(bands)):
                place = (place + number) % len(bands)
                result = training.tune(bands[place], seed, {"max_steps": _STEPS})
                seconds[place, number] = result.seconds[1:].mean(dim=0)
                bar.advance()
    return seconds


def _costs(runs: Mapping[str, list[BandRun]], seeds: Sequence[int]) -> pd.DataFrame:
    rows = [
        {"band": name, "seed": seed, **{each: float(getattr(run.result, each)) for each in (*COUNTED, "cut_off")}}
        | {"unchanged": run.result.unchanged}
        for name, of_band in runs.items()
        for seed, run in zip(seeds, of_band, strict=True)
    ]
    return pd.DataFrame(rows)


def _notes(
    drawn: Mapping[str, list[Band]], runs: Mapping[str, list[BandRun]], answers: Mapping[str, BandAnswers]
) -> Iterator[str]:
    seeds = len(drawn[FULL])
    if seeds == 1:
        yield "one seed: intervals are over questions alone, and say nothing of another seed"
    elif seeds < _MANY:
        yield f"{seeds} seeds: intervals over them are wide, and a little too narrow where seeds differ much"
    for name, of_band in drawn.items():
        if len(set(of_band)) > 1:
            yield f"{name}: other layers with each seed, so its intervals are over draws too; timed with the first"
        broken = [str(run.result.provenance.seed) for run in runs[name] if not run.result.unchanged]
        if broken:
            yield f"{name}: what was frozen has changed, with seed {', '.join(broken)}"
    sizes = Counter(len(of_band[0].layers) for name, of_band in drawn.items() if name != FULL and of_band[0].layers)
    alone = [size for size, count in sizes.items() if count == 1]
    if alone:
        yield f"no other band of {alone[0]} layers: nothing here says that those layers matter, and not their number"
    yield from few_rows(min(each.questions["group"].nunique() for each in answers.values()))


def _digest(rows: TrainingRows) -> str:
    """A fingerprint of rows: their ids, pictures, conversations, kinds and groups."""
    digest = hashlib.sha256()
    for row in map(rows.__getitem__, range(len(rows))):
        labels = [row.labels.get("kind"), row.labels.get("group")]
        digest.update(repr((row.id, picture_key(row.image), row.system, row.turns, labels)).encode())
    return digest.hexdigest()
