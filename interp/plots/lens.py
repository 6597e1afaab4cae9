"""The logit lens, drawn: as lines over depth, and on the picture as the words of its patches.

`lens_on_image` lays the patch grid over the picture and writes into each patch the word that the lens reads there, the
more opaque the more probable. A slider goes through the states, and hovering shows the next words. A menu of words
frames the patches that have one of them among their top words, at every state, so one sees where and how deep a word is
read. The menu works in the figure itself, without Python.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go

from interp.arguments import as_int, checked_int
from interp.errors import InputError, shown
from interp.plots.pictures import add_slider, picture_figure
from interp.plots.series import Series, series_figure
from interp.plots.theme import label, mean_of, numbers

if TYPE_CHECKING:
    from PIL.Image import Image

    from interp.lens import LensResult, TunedLens

# How many words the menu has by default: the most frequent ones.
_WORDS = 60
# The height of the menu, in pixels.
_MENU = 36
_FRAME = "#ffd166"
_VEIL = [(0.0, "rgba(15,23,32,0.45)"), (1.0, "rgba(0,90,140,0.85)")]


def tuned_lens_figure(lens: TunedLens, title: str | None = None, height: int = 380) -> go.Figure:
    """KL of each state's reading to the model's own prediction on held-out rows, with the state's translator and, as its
    control, without."""
    lines = {
        "tuned": Series(lens.kl_tuned, lens.kl_tuned_low, lens.kl_tuned_high),
        "plain": Series(lens.kl_plain, lens.kl_plain_low, lens.kl_plain_high, dash="dash"),
    }
    rows = f"{lens.n_held_out} {'row' if lens.n_held_out == 1 else 'rows'} held out"
    return series_figure(lines, title or f"Tuned and plain lens ({rows})", "KL(final || reading), nats", height=height)


def lens_figure(result: LensResult, title: str | None = None, height: int = 380) -> go.Figure:
    """The lens over depth: the probability of the targets where there are any, else the entropy in nats.

    The line is the mean over positions, and the band reaches from their 10th to their 90th percentile. The dotted line is
    the chance level, that of a uniform reading of the vocabulary.
    """
    grid = result.entropy if result.target_probs is None else result.target_probs
    name = "entropy (nats)" if result.target_probs is None else "probability of the target"
    several = grid.shape[1] > 1
    line = Series(
        values=grid.mean(dim=1),
        low=grid.quantile(0.1, dim=1) if several else None,
        high=grid.quantile(0.9, dim=1) if several else None,
    )
    chance = math.log(result.vocab_size) if result.target_probs is None else 1 / result.vocab_size
    rows = len(set(result.rows.tolist()))
    count = mean_of(grid.shape[1], "position") + (f" in {rows} rows" if rows > 1 else "")
    titled = title or f"{result.name.capitalize()}: {name} ({count})"
    return series_figure({name: line}, titled, name, chance=chance, height=height)


def lens_on_image(
    result: LensResult,
    image: Image,
    grid: Any,
    row: int = 0,
    state: int | None = None,
    title: str | None = None,
    size: int = 560,
    words: Sequence[str] | None = None,
) -> go.Figure:
    """The picture with its patch grid, the top word of each patch of batch row `row`, a slider over states, and a menu of
    words that frames the patches with that word in their top k.

    `words` are those of the menu, spaces around them aside; by default the 60 most frequent ones. `grid` is (rows, columns)
    of the patches, one of those that `batch.positions.grid(row)` lists. The figure opens at `state`, by default the last.

    Raises `InputError` where the grid is not such a pair (an image whose tokens are not a rectangle has none) or has another
    number of patches than the result has positions in this row; and for a word that no patch has.
    """
    sides = [as_int(side) for side in grid] if isinstance(grid, tuple | list) else []
    if len(sides) != 2 or None in sides:
        raise InputError(f"grid={grid!r}: expected (rows, columns), one of those in batch.positions.grid({row})")
    rows, columns = (side for side in sides if side is not None)
    of_row = [index for index, at in enumerate(list(result.rows)) if int(at) == row]
    if rows * columns != len(of_row):
        raise InputError(
            f"a grid of {rows} x {columns} patches for {len(of_row)} positions of row {row}: expected as many, read one of "
            "several images alone, as with positions='image_0'"
        )
    states = result.top_probs.shape[0]
    first = checked_int(states - 1 if state is None else state, "state", 0, states - 1, "a state")
    font = max(7, min(14, round(size / columns / 6.5)))
    longest = max(3, int(size / columns / (0.58 * font)))
    figure = picture_figure(image, columns, rows, -0.5, size)
    for index in range(states):
        figure.add_trace(_words(result, index, of_row, (rows, columns), font, longest))
    lines = {"color": "rgba(255,255,255,0.35)", "width": 1}
    edges = [{"x0": x - 0.5, "x1": x - 0.5, "y0": -0.5, "y1": rows - 0.5} for x in range(1, columns)]
    edges += [{"x0": -0.5, "x1": columns - 0.5, "y0": y - 0.5, "y1": y - 0.5} for y in range(1, rows)]
    figure.update_layout(shapes=[{"type": "line", "line": lines, **edge} for edge in edges])
    patches = _patches_of_words(result, of_row)
    menu = _menu_words(patches, words)
    if menu:
        figure.add_traces([_frames(size / columns) for _ in range(states)])
        _add_menu(figure, {word: patches[word] for word in menu}, columns, states)
    of_one = f" of row {row}" if len(set(result.rows.tolist())) > 1 else ""
    title = title or f"{result.name.capitalize()} on the image patches{of_one}"
    sources = ["enters layer 0", *(f"leaves layer {layer}" for layer in range(states - 1))]
    titles = [f"{title}: state {index} of {states - 1} ({source})" for index, source in enumerate(sources)]
    add_slider(figure, list(map(str, range(states))), titles, first, "state ")
    if menu:  # the slider stands below the menu
        figure.update_layout(height=figure.layout.height + _MENU, margin={"b": figure.layout.margin.b + _MENU})
        figure.layout.sliders[0].pad.t += _MENU
    return figure


def _patches_of_words(result: LensResult, of_row: list[int]) -> dict[str, list[list[int]]]:
    """For each word in the top k of a patch: at each state, the numbers of the patches that have it."""
    states = result.top_ids.shape[0]
    patches: dict[str, list[list[int]]] = defaultdict(lambda: [[] for _ in range(states)])
    for state in range(states):
        for patch, index in enumerate(of_row):
            for word in {word.strip() or word for word in result.words(state, index)}:
                patches[word][state].append(patch)
    return dict(patches)


def _menu_words(patches: dict[str, list[list[int]]], words: Sequence[str] | None) -> list[str]:
    """The words of the menu: these, or the most frequent ones."""
    if words is None:
        return sorted(patches, key=lambda word: (-sum(map(len, patches[word])), word))[:_WORDS]
    if isinstance(words, str) or not all(isinstance(word, str) for word in words):
        raise InputError(f"words={shown(words)}: expected a list of words")
    menu = [word.strip() or word for word in words]
    missing = [word for word in menu if word not in patches]
    if missing:
        raise InputError(
            f"words={missing!r}: no patch of this row has them in its top words, take others or a larger top_k"
        )
    return list(dict.fromkeys(menu))


def _frames(side: float) -> go.Scatter:
    """The frames of one state around the patches of a word; empty until a word is chosen."""
    line = {"width": 3, "color": _FRAME}
    marker = {"symbol": "square-open", "size": max(6.0, 0.8 * side), "color": _FRAME, "line": line}
    return go.Scatter(x=[], y=[], mode="markers", marker=marker, hoverinfo="skip", showlegend=False)


def _add_menu(figure: go.Figure, patches: dict[str, list[list[int]]], columns: int, states: int) -> None:
    """A menu that moves the frames, the last traces of the figure, to the patches of the chosen word."""
    frames = list(range(len(figure.data) - states, len(figure.data)))

    def button(name: str, numbers: list[list[int]]) -> dict[str, Any]:
        places = {
            "x": [[patch % columns for patch in each] for each in numbers],
            "y": [[patch // columns for patch in each] for each in numbers],
        }
        return {"label": name, "method": "restyle", "args": [places, frames]}

    buttons = [button("find a word", [[]] * states)]
    buttons += [button(label(word), of_word) for word, of_word in patches.items()]
    at = {"x": 0, "xanchor": "left", "y": 0, "yanchor": "top", "pad": {"t": 8}, "direction": "up", "showactive": True}
    figure.update_layout(updatemenus=[{**at, "buttons": buttons}])


def _words(
    result: LensResult, state: int, of_row: list[int], grid: tuple[int, int], font: int, longest: int
) -> go.Heatmap:
    """One state: a cell a patch, coloured by the probability of its top word."""
    rows, columns = grid
    probabilities = numbers(result.top_probs[state])
    cells: list[tuple[float, str, str]] = []
    for number, index in enumerate(of_row):
        words = result.words(state, index)
        listed = "<br>".join(
            f"{label(word)}  {share:.1%}" for word, share in zip(words, probabilities[index], strict=True)
        )
        where = f"patch row {number // columns}, column {number % columns}"
        cells.append((probabilities[index][0], label(words[0].strip() or words[0], longest), f"{where}<br>{listed}"))

    def spread(part: int) -> list[list[Any]]:
        return [[cell[part] for cell in cells[start : start + columns]] for start in range(0, rows * columns, columns)]

    return go.Heatmap(
        z=spread(0),
        text=spread(1),
        customdata=spread(2),
        texttemplate="%{text}",
        textfont={"color": "white", "size": font},
        hovertemplate="%{customdata}<extra></extra>",
        colorscale=_VEIL,
        zmin=0,
        zmax=1,
        colorbar={"title": {"text": "p"}, "thickness": 10, "len": 0.6},
        name=f"state {state}",
    )
