"""The example of the page about probes runs as it stands, and does what it says."""

import re
from pathlib import Path

import interp

PAGE = Path(interp.__file__).parents[1] / "docs" / "probes.md"


def test_the_page_about_probes_runs():
    (example,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    names: dict = {}
    exec(compile(example, "docs/probes.md", "exec"), names)
    steered = names["vlm"].generate(names["batch"], interventions=[names["steer"]])
    assert sum(answer == "red" for answer in steered) > 24
    assert names["result"].selectivity.shape == (9,)
