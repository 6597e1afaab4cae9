"""Running: where the sites of a model are, and the one trace that edits and reads them."""
