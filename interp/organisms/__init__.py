"""Organisms: models whose truth is known, with a real language model inside."""
