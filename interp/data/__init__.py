"""Data: where rows come from, in every format that is read."""

from interp.data.data import Data

__all__ = ["Data"]
