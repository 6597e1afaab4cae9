"""What a step of training costs: operations, bytes that are kept for the backward pass, time.

    with count_costs(model) as costs:
        loss = ...          # a forward and a backward pass
    costs.flops, costs.activation_bytes

Operations are counted by PyTorch's own counter, two for each multiplication with its addition, in both passes: matrix
products, convolutions and attention, which are nearly all there are. What is kept for the backward pass is each tensor that
autograd saves, once, but for the weights themselves. Both counts take time, so a step that is counted is not timed.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from interp.displays import Display

PHASES = ("forward", "backward", "optimizer")


@dataclass
class StepCosts(Display):
    """Operations so far, and the most bytes that one forward pass kept for its backward pass."""

    flops: int = 0
    activation_bytes: int = 0


@contextmanager
def count_costs(model: nn.Module, costs: StepCosts | None = None) -> Iterator[StepCosts]:
    """Count what runs inside the block: one forward and backward pass. `costs` of earlier blocks go on.

    >>> layer, x = nn.Linear(3, 2, bias=False), torch.ones(5, 3, dtype=torch.float32)
    >>> with count_costs(layer) as costs:
    ...     layer(x).sum().backward()
    >>> costs.flops == 2 * (2 * 5 * 3 * 2), costs.activation_bytes == 5 * 3 * 4
    (True, True)
    """
    from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop, sdpa_flop

    costs = StepCosts() if costs is None else costs
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    held: Counter[int] = Counter()
    kept = most = 0

    class Held:
        """A tensor that autograd keeps. Memory of one that it lets go is used again, above all where activations are
        checkpointed: so what is kept at once is counted, and not every address once."""

        def __init__(self, tensor: Tensor) -> None:
            nonlocal kept, most
            self.tensor, storage = tensor, tensor.untyped_storage()
            self.place, self.size = storage.data_ptr(), storage.nbytes()
            if self.place not in weights and not held[self.place]:
                kept += self.size
                most = max(most, kept)
            held[self.place] += 1

        def __del__(self) -> None:
            nonlocal kept
            held[self.place] -= 1
            if self.place not in weights and not held[self.place]:
                kept -= self.size

    aten = torch.ops.aten
    # PyTorch's counter knows attention on GPUs alone.
    on_cpu = {
        aten._scaled_dot_product_flash_attention_for_cpu: sdpa_flop,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: sdpa_backward_flop,
    }
    counter = FlopCounterMode(display=False)
    counter.flop_registry |= on_cpu
    with counter, torch.autograd.graph.saved_tensors_hooks(Held, lambda held: held.tensor):
        yield costs
    costs.flops += counter.get_total_flops()
    costs.activation_bytes = max(costs.activation_bytes, most)


class StepClock(Display):
    """Seconds of the phases of one step, on the wall clock; the GPU has finished its work when a phase ends."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._last = 0.0
        self.seconds = dict.fromkeys(PHASES, 0.0)

    def restart(self) -> None:
        """Begin a phase."""
        self._last = self._now()

    def lap(self, phase: str) -> None:
        """End a phase and begin the next."""
        now = self._now()
        self.seconds[phase] += now - self._last
        self._last = now

    def read(self) -> dict[str, float]:
        """The seconds of each phase since the last reading."""
        seconds, self.seconds = self.seconds, dict.fromkeys(PHASES, 0.0)
        return seconds

    def _now(self) -> float:
        if self._on_gpu:
            torch.cuda.synchronize()
        return time.perf_counter()


def gradient_bytes(model: nn.Module) -> int:
    """Bytes of all gradients that the model's parameters hold.

    >>> gradient_bytes(nn.Linear(3, 2))
    0
    """
    return sum(each.grad.untyped_storage().nbytes() for each in model.parameters() if each.grad is not None)


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of all tensors that an optimiser keeps about its parameters.

    >>> state_bytes(torch.optim.SGD(nn.Linear(3, 2).parameters(), lr=0.1))
    0
    """
    values = [value for state in optimizer.state.values() for value in state.values()]
    return sum(value.untyped_storage().nbytes() for value in values if isinstance(value, Tensor))
