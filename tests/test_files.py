"""Files are there whole or not at all, with the rights that the umask gives to any new file."""

import os
import stat
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

import interp
from interp.files import whole_file
from interp.lens import logit_lens
from interp.reports.page import Page

needs_rights = pytest.mark.skipif(os.name == "nt", reason="Windows has no umask of this kind")


@pytest.fixture(params=[0o022, 0o002, 0o077, 0o027], ids=oct)
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def rights(path):
    return stat.S_IMODE(path.stat().st_mode)


@needs_rights
def test_every_file_has_the_rights_of_a_new_one(toy, tmp_path, umask):
    out = tmp_path / "acts"
    interp.capture(toy, interp.toy.scenes(3, seed=0), layers=[0], out=out, progress=False)
    result = logit_lens(toy, toy.prepare(["what colour"]), positions="last")
    result.save(tmp_path / "new.safetensors")
    (tmp_path / "old.safetensors").write_bytes(b"")
    (tmp_path / "old.safetensors").chmod(0o600)
    result.save(tmp_path / "old.safetensors")
    Page(title="a", lead="b", sections=(), footer="c").write(tmp_path / "page.html")
    with open(tmp_path / "any", "w"):
        pass
    paths = [path for path in tmp_path.rglob("*") if path.name != "acts"]
    assert {path.name: rights(path) for path in paths} == dict.fromkeys((path.name for path in paths), 0o666 & ~umask)
    assert rights(out) == 0o777 & ~umask


@needs_rights
def test_the_toys_weights_are_files_like_others(tmp_path, umask):
    from interp.toy.model import build_language_model, build_tower, build_vlm, save

    save(build_vlm(build_language_model(), build_tower()), tmp_path)
    assert {rights(path) for path in tmp_path.iterdir()} == {0o666 & ~umask}


@needs_rights
def test_the_umask_itself_is_not_touched(tmp_path):
    """To read it one has to change it, and then other threads make files with other rights."""
    code = (
        "import os, sys, pathlib\nfrom interp.files import whole_file\nchange, os.umask = os.umask, None\n"
        "with whole_file(pathlib.Path(sys.argv[1])) as path: path.write_text('a')"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "a")], check=True)
    assert (tmp_path / "a").read_text() == "a"


def test_an_error_leaves_what_was_there(tmp_path):
    (tmp_path / "a").write_text("before")
    with pytest.raises(KeyError), whole_file(tmp_path / "a") as path:  # noqa: PT012
        path.write_text("half")
        raise KeyError
    with pytest.raises(OSError, match="No such file"), whole_file(tmp_path / "no" / "a"):
        pass
    assert [(each.name, each.read_text()) for each in tmp_path.iterdir()] == [("a", "before")]


def test_two_writers_of_one_file_do_not_meet(tmp_path):
    with whole_file(tmp_path / "a") as first, whole_file(tmp_path / "a") as second:
        assert first != second
        save_file({"x": torch.zeros(1)}, second)
        first.write_text("last")
    assert (tmp_path / "a").read_text() == "last"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_name_may_be_as_long_as_the_system_allows(tmp_path):
    name = "ü" * 127
    with whole_file(tmp_path / name) as path:
        path.write_text("a")
    assert [each.name for each in tmp_path.iterdir()] == [name]
