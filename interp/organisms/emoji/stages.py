"""Stages: the emoji organism before and after its tuning, out of the weights that this package ships.

=================== =================================================== ==================================================
`"stage1"`          tower and connector trained, the language model       ``tower.safetensors``, ``stage1.safetensors``
                    untouched
`"tuned"`           tuned on perception: adapters on all 30 layers        ``tuned/``: a folder of PEFT, LoRA and connector
`"tuned:middle"`    ... on a band in the middle                           ``tuned-middle/``
`"tuned:late"`      ... on a late band                                    ``tuned-late/``
`"tuned:connector"` ... the connector alone                               ``tuned-connector.safetensors``
=================== =================================================== ==================================================

All is bfloat16; an adapter is merged when it is loaded. The language model is found by `interp.organisms.emoji.smollm2`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from interp.arguments import checked_choice
from interp.errors import InputError
from interp.files import whole_file
from interp.models import VLM, load
from interp.models.adapters import NAME as CONFIG
from interp.models.adapters import is_adapter, merge_adapter
from interp.models.copying import sharing_module
from interp.models.tensor_files import read_tensors
from interp.organisms.emoji.emoji_model import assembled
from interp.organisms.emoji.smollm2 import smollm2
from interp.organisms.emoji.tower import emoji_tower

WEIGHTS = Path(__file__).parent / "weights"
STAGES = ("stage1", "tuned", "tuned:middle", "tuned:late", "tuned:connector")
_ADAPTER = "adapter_model.safetensors"


def load_emoji(
    name: str = "tuned",
    device: str | torch.device = "auto",
    check: bool = True,
    weights: str | os.PathLike[str] = WEIGHTS,
) -> VLM:
    """The emoji organism at a stage, a LLaVA around SmolLM2-135M-Instruct; `interp.organisms.emoji.load` is this function.

        vlm = interp.organisms.emoji.load("tuned")
        picture = interp.organisms.emoji.pictures(1, seed=0)[0]
        vlm.generate(vlm.prepare(["<image>\\nWhat is this?"], [picture.image], chat=True))

    Its name is ``emoji:tuned``, and its revision says where the language model came from, so every result has both. Models that
    one process loads share the weights of SmolLM2 where they are equal, so a change in place changes them all. `weights` is the
    folder of another training (``python -m interp.organisms.emoji.train --out DIR``); `device` and `check` are as in
    `interp.load`.

    Raises `InputError` for a name that is not in the table above, where SmolLM2 is not found, with what to do, and where weights
    are missing; `LayoutError` where a proof fails. Warns where SmolLM2 is not the file that the weights were fitted to.
    """
    checked_choice(name, "name", STAGES)
    language_model, tokenizer, origin = smollm2(device)
    vlm = stage_of(name, language_model, tokenizer, weights, check)
    vlm.revision = origin
    return vlm


def stage_of(
    name: str, language_model: nn.Module, tokenizer: Any, weights: str | os.PathLike[str] = WEIGHTS, check: bool = True
) -> VLM:
    """A stage around this language model, of weights that fit it: files as `write_part` and `write_adapter` make them."""
    folder, stem = Path(weights), name.replace(":", "-")
    adapter = folder / stem if is_adapter(folder / stem) else None
    tower = emoji_tower().eval()
    tower.load_state_dict(_read(folder / "tower.safetensors", name))
    connector = _read(folder / ("stage1.safetensors" if adapter else f"{stem}.safetensors"), name)
    vlm = assembled(language_model, tokenizer, tower, connector, check=check and adapter is None)
    if adapter is not None:
        model = sharing_module(vlm.model, _copies(vlm.model, adapter))
        merge_adapter(model, adapter)
        vlm = load(model=model, processor=vlm.processor, check=check)
    vlm.name = f"emoji:{name}"
    return vlm


def write_part(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write the tensors of a tower or a connector as they are shipped: bfloat16, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as partial:
        save_file({key: each.detach().cpu().to(torch.bfloat16).contiguous() for key, each in tensors.items()}, partial)


def write_adapter(source: Path, target: Path) -> None:
    """Write the adapter that `interp.tuning.tune` left in ``OUT/adapter`` as it is shipped: bfloat16, its base called stage 1."""
    config = json.loads((source / CONFIG).read_text(encoding="utf-8"))
    config |= {"base_model_name_or_path": "emoji:stage1", "revision": None}
    write_part(read_tensors(source / _ADAPTER), target / _ADAPTER)
    with whole_file(target / CONFIG) as partial:
        partial.write_text(json.dumps(config, indent=1, sort_keys=True))


def _read(path: Path, name: str) -> dict[str, Tensor]:
    if not path.is_file():
        raise InputError(f"the weights of {name!r} are not in {path.parent.name!r}: expected {path.name} there")
    return {key: each.float() for key, each in read_tensors(path).items()}


def _copies(model: nn.Module, adapter: Path) -> dict[str, nn.Parameter]:
    """Copies of the weights that an adapter changes: those of the language model are shared with other stages."""
    keys = {key.removeprefix("base_model.model.") for key in read_tensors(adapter / _ADAPTER)}
    changed = {f"{key.partition('.lora_')[0]}.weight" if ".lora_" in key else key for key in keys}
    own = model.named_parameters()
    return {name: nn.Parameter(each.detach().clone()) for name, each in own if name in changed}
