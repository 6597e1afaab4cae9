"""The toys that ship with the package: their names, and the folders of their weights.

``"toy"`` is ``"toy:tuned"``, of seed 0, as are ``"toy:base"`` and ``"toy:stage1"``. ``"toy:tuned@1"`` to ``"toy:tuned@4"`` are
what the same recipe makes of other seeds, so that what is said of the toy can be said of five.
"""

from __future__ import annotations

from pathlib import Path

from interp.arguments import checked_int
from interp.errors import InputError

VERSIONS = ("base", "stage1", "tuned")
SEEDS = (1, 2, 3, 4)  # of `tuned` alone; what is not shipped yet has no folder
WEIGHTS = Path(__file__).parents[1] / "toy" / "weights"


def tuned_toys(n: int | None = None) -> tuple[str, ...]:
    """The names of the tuned toys that are here, of seed 0, 1, and so on: the first `n` of them, or all.

    >>> tuned_toys(1)
    ('toy:tuned',)

    Raises `InputError` if `n` is not an int of 1 or more, and where fewer are here.
    """
    names = ["toy:tuned", *(f"toy:tuned@{seed}" for seed in SEEDS)]
    here = [name for name in names if _folder(name).is_dir()]
    if n is None:
        return tuple(here)
    if checked_int(n, "n", least=1) > len(here):
        raise InputError(
            f"{n} tuned toys: {len(here)} are here, {', '.join(here)}; {_RECIPE.format(seed='SEED')} makes another"
        )
    return tuple(here[:n])


_RECIPE = "`python -m interp.toy.train --seed {seed} --out DIR`"


def toy_folder(name: str) -> Path:
    """The folder of the weights of a toy, by its name.

    Raises `InputError` for a name that no toy has, and for a toy that is not shipped.
    """
    which = name.partition(":")[2] or "tuned"
    version, at, seed = which.partition("@")
    if version not in VERSIONS or (at and (version != "tuned" or seed not in map(str, SEEDS))):
        raise InputError(
            f"{name!r} is not a toy: use 'toy' or one of {', '.join(f'toy:{each}' for each in VERSIONS)}, or "
            f"toy:tuned@{SEEDS[0]} to toy:tuned@{SEEDS[-1]}, which are of other seeds"
        )
    folder = _folder(name)
    if not folder.is_dir():
        raise InputError(
            f"{name!r} is not shipped: expected its weights in interp/toy/weights/{folder.name}; {_RECIPE.format(seed=seed)} "
            "makes them, and load('DIR/tuned') takes them"
        )
    return folder


def _folder(name: str) -> Path:
    return WEIGHTS / (name.partition(":")[2] or "tuned")
