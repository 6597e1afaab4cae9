"""What bands of layers are worth: their scores as shares of full tuning, what they do to text, and what they cost.

- **Score**: the share of right answers. *Of full* is ``score / score of full tuning``, paired by seed and question. Each
  interval is one over other questions and other seeds together (`interp.tuning.band_answers`); a random band has other layers
  with each seed, so its interval is also one over draws of layers.
- **Verdict**: *not inferior* where the whole interval of that ratio is above a margin that is set beforehand, .95; *inferior*
  where it is below; else *undecided*. "98.8 % of full" with an interval from 93 to 104 % shows neither. Each band is judged on
  its own.
- **Text**: questions without a picture, against the untuned model: what tuning did to what the model could do before.
- **Differences** of each two bands, with a p that counts all pairs (Holm).
- **Cost**: seconds of a step, as the median ratio to full tuning in the same round, so that a busy hour of the machine counts in
  both. Its bounds are the order statistics that hold a median at 95 %, which takes six steps. Operations and
  bytes are counted: means over seeds.

The controls are the *untuned* model, *chance* (the most common answer to each kind) and bands of the same size elsewhere.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import pandas as pd
from jaxtyping import Float
from torch import Tensor

from interp.arguments import checked_choice, checked_share
from interp.errors import InputError
from interp.results import Result
from interp.statistics import Crossed, holm
from interp.tuning.band_answers import CHANCE, FULL, UNTUNED, BandAnswers
from interp.tuning.bands import Band

COUNTED = ("flops", "trained_parameters", "gradient_bytes", "optimizer_bytes", "activation_bytes", "peak_bytes")
_NUMBERS = ("value", "low", "high", "error_rows", "error_runs", "freedom", "p")


@dataclass(frozen=True, eq=False)
class BandComparison(Result):
    """What `compare_bands` measured: `bands`, by name one for each of the `seeds`, their answers to the questions of `test` and,
    without a picture, of `text` (None without any), each with those of the untuned model.

    `costs` has a row for each band and seed: trained_parameters, flops, gradient_bytes, optimizer_bytes, activation_bytes,
    peak_bytes (as in `TuneResult`), unchanged (whether all that was frozen is what it was), and cut_off. `loss[band, seed,
    step]` is that of training, and `seconds[band, round, phase]` those of a step (forward, backward, optimizer), the bands
    taking turns in each round; without rounds there are none.
    """

    bands: dict[str, list[Band]]
    seeds: list[int]
    test: BandAnswers
    text: BandAnswers | None
    costs: pd.DataFrame
    loss: Float[Tensor, "band seed step"]
    seconds: Float[Tensor, "band round phase"]

    def __post_init__(self) -> None:
        names, sizes = tuple(self.bands), (len(self.bands), len(self.seeds))
        answers = [each for each in (self.test, self.text) if each is not None]
        shapes = [tuple(each.right.shape[:2]) for each in answers] + [tuple(self.loss.shape[:2])]
        if FULL not in names or any(each.names != names for each in answers) or set(shapes) != {sizes}:
            raise InputError(
                f"the bands {', '.join(names)} and {len(self.seeds)} seeds do not fit answers and losses of {shapes} bands and "
                f"seeds: expected all of each, and a band named {FULL!r}"
            )

    def table(self, kinds: Iterable[str] | str | None = None, margin: float = 0.95) -> pd.DataFrame:
        """A row for each band, then for the model "untuned" and for "chance": of test questions of these `kinds` or of all, and
        of text all together.

        Columns: band, layers; score and of_full; verdict (of of_full against `margin`) and p_holm (that the score is that of
        full tuning, among all); text, text_change and text_kept (the score less the untuned model's, and divided by it),
        text_verdict and text_p_holm; time and flops, of full; and what is counted in parameters and bytes. Score, of_full, text,
        text_change, text_kept and time have bounds, such as score_low and score_high.

        Raises `InputError` for an unknown kind, and for a margin that is not above 0 and below 1.
        """
        margin, test, costs = checked_share(margin, "margin"), self.test.of_kinds(kinds), self._costs()
        rows = list[dict[str, Any]]()
        for name in (*self.bands, UNTUNED):
            share, others = test.ratio(name, FULL), name != FULL
            row: dict[str, Any] = {"band": name, "layers": layers_in_words(self.bands.get(name, []))}
            row |= _bounded("score", test.score(name)) | _bounded("of_full", share)
            row |= {
                "verdict": _judged(share, margin) if others else "",
                "p_holm": test.change(name, FULL).p if others else math.nan,
            }
            if self.text is not None:
                row |= _bounded("text", self.text.score(name)) | {"text_verdict": "", "text_p_holm": math.nan}
                if name != UNTUNED:
                    kept, change = self.text.ratio(name, UNTUNED), self.text.change(name, UNTUNED)
                    row |= _bounded("text_change", change) | _bounded("text_kept", kept)
                    row |= {"text_verdict": _judged(kept, margin), "text_p_holm": change.p}
            rows.append(row | costs.get(name, {}))
        rows.append({"band": CHANCE, "layers": "", "score": test.chance, "verdict": ""})
        if self.text is not None:
            rows[-1] |= {"text": self.text.chance, "text_verdict": ""}
        frame = pd.DataFrame(rows)
        for column in ("p_holm", "text_p_holm"):
            if column in frame:
                frame[column] = holm(frame[column])
        return frame

    def tests(self, kinds: Iterable[str] | str | None = None, data: str = "test") -> pd.DataFrame:
        """Each two bands, and each with "untuned", on questions of the `data` "test" or "text": band, other, difference (of
        their scores, band less other), low, high, p, and p_holm among all these pairs.

        Raises `InputError` for an unknown kind, and for other data than the comparison has.
        """
        sets = {"test": self.test} | ({} if self.text is None else {"text": self.text})
        asked = sets[checked_choice(data, "data", list(sets))].of_kinds(kinds)
        pairs = [(one, other, asked.change(one, other)) for one, other in combinations([*self.bands, UNTUNED], 2)]
        rows = [[one, other, change.value, change.low, change.high, change.p] for one, other, change in pairs]
        frame = pd.DataFrame(rows, columns=["band", "other", "difference", "low", "high", "p"])
        return frame.assign(p_holm=holm(frame["p"]))

    def to_frame(self) -> pd.DataFrame:
        """One row for each number: data ("test", "text" or "cost"), kind ("all" or one), band, measure, value, low, high,
        error_rows (over questions), error_runs (over seeds), freedom, p (uncorrected).

        Measures of answers are score, of_full and of_untuned, and of costs time and flops (of full) and what is counted.
        """
        rows = []
        for data, answers in (("test", self.test), ("text", self.text)):
            if answers is None:
                continue
            for kind in ("all", *answers.kinds):
                part = answers.of_kinds(None if kind == "all" else kind)
                for name in (*self.bands, UNTUNED):
                    measures = {"score": part.score(name), "of_full": part.ratio(name, FULL)}
                    measures["of_untuned"] = part.ratio(name, UNTUNED)
                    for measure, number in measures.items():
                        rows.append([data, kind, name, measure, *(getattr(number, each) for each in _NUMBERS)])
                rows.append([data, kind, CHANCE, "score", part.chance, *[math.nan] * (len(_NUMBERS) - 1)])
        for name, costs in self._costs().items():
            for measure in ("time", *COUNTED):
                bounds = [costs.get(f"{measure}{side}", math.nan) for side in ("", "_low", "_high")]
                rows.append(["cost", "all", name, measure, *bounds, *[math.nan] * (len(_NUMBERS) - 3)])
        return pd.DataFrame(rows, columns=["data", "kind", "band", "measure", *_NUMBERS])

    def _costs(self) -> dict[str, dict[str, Any]]:
        """The time and the operations of each band as shares of full, and what is counted."""
        means = self.costs.groupby("band", sort=False)[list(COUNTED)].mean()
        means["flops"] /= means["flops"][FULL]
        seconds = self.seconds.sum(dim=2)
        times = (seconds / seconds[list(self.bands).index(FULL)]).tolist()
        return {
            name: dict(zip(("time", "time_low", "time_high"), median_bounds(rounds), strict=True))
            | {column: float(means[column][name]) for column in COUNTED}
            for name, rounds in zip(self.bands, times, strict=True)
        }


def median_bounds(values: list[float]) -> tuple[float, float, float]:
    """The median and the order statistics that hold it at 95 % whatever the distribution; NaN for under six values.

    >>> median_bounds([3.0, 1.0, 2.0, 6.0, 5.0, 4.0])
    (3.5, 1.0, 6.0)
    """
    from scipy.stats import binom

    if not values:
        return math.nan, math.nan, math.nan
    ordered, place = sorted(values), int(binom.ppf(0.025, len(values), 0.5))
    low, high = (ordered[place - 1], ordered[-place]) if place else (math.nan, math.nan)
    return statistics.median(ordered), low, high


def layers_in_words(bands: list[Band]) -> str:
    """The layers of a band with each seed: ranges, and the draws apart where they differ.

    >>> layers_in_words([Band([0, 1, 2, 5])]), layers_in_words([Band([1]), Band([2])])
    ('0-2 5', '1; 2')
    """
    return "; ".join(dict.fromkeys(_ranges(list(band.layers)) or "none" for band in bands))


def _ranges(layers: list[int]) -> str:
    starts = [layer for layer in layers if layer - 1 not in layers]
    stops = [layer for layer in layers if layer + 1 not in layers]
    return " ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in zip(starts, stops, strict=True))


def _bounded(name: str, number: Crossed) -> dict[str, float]:
    return {name: number.value, f"{name}_low": number.low, f"{name}_high": number.high}


def _judged(share: Crossed, margin: float) -> str:
    """What the interval of a share says of a margin."""
    return "not inferior" if share.low > margin else "inferior" if share.high < margin else "undecided"
