"""Annotations: what JSON files say about pictures, LLaVA's conversations and COCO's captions.

LLaVA's format is a list of ``{"id": ..., "image": "1.jpg", "conversations": [...]}``, see `interp.data.conversations`. An item
without an image is a row of text, and ``image`` may be a list.

COCO's format is ``{"images": [{"id": ..., "file_name": ...}], "annotations": [{"id": ..., "image_id": ..., "caption":
...}]}``. Each annotation is a row with the columns ``id``, ``file_name``, ``caption`` and ``group``, the id of its image:
captions of one picture so stay on one side of a split by groups.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from interp.errors import InputError, shown


def read_json(file: Path) -> Sequence[Mapping[str, Any]]:
    """The cells of each row of a ``.json`` file: the items of a list, or the captions of COCO's format.

    Raises `InputError` for a file that cannot be read or is of neither format.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{shown(str(file))} cannot be read ({shown(error)}): expected JSON in UTF-8") from error
    if isinstance(content, dict) and isinstance(content.get("images"), list):
        return _captions(content["images"], content.get("annotations"), file)
    if isinstance(content, list) and all(isinstance(item, dict) for item in content):
        return content
    raise InputError(
        f"{shown(str(file))} holds {shown(content)}: expected a list of objects, as LLaVA's conversations are, or COCO's "
        '{"images": [...], "annotations": [...]}'
    )


def _captions(images: list[Any], annotations: Any, file: Path) -> list[dict[str, Any]]:
    names: dict[Any, Any] = {}
    try:
        for image in images:
            name = names.setdefault(image["id"], image["file_name"])
            if name != image["file_name"]:
                raise InputError(
                    f"{shown(str(file))} has the image id {shown(image['id'])} for {shown(name)} and for "
                    f"{shown(image['file_name'])}: expected one file for each id"
                )
    except (TypeError, LookupError):
        raise InputError(f"{shown(str(file))} has images without id or file_name: expected both of each") from None
    rows = []
    for number, item in enumerate(annotations if isinstance(annotations, list) else ()):
        try:
            key, caption, image = item["id"], item["caption"], item["image_id"]
            rows.append({"id": key, "file_name": names[image], "caption": caption, "group": image})
        except (TypeError, LookupError):
            raise InputError(
                f"annotation {number} of {shown(str(file))} is {shown(item)}: expected id, caption and the image_id of one "
                "of the images"
            ) from None
    return rows
