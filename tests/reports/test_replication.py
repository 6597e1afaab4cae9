"""Numbers over toys: those of the demo and of other toys together, each with scenes of its own."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

import interp
from interp.geometry import alignment_matrix
from interp.reports import demo as analyses
from interp.reports.demo import POOLED, TUNED, Size, capture_states, distinct_scenes
from interp.reports.replication import replicate
from interp.reports.replication_page import replication_section, summarise_replication
from interp.statistics import mean_over_models

TINY = Size(shown=2, evaluated=4, named=4, pairs=2, candidates=8, probed=200, scenes=60, neighbours=10)


@pytest.fixture(scope="module")
def demo(toy, stage1):
    return analyses.analyse(stage1, toy, size=TINY, seed=3)


@pytest.fixture(scope="module")
def found(demo, stage1):
    """Over `toy:tuned` and, as if it were of another seed, `toy:stage1`."""
    steps = []
    result = replicate(demo, [stage1], size=TINY, step=steps.append)
    assert steps == ["toy:stage1"]
    return result


def test_all_toys_answer_the_same_questions(demo, found, stage1):
    assert found.models == (TUNED, "toy:stage1")
    other = interp.toy.answer_questions(stage1, n=TINY.evaluated, seed=4)
    expected = interp.toy.score_models(pd.concat([demo.responses[TUNED], other]), by="group")
    pd.testing.assert_frame_equal(found.answers, expected)


def test_each_toy_has_scenes_of_its_own_for_the_rest(demo, found, stage1):
    paired = distinct_scenes(TINY.scenes, 13)
    image, caption = capture_states(stage1, paired, f"mean:{POOLED}", 13).values()
    matrix = alignment_matrix(image, caption, k=TINY.neighbours, seed=13, permutations=0)
    diagonals = [each.to_frame().query("visual == textual") for each in (demo.geometry[TUNED].alignment, matrix)]
    pd.testing.assert_frame_equal(found.overlap, mean_over_models(diagonals, rows="own"))
    assert found.probes["property"].unique().tolist() == ["digit", "colour"]
    assert len(found.probes) == 2 * len(image)


def test_where_no_pair_is_answered_no_depth_is_told(demo, stage1):
    none = dataclasses.replace(demo, patching=dataclasses.replace(demo.patching, answered=0))
    found = replicate(none, [stage1], size=TINY)
    assert np.isnan(found.hand_over["mean"]).all()
    assert summarise_replication(found)[-1][1:] == ("not measured in all", "no interval")


def test_the_section_has_every_number_with_its_mean_and_the_next_toy(found):
    section = replication_section(found)
    rows = section.blocks[1].rows
    assert [row[0].partition(",")[0] for row in rows] == [
        *(
            f"{group} questions from {modality}"
            for modality in ("text", "image")
            for group in ("perception", "abstraction")
        ),
        "depth at which the answer leaves the image tokens",
    ]
    row = found.answers.iloc[2]
    assert rows[2][1] == f"{row.accuracy:.0%} ({row.low:.0%} to {row.high:.0%})"
    assert rows[2][4] == f"{row.next_low:.0%} to {row.next_high:.0%}"
    assert "not to say that there is none" in section.blocks[0].text
    assert len(summarise_replication(found)) == len(rows) == 5
