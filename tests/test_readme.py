"""The README's example runs as it stands, and says what comes out."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_the_example_runs_and_answers_as_it_says():
    text = (ROOT / "README.md").read_text()
    (example,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    names: dict = {}
    exec(compile(example, "README.md", "exec"), names)
    (said,) = re.findall(r"vlm\.generate\(clean\) +# \['(.*?)'\]", example)
    assert names["vlm"].generate(names["clean"]) == [said] == [names["pair"].answer]
    assert names["clean"].positions.grid(0) == [(6, 6)]
    assert names["sweep"].effect.shape == (8, len(names["clean"].tokens[0]))


def test_both_commands_of_the_readme_are_what_ci_runs():
    ci = (ROOT / ".ci" / "run").read_text()
    assert 'pip install --quiet -c constraints.txt -e ".[test]"' in ci
    assert 'pip install -c constraints.txt -e ".[test]" && pytest' in (ROOT / "README.md").read_text()
