"""The toy: a small trained vision-language model that ships with the package, and the scenes it was trained on."""

from interp.toy.dialogues import conversations, questions
from interp.toy.evaluate import answer_questions, compare_answers, evaluate, score_answers
from interp.toy.language import Question, SceneObject, parse_caption
from interp.toy.pairs import Pair, pairs
from interp.toy.scenes import Scene, SceneDataset, scenes

__all__ = [
    "Pair",
    "Question",
    "Scene",
    "SceneDataset",
    "SceneObject",
    "answer_questions",
    "compare_answers",
    "conversations",
    "evaluate",
    "pairs",
    "parse_caption",
    "questions",
    "scenes",
    "score_answers",
]
