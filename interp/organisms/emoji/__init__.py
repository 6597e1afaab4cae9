"""Emoji: SmolLM2 reads pictures of emoji through a small image tower and a connector, as LLaVA reads photographs."""

from interp.organisms.emoji.emoji_model import assembled

__all__ = ["assembled"]
