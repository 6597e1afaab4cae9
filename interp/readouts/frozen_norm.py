"""A norm with its scale fixed: the linear map that it is for one state, found by effect.

A norm divides a state by its size. So it is not linear, and what several components add to a state does not pass through it
one by one. But for one given state the size is a number. With that number fixed, the rest is linear:

    norm(x) = gain * (x - mean(x)) / size + bias        LayerNorm
    norm(x) = gain * x / size                           RMSNorm, whatever its gain is made of

The form of a norm, its gain and its bias are read from its outputs, not from its class. A probe of alternating signs shows
the gain. The same probe with the opposite sign shows the bias, the part that does not change sign. ``gain / size`` of a
state follows from the norm's output for that state. Both forms are fitted to the states and to a second probe that has a
mean, and the better one counts. The misfit is returned, so that a norm of a third kind is refused and not guessed at.

A direction after the norm becomes a direction before it by the transpose of this map. Then the share of any component is a
scalar product. Unembeddings and output projections are linear already: their transposes are gradients.

All functions are plain torch and run inside a trace.
"""

from __future__ import annotations

import torch


def without_mean(x):
    """Each state less the mean over its features."""
    return x - x.mean(dim=-1, keepdim=True)


def as_it_is(x):
    """The state itself."""
    return x


def freeze(norm, states):
    """The map of a norm at the size of each of `states` `[row, width]`: ``slope * centre(x) + bias``.

    Gives `slope` `[row, width]`, `centre` (a function), `bias` `[width]` and the misfit: the largest difference between
    the outputs of the norm and of this map for these states, relative to the largest output.
    """
    size = states.float().square().mean().sqrt().clamp(min=1e-6)
    signs = torch.ones(states.shape[-1], dtype=torch.float32, device=states.device)
    signs[1::2] = -1
    probe = signs * size
    probes = torch.stack([probe, -probe, probe + size / 2]).to(states.dtype)
    # As one row of positions: a module that mixes positions is not a norm, and misses.
    plus, minus, _ = norm(probes[None])[0].float()
    bias = (plus + minus) / 2
    inputs = torch.cat([states, probes[2:]])
    outputs = norm(inputs[None])[0].float() - bias
    fits = [_fit(inputs.float(), outputs, centre, (plus - minus) / 2, probe) for centre in (as_it_is, without_mean)]
    slope, centre, misfit = min(fits, key=lambda fit: float(fit[2]))
    return slope[: len(states)], centre, bias, misfit


def _fit(inputs, outputs, centre, response, probe):
    """The slope that turns inputs into outputs, with the gain from the norm's response to the probe; and its misfit."""
    gain = response / centre(probe)
    scaled = gain * centre(inputs)
    factor = (scaled * outputs).sum(dim=-1, keepdim=True) / scaled.square().sum(dim=-1, keepdim=True).clamp(min=1e-30)
    return factor * gain, centre, (factor * scaled - outputs).abs().max() / outputs.abs().max().clamp(min=1e-30)


def before_norm(directions, slope, centre):
    """Directions `[..., row, width]` after a fixed norm, as directions of the states that enter it."""
    # Subtracting the mean is its own transpose.
    return centre(directions * slope)


def before_linear(module, states, directions):
    """Directions `[..., row, width]` after a linear module, as directions of its inputs; and the part of its output for
    zeros that lies along them, `[..., row]`.

    The transpose of a linear map is its gradient, which any module has, however it stores its weights.
    """
    torch.set_grad_enabled(True)
    inputs = torch.zeros_like(states, requires_grad=True)
    outputs = module(inputs).float().to(directions.device)
    flat = directions.reshape(-1, *directions.shape[-2:])
    pulled = [torch.autograd.grad((outputs * each).sum(), inputs, retain_graph=True)[0].float() for each in flat]
    torch.set_grad_enabled(False)
    constant = (outputs.detach() * directions).sum(dim=-1)
    return torch.stack(pulled).reshape(*directions.shape[:-1], states.shape[-1]), constant


def directions_of_logits(head, normed, targets, against, size, suppressed):
    """The directions of two logits after the final norm, `[2, row, width]`, their biases `[2, row]`, and the logits
    themselves, `[2, row]`.

    The first is the logit of `targets`, the second the mean over the vocabulary without suppressed tokens, both
    less the logit of `against` unless that is None. Targets are Int `[row]`.
    """
    counted = torch.ones(size, dtype=torch.float32, device=normed.device)
    counted[list(suppressed)] = 0

    def two_logits(inputs):
        logits = head(inputs)[..., :size].float()
        both = torch.stack([logits.gather(-1, targets[:, None])[:, 0], logits @ (counted / counted.sum())])
        return both if against is None else both - logits.gather(-1, against[:, None])[:, 0]

    torch.set_grad_enabled(True)
    inputs = torch.zeros_like(normed, requires_grad=True)
    biases = two_logits(inputs)
    pulled = [torch.autograd.grad(each.sum(), inputs, retain_graph=True)[0].float() for each in biases]
    torch.set_grad_enabled(False)
    return torch.stack(pulled), biases.detach(), two_logits(normed)
