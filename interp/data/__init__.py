"""Data: where rows come from, in every form that is taken."""
