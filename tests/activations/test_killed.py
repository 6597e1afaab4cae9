"""A run that is killed at any moment and started again makes what it would have made."""

import os
import subprocess
import sys
from pathlib import Path

TIMES = int(os.environ.get("INTERP_KILLS", "5"))


def test_killed_and_started_again(tmp_path):
    script = Path(__file__).with_name("killing.py")
    command = [sys.executable, str(script), str(tmp_path), str(TIMES)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    lines = [line.split() for line in done.stdout.splitlines()]
    assert [same for _, same in lines] == ["True"] * TIMES, done.stdout + done.stderr
    print(done.stdout)
    assert any(0 < int(finished) < 6 for finished, _ in lines)  # some were killed in the middle
