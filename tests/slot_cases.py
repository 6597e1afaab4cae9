"""One case or more of every slot, against modules made by hand; for `test_slots` here and `test_remote` on a server."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from interp.models.running import slots
from interp.models.running.structure import Heads

ROWS, LENGTH, WIDTH, HEADS, D_HEAD = 2, 3, 8, 2, 4


class Case(NamedTuple):
    """A slot, what its module holds, the context, the value that is there and another one of the same shape (None where the
    slot cannot be written). `seen` says whether another value is read back as it was written."""

    slot: slots.Slot
    module: dict[str, Any]
    context: dict[str, Any]
    value: Any
    other: Any
    seen: bool = True


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def cases() -> dict[str, Case]:
    """Each case by name."""
    return {**_of_states(), **_of_heads(), **_of_masks(), **_of_weights()}


def _of_states() -> dict[str, Case]:
    states, other, entered = draw(ROWS, LENGTH, WIDTH), draw(ROWS, LENGTH, WIDTH) + 1, draw(ROWS, LENGTH, WIDTH + 0) - 1
    flat, features = states.flatten(0, 1), [draw(2, WIDTH), draw(1, 3, WIDTH)]
    call = (states,), {"past_key_values": "cache"}
    return {
        "input": Case(slots.InputSlot(), {"input": states}, {}, states, other),
        "output": Case(slots.OutputSlot(), {"output": states}, {}, states, other),
        "scaled": Case(slots.OutputSlot(0.3), {"output": (states, "weights")}, {}, states * 0.3, other),
        "named": Case(slots.OutputSlot(), {"output": {"states": states, "more": 1}}, {}, states, other),
        "flat": Case(slots.OutputSlot(1.0, ROWS), {"output": flat}, {}, states, other),
        "mid": Case(
            slots.MidSlot(slots.OutputSlot(0.3, ROWS)),
            {"output": (flat, None)},
            {"resid_pre": entered},
            entered + states * 0.3,
            other,
        ),
        "tokens in": Case(slots.TokensSlot("input"), {"input": states}, {}, flat, other.flatten(0, 1)),
        "tokens out": Case(slots.TokensSlot(), {"output": (states, "more")}, {}, flat, other.flatten(0, 1)),
        "features": Case(
            slots.TokensSlot(), {"output": features}, {}, torch.cat([features[0], features[1][0]]), draw(5, WIDTH) + 1
        ),
        "call": Case(slots.CallSlot(), {"inputs": call}, {}, call, ((other,), {"past_key_values": None})),
    }


def _of_heads() -> dict[str, Case]:
    z, fused = draw(ROWS, LENGTH, WIDTH), draw(ROWS, LENGTH, HEADS, 3, D_HEAD)
    other = draw(ROWS, LENGTH, HEADS, D_HEAD) + 1
    alone = Heads("o", "input", 1, 0, WIDTH, D_HEAD, 3)
    of_groups = Heads("qkv", "output", HEADS, D_HEAD, D_HEAD, D_HEAD, 0)
    sequences = {"vision_mask": torch.ones(ROWS, 1, LENGTH, LENGTH).bool()}
    return {
        "heads": Case(slots.HeadsSlot(alone, ROWS), {"input": z}, {}, z.reshape(ROWS, LENGTH, HEADS, D_HEAD), other),
        "fused": Case(
            slots.HeadsSlot(of_groups, ROWS), {"output": (fused.flatten(2), 1)}, {}, fused[..., 1, :].clone(), other
        ),
        "packed": Case(
            slots.HeadsSlot(of_groups, None),
            {"output": fused.flatten(0, 1).flatten(1)},
            sequences,
            fused[..., 1, :],
            other,
        ),
    }


def _of_masks() -> dict[str, Case]:
    states, everyone = draw(ROWS, LENGTH, WIDTH), torch.ones(ROWS, 1, LENGTH, LENGTH).bool()
    causal, argument = everyone.tril(), slots.Argument("attention_mask", 1)
    other = causal.clone()
    other[:, :, 2, 0] = False
    bias = torch.where(causal, 0.5, torch.finfo(torch.float32).min)
    bounds, chunks = torch.tensor([0, 1, 3]), torch.tensor([[1, 0, 0], [0, 1, 1], [0, 1, 1]]).bool()[None, None]
    limits = slots.Argument("cu_seqlens", 1)
    angles = slots.Argument("position_embeddings", 2)
    mask = slots.MaskSlot(argument, True)
    return {
        "no mask": Case(mask, {"inputs": ((states,), {"attention_mask": None})}, {"past": 0}, causal, other),
        "left out": Case(mask, {"inputs": ((states,), {})}, {"past": 0}, causal, other),
        "bool mask": Case(mask, {"inputs": ((states, causal), {})}, {"past": 0}, causal, other),
        "float mask": Case(mask, {"inputs": ((), {"x": states, "attention_mask": bias})}, {"past": 0}, causal, other),
        "tower mask": Case(
            slots.TowerMaskSlot("mask", argument, None), {"inputs": ((states, causal), {})}, {}, causal, None
        ),
        "no tower mask": Case(slots.TowerMaskSlot("all", None, None), {"inputs": ((states,), {})}, {}, everyone, None),
        "chunks": Case(
            slots.TowerMaskSlot("chunks", limits, angles),
            {"inputs": ((states[0], bounds), {"position_embeddings": "angles"})},
            {},
            chunks,
            None,
        ),
    }


def _of_weights() -> dict[str, Case]:
    causal = torch.ones(ROWS, 1, LENGTH, LENGTH).bool().tril()
    q, k, v = (draw(ROWS, LENGTH, HEADS, D_HEAD + extra)[..., :D_HEAD] for extra in (1, 2, 3))
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) * D_HEAD**-0.5
    own = scores.masked_fill(~causal, -torch.inf).softmax(dim=-1)  # [row, head, query, key]
    other = (causal / causal.sum(dim=-1, keepdim=True)).expand_as(own).transpose(1, 2)
    z = torch.einsum("bhqk,bkhd->bqhd", own, v)
    projection = nn.Linear(WIDTH, WIDTH, bias=False).requires_grad_(False)
    projection.weight.copy_(draw(WIDTH, WIDTH))
    output, pattern = projection(z.flatten(2)), own.transpose(1, 2)
    tower = {"vision_mask": causal, "vision_q": q, "vision_k": k, "vision_v": v, "vision_z": z, "angles": None}
    return {
        "pattern": Case(slots.PatternSlot(1, projection), {"output": (output, own)}, {"v": v, "z": z}, pattern, other),
        "tower pattern": Case(
            slots.TowerPatternSlot(1, projection), {"output": (output, own.flatten(0, 1))}, tower, pattern, other
        ),
        "computed pattern": Case(
            slots.TowerPatternSlot(None, projection), {"output": output}, tower, pattern, other, seen=False
        ),
        "rebuilt": Case(slots.RebuiltSlot(projection, "z"), {"output": (output, own)}, {"z": z}, z, z + 1, seen=False),
    }
