"""What a notebook shows of each kind of object: its parts, its tokens and pictures, its figure and its first rows.

A view is drawn by the name of an object's class or of one of its bases, so that this file depends on none of them. What it
draws is limited in number and in size. Where drawing fails the notebook shows the object's repr, whatever the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from itertools import groupby
from typing import Any

from interp.displays.brief import brief, dtype_name
from interp.displays.hypertext import boxed, escaped, figure_html, frame_table, heading, note, picture, table

# The rows of a batch, its tokens a row and its pictures that are shown.
_ROWS, _TOKENS, _PICTURES = 8, 200, 6
# Numbers of a result from which neither its figure nor its frame is made unasked.
_LARGEST_RESULT = 300_000
# A patch below so many pixels is too small for a line around it.
_SMALLEST_PATCH = 5
# The kinds of token, each in its colour; the first that a token has counts.
_ROLES = {
    "image": "rgba(0,114,178,.28)",
    "special": "rgba(204,121,167,.35)",
    "padding": "rgba(128,128,128,.18)",
    "span": "rgba(230,159,0,.4)",
    "text": "transparent",
}
_OUTCOMES = {"passed": "rgba(0,158,115,.18)", "failed": "rgba(213,94,0,.3)", "pending": "rgba(230,159,0,.2)"}


def view(value: Any) -> str | None:
    """The HTML of an object, None where there is no view of its kind or where drawing it fails."""
    try:
        draw = next((_VIEWS[kind.__name__] for kind in type(value).__mro__ if kind.__name__ in _VIEWS), None)
        return None if draw is None else draw(value)
    except Exception:  # a cell must not break because its result cannot be drawn
        return None


# Models ------------------------------------------------------------------------------------------------------------------


def _vlm(vlm: Any) -> str:
    kind = type(vlm.model).__name__
    weights = sum(each.numel() for each in vlm.model.parameters())
    where = f"remote={vlm.remote!r}" if vlm.remote else f"on {vlm.device}"
    return boxed(
        heading(vlm.name, f"{kind}, {weights:,} weights in {dtype_name(vlm)}, {where}"), _structure_table(vlm.structure)
    )


def _structure(structure: Any) -> str:
    return boxed(heading("Structure"), _structure_table(structure))


def _structure_table(s: Any) -> str:
    attention = ", ".join(f"{sum(1 for _ in group)} {kind}" for kind, group in groupby(s.attention))
    rows = [
        ("layers", s.layers, f"{s.n_layers} layers, width {s.d_model}; attention: {attention}"),
        ("heads", "", f"{s.n_heads} of queries, {s.n_kv_heads} of keys and values"),
        ("embed", s.embed, ""),
        ("norm", s.norm, ""),
        ("head", s.head, f"{s.vocab_size} words" + (f", logits {s.readout.kind}" if s.readout is not None else "")),
        ("vision", s.vision or "none", f"width {s.d_vision}" if s.d_vision else ""),
        ("projector", s.projector or "none", ""),
        ("image token", "", "none" if s.image_token_id is None else f"id {s.image_token_id}"),
    ]
    known = [each.name for each in fields(s) if each.default is None and getattr(s, each.name) is not None]
    open_ = [each.name for each in fields(s) if each.default is None and getattr(s, each.name) is None]
    rows.append(("measured", "", ", ".join(known) or "nothing yet"))
    rows.append(("at first use", "", ", ".join(open_) or "nothing"))
    return table(("part", "path", "what"), rows)


def _report(report: Any) -> str:
    rows = [(each.name, each.outcome, f"{each.error:.3g}", each.bound, each.detail) for each in report.checks]
    colours = [_OUTCOMES.get(each.outcome, "") for each in report.checks]
    counts = {name: sum(each.outcome == name for each in report.checks) for name in _OUTCOMES}
    summary = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
    return boxed(heading("Proofs", summary), table(("proof", "outcome", "error", "bound", "detail"), rows, colours))


# Batches -----------------------------------------------------------------------------------------------------------------


def _batch(batch: Any) -> str:
    shape = f"{len(batch)} rows of {len(batch.tokens[0])} positions, {sum(map(len, batch.images))} pictures"
    inputs = ", ".join(f"{name} {list(value.shape)}" for name, value in batch.inputs.items())
    spans = batch.positions.spans
    roles = [name for name in _ROLES if name != "text" and (name != "span" or spans)]
    legend = " ".join(f'<span style="background:{_ROLES[name]};padding:0 6px">{name}</span>' for name in roles)
    rows = "".join(_row(batch, row, spans) for row in range(min(len(batch), _ROWS)))
    more = note(f"... of {len(batch)} rows") if len(batch) > _ROWS else ""
    return boxed(heading("Batch", shape), note(inputs), f"<div>{legend}</div>", rows, more)


def _row(batch: Any, row: int, spans: Any) -> str:
    roles = _roles(batch.positions, row, spans)
    pieces = []
    for (role, name), group in groupby(enumerate(batch.tokens[row]), key=lambda each: _group(roles, *each)):
        tokens = [token for _, token in group]
        # Image tokens and padding repeat one word: they are counted.
        text = f"{tokens[0]} x{len(tokens)}" if name is not None and len(tokens) > 1 else " ".join(tokens)
        pieces.append((role, text, 1 if name is not None else len(tokens)))
    shown, left = [], _TOKENS
    for role, text, count in pieces:
        text = text if count <= left else " ".join(text.split(" ")[: max(left, 1)]) + " …"
        style = f"background:{_ROLES[role]};padding:0 2px;margin:0 1px;white-space:pre-wrap"
        shown.append(f'<span style="{style}">{escaped(text, 2000)}</span>')
        left -= count
        if left <= 0:
            break
    images = batch.images[row] if batch.images else ()
    pictures = _pictures_of(batch.positions, row, images) if row * max(1, len(images)) < _PICTURES else ""
    return f'<div style="margin:6px 0"><b>{row}</b> <code>{"".join(shown)}</code></div>{pictures}'


def _group(roles: Sequence[str], column: int, token: str) -> tuple[str, str | None]:
    """Tokens that are shown together: of one role, and for image tokens and padding of one word."""
    return roles[column], token if roles[column] in ("image", "padding") else None


def _roles(positions: Any, row: int, spans: Any) -> list[str]:
    named = [mask[row] for mask in spans.values()]
    masks = {name: positions[name][row].tolist() for name in ("image", "special", "padding")}
    length = len(masks["image"])
    masks["span"] = [any(bool(mask[column]) for mask in named) for column in range(length)]
    order = ("padding", "image", "span", "special")
    return [next((name for name in order if masks[name][column]), "text") for column in range(length)]


def _pictures_of(positions: Any, row: int, images: Sequence[Any]) -> str:
    if not images:
        return ""
    grids, boxes = positions.grid(row), positions.boxes(row)
    shown = []
    for number, image in enumerate(images[:_PICTURES]):
        grid = grids[number] if number < len(grids) else None
        caption = f"{image.width}x{image.height}" + (f", grid {grid[0]}x{grid[1]}" if grid else ", no grid")
        shown.append(picture(_with_grid(image, boxes[number] if number < len(boxes) else None), caption))
    return "".join(shown) + (note(f"... of {len(images)} pictures") if len(images) > _PICTURES else "")


def _with_grid(image: Any, boxes: Any) -> Any:
    """A small picture with a line around the part of it that each token sees, where these are large enough to be seen."""
    from PIL import ImageDraw

    small = image.convert("RGB")
    small.thumbnail((288, 288))
    scale = 288 // max(small.size)
    small = small.resize((small.width * scale, small.height * scale), resample=0) if scale > 1 else small
    if boxes is None:
        return small
    corners = (boxes.float().cpu() * boxes.new_tensor([small.width, small.height] * 2)).tolist()
    lines = ImageDraw.Draw(small)
    for left, top, right, bottom in corners:
        if right - left >= _SMALLEST_PATCH and bottom - top >= _SMALLEST_PATCH:
            lines.rectangle((left, top, right, bottom), outline=(255, 255, 255))
    return small


def _positions(positions: Any) -> str:
    names = list(positions.masks)
    rows = len(positions["all"])
    counts = [[int(count) for count in positions[name].sum(dim=1)] for name in names]
    columns = ["name", "in all", *(f"row {row}" for row in range(min(rows, _ROWS)))]
    body = [(name, sum(each), *each[:_ROWS]) for name, each in zip(names, counts, strict=True)]
    grids = [
        ", ".join(f"{grid[0]}x{grid[1]}" if grid else "no grid" for grid in positions.grid(r)) for r in range(rows)
    ]
    body += [("grids", "", *grids[:_ROWS])] if any(grids) else []
    more = note(f"... of {rows} rows") if rows > _ROWS else ""
    return boxed(heading("Positions", "how many a row has of each"), table(columns, body), more)


# Activations, scenes and results -----------------------------------------------------------------------------------------


def _activations(acts: Any) -> str:
    sites = [
        (site, list(value.shape), dtype_name(value), brief(acts.layers[site])) for site, value in acts.sites.items()
    ]
    labels = []
    for name, values in acts.labels.items():
        kinds = list(dict.fromkeys(map(str, values)))
        labels.append((name, len(kinds), ", ".join(kinds[:6]) + (", ..." if len(kinds) > 6 else "")))
    manifest = acts.manifest
    wanted = ("positions", "reduce", "interventions", "notes", "skipped", "non_finite")
    notes = [(name, brief(manifest[name])) for name in wanted if manifest.get(name)]
    return boxed(
        heading("Activations", f"{len(acts.ids)} rows of {manifest.get('model')!r}"),
        table(("site", "shape", "dtype", "layers"), sites),
        table(("label", "values", "such as"), labels) if labels else "",
        table(("captured with", ""), notes) if notes else "",
    )


def _scenes(scenes: Any) -> str:
    if scenes.modality == "text":
        captions = [(scene.id, scene.caption) for scene in scenes.scenes[:_ROWS]]
        more = note(f"... of {len(scenes.scenes)} captions") if len(scenes.scenes) > _ROWS else ""
        return boxed(heading("Captions", f"{len(scenes.scenes)} of them"), table(("scene", "text"), captions), more)
    shown = [picture(scene.image, f"{scene.id}: {scene.caption}") for scene in scenes.scenes[:_PICTURES]]
    more = note(f"... of {len(scenes.scenes)} scenes") if len(scenes.scenes) > _PICTURES else ""
    return boxed(heading("Scenes", f"{len(scenes.scenes)} of them"), "".join(shown), more)


def _scene(scene: Any) -> str:
    questions = [(each.kind, each.prompt, each.answer) for each in scene.questions[:12]]
    answers = table(("kind", "question", "answer"), questions)
    return boxed(picture(scene.image, f"{scene.id}: {scene.caption}"), answers)


def _pair(pair: Any) -> str:
    sides = [(pair.clean, f"clean: {pair.answer}"), (pair.corrupted, f"corrupted: {pair.other}")]
    pictures = "".join(picture(scene.image, caption) for scene, caption in sides)
    return boxed(heading("Pair", pair.question), pictures)


def _result(result: Any) -> str:
    name = heading(type(result).__name__, _origin(result.provenance))
    if _numbers_in(result) > _LARGEST_RESULT:
        items = [(each.name, brief(getattr(result, each.name))) for each in fields(result) if each.repr]
        return boxed(name, table(("field", "value"), items), note("much to draw: .plot() and .to_frame() do it"))
    figure = rows = ""
    try:
        figure = figure_html(result.plot())
    except Exception:  # a result without a figure still has its rows
        figure = ""
    try:
        rows = frame_table(result.to_frame())
    except Exception:
        rows = ""
    if not figure and not rows:
        raise ValueError("neither a figure nor rows")
    return boxed(name, figure, rows)


def _origin(provenance: Any) -> str:
    model = f"model {provenance.model}" if provenance.model else ""
    changes = f"under {len(provenance.interventions)} interventions" if provenance.interventions else ""
    return ", ".join(part for part in (model, changes, *provenance.notes[:2]) if part)


def _numbers_in(value: Any) -> int:
    """How many numbers the arrays and frames of a result have together."""
    if isinstance(value, list | tuple):
        return sum(map(_numbers_in, value))
    if isinstance(value, dict):
        return sum(map(_numbers_in, value.values()))
    if hasattr(value, "__dataclass_fields__"):
        return sum(_numbers_in(getattr(value, each.name)) for each in fields(value))
    shape, count = getattr(value, "shape", ()), 1
    for size in shape:
        count *= size
    return count


_VIEWS: dict[str, Callable[[Any], str]] = {
    "VLM": _vlm,
    "Structure": _structure,
    "CheckReport": _report,
    "Batch": _batch,
    "Positions": _positions,
    "Activations": _activations,
    "SceneDataset": _scenes,
    "Scene": _scene,
    "Pair": _pair,
    "Result": _result,
}
