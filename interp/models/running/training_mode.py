"""Training mode: which parts of a model compute something else while they are trained.

`module.train()` turns dropout on, and with it every run gives other numbers. The flag belongs to each module, so a part of a
model may be in training mode while the rest is not. But most modules never look at it: a new `nn.Linear`, or the embedding
that `resize_token_embeddings` makes, is in training mode and computes the same as ever.

    refuse_training(model)      # InputError that names the first module whose output depends on its mode

A module is harmless if no method of its forward pass reads the flag, or if all its rates of dropout and noise are zero. What
cannot be known counts as harmful.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from types import CodeType
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd

from interp.errors import InputError

# Parts of the names of attributes that say how much a module changes at random while it is trained.
_RATES = ("drop", "jitter", "noise")
# For each class whether its forward pass reads the flag.
_READERS: dict[type, bool] = {}


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
    """Whether a module by itself, without those inside it, computes something else in training mode."""
    if isinstance(module, _NormBase):  # the statistics of the batch take the place of those that were learned
        return True
    if getattr(module, "gradient_checkpointing", False):  # it leaves out the cache
        return True
    rates = list(_rates(module))
    if any(rates):
        return True
    if type(module) not in _READERS:
        _READERS[type(module)] = _reads_training(type(module))
    return _READERS[type(module)] and not rates


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


def _reads_training(kind: type) -> bool:
    """Whether the forward pass of a class, or a method that it names, reads ``training``."""
    waiting = ["forward"]
    for method in waiting:  # grows on the way
        code = getattr(inspect.unwrap(getattr(kind, method, None) or _reads_training), "__code__", None)
        names = set() if code is None else _names_in(code)
        if "training" in names:
            return True
        waiting += [name for name in names if name not in waiting and inspect.isfunction(getattr(kind, name, None))]
    return False


def _names_in(code: Any) -> set[str]:
    """The names that a function uses, and those of the functions inside it."""
    inner = [const for const in code.co_consts if isinstance(const, CodeType)]
    return set(code.co_names).union(*map(_names_in, inner))
