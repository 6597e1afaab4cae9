"""Files of tensors: safetensors, or what `torch.save` wrote.

Anybody may have written such a file. A pickle can run any program when it is loaded; here nothing of it runs but what makes
tensors, and one that names anything else is refused.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import Tensor

from interp.errors import InputError, reason_of, shown


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by their keys, on the CPU.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "a.bin"
    >>> torch.save({"weight": torch.zeros(2, 3)}, path)
    >>> read_tensors(path)["weight"].shape
    torch.Size([2, 3])

    Raises `InputError` for a file that is empty, damaged, or holds anything but a dict of tensors by name.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.stat().st_size:
        raise InputError(f"{path.name!r} is empty: expected tensors, fetch or write it again")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise InputError(f"{path.name!r} is no whole safetensors file ({reason_of(error)}): fetch it again") from error
    except Exception as error:  # whatever a reader of pickles makes of bytes that are none
        raise InputError(f"{path.name!r} {fault_of_pickle(error)}: expected tensors alone") from error
    entries = content.items() if isinstance(content, dict) else [("", content)]
    others = [each for key, each in entries if not isinstance(key, str) or not isinstance(each, Tensor)]
    if others or not isinstance(content, dict):
        raise InputError(
            f"{path.name!r} holds {shown((*others, content)[0])}: expected a dict of tensors by name, as of "
            "torch.save(module.state_dict(), file)"
        )
    return content


def fault_of_pickle(error: Exception) -> str:
    """What is wrong with a file that `torch.load` does not take, in words."""
    named = re.search(r"GLOBAL ([\w.]+)", str(error))
    if named:
        return f"is a pickle that names {named[1]}, and objects are never loaded"
    return f"is no file of tensors that torch can read ({type(error).__name__})"
