"""Emoji: SmolLM2 reads pictures of emoji through a small image tower and a connector, as LLaVA reads photographs."""

from interp.organisms.emoji.emoji_model import assembled, without_template
from interp.organisms.emoji.picture import pictures
from interp.organisms.emoji.questions import picture_captions as captions
from interp.organisms.emoji.questions import picture_conversations as conversations
from interp.organisms.emoji.stages import load_emoji as load

__all__ = ["assembled", "captions", "conversations", "load", "pictures", "without_template"]
