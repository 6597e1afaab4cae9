"""Every result of a measure that a sink falsifies has a note of it: all of geometry, lens, probes and readouts, on `sink`."""

import functools
import inspect

import pytest
import torch

import interp
from interp import geometry, lens, probes, readouts
from interp.geometry.outlying import notes_of_captures, notes_of_outlying
from interp.interventions import Ablate
from interp.results import Result

SCENES = interp.toy.scenes(16, seed=0, distinct=True)
ZERO = Ablate(site="resid_pre", layers=3, positions="image")


@functools.cache
def model(name):
    return interp.toy.planted("sink").vlm if name == "sink" else interp.load(name)


@functools.cache
def captured(name, modality, reduce, positions):
    data = SCENES if reduce == "mean" else SCENES[:8]
    data = data if modality == "image" else data.captions()
    return interp.capture(model(name), data, positions=positions, reduce=reduce, progress=False)


@functools.cache
def asked(name):
    texts, images = zip(*((scene.questions[0].prompt, scene.image) for scene in SCENES[:4]), strict=True)
    return model(name).prepare(texts=list(texts), images=list(images))


class Inputs:
    """What measures take, of one model; with content alone, sinks are left out."""

    def __init__(self, name, content):
        self.vlm, self.batch = model(name), asked(name)
        self.image, self.text = ("image_content", "content") if content else ("image", "text")
        self.images = captured(name, "image", "mean", self.image)
        self.texts = captured(name, "text", "mean", self.text)
        self.patches = captured(name, "image", "none", self.image)
        draw = torch.Generator().manual_seed(0)
        cloud = self.patches["resid"][4][:200]
        self.x, self.y = (cloud + 0.01 * torch.randn(cloud.shape, generator=draw) for _ in range(2))
        self.labels = [str(scene.objects[0].digit % 2) for scene in SCENES]


QUICK = {"permutations": 0, "subsamples": 0, "progress": False}
# Each function that returns a result, on these inputs. A result that is made of another one has that one's notes.
CALLS = {
    "alignment_matrix": lambda of: geometry.alignment_matrix(of.images, of.texts, k=5, **QUICK),
    "compare": lambda of: geometry.compare(of.images, of.texts, ["cka"], subsamples=0, permutations=1, progress=False),
    "pool_sizes": lambda of: geometry.pool_sizes(of.patches, of.patches, sizes=[1], k=5, progress=False),
    "modality_gap": lambda of: geometry.modality_gap(of.x, of.y, shuffles=2),
    "id_correlation": lambda of: geometry.id_correlation(of.x, of.y, permutations=1, progress=False),
    "learn_weights": lambda of: geometry.learn_weights(of.x, of.y, steps=1, shuffles=1, progress=False),
    "intrinsic_dimension": lambda of: geometry.intrinsic_dimension(of.x),
    "dimension_scaling": lambda of: geometry.dimension_scaling(of.x, range_max=4)[0],
    "log_density": lambda of: geometry.log_density(of.x),
    "find_peaks": lambda of: geometry.find_peaks(of.x),
    "probe_layers": lambda of: probes.probe_layers(of.images, of.labels, permutations=0, control=False, progress=False),
    "logit_lens": lambda of: lens.logit_lens(of.vlm, of.batch, of.image),
    "unnormed_lens": lambda of: lens.unnormed_lens(of.vlm, of.batch, of.image),
    "tuned_lens": lambda of: tuned(of),
    "attention_share": lambda of: readouts.attention_share(of.vlm, of.batch, keys=of.image),
    "attention_masses": lambda of: readouts.attention_masses(of.vlm, of.batch, kinds=(of.image, of.text)),
    "direct_logit_attribution": lambda of: readouts.direct_logit_attribution(
        of.vlm, of.batch, "red", sources=(of.image, of.text)
    ),
    "off_distribution": lambda of: readouts.off_distribution(of.vlm, of.batch, [ZERO], of.patches, of.image),
}
# Functions that return a result and are not called here, each with the reason.
OTHERS = {
    "phase_change": "of two matrices, which have the notes",
    "approximate_neighbors": "a graph, not a number",
    "dictionary_of": "words of the vocabulary, of no run",
    "head_pursuit": "outputs of heads, not states of the stream",
    "projector_report": "features of the projector, before the stream",
    "visual_token_stats": "features of the projector, before the stream",
    "vocabulary_decomposition": "one vector at a time",
    "word_alignment": "features of the projector, before the stream",
}


def tuned(of):
    fitted = lens.TunedLens.fit(of.vlm, [of.batch], positions=of.image, epochs=1, progress=False)
    assert bool(sinks(fitted)) == (of.image == "image" and of.vlm is model("sink"))
    return lens.tuned_lens(of.vlm, of.batch, fitted, of.image)


def sinks(result):
    """The notes of sinks."""
    notes = (*result.provenance.notes, getattr(result, "warning", ""))
    return [note for note in notes if "attention sinks" in note]


@pytest.mark.parametrize("call", CALLS)
def test_a_measure_with_a_sink_notes_it_and_one_without_does_not(call):
    assert sinks(CALLS[call](Inputs("sink", content=False)))
    assert not sinks(CALLS[call](Inputs("sink", content=True)))
    assert not sinks(CALLS[call](Inputs("toy", content=False)))


def test_no_measure_is_left_out():
    rooms = (geometry, lens, probes, readouts)
    functions = {name: getattr(room, name) for room in rooms for name in room.__all__}
    public = {
        name: each.__annotations__.get("return", "") for name, each in functions.items() if inspect.isfunction(each)
    }
    results = {cls.__name__ for cls in all_results()} - {"Measure"}
    measures = {
        name for name, kind in public.items() if {*str(kind).replace("[", " ").replace("]", " ").split()} & results
    }
    assert measures <= CALLS.keys() | OTHERS.keys()
    assert CALLS.keys() <= public.keys()


def all_results(cls=Result):
    return {cls, *(each for below in cls.__subclasses__() for each in all_results(below))}


def test_probes_of_arrays_note_outlying_examples_of_both_modalities():
    of = Inputs("sink", content=False)
    states = of.patches["resid"][4:5]
    labels = [str(number % 2) for number in range(states.shape[1])]
    result = probes.probe_layers(states, labels, transfer=states.numpy(), permutations=0, control=False, progress=False)
    assert [note.split(" examples")[0].split()[-1] for note in sinks(result)] == ["acts", "transfer"]


def test_notes_of_sources_name_each_that_has_one():
    of = Inputs("sink", content=False)
    (note,) = notes_of_captures(visual=of.images, textual=of.images["resid"][...])
    assert note == f"visual: {of.images.provenance.notes[0]}"
    assert notes_of_outlying(x=geometry.nearest_neighbors(of.x, 3)) == ()
