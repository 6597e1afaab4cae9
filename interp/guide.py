"""Which call answers which question: one table, from which `interp.help` and docs/index.md are made.

>>> import interp
>>> interp.help("steer")
Guide: which call answers which question
  change a run: add or remove a direction, scale (docs/conventions.md)
      interp.interventions.Steer, interp.interventions.Project, interp.interventions.Scale
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass

from interp.displays.brief import WIDTH, Display
from interp.displays.hypertext import boxed, heading, table
from interp.errors import InputTypeError, shown

_INDENT = "      "
# The beginning of a word that is looked for, at the shortest: "ablation" is found by "abla".
_SHORTEST = 4

# Each question with the room of its calls, the calls, and the page of the docs that explains them.
QUESTIONS: tuple[tuple[str, str, str, str], ...] = (
    ("load a model, and see its parts and the proofs of them", "", "load VLM Structure CheckReport", "models"),
    ("put a model together of a language model, an image tower and a connector", "", "assemble", "models"),
    ("make a batch, and name its positions, without attention sinks", "", "VLM.prepare Batch Positions", "conventions"),
    ("get logits, continue a text, write a trace of your own", "", "VLM.logits VLM.generate VLM.trace", "conventions"),
    ("find the parts of a model that nothing else wraps", "models", "find_structure", "models"),
    ("say where data come from: a folder, a table, pairs", "", "Data", "capture"),
    ("store the states of a data set, and open them again", "", "capture open_activations Activations", "capture"),
    ("draw conversations to tune on, and questions to test with", "toy", "conversations questions", "toy"),
    (
        "draw scenes and pairs with known answers",
        "toy",
        "scenes pairs evaluate answer_questions score_answers score_models compare_answers tuned_toys parse_caption",
        "toy",
    ),
    ("test a detector on a model whose truth is known", "toy", "planted", "organisms"),
    (
        "load a real language model that reads pictures of emoji, and draw these",
        "organisms.emoji",
        "load pictures conversations captions assembled without_template",
        "organisms",
    ),
    ("change a run: write or remove states", "interventions", "Patch Ablate Skip", "conventions"),
    ("change a run: cut or reweigh attention", "interventions", "Knockout Truncate Reweight", "conventions"),
    ("change a run: add or remove a direction, scale", "interventions", "Steer Project Scale", "conventions"),
    ("see how far an intervention leaves the usual states", "readouts", "off_distribution", "readouts"),
    ("write an intervention or a readout of your own", "interventions", "Edit Read", "extending"),
    ("run reads and edits of your own in one trace", "models", "run_forward reads_of_states Intervention", "extending"),
    ("find where an answer is carried", "patching", "patch_sweep attribution_patch", "patching"),
    (
        "measure a change of the logits",
        "patching",
        "logit_difference probability cross_entropy kl_divergence logprob logprob_difference",
        "patching",
    ),
    ("move an intervention through the depth", "patching", "flow layer_sweep layer_contribution", "sweeps"),
    ("make a model of the layers of two", "patching", "transplant", "sweeps"),
    (
        "compare bands of layers: what each keeps of full tuning and of text, and costs",
        "tuning",
        "compare_bands bands band_of Band score",
        "tuning",
    ),
    ("train a band of layers, or other parts, on conversations", "tuning", "tune TuneResult", "tuning"),
    ("read a state in the vocabulary", "lens", "logit_lens tuned_lens TunedLens unnormed_lens", "lens"),
    (
        "find what produced a logit, and what heads attend to",
        "readouts",
        "direct_logit_attribution attention_share attention_masses",
        "readouts",
    ),
    ("put vectors into words", "words", "vocabulary_decomposition dictionary_of spread_of", "words"),
    ("put heads into words, and scale them", "words", "head_pursuit scale_heads", "words"),
    ("describe the projector and its tokens", "words", "projector_report word_alignment neighbours_kept", "words"),
    (
        "draw what a projector makes towards words, by masks",
        "tuning",
        "patch_alignment_loss masked_objects open_mask mask_shares",
        "tuning",
    ),
    ("count visual tokens as words", "words", "visual_token_stats quantise", "words"),
    ("decode a property of states", "probes", "probe_layers LinearProbe fit_batched BestState ProbeChange", "probes"),
    (
        "measure the dimension of a cloud",
        "geometry",
        "intrinsic_dimension dimension_scaling plateau participation_ratio spectral_entropy eigenvalues",
        "geometry",
    ),
    (
        "compare two clouds by their neighbours",
        "geometry",
        "neighbor_overlap mutual_knn cknna cycle_knn information_imbalance label_overlap overlap_chance overlap_interval",
        "geometry",
    ),
    (
        "compare two clouds as wholes",
        "geometry",
        "cka rsa procrustes svcca pwcca principal_angles distance_correlation id_correlation",
        "geometry",
    ),
    (
        "compare all layers of two modalities",
        "geometry",
        "compare alignment_matrix modality_gap entry_controls phase_change PhaseChange pool_sizes partial_out",
        "geometry",
    ),
    (
        "see what tuning changed in the geometry, in pairs",
        "geometry",
        "MatrixChange GeometryComparison DiagonalPeak",
        "geometry",
    ),
    (
        "find clusters and densities",
        "geometry",
        "density_peaks find_peaks log_density homogeneity adjusted_rand",
        "geometry",
    ),
    (
        "find which features carry a space",
        "geometry",
        "learn_weights differentiable_imbalance massive_features",
        "geometry",
    ),
    (
        "prepare a cloud",
        "geometry",
        "preprocess outlying_rows standardise clamp distinct_rows nearest_neighbors approximate_neighbors",
        "geometry",
    ),
    ("follow states through the layers", "geometry", "curvature curvature_per_example", "geometry"),
    ("add a measure of your own", "geometry", "register_measure unregister_measure", "extending"),
    (
        "put an interval or a p on a number",
        "statistics",
        "mean_interval ratio_interval few_rows wilson_interval permutation_p shuffle_labels BlockOrder",
        "conventions",
    ),
    (
        "compare two measurements of the same items, correct a p of many, judge a claim",
        "statistics",
        "paired_change Change holm family_p verdict Verdict",
        "conventions",
    ),
    (
        "compare answers of several runs, such as seeds, to the same questions",
        "statistics",
        "crossed_share crossed_change crossed_ratio Crossed",
        "conventions",
    ),
    (
        "say what holds over models, such as toys of five seeds, and for the next one",
        "statistics",
        "mean_over_models random_effects RandomEffects",
        "conventions",
    ),
    ("save, load and compare results", "", "Result Provenance", "results"),
    ("draw a result, write the figure to a file", "plots", "figure save_figure Series series_figure", "results"),
    (
        "draw patching, sweeps and knockouts",
        "plots",
        "patching_figure patch_figure patch_on_image sweep_figure flow_figure",
        "patching",
    ),
    ("draw what bands of layers are worth", "plots", "bands_figure", "tuning"),
    ("draw a training", "plots", "tuning_figure", "tuning"),
    ("draw lenses", "plots", "lens_figure lens_on_image tuned_lens_figure", "lens"),
    (
        "draw readouts",
        "plots",
        "attribution_figure heads_figure mass_figure share_figure distribution_figure",
        "readouts",
    ),
    ("draw words", "plots", "decomposition_figure projector_figure pursuit_figure tokens_figure", "words"),
    ("draw probes and answers", "plots", "probe_figure probe_change_figure accuracy_figure", "probes"),
    (
        "draw geometry",
        "plots",
        "alignment_figure alignment_figures bypass_figure diagonal_figure matrix_change_figure peak_figure "
        "comparison_figure imbalance_figure dimension_figure "
        "estimates_figure scaling_figure correlation_figure density_figure gap_figure pooling_figure peaks_figure weights_figure",
        "geometry",
    ),
    ("hand states to TransformerLens's tools", "interop", "to_transformer_lens", "capture"),
)


@dataclass(frozen=True)
class Guide(Display):
    """The questions of one look-up, as (question, calls, page) each."""

    rows: tuple[tuple[str, tuple[str, ...], str], ...]

    def __repr__(self) -> str:
        if not self.rows:
            return "Guide: no row names this word, interp.help() lists them all"
        lines = ["Guide: which call answers which question"]
        for question, calls, page in self.rows:
            named = textwrap.wrap(", ".join(calls), WIDTH, initial_indent=_INDENT, subsequent_indent=_INDENT)
            lines += [f"  {question} (docs/{page}.md)", *named]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        rows = [(question, ", ".join(calls), f"docs/{page}.md") for question, calls, page in self.rows]
        return boxed(heading("Which call answers which question"), table(("to do this", "call", "see"), rows))


def help(word: str | None = None) -> Guide:
    """Which call answers which question: all of them, or those that name a word.

    A notebook and Python's prompt show what this returns, in a script print it. If no row names the word, the rows that name its
    beginning are taken.

    >>> help("projector").rows[0][1][0]
    'interp.words.projector_report'
    >>> help("ablation").rows[0][1]
    ('interp.interventions.Patch', 'interp.interventions.Ablate', 'interp.interventions.Skip')

    Raises `InputTypeError` for a word that is not a string: for one object Python's own ``help(object)`` prints its docstring.
    """
    if word is not None and not isinstance(word, str):
        raise InputTypeError(f"word={shown(word)} is a {type(word).__name__}: expected a word, or Python's own help()")
    rows = [(question, _calls(room, names), page) for question, room, names, page in QUESTIONS]
    wanted = _plain(word or "")
    wanted = wanted.removesuffix("s") if len(wanted) > _SHORTEST else wanted  # knockouts, and the call Knockout too
    for length in range(len(wanted), min(len(wanted), _SHORTEST) - 1, -1):
        chosen = tuple(row for row in rows if wanted[:length] in _plain(f"{row[0]} {' '.join(row[1])} {row[2]}"))
        if chosen:
            return Guide(chosen)
    return Guide(())


def home_of(name: str) -> str:
    """The whole name of a public call, empty where there is none of this name.

    >>> home_of("patch_sweep")
    'interp.patching.patch_sweep'
    """
    every = (call for _, room, names, _ in QUESTIONS for call in _calls(room, names))
    return next((call for call in every if call.rpartition(".")[2] == name), "")


def _plain(text: str) -> str:
    return text.strip().lower().replace("_", " ")


def _calls(room: str, names: str) -> tuple[str, ...]:
    return tuple(".".join(part for part in ("interp", room, name) if part) for name in names.split())


def as_markdown() -> str:
    """The whole table as the page docs/index.md has it."""
    lines = ["| to do this | call | see |", "|---|---|---|"]
    for question, calls, page in help().rows:
        lines.append(f"| {question} | {', '.join(f'`{call}`' for call in calls)} | [{page}]({page}.md) |")
    return "\n".join(lines)
