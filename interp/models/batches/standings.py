"""What stands at a position, in words: its token, its role in the prompt, and its patch where it stands for one.

A result that averages over rows has one label for a position of all of them. Such a label is true only as far as the rows
agree: `common_name` says what holds in all, or how many words differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from jaxtyping import Bool
from torch import Tensor

from interp.models.batches.batch import Batch

# So many of the words that differ are listed in a label.
_LISTED = 3


class Standing(NamedTuple):
    """What stands at one position: its `token`; whether it is "image", "special" or "text" (`kind`); its `role`, which is
    "image", "last", "special" or "question"; for a token of an image its number among those of the image, the number of
    the image where the row has several, and the row and column of its `patch` where these form a grid."""

    token: str
    kind: str
    role: str
    number: int | None = None
    image: int | None = None
    patch: tuple[int, int] | None = None


def standings_of(batch: Batch, row: int) -> list[Standing]:
    """What stands at each real token of a row, in order.

    >>> import interp
    >>> batch = interp.load("toy").prepare(texts=["where is the 3 ?"])
    >>> [each.role for each in standings_of(batch, 0)]
    ['special', 'question', 'question', 'question', 'question', 'last']
    """
    positions = batch.positions
    special, last = (positions[name][row].tolist() for name in ("special", "last"))
    images = _image_tokens(batch, row)
    standings = []
    for column in positions["all"][row].nonzero().flatten().tolist():
        kind = "image" if column in images else "special" if special[column] else "text"
        role = "last" if last[column] and kind != "image" else "question" if kind == "text" else kind
        standings.append(Standing(batch.tokens[row][column], kind, role, *images.get(column, ())))
    return standings


def standings_at(batch: Batch, mask: Bool[Tensor, "row column"]) -> list[Standing]:
    """What stands at the selected positions, row after row; padding has the role "padding"."""
    standings = []
    for row, of_row in enumerate(mask.tolist()):
        if any(of_row):
            real = batch.positions["all"][row].nonzero().flatten().tolist()
            at = dict(zip(real, standings_of(batch, row), strict=True))
            padding = (Standing(token, "padding", "padding") for token in batch.tokens[row])
            standings += [at.get(column, each) for column, each in enumerate(padding) if of_row[column]]
    return standings


def _image_tokens(batch: Batch, row: int) -> dict[int, tuple[int, int | None, tuple[int, int] | None]]:
    """For each column of a row that stands for a part of an image: its number, image and patch, as in `Standing`."""
    positions = batch.positions
    grids = positions.grid(row)
    numbered = all(f"image_{image}" in positions for image in range(len(grids)))
    names = [f"image_{image}" for image in range(len(grids))] if grids and numbered else ["image"]
    places: dict[int, tuple[int, int | None, tuple[int, int] | None]] = {}
    for image, name in enumerate(names):
        grid = grids[image] if len(names) == len(grids) else None
        for number, column in enumerate(positions[name][row].nonzero().flatten().tolist()):
            patch = None if grid is None else divmod(number, grid[1])
            places[column] = number, image if len(names) > 1 else None, patch
    return places


def common_name(clean: Sequence[Standing], corrupted: Sequence[Standing] = ()) -> str:
    """The name of a position of several rows: what holds in all of them, or how many words differ.

    Where each row is a pair of two runs, the rows of the second are `corrupted`.

    >>> words = [Standing(word, "text", "question") for word in ("7", "3", "7")]
    >>> common_name(words[1:2]), common_name(words), common_name([Standing("<image>", "image", "image", 8, None, (1, 2))])
    ('3', '2 words: 3, 7', 'patch 1,2')
    """
    everything = [*clean, *corrupted]
    if all(each.kind == "image" for each in everything):
        return _name_in_image(everything)
    pairs = {(one.token, other.token) for one, other in zip(clean, corrupted or clean, strict=True)}
    if len(pairs) == 1:
        return " / ".join(dict.fromkeys(next(iter(pairs))))
    words = sorted({each.token for each in everything})
    more = " …" if len(words) > _LISTED else ""
    return f"{len(words)} words: {', '.join(words[:_LISTED])}{more}"


def _name_in_image(standings: Sequence[Standing]) -> str:
    """The name of a position that is an image token in all rows."""
    first, places = standings[0], {each[3:] for each in standings}
    if len(places) == 1:
        of_image = "" if first.image is None else f"image {first.image} "
        place = f"token {first.number}" if first.patch is None else f"patch {first.patch[0]},{first.patch[1]}"
        return of_image + place if of_image or first.patch is not None else f"image {place}"
    return f"{len(places)} {'image tokens' if any(each.patch is None for each in standings) else 'patches'}"


def common_role(standings: Sequence[Standing]) -> str | None:
    """The role that all of these have, else their kind, else None.

    >>> common_role([Standing("3", "text", "question"), Standing("?", "text", "last")])
    'text'
    """
    for shared in ({each.role for each in standings}, {each.kind for each in standings}):
        if len(shared) == 1:
            return shared.pop()
    return None


def common_patch(standings: Sequence[Standing]) -> tuple[int, int] | None:
    """The row and column of the one patch that all of these are, else None."""
    places = {(each.image, each.patch) for each in standings}
    return places.pop()[1] if len(places) == 1 else None
