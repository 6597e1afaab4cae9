"""Training mode: which parts of a model compute something else while they are trained.

`module.train()` turns dropout on, and with it every run gives other numbers. The flag belongs to each module, so a part of a
model may be in training mode while the rest is not. But most modules never look at it: a new `nn.Linear`, or the embedding
that `resize_token_embeddings` makes, is in training mode and computes the same as ever.

    refuse_training(model)      # InputError that names the first module whose output depends on its mode

Harmless are modules of torch whose forward pass does not read the flag, and modules whose rates of dropout and noise are
all zero. Of any other module it cannot be known, so it counts as harmful; after `model.eval()` none is.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from interp.errors import InputError

# Parts of the names of attributes that say how much a module changes at random while it is trained.
_RATES = ("drop", "jitter", "noise")


def refuse_training(model: nn.Module) -> None:
    """Raise `InputError` where the model, or a part whose output depends on it, is in training mode.

    >>> refuse_training(nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.1)).eval())

    The walk over all modules takes microseconds: it comes before every run, since modules are switched and replaced later.
    """
    waiting: list[nn.Module | None] = [model]
    for module in waiting:  # grows on the way
        if module is None:
            continue
        if module.training and (module is model or depends_on_training(module)):
            path = next(path for path, each in model.named_modules() if each is module)
            part = f"{path!r} ({type(module).__name__})" if path else f"the {type(module).__name__}"
            raise InputError(
                f"{part} is in training mode, in which dropout is on and two runs differ: call model.eval() first"
            )
        waiting += module._modules.values()


def depends_on_training(module: nn.Module) -> bool:
    """Whether a module by itself, without those inside it, computes something else in training mode, or may do so."""
    if getattr(module, "gradient_checkpointing", False):  # it leaves out the cache
        return True
    rates = list(_rates(module))
    if rates:
        return any(rates)
    kind = type(module)
    if not kind.__module__.startswith("torch.nn.modules.") or _is_replaced(module):
        return True
    return "training" in kind.forward.__code__.co_names


def _rates(module: nn.Module) -> Iterator[float]:
    """The rates that a module has as numbers; a rate that is a module inside it counts as 0 here."""
    if isinstance(module, _DropoutNd):
        yield module.p
        return
    for name, value in (*vars(module).items(), *module._modules.items()):
        if any(part in name for part in _RATES):
            if isinstance(value, int | float):
                yield float(value)
            elif isinstance(value, nn.Module):
                yield 0.0


def _is_replaced(module: nn.Module) -> bool:
    """Whether this module has a forward pass of its own in place of its class's; nnsight's runs the one beneath it."""
    forward, state = vars(module).get("forward"), vars(module).get("__nnsight__")
    if type(forward).__module__.startswith("nnsight"):
        forward = getattr(state, "original", None)
    return forward is not None and getattr(forward, "__func__", forward) is not type(module).forward
