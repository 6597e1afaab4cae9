"""The toy: a small trained vision-language model that ships with the package, its scenes, and models with a planted truth."""

from interp.models.toy_folders import tuned_toys
from interp.toy.dialogues import conversations, questions
from interp.toy.evaluate import answer_questions, compare_answers, evaluate, score_answers, score_models
from interp.toy.language import Question, SceneObject, parse_caption
from interp.toy.organism import Organism, Truth
from interp.toy.pairs import Pair, pairs
from interp.toy.planted import planted
from interp.toy.scenes import Scene, SceneDataset, scenes

__all__ = [
    "Organism",
    "Pair",
    "Question",
    "Scene",
    "SceneDataset",
    "SceneObject",
    "Truth",
    "answer_questions",
    "compare_answers",
    "conversations",
    "evaluate",
    "pairs",
    "parse_caption",
    "planted",
    "questions",
    "scenes",
    "score_answers",
    "score_models",
    "tuned_toys",
]
