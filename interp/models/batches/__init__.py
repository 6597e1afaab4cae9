"""Batches: what a batch is, from texts and images to one encoding of rows, their positions, grids, spans and targets."""
