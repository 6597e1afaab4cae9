"""Readiness: what is checked before a model runs, in one place.

Every run begins here, whatever it is for: a forward pass, generation, gradients, a sweep, a proof.

    ready_inputs(core, inputs, new)     what the model is called with

No part of the model is in training mode (`interp.models.running.training_mode`), no row is longer than its positions
(`interp.models.running.position_limits`), and the lists of all hidden states and attention weights that its config may ask for
are not made, since a trace reads what it needs on the way.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from interp.errors import InputError
from interp.models.running.position_limits import refuse_too_long
from interp.models.running.training_mode import refuse_training

if TYPE_CHECKING:
    from interp.models.running.core import Core

_LISTS = ("output_attentions", "output_hidden_states")


def ready_inputs(core: Core, inputs: Mapping[str, Tensor], new: int = 0) -> dict[str, Any]:
    """These inputs as the model's forward pass is called with them; `new` tokens follow each row.

    Raises `InputError` for a model in training mode, one whose config says that it returns tuples, and a row that is longer
    than the model's positions.
    """
    if not core.remote or core.remote == "local":  # on a server the modules are others
        refuse_training(core.model)
    refuse_too_long(core, inputs, new)
    return {**core.on_device(inputs), **_without_lists(core)}


def _without_lists(core: Core) -> dict[str, bool]:
    """The options that overrule a config which asks for lists of all states; none for a usual one."""
    config = core.model.config
    configs = [config, config.get_text_config(decoder=True)]
    if not all(getattr(each, "return_dict", True) for each in configs):  # many models fail inside with it
        raise InputError(
            f"the config of {core.name!r} has return_dict=False, but outputs are read by name: set it to True, in "
            "model.config and in its text_config"
        )
    return {name: False for name in _LISTS if any(getattr(each, name, False) for each in configs) and core.takes(name)}
