"""Training of the toy written out by hand, to hold `interp.tuning.tune` against: nothing here calls our collator or trainer.

`rows` are conversations in LLaVA's format, `encode` writes their ids and labels token by token, `plain_loop` is the usual
loop of PyTorch, and `watch` looks at a training from outside: through PyTorch's global hooks on every optimizer and module.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import interp
from interp.toy.language import IDS

PATCHES = 36
SEQUENTIAL = {"train_sampling_strategy": "sequential"}
LAYER = "model.language_model.layers."


def rows(n: int = 12, seed: int = 5, images: bool = True) -> list[dict[str, Any]]:
    """Conversations of one to three turns; every third is about a caption instead of a picture, some answers are long."""
    made = []
    for index, scene in enumerate(interp.toy.scenes(n, seed=seed, split="train")):
        picture = images and index % 3 != 1
        turns = [(question.text, question.answer) for question in scene.questions[: 1 + index % 3]]
        if index % 4 == 0:
            turns.append(("what is there ?", scene.caption))
        first = f"<image>\n{turns[0][0]}" if picture else f"{scene.caption} {turns[0][0]}"
        asked = [first, *[question for question, _ in turns[1:]]]
        said = [answer for _, answer in turns]
        made.append(
            {
                "id": f"scene-{index}",
                **({"image": scene.image} if picture else {}),
                "conversations": [
                    {"from": speaker, "value": text}
                    for pair in zip(asked, said, strict=True)
                    for speaker, text in zip(("human", "gpt"), pair, strict=True)
                ],
            }
        )
    return made


def encode_row(row: dict[str, Any]) -> tuple[list[int], list[int]]:
    """Ids and labels of a conversation: a label on every token of an answer, and the end token behind each answer."""
    ids, labels = [IDS["<bos>"]], [-100]
    ended = False  # whether the end token is due behind an answer
    for turn in row["conversations"]:
        words = [IDS[word] for word in turn["value"].replace("<image>", " <image> " * PATCHES).split()]
        of_model = turn["from"] == "gpt"
        ids += words
        labels += words if of_model else [IDS["<eos>"] if ended else -100, *[-100] * (len(words) - 1)]
        ended = of_model
    return [*ids, IDS["<eos>"]], [*labels, IDS["<eos>"]]


def encode(some: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
    """Rows as the toy reads them, padded on the right."""
    written = [encode_row(row) for row in some]
    longest = max(len(ids) for ids, _ in written)
    batch = {
        "input_ids": torch.tensor([ids + [IDS["<pad>"]] * (longest - len(ids)) for ids, _ in written]),
        "attention_mask": torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids, _ in written]),
        "labels": torch.tensor([labels + [-100] * (longest - len(labels)) for _, labels in written]),
    }
    pictures = [torch.from_numpy(np.array(row["image"])) for row in some if "image" in row]
    if pictures:
        batch["pixel_values"] = ((torch.stack(pictures).permute(0, 3, 1, 2) / 255 - 0.5) / 0.5).float()
    return batch


def batches(some: Sequence[dict[str, Any]], size: int, steps: int) -> list[list[dict[str, Any]]]:
    """The rows of each step, in their order, from the front again when they are used up."""
    per_epoch = math.ceil(len(some) / size)
    return [list(some[step % per_epoch * size :][:size]) for step in range(steps)]


def cosine(step: int, steps: int, warmup: float) -> float:
    """The factor of the learning rate in a step: up along a line, down along half a cosine."""
    rising = math.ceil(warmup * steps)
    if step < rising:
        return step / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / (steps - rising)))


def mean_loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """The mean cross-entropy over all answer tokens of the batch."""
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    logits = model(**inputs).logits[:, :-1].float()
    return nn.functional.cross_entropy(logits.flatten(0, 1), batch["labels"][:, 1:].flatten(), ignore_index=-100)


def train_only(model: nn.Module, prefixes: Sequence[str]) -> nn.Module:
    """The model, ready to train the parameters whose names begin so."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(tuple(prefixes)))
    return model.train()


def band(layers: Sequence[int]) -> list[str]:
    return [f"{LAYER}{layer}." for layer in layers]


def moved(model: nn.Module) -> nn.Module:
    """The same model with whatever is trained changed, as after training: at first an adapter does nothing."""
    torch.manual_seed(0)
    with torch.no_grad():
        for weights in model.parameters():
            if weights.requires_grad:
                weights.add_(torch.randn_like(weights), alpha=0.1)
    return model


def plain_loop(
    model: nn.Module, steps: Sequence[Sequence[dict[str, Any]]], rate: float = 2e-5, warmup: float = 0.03
) -> tuple[list[float], list[float]]:
    """Train on the rows of each step with AdamW, a cosine with warm-up and gradients clipped at norm 1; losses and rates."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=rate, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
    losses, rates = [], []
    for step, some in enumerate(steps):
        rates.append(rate * cosine(step, len(steps), warmup))
        optimizer.param_groups[0]["lr"] = rates[-1]
        loss = mean_loss(model, encode(some))
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses, rates


def furthest(model: nn.Module, other: nn.Module) -> float:
    """The largest difference between two models in any weight."""
    theirs = other.state_dict()
    return max((value - theirs[name]).abs().max().item() for name, value in model.state_dict().items())


@dataclass
class Seen:
    """What `watch` saw of each optimiser step and each backward pass, by the names of the trained model's parameters."""

    model: Any = None
    optimised: list[set[str]] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    state: list[dict[str, list[int]]] = field(default_factory=list)  # sizes of the optimizer's tensors, after a step
    with_gradient: list[set[str]] = field(default_factory=list)
    reached: list[set[str]] = field(default_factory=list)  # leaves of the graph that backward walks
    backward_layers: list[set[int]] = field(default_factory=list)  # decoder layers whose output has a graph
    nodes: list[int] = field(default_factory=list)  # operations in that graph

    def name_of(self, parameter: Tensor) -> str:
        return next((name for name, each in self.model.named_parameters() if each is parameter), "unknown")


def leaves(loss: Tensor) -> tuple[list[Tensor], int]:
    """The tensors that a backward pass from here gives a gradient to, and how many operations it goes through."""
    waiting, known, found = [loss.grad_fn], set(), []
    while waiting:
        node = waiting.pop()
        if node is None or node in known:
            continue
        known.add(node)
        if hasattr(node, "variable"):
            found.append(node.variable)
        waiting += [following for following, _ in node.next_functions]
    return found, len(known)


@contextmanager
def watch(kind: type[nn.Module], layer_kind: type[nn.Module]) -> Iterator[Seen]:
    """Look at every training inside the block of a model of this class, whose decoder layers have that class."""
    from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
    from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

    seen = Seen()
    in_graph: set[int] = set()
    back = Tensor.backward

    def enter(module: nn.Module, inputs: Any) -> None:
        if type(module) is kind and module.training:
            seen.model = module
            in_graph.clear()

    def leave(module: nn.Module, inputs: Any, output: Any) -> None:
        if type(module) is layer_kind and module.training and torch.is_grad_enabled():
            states = output[0] if isinstance(output, tuple) else output
            if states.requires_grad:
                in_graph.add(module.self_attn.layer_idx)

    def before_step(optimizer: Any, *_: Any) -> None:
        held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        seen.optimised.append({seen.name_of(parameter) for parameter in held})
        seen.rates.append(float(optimizer.param_groups[0]["lr"]))
        seen.with_gradient.append({name for name, each in seen.model.named_parameters() if each.grad is not None})

    def after_step(optimizer: Any, *_: Any) -> None:
        sizes = {
            seen.name_of(parameter): sorted(value.numel() for value in state.values() if torch.is_tensor(value))
            for parameter, state in optimizer.state.items()
        }
        seen.state.append(sizes)

    def backward(loss: Tensor, *arguments: Any, **options: Any) -> None:
        found, nodes = leaves(loss)
        seen.reached.append({seen.name_of(leaf) for leaf in found})
        seen.backward_layers.append(set(in_graph))
        seen.nodes.append(nodes)
        back(loss, *arguments, **options)

    handles = [
        register_module_forward_pre_hook(enter),
        register_module_forward_hook(leave),
        register_optimizer_step_pre_hook(before_step),
        register_optimizer_step_post_hook(after_step),
    ]
    Tensor.backward = backward  # type: ignore[method-assign]
    try:
        yield seen
    finally:
        Tensor.backward = back  # type: ignore[method-assign]
        for handle in handles:
            handle.remove()
