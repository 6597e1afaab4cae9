"""Run as a script: capture to a folder, killed at random moments, and again until it is done.

``python killing.py FOLDER TIMES``: the model is loaded once; each run is a fork of this process, which is killed with
SIGKILL after a random time, and then one that is not. Prints one line a time: how many shards were finished when it was
killed, and whether the folder is byte for byte that of a run that was left alone.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

import interp


def contents(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["run"]
    return manifest, {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "manifest.json"}


def main(folder, times):
    torch.set_num_threads(1)
    vlm = interp.load("toy", device="cpu")
    data = interp.toy.scenes(48, seed=3).captions()

    def capture(name):
        interp.capture(vlm, data, positions="text", batch_size=2, rows_per_shard=1, out=folder / name, progress=False)

    def fork(name):
        child = os.fork()
        if child == 0:
            capture(name)
            os._exit(0)
        return child

    start = time.monotonic()
    os.waitpid(fork("whole"), 0)
    takes = time.monotonic() - start
    wanted = contents(folder / "whole")
    generator = random.Random(times)
    for number in range(times):
        name = f"killed-{number}"
        child = fork(name)
        time.sleep(generator.uniform(0, takes))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        finished = len(list((folder / name).glob("shard-*.safetensors")))
        _, status = os.waitpid(fork(name), 0)
        print(finished, status == 0 and contents(folder / name) == wanted)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
