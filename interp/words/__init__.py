"""Words: states, heads, projectors and visual tokens put into words of the vocabulary."""
