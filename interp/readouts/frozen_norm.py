"""A norm with its scale frozen: the linear map that it was for one state, found by effect.

A norm divides a state by its size, so it is no linear map, and what several components add to a state cannot be taken
through it one by one. But for one state that size is a number. With the number held fixed, what is left is linear:

    norm(x) = gain * (x - mean(x)) / size + bias        LayerNorm
    norm(x) = gain * x / size                           RMSNorm, whatever its gain is made of

Which of the two a norm is, its gain and its bias are seen in what it gives, not in its class. A probe of alternating
signs shows the gain, the same probe with the other sign the bias, which alone is the same in both; ``gain / size`` of a
state follows from what the norm gives for that state. Both forms are fitted to the states and to a probe beside them
that has a mean, and the better one is taken; how well it fits is handed back, so that a norm of a third kind is refused
and not guessed at.

What a direction behind the norm is before it (the transpose of this map) makes the share of any component a scalar
product. Unembedding and output projections are linear as they are: their transposes are gradients.

All functions are plain torch and run inside a trace.
"""

from __future__ import annotations

import torch


def without_mean(x):
    """Each state with the mean over its features taken away."""
    return x - x.mean(dim=-1, keepdim=True)


def as_it_is(x):
    """A state itself."""
    return x


def freeze(norm, states):
    """The map of a norm at the size of each of `states` `[row, width]`: ``slope * centre(x) + bias``.

    Gives `slope` `[row, width]`, `centre` (a function), `bias` `[width]` and the misfit: the largest difference between
    what the norm gives for these states and what this map gives, relative to the largest number of either.
    """
    size = states.float().square().mean().sqrt().clamp(min=1e-6)
    signs = torch.ones(states.shape[-1], device=states.device)
    signs[1::2] = -1
    probe = signs * size
    tried = torch.stack([probe, -probe, probe + size / 2]).to(states.dtype)
    # As one row of positions: what mixes these is no norm, and misses.
    there, back, _ = norm(tried[None])[0].float()
    bias = (there + back) / 2
    known = torch.cat([states, tried[2:]])
    gave = norm(known[None])[0].float() - bias
    fits = [_fit(known.float(), gave, centre, (there - back) / 2, probe) for centre in (as_it_is, without_mean)]
    slope, centre, misfit = min(fits, key=lambda fit: float(fit[2]))
    return slope[: len(states)], centre, bias, misfit


def _fit(known, gave, centre, shown, probe):
    """The slope with which a gain, as the probe shows it, makes what the norm gave, and how far it misses."""
    gain = shown / centre(probe)
    made = gain * centre(known)
    factor = (made * gave).sum(dim=-1, keepdim=True) / made.square().sum(dim=-1, keepdim=True).clamp(min=1e-30)
    return factor * gain, centre, (factor * made - gave).abs().max() / gave.abs().max().clamp(min=1e-30)


def before_norm(directions, slope, centre):
    """Directions behind a frozen norm, `[..., row, width]`, as directions of the states that it is given."""
    # To take the mean away is its own transpose.
    return centre(directions * slope)


def before_linear(module, states, directions):
    """Directions `[..., row, width]` behind a linear module as directions of what it is given, and what it gives for
    nothing along them, `[..., row]`.

    The transpose of a linear map is its gradient, which any module has, whatever it keeps its weights in.
    """
    torch.set_grad_enabled(True)
    given = torch.zeros_like(states, requires_grad=True)
    gave = module(given).float().to(directions.device)
    flat = directions.reshape(-1, *directions.shape[-2:])
    pulled = [torch.autograd.grad((gave * each).sum(), given, retain_graph=True)[0].float() for each in flat]
    torch.set_grad_enabled(False)
    nothing = (gave.detach() * directions).sum(dim=-1)
    return torch.stack(pulled).reshape(*directions.shape[:-1], states.shape[-1]), nothing


def directions_of_logits(head, normed, aims, against, size, suppressed):
    """What the logits that are asked for are along, behind the final norm: `[2, row, width]`, their biases `[2, row]`,
    and these logits themselves `[2, row]`.

    The first of the two is the logit of `aims`, the second the mean over the vocabulary but for suppressed tokens, both
    less the logit of `against` where that is not None. Aims are Int `[row]`.
    """
    counted = torch.ones(size, device=normed.device)
    counted[list(suppressed)] = 0

    def wanted(given):
        logits = head(given)[..., :size].float()
        both = torch.stack([logits.gather(-1, aims[:, None])[:, 0], logits @ (counted / counted.sum())])
        return both if against is None else both - logits.gather(-1, against[:, None])[:, 0]

    torch.set_grad_enabled(True)
    given = torch.zeros_like(normed, requires_grad=True)
    biases = wanted(given)
    pulled = [torch.autograd.grad(each.sum(), given, retain_graph=True)[0].float() for each in biases]
    torch.set_grad_enabled(False)
    return torch.stack(pulled), biases.detach(), wanted(normed)
