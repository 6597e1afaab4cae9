"""What an intervention selects: layers, heads and positions in every form, and an intervention of one's own made of edits."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch

import interp
from interp.interventions import Ablate, Edit, Read
from interp.interventions.selection import AtSite, Reusable, extend_mask, select_heads, select_layers, select_positions
from interp.interventions.writes import multiply_states
from interp.models.running.steps import whole
from interp.models.running.trace import run_forward


@dataclass(frozen=True, kw_only=True)
class Clear(Reusable):
    """Zeros at a site of some layers, at every position."""

    site: str
    layers: Any

    def edits(self, vlm, batch, new=0):
        return [Edit(self.site, layer, torch.zeros_like) for layer in select_layers(vlm, self.layers)]


@dataclass(frozen=True, kw_only=True)
class Halve(AtSite):
    """Half of the states at a site."""

    layers: Any
    positions: Any
    site: str = "z"
    heads: Any = None

    def edits(self, vlm, batch, new=0):
        selection = self.select(vlm, batch, new)
        halves = [torch.full((sum(selection.counts), *shape), 0.5) for shape in selection.shapes]
        return selection.edits(multiply_states, halves)


def test_an_intervention_of_ones_own_is_a_list_of_edits(toy, mixed):
    own = Clear(site="mlp_out", layers=iter(range(6)))
    zeros = Ablate(site="mlp_out", layers=range(6), positions="all")
    expected = toy.logits(mixed, [zeros])
    for _ in range(2):
        torch.testing.assert_close(toy.logits(mixed, [own]), expected)
    assert toy.generate(mixed, 2, [own]) == toy.generate(mixed, 2, [zeros]) != toy.generate(mixed, 2)


def test_a_selection_changes_its_heads_and_positions_alone(toy, mixed):
    read, mask = [Read("z", "z", 4, whole)], mixed.positions["text"]
    before, after = (
        run_forward(toy, mixed, toy.edits_of(mixed, changes), read, logits=None)["z"]
        for changes in ((), (Halve(layers=4, positions="text", heads=[-1, 0]),))
    )
    expected = before.clone()
    for head in (0, 3):
        expected[:, :, head][mask] *= 0.5
    assert torch.equal(after, expected)
    selection = Halve(layers=[4, 1], positions=[0, -1], heads=2).select(toy, mixed, new=3)
    assert (selection.layers, selection.heads, selection.shapes) == ([4, 1], [[2], [2]], [(1, 32), (1, 32)])
    assert selection.counts == [2, 2, 2]
    assert not selection.mask[:, -3:].any()


def test_layers_and_heads_in_every_form(toy):
    assert select_layers(toy, "all") == list(range(8))
    assert select_layers(toy, torch.tensor([-1, 0])) == [7, 0]
    assert select_heads(toy, None, 4, layer=1) is None
    assert select_heads(toy, range(2), 4, layer=1) == [0, 1]
    assert select_heads(toy, -1, 4, layer=1) == [3]


@pytest.mark.parametrize(
    ("heads", "words"),
    [
        ("all", "heads='all': expected None for all heads, an int or ints from 0 to 3"),
        (0.5, "heads=0.5: expected None for all heads, an int or ints from 0 to 3"),
        ([0, -4], r"heads=\[0, -4\] names a head of layer 1 more than once"),
        ([4], "head 4: layer 1 of 'toy' has heads 0 to 3"),
    ],
)
def test_what_is_no_choice_of_heads(toy, heads, words):
    with pytest.raises(interp.InputError, match=words):
        select_heads(toy, heads, 4, layer=1)


def test_layers_are_named_once(toy):
    with pytest.raises(interp.InputError, match=r"layers=\[1, -7\] names layer 1 more than once"):
        select_layers(toy, [1, -7])


@pytest.mark.parametrize(
    ("positions", "selects_new"),
    [("text", True), ("last", True), ("all", True), ("after_image", True), ("image", False), ([-1], False)],
)
def test_new_tokens_belong_to_some_names(mixed, positions, selects_new):
    batch = mixed.row(0)
    mask = select_positions(batch, positions, new=2)
    assert torch.equal(mask[:, :-2], batch.positions.select(positions))
    assert mask[:, -2:].all() == mask[:, -2:].any() == selects_new
    assert torch.equal(extend_mask(mask, mask, 1)[:, -1:], torch.zeros(1, 1, dtype=torch.bool))
