"""Emoji: SmolLM2 reads pictures of emoji through a small image tower and a connector, as LLaVA reads photographs."""

from interp.organisms.emoji.abstraction import abstraction_questions
from interp.organisms.emoji.emoji_model import assembled, without_template
from interp.organisms.emoji.emoji_scores import answer_emoji_questions as answer_questions
from interp.organisms.emoji.emoji_scores import compare_emoji_answers as compare_answers
from interp.organisms.emoji.emoji_scores import evaluate_emoji as evaluate
from interp.organisms.emoji.emoji_scores import score_emoji_answers as score_answers
from interp.organisms.emoji.picture import pictures, pictures_of
from interp.organisms.emoji.questions import EmojiQuestion, description, perception_questions
from interp.organisms.emoji.questions import picture_captions as captions
from interp.organisms.emoji.questions import picture_conversations as conversations
from interp.organisms.emoji.retention import retention_questions
from interp.organisms.emoji.stages import load_emoji as load

__all__ = [
    "EmojiQuestion",
    "abstraction_questions",
    "answer_questions",
    "assembled",
    "captions",
    "compare_answers",
    "conversations",
    "description",
    "evaluate",
    "load",
    "perception_questions",
    "pictures",
    "pictures_of",
    "retention_questions",
    "score_answers",
    "without_template",
]
