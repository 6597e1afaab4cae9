"""Figures as files: a page that shows itself anywhere, or a picture.

Pictures are drawn by kaleido, which needs a Chrome or Chromium browser. Both are optional, so that a figure that cannot be
drawn for want of them says what to install.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interp.errors import InputError, InputTypeError, reason_of, shown

if TYPE_CHECKING:
    import plotly.graph_objects as go

PICTURES = (".png", ".svg", ".pdf", ".jpg", ".jpeg", ".webp")


def save_figure(figure: go.Figure | Any, path: str | os.PathLike[str], **options: Any) -> Path:
    """Write a figure, or the figure of a result, to a file whose ending says in which form, and return its path.

    >>> import interp, tempfile
    >>> from interp.geometry import intrinsic_dimension
    >>> import numpy as np
    >>> estimate = intrinsic_dimension(np.random.default_rng(0).normal(size=(100, 3)))
    >>> save_figure(estimate, f"{tempfile.mkdtemp()}/dimension.html").name
    'dimension.html'

    ``.html`` is a page that holds plotly and needs no network, ``.json`` plotly's own form. Pictures (``.png``, ``.svg``,
    ``.pdf``, ``.jpg``, ``.webp``) need ``pip install "interp-vlm[reports]"`` and a Chrome or Chromium browser. `options` go to
    plotly: ``width`` and ``height`` in pixels, ``scale``.

    Raises `InputTypeError` for what is neither a figure nor a result, `InputError` for another ending, for a path that cannot
    be written, and for a picture where kaleido or a browser is missing.
    """
    import plotly.graph_objects as go

    target = Path(path)
    figure = figure if isinstance(figure, go.Figure) or not hasattr(figure, "plot") else figure.plot()
    if not isinstance(figure, go.Figure):
        raise InputTypeError(f"{shown(figure)} is a {type(figure).__name__}: expected a figure or a result")
    ending = target.suffix.lower()
    if ending not in (".html", ".json", *PICTURES):
        raise InputError(f"path={str(path)!r}: expected a name that ends in .html, .json, {', '.join(PICTURES)}")
    try:
        if ending == ".html":
            figure.write_html(target, include_plotlyjs=True, **options)
        elif ending == ".json":
            figure.write_json(target, **options)
        else:
            _write_picture(figure, target, options)
    except OSError as error:
        raise InputError(f"{str(target)!r} cannot be written ({error}): choose another path") from error
    return target


def _write_picture(figure: go.Figure, target: Path, options: dict[str, Any]) -> None:
    wanted = 'install it, pip install "interp-vlm[reports]", or save the figure as .html, which needs neither'
    if importlib.util.find_spec("kaleido") is None:
        raise InputError(f"a picture ({target.suffix}) needs kaleido and a Chrome or Chromium browser: {wanted}")
    try:
        figure.write_image(target, **options)
    except (RuntimeError, ValueError) as error:
        raise InputError(f"{target.name!r} could not be drawn ({reason_of(error)}): {wanted}") from error
