"""How objects look in a console and in a notebook: a few lines of text, or a table, a picture and a figure."""

from interp.displays.brief import Display, brief, dtype_name

__all__ = ["Display", "brief", "dtype_name"]
