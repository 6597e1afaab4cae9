"""Greedy generation: the config with which a model continues a prompt by the token that its own logits prefer.

A checkpoint comes with a generation config: sampling, penalties, suppressed, forced and biased tokens, guidance, stop strings,
beams, no cache. None of it belongs to the model's logits. transformers fills whatever a caller's config leaves open from
the checkpoint's; a `GreedyConfig` is filled from nowhere. It is an argument of the run, so it goes to a server with it, and
the checkpoint's own config is never touched.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transformers import GenerationConfig, LogitsProcessorList

from interp.models.running.structure import resolve

if TYPE_CHECKING:
    from interp.models.running.core import Core


# What is raised where the model gives logits that are NaN or infinite.
NOT_FINITE = "the logits are not finite"


class GreedyConfig(GenerationConfig):
    """A generation config that takes over nothing from a checkpoint's.

    Shipped with the run. `update` is how transformers fills one config from another.
    """

    def update(self, defaults_only=False, allow_custom_entries=False, **values):
        # A class that is shipped has lost the cell that super() reads.
        return {} if defaults_only else GenerationConfig.update(self, **values)


def greedy_options(core: Core, max_new_tokens: int, **ends: Any) -> dict[str, Any]:
    """The options of a greedy run with the cache; `ends` replace the ids that end and pad a row, see `end_ids`."""
    ends = {**end_ids(core), **ends}
    fields = {**GenerationConfig._get_default_generation_params(), **ends, "max_new_tokens": max_new_tokens}
    # The cache must be there: edits count on passes of one new token. The length is that of the prompt and the new tokens.
    fields |= {"use_cache": True, "do_sample": False, "num_beams": 1, "max_length": None}
    return {"generation_config": GreedyConfig(**fields), "logits_processor": LogitsProcessorList([AsTheyAre()])}


def end_ids(core: Core) -> dict[str, Any]:
    """The ids that end, pad and begin a row, as the checkpoint has them. In a model around a language model, such as BLIP-2, the
    outer config may leave them open."""
    configs = [config for config in _configs(core) if config is not None]
    ids = {}
    for name in ("eos_token_id", "pad_token_id", "bos_token_id"):
        values = (getattr(config, name, None) for config in configs)
        ids[name] = next((value for value in values if value is not None and value != []), None)
    ends = ids["eos_token_id"]
    if ids["pad_token_id"] is None and ends is not None:
        ids["pad_token_id"] = ends[0] if isinstance(ends, list | tuple) else ends
    return ids


def _configs(core: Core) -> list[Any]:
    """The generation configs of the model and of those inside it on the way to the layers, from outside in."""
    names = core.structure.layers.split(".")
    inside = [resolve(core.model, ".".join(names[:depth])) for depth in range(1, len(names))]
    return [getattr(module, "generation_config", None) for module in (core.model, *inside)]


# Plain torch, run inside the trace ---------------------------------------------------------------------------------------


class AsTheyAre:
    """Gives the logits back unchanged where they are numbers: of others, the first would count as the largest.

    transformers asks for the signature of ``__call__`` at every new token, which takes long for a plain function.
    """

    def __call__(self, ids, logits):
        if not logits.max() < float("inf"):
            raise ValueError("the logits are not finite")  # as NOT_FINITE has it; a server does not know that name
        return logits
