"""The command line: what it writes, what it prints, and how it refuses."""

import json
import re
import subprocess
import sys

import pytest
from PIL import Image

import interp
import zoo
from interp import cli
from interp.cli import doctor_command
from interp.errors import InterpError
from interp.reports import demo as analyses
from interp.reports import replication
from interp.reports.demo import Size

TINY = Size(shown=2, evaluated=4, named=4, pairs=2, candidates=8, probed=200, scenes=60, neighbours=10)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder to be in, with a picture beside it."""
    Image.new("RGB", (64, 64), "red").save(tmp_path / "picture.png")
    (tmp_path / "words.txt").write_text("no picture")
    (tmp_path / "empty").mkdir()
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    return here


def asking(*more):
    return ["demo", "--image", "../picture.png", "--question", "where ?", *more]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["demo", "--image", "none.png", "--question", "where ?"], "'none.png' is no file"),
        (["demo", "--image", "../words.txt", "--question", "where ?"], "is not an image"),
        (["demo", "--image", "../empty", "--question", "where ?"], "is no file"),
        (["demo", "--image", "../picture.png"], "missing --question"),
        (["demo", "--question", "where ?"], "missing --image"),
        (["demo", "--model", "toy"], "missing --image and --question"),
        (["demo", "--image", "../picture.png", "--question", " "], "is empty"),
        (["demo", "--image", "../picture.png", "--question", "<image> <image> ?"], "2 <image>"),
        (asking("--model", "toy:unknown"), "'toy:unknown' is not a toy"),
        (asking("--model", "../empty"), "holds no model"),
        (asking("--model", "toy", "--device", "abacus"), "'abacus'"),
        (asking("--out", "missing/report.html"), "'missing' is not a folder"),
        (["demo", "--out", "missing/report.html"], "'missing' is not a folder"),
        (["demo", "--out", "../words.txt/report.html"], "'../words.txt' is not a folder"),
        (["demo", "--out", "."], "is a folder"),
        (["demo", "--out", "/dev/null"], "'/dev/null' is not a regular file"),
        (["demo", "--seed", "-1"], "--seed"),
        (["demo", "--seed", "many"], "--seed"),
        (["demo", "--toys", "0"], "--toys"),
        (["demo", "--toys", "99"], "99 tuned toys: "),
        (asking("--toys", "2"), "--toys 2: expected it without --model"),
        (["demo", "--unknown"], "--unknown"),
        (["demo", "extra"], "extra"),
        (["doctor"], "model"),
        (["doctor", "toy:unknown"], "'toy:unknown' is not a toy"),
        (["doctor", "../empty"], "holds no model"),
        (["unknown"], "unknown"),
        (["--unknown"], "--unknown"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2_and_nothing_is_written(folder, capfd, arguments, message):
    assert cli.run(arguments) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err
    assert list(folder.iterdir()) == []


def test_a_repository_that_cannot_be_read(folder, capfd, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert cli.run(asking("--model", "nobody/no-such-model")) == 2
    assert "error: 'nobody/no-such-model' cannot be loaded" in capfd.readouterr().err
    assert list(folder.iterdir()) == []


def test_an_unwritable_report_is_refused_before_a_model_is_loaded(folder, monkeypatch, capfd):
    monkeypatch.setattr(interp, "load", lambda *_, **__: pytest.fail("a model was loaded"))
    assert cli.run(["demo", "--out", "missing/report.html"]) == 2
    assert cli.run(asking("--out", "missing/report.html")) == 2


def test_anything_else_is_exit_code_1_and_one_line(folder, monkeypatch, capfd):
    def fail(*_, **__):
        raise RuntimeError("first line\nsecond line")

    monkeypatch.setattr(interp, "load", fail)
    assert cli.run(asking()) == 1
    assert capfd.readouterr().err == "error: RuntimeError: first line second line\n"
    assert list(folder.iterdir()) == []
    with pytest.raises(RuntimeError, match="second line"):
        cli.run(asking("--debug"))


def test_a_traceback_is_shown_for_the_asking(folder):
    with pytest.raises(InterpError, match="is no file"):
        cli.run(["demo", "--image", "none.png", "--question", "where ?", "--debug"])
    with pytest.raises(InterpError, match="is no file"):
        cli.run(["--debug", "demo", "--image", "none.png", "--question", "where ?"])


def test_an_interruption_leaves_nothing_behind(folder, monkeypatch, capsys):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("interp.reports.one_prompt.analyse_prompt", stop)
    assert cli.run(asking("--model", "toy")) == 1
    assert capsys.readouterr().err.endswith("error: interrupted\n")
    assert list(folder.iterdir()) == []


@pytest.fixture(scope="module")
def analysed():
    """Demos of little data by their seed, each made once."""
    plain, done = analyses.analyse, {}

    def analyse(stage1, tuned, *, seed, step):
        if seed not in done:
            done[seed] = plain(stage1, tuned, size=TINY, seed=seed, step=step)
        return done[seed]

    return analyse


def test_the_demo_writes_its_report(folder, capfd, monkeypatch, analysed):
    monkeypatch.setattr(analyses, "analyse", analysed)
    assert cli.run(["demo", "--out", "report.html", "--seed", "5", "--device", "cpu"]) == 0
    out, err = capfd.readouterr()
    assert err == ""
    assert "abstraction phase" in out
    assert out.endswith("report: report.html\n")
    html = (folder / "report.html").read_text()
    assert "seed 5" in html
    assert [item.name for item in folder.iterdir()] == ["report.html"]


def test_the_demo_says_what_holds_over_toys(folder, capfd, monkeypatch, analysed):
    """Here the other toy is an earlier checkpoint, so that the test holds for any number of seeds that are shipped."""
    plain = replication.replicate
    monkeypatch.setattr(analyses, "analyse", analysed)
    monkeypatch.setattr(replication, "replicate", lambda *args, **options: plain(*args, size=TINY, **options))
    monkeypatch.setattr(interp.toy, "tuned_toys", lambda n: ("toy:tuned", "toy:stage1")[:n])
    assert cli.run(["demo", "--out", "report.html", "--toys", "2", "--seed", "5", "--device", "cpu"]) == 0
    out = capfd.readouterr().out
    assert "over 2 toys" in out
    assert "perception questions from image" in out.partition("over 2 toys")[2]
    html = (folder / "report.html").read_text()
    assert "The same in 2 toys" in html
    assert "toy:tuned, toy:stage1 are made by" in html


def test_the_demo_takes_a_model_a_picture_and_a_question(folder, capfd):
    assert cli.run(asking("--model", "toy:stage1")) == 0
    assert "toy:stage1" in capfd.readouterr().out
    html = (folder / "interp-demo.html").read_text()
    assert "&lt;image&gt; where ?" in html
    assert "toy:stage1" in html


def test_the_bundled_toy_is_asked_where_no_model_is_named(folder, capfd):
    assert cli.run(asking()) == 0
    assert "interp demo: toy" in capfd.readouterr().out


def test_the_doctor_shows_parts_and_proofs(capfd):
    assert cli.run(["doctor", "toy", "--device", "cpu"]) == 0
    out = capfd.readouterr().out
    assert "model.language_model.layers" in out
    assert out.count("passed") == 7
    assert "None" not in out
    assert out.count("not measured yet") == 8  # what is measured at its first use


def test_the_doctor_shows_every_absence_in_words(capfd, monkeypatch):
    bare = interp.load(model=zoo.build("gemma4"), check=False)
    monkeypatch.setattr("interp.load", lambda *_, **__: bare)
    assert cli.run(["doctor", "bare"]) == 0
    out = " ".join(capfd.readouterr().out.split())
    assert not {"None", "nan", "True", "False"} & set(re.findall(r"\w+", out))
    assert "4 x not proved" in out
    assert "pending │ not measured" in out
    assert cli.run(["doctor", "bare", "--json"]) == 0
    diagnosis = json.loads(capfd.readouterr().out)
    assert diagnosis["structure"]["q"] is None
    assert [check["error"] for check in diagnosis["checks"] if check["outcome"] == "pending"] == [None]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "none"),
        ([], "none"),
        ([4], "1 x 4"),
        ([True, True, False], "2 x yes, 1 x no"),
        ([{"kind": "a", "flat": True, "rest": None}, {"kind": "b"}], "1 x kind a, flat; 1 x kind b"),
    ],
)
def test_values_of_the_structure_in_words(value, text):
    assert doctor_command._cell(value) == text


def test_the_doctor_speaks_json(capfd):
    assert cli.run(["doctor", "toy:stage1", "--json"]) == 0
    diagnosis = json.loads(capfd.readouterr().out)
    assert diagnosis["passed"] is True
    assert diagnosis["model"] == "toy:stage1"
    assert diagnosis["structure"]["n_layers"] == 8
    assert diagnosis["image_token"] == "<image>"
    assert {proof["name"]: proof["outcome"] for proof in diagnosis["checks"]} == dict.fromkeys(
        ("layers", "readout", "identity", "effect", "sites", "last", "image"), "passed"
    )


def test_the_doctor_reads_a_language_model_alone(bare, tmp_path, capfd):
    bare.model.save_pretrained(tmp_path)
    bare.tokenizer.save_pretrained(tmp_path)
    assert cli.run(["doctor", str(tmp_path), "--json"]) == 0
    diagnosis = json.loads(capfd.readouterr().out)
    assert (diagnosis["architecture"], diagnosis["image_token"]) == ("LlamaForCausalLM", None)
    assert {proof["name"]: proof["outcome"] for proof in diagnosis["checks"]} == dict.fromkeys(
        ("layers", "readout", "identity", "effect", "sites", "last"), "passed"
    )
    assert cli.run(["doctor", str(tmp_path)]) == 0


def test_the_doctor_knows_every_architecture(capfd, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert cli.run(["doctor", "--architectures", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capfd.readouterr().out)}
    assert rows["llava"]["verdict"] == "supported"
    assert "cross-attention" in rows["mllama"]["why"]
    assert cli.run(["doctor", "--architectures"]) == 0
    out = capfd.readouterr().out
    assert all(name in out for name in rows)
    line = {line.split()[1]: line for line in out.splitlines() if line.startswith("│")}
    assert "k 2/4, v 2/4" in line["gemma4"]
    assert "vision, projector" in line["emu3"]
    assert f"{sum(row['verdict'] == 'supported' for row in rows.values())} supported" in out


@pytest.mark.parametrize("arguments", [["doctor"], ["doctor", "toy", "--architectures"]])
def test_the_doctor_wants_a_model_or_the_table(arguments, capfd):
    assert cli.run(arguments) == 2
    assert "expected either a model" in capfd.readouterr().err


def test_the_doctor_says_why_a_model_is_refused(tmp_path, capfd):
    zoo.build("florence2").save_pretrained(tmp_path)
    assert cli.run(["doctor", str(tmp_path)]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.count("\n") == 1


def test_the_doctor_refuses_a_model_that_fails_a_proof(monkeypatch, capfd):
    from interp.models import VLM, Check, CheckReport

    broken = CheckReport((Check("effect", "failed", 0.0, "> 0", "writing another state changes the logits"),))
    monkeypatch.setattr(VLM, "check", lambda self, batch=None: broken)
    assert cli.run(["doctor", "toy", "--json"]) == 2
    out, err = capfd.readouterr()
    assert json.loads(out)["passed"] is False
    assert "failed effect" in err


def test_the_version(capfd):
    assert cli.run(["--version"]) == 0
    assert capfd.readouterr().out == f"interp {interp.__version__}\n"


def test_help_is_there_and_light(capfd):
    assert cli.run([]) == 2
    assert cli.run(["--help"]) == 0
    assert capfd.readouterr().out.count("doctor") == 2
    code = (
        "import sys; import interp.cli; print([m for m in ('torch', 'plotly', 'numpy', 'pandas') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_main_exits_with_the_code(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["interp", "unknown"])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 2
