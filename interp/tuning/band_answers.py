"""The answers of all bands and seeds to one set of questions, and the numbers that are made of them.

A score is the share of right answers over seeds and questions. Its interval is over other questions and other seeds together
(`interp.statistics.crossed`); the questions of one group, such as those about one picture, are drawn together. Two bands are
compared seed by seed and question by question. The untuned model has no seeds: its answers stand beside those of each.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import pandas as pd
import torch
from jaxtyping import Bool
from torch import Tensor

from interp.displays import Display
from interp.errors import InputError, shown
from interp.results import StoredValue
from interp.statistics import Crossed, crossed_change, crossed_ratio, crossed_share

FULL, UNTUNED, CHANCE = "full", "untuned", "chance"


@dataclass(frozen=True, eq=False)
class BandAnswers(StoredValue, Display):
    """Right answers to the same `questions` (id, kind, group, answer): those of each seed of each band of `names`, `right`, and
    those of the untuned model, `before`.

    >>> questions = pd.DataFrame({"id": ["a", "b"], "kind": ["colour"] * 2, "group": ["a", "b"], "answer": ["red", "blue"]})
    >>> right = torch.tensor([[[True, True]], [[True, False]]])
    >>> answers = BandAnswers(("full", "early"), questions, right, torch.zeros(2).bool())
    >>> answers.score("early").value, answers.ratio("early", "full").value, answers.chance
    (0.5, 0.5, 0.5)

    Raises `InputError` where the shapes do not fit.
    """

    names: tuple[str, ...]
    questions: pd.DataFrame
    right: Bool[Tensor, "band seed question"]
    before: Bool[Tensor, " question"]

    def __post_init__(self) -> None:
        shapes = tuple(self.right.shape), tuple(self.before.shape)
        count = len(self.questions)
        if self.right.ndim != 3 or shapes[0][::2] != (len(self.names), count) or shapes[1] != (count,) or not count:
            raise InputError(
                f"right and before have shapes {shapes}: expected [band, seed, question] and [question], of "
                f"{len(self.names)} bands and {count} questions, one at least"
            )

    @property
    def kinds(self) -> list[str]:
        """The kinds of questions, in their order; none where the questions have no kind."""
        return [kind for kind in dict.fromkeys(self.questions["kind"]) if kind]

    @property
    def chance(self) -> float:
        """The share of right answers of the most common answer to each kind of question."""
        most = self.questions.groupby("kind")["answer"].agg(lambda answers: answers.value_counts().iloc[0])
        return float(most.sum() / len(self.questions))

    def of_kinds(self, kinds: Iterable[str] | str | None) -> BandAnswers:
        """The answers to questions of these kinds alone, to all for None. Raises `InputError` for an unknown kind."""
        if kinds is None:
            return self
        chosen = [kinds] if isinstance(kinds, str) else list(kinds)
        unknown = [kind for kind in chosen if kind not in self.kinds]
        if unknown or not chosen:
            raise InputError(f"kinds={shown(chosen)}: expected one or more of {', '.join(self.kinds) or 'none'}")
        keep = self.questions["kind"].isin(chosen)
        mask = torch.tensor(keep.tolist())
        questions = self.questions[keep].reset_index(drop=True)
        return replace(self, questions=questions, right=self.right[..., mask], before=self.before[mask])

    def score(self, name: str) -> Crossed:
        """The share of right answers of a band, or of the model "untuned", whose interval is over questions alone."""
        return crossed_share(self._table(name), self._groups)

    def ratio(self, name: str, to: str) -> Crossed:
        """The score of a band divided by that of another one, a band or "untuned"; 1 by itself."""
        if name == to:
            return Crossed(1.0, 1.0, 1.0, 0.0, 0.0, math.inf, null=1.0)
        part, whole = self._tables(name, to)
        return crossed_ratio(part, whole, self._groups)

    def change(self, name: str, to: str) -> Crossed:
        """The score of a band less that of another one, a band or "untuned"."""
        one, other = self._tables(name, to)
        return crossed_change(other, one, self._groups)

    @property
    def _groups(self) -> list[str]:
        return self.questions["group"].tolist()

    def _table(self, name: str) -> Bool[Tensor, "seed question"]:
        return self.before[None] if name == UNTUNED else self.right[self.names.index(name)]

    def _tables(self, *names: str) -> tuple[Tensor, ...]:
        return torch.broadcast_tensors(*map(self._table, names))
