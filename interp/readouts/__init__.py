"""Readouts: what wrote a logit, and what the heads look at."""
