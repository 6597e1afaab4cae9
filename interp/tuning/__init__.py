"""Tuning: training parts of a model on conversations, and what that changes."""
