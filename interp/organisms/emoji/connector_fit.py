"""The connector's first fit: each patch comes near the words for what stands there, without the decoder.

A connector with random weights gives the decoder nothing that it could read, and captions alone move it slowly: their gradient
comes back through all layers. So the connector is first fitted to the decoder's own word embeddings, at a thousandth of the
cost. The target at a patch is the mean embedding of the tokens of the thing's name, or of the ground's colour.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss, normalize

from interp.organisms.emoji.catalogue import catalogue
from interp.organisms.emoji.picture import GROUNDS, pictures
from interp.organisms.emoji.tower import patch_labels, tower_pixels

_TEMPERATURE = 0.05


def name_embeddings(embeddings: nn.Embedding, tokenizer: Any) -> Float[Tensor, "name feature"]:
    """The mean embedding of the tokens of each emoji's name, and of each ground's colour behind them."""
    words = [emoji.name for emoji in catalogue()] + list(GROUNDS)
    ids = tokenizer([f" {word}" for word in words], add_special_tokens=False)["input_ids"]
    return torch.stack([embeddings.weight[each].mean(dim=0) for each in ids]).detach()


class FitLessons(torch.utils.data.Dataset):
    """A batch of new pictures for each step: what the frozen tower makes of their patches, and the number of the target."""

    def __init__(self, tower: nn.Module, steps: int, batch: int, seed: int, split: str = "train") -> None:
        self.tower, self.steps, self.batch, self.seed, self.split = tower, steps, batch, seed, split

    def __len__(self) -> int:
        return self.steps

    @torch.no_grad()
    def __getitem__(self, step: int) -> dict[str, Tensor]:
        drawn = pictures(self.batch, seed=self.seed * 1_000_000 + 500_000 + step, split=self.split)
        labels = patch_labels(drawn)
        states = self.tower(pixel_values=tower_pixels(drawn)).last_hidden_state[:, 1:]
        ground = labels["names"] == len(catalogue())
        target = torch.where(ground, len(catalogue()) + labels["grounds"], labels["names"])
        return {"states": states.flatten(0, 1), "targets": target.flatten()}


class ConnectorFit(nn.Module):
    """A connector and its targets. The loss is the squared error in units of the targets' variance, plus the cross-entropy of
    the target among all of them, by cosine: the nearest name shall be the right one. A patch of the ground, of which there are
    many, counts a fifth of a thing's.
    """

    table: Tensor

    def __init__(self, connector: nn.Module, targets: Float[Tensor, "name feature"]) -> None:
        super().__init__()
        self.connector = connector
        self.register_buffer("table", targets, persistent=False)

    def forward(self, states: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """The loss of a batch of patches."""
        weights = torch.where(targets < len(catalogue()), 1.0, 0.2)
        made = self.connector(states)
        error = mse_loss(made, self.table[targets], reduction="none").mean(dim=-1) / self.table.var()
        scores = self._cosines(made) / _TEMPERATURE
        loss = error + cross_entropy(scores, targets, reduction="none")
        return {"loss": (loss * weights).sum() / weights.sum()}

    @torch.no_grad()
    def nearest(self, states: Tensor, targets: Tensor) -> tuple[float, float]:
        """The share of patches of things, and of the ground, whose nearest target is the right one."""
        right = self._cosines(self.connector(states)).argmax(dim=-1) == targets
        things = targets < len(catalogue())
        return float(right[things].float().mean()), float(right[~things].float().mean())

    def _cosines(self, made: Tensor) -> Tensor:
        return normalize(made, dim=-1) @ normalize(self.table, dim=-1).T
