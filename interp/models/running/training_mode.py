"""Training mode: which parts of a model compute something else while they are trained.

`module.train()` turns dropout on, and with it every run gives other numbers. The flag belongs to each module, so a part of a
model may be in training mode while the rest is not. But most modules never look at it: a new `nn.Linear`, or the embedding
that `resize_token_embeddings` makes, is in training mode and computes the same as ever.

    refuse_training(model)      # InputError that names the first module whose output depends on its mode

A module is harmless if no method of its forward pass reads the flag, or if all its rates of dropout and noise are zero. What
cannot be known counts as harmful: a forward pass that hands the module itself to a function, or that was put on the module
in place of its class's own.
"""

from __future__ import annotations

import dis
import inspect
from collections.abc import Iterator
from itertools import pairwise
from types import CodeType

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd

from interp.errors import InputError

# Parts of the names of attributes that say how much a module changes at random while it is trained.
_RATES = ("drop", "jitter", "noise")
# What follows where a part of a module is used; a tuple is made of the variables of a function inside.
_OF_IT = ("ATTR", "METHOD", "SUBSCR", "GET_ITER", "BUILD_TUPLE")
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
    if _is_replaced(module):
        return not rates
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


def _is_replaced(module: nn.Module) -> bool:
    """Whether this module has a forward pass of its own in place of its class's; nnsight's runs the one beneath it."""
    forward, state = vars(module).get("forward"), vars(module).get("__nnsight__")
    if type(forward).__module__.startswith("nnsight"):
        forward = getattr(state, "original", None)
    return forward is not None and getattr(forward, "__func__", forward) is not type(module).forward


def _reads_training(kind: type) -> bool:
    """Whether the forward pass of a class, or a method that it names, reads ``training`` or may do so out of sight."""
    waiting = [name for name in ("forward", "__call__") if getattr(kind, name) is not getattr(nn.Module, name)]
    for method in waiting:  # grows on the way
        code = getattr(inspect.unwrap(getattr(kind, method, None) or _reads_training), "__code__", None)
        names = set() if code is None else _names_in(code)
        if "training" in names or (code is not None and _hands_on(code, code.co_varnames[:1])):
            return True
        own = (name for name in names if getattr(kind, name, None) is not getattr(nn.Module, name, None))
        waiting += [name for name in own if name not in waiting and inspect.isfunction(getattr(kind, name))]
    return False


def _names_in(code: CodeType) -> set[str]:
    """The names that a function uses, also as strings, and those of the functions inside it."""
    inner = [const for const in code.co_consts if isinstance(const, CodeType)]
    words = {const for const in code.co_consts if isinstance(const, str)}
    return (words | set(code.co_names)).union(*map(_names_in, inner))


def _hands_on(code: CodeType, module: tuple[str, ...]) -> bool:
    """Whether a method uses its `module`, the name of its first argument, as a whole, as in ``function(self)``, and not only
    what the module has."""
    inner = [const for const in code.co_consts if isinstance(const, CodeType)]
    steps = [step for step in dis.get_instructions(code) if "CACHE" not in step.opname]
    for place, (step, after) in enumerate(pairwise(steps)):
        if not step.opname.startswith(("LOAD_FAST", "LOAD_DEREF")):
            continue
        loaded = step.argval if isinstance(step.argval, tuple) else (step.argval,)  # some versions load two at once
        whole = [
            name for name in loaded if name in module and (name != loaded[-1] or not after.opname.endswith(_OF_IT))
        ]
        of_super = "super" in [earlier.argval for earlier in steps[max(place - 2, 0) : place]]
        if whole and not of_super:
            return True
    return any(_hands_on(each, module) for each in inner)
