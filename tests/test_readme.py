"""The examples of the README and of the pages run as written and give what they say; the README names every room."""

import re
import shlex
from pathlib import Path

import pytest

import interp
from interp import cli

ROOT = Path(__file__).parent.parent


def examples(page, language):
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / page).read_text(), flags=re.DOTALL)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder to be in: examples write to where they are run."""
    monkeypatch.chdir(tmp_path)


def test_the_readme_runs_and_answers_as_it_says(here, capfd):
    first, second = examples("README.md", "python")
    names: dict = {}
    exec(compile(first, "README.md", "exec"), names)
    (answer,) = re.findall(r"vlm\.generate\(clean\) +# \['(.*?)'\]", first)
    assert names["vlm"].generate(names["clean"]) == [answer] == [names["pair"].answer]
    assert names["clean"].positions.grid(0) == [(6, 6)]
    assert names["sweep"].effect.shape == (8, len(names["clean"].tokens[0]))
    (command,) = [block for block in examples("README.md", "bash") if block.startswith("interp capture")]
    arguments = shlex.split(command.replace("scenes:2000", "scenes:110"))[1:]
    assert cli.run(arguments) == 0, capfd.readouterr().err
    exec(compile(second, "README.md", "exec"), names)
    assert names["acts"]["resid"].shape == (9, 110, 128)


def test_the_pages_about_capturing_run(here):
    names: dict = {}
    for example in [*examples("docs/capture.md", "python"), *examples("docs/store.md", "python")]:
        exec(compile(example, "docs", "exec"), names)
    acts = names["acts"]
    assert acts["resid"].shape == (9, 40, 128)
    assert (names["resid"] == acts["resid"][...]).all()
    assert len(names["both"].ids) == len(names["first"].ids) + 2
    assert names["cache"]["pattern", 3].shape == (2, 4, 37, 37)


def test_the_page_about_models_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # Some load models that are not here.
    rest = [each for each in examples("docs/models.md", "python") if "Qwen/" not in each and "liuhaotian/" not in each]
    names: dict = {"interp": interp}
    for number, example in enumerate(rest):
        file = tmp_path / f"{number}.py"
        file.write_text(example)  # a trace reads its own lines
        exec(compile(example, str(file), "exec"), names)
    (answer,) = re.findall(r"vlm\.generate\(batch, max_new_tokens=5\) +# \[\"(.*?)\"\]", rest[0])
    assert names["vlm"].generate(names["batch"], max_new_tokens=5) == [answer]
    assert names["state"].shape == (1, 43, 128)
    assert not names["lm"].takes_images
    assert names["hybrid"].takes_images
    assert names["assembled"].name == "LlamaForCausalLM with CLIPVisionModel"
    assert names["hybrid"].name.endswith("layers [0, 1, 2, 3] of LlamaForCausalLM")


def test_the_page_of_conventions_runs():
    example = "\n".join(examples("docs/conventions.md", "python"))
    names: dict = {}
    exec(compile(example, "docs/conventions.md", "exec"), names)
    assert names["vlm"].generate(names["batch"]) == ["green"]
    assert names["batch"].positions["digit"].sum() == 1
    said = re.findall(r"(0\.\d\d|1\.00) [a-z ]*sight|and (0\.\d\d) where", example)
    seen, blind = (float(one or other) for one, other in said)
    assert round(names["seen"], 2) == seen
    assert round(names["unseen"], 2) == blind
    assert names["change"].p > 0.05


@pytest.mark.parametrize("page", ["lens", "patching"])
def test_the_other_pages_run(page, here):
    names: dict = {}
    for example in examples(f"docs/{page}.md", "python"):
        exec(compile(example, f"docs/{page}.md", "exec"), names)
    assert "vlm" in names


def test_the_page_about_the_toy_runs():
    names: dict = {}
    for example in examples("docs/toy.md", "python"):
        exec(compile(example, "docs/toy.md", "exec"), names)
    assert names["answer"] == names["question"].answer
    assert (names["scores"]["accuracy"] <= 1).all()
    assert names["result"].tokens == ["object", "mention", "last"]
    assert names["result"].effect[0, 0] > 0.95  # the object's patches hold all that differs


def test_the_page_about_sweeps_runs():
    names: dict = {}
    for example in examples("docs/sweeps.md", "python"):
        exec(compile(example, "docs/sweeps.md", "exec"), names)
    assert len(names["batch"]) == 12


def test_the_page_about_readouts_runs():
    example = "\n".join(examples("docs/readouts.md", "python"))
    names: dict = {}
    exec(compile(example, "docs/readouts.md", "exec"), names)
    assert abs(float(names["blocks"].values.sum()) - names["blocks"].total) < 1e-4
    assert names["low"] <= names["slope"] <= names["high"]


def test_the_page_about_words_runs():
    names: dict = {}
    for example in examples("docs/words.md", "python"):
        exec(compile(example, "docs/words.md", "exec"), names)
    assert names["heads"].top(1) == [(4, 0)]
    assert names["report"].alignment > names["report"].alignment_null
    assert names["stats"]["conditional_entropy"] < float(names["stats"].shuffled[4])


def test_the_page_about_geometry_runs_and_says_what_comes_out():
    names: dict = {}
    for example in examples("docs/geometry.md", "python"):
        exec(compile(example, "docs/geometry.md", "exec"), names)
    assert (round(names["value"], 3), round(names["low"], 3), round(names["high"], 3)) == (0.495, 0.478, 0.513)
    assert names["clamped"].phase() is None
    massive = names["alignment_matrix"](names["visual"], names["textual"])
    assert massive.phase() == range(1, 4)
    assert massive.provenance.notes[0].startswith("visual: feature 7 of 24 makes up to 99.9 % of squared distances")
    assert names["matrix"].phase() == range(2, 9)
    gain = [getattr(names["bypass"], field) for field in ("gain", "gain_low", "gain_high")]
    assert [round(float(part[0]), 2) for part in gain] == [-0.05, -0.07, -0.03]
    assert (names["after"].n, names["after"].dropped.tolist()) == (299, [254])
    changed = names["changed"].set_index(["measure", "state"])
    assert changed.loc[("neighbor_overlap", 8), "z"].item() > 4


def test_the_page_about_tuning_runs_and_says_what_comes_out():
    names = {}
    for example in examples("docs/tuning.md", "python"):
        exec(compile(example, "docs/tuning.md", "exec"), names)
    assert names["result"].unchanged
    assert names["comparison"].table()["band"].tolist() == ["full", "middle", "late", "untuned", "chance"]
    assert names["report"].alignment is not None


def test_both_commands_of_the_readme_are_what_ci_runs():
    ci = (ROOT / ".ci" / "run").read_text()
    assert 'pip install --quiet -c constraints.txt -e ".[test]"' in ci
    assert 'pip install -c constraints.txt -e ".[test]" && pytest' in (ROOT / "README.md").read_text()


def test_the_readme_names_every_room_and_links_to_pages_that_exist():
    readme = (ROOT / "README.md").read_text()
    table = readme[readme.index("## Where things are") :]
    rooms = {path.parent.name for path in (ROOT / "interp").glob("*/__init__.py")}
    assert rooms == set(re.findall(r"`interp/(\w+)`", table))
    files = {path.name for path in (ROOT / "interp").glob("*.py")} - {"__init__.py"}
    assert all(f"{name}`" in table for name in files)
    assert all((ROOT / page).is_file() for page in re.findall(r"\]\((docs/[^)#]+)\)", readme))
