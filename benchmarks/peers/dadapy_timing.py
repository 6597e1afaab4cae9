"""DADApy's side of `benchmarks/geometry.py`, which runs this file with the interpreter of an environment with DADApy.

It reads a line, "graph" or "pair", and answers with the seconds that DADApy takes. "graph": distances to 100 neighbours.
"pair": GRIDE at all scales up to 32 of both clouds, their overlap at 30 neighbours and their information imbalance, each from
the coordinates. Above 2,000 points DADApy computes the imbalance on random subsets of 2,000 points; this default stays.
"""

from __future__ import annotations

import json
import os
import sys
import time
import warnings
from pathlib import Path

import numpy as np


def pair(x: np.ndarray, y: np.ndarray) -> None:
    """Run what is compared with four calls of ours."""
    from dadapy import Data
    from dadapy.metric_comparisons import MetricComparisons

    cores = os.cpu_count()
    for cloud in (x, y):
        Data(cloud, n_jobs=cores).return_id_scaling_gride(range_max=64)
    MetricComparisons(x, maxk=30, n_jobs=cores).return_data_overlap(y, k=30)
    MetricComparisons(x, maxk=len(x) - 1, n_jobs=cores).return_information_imbalace(y, k=1)


def graph(x: np.ndarray, y: np.ndarray) -> None:
    """Compute distances to 100 neighbours."""
    from dadapy import Data

    Data(x, n_jobs=os.cpu_count()).compute_distances(maxk=100)


def main() -> None:
    """Answer line by line."""
    warnings.simplefilter("ignore")
    x, y = (np.load(Path(sys.argv[1]) / f"{name}.npy") for name in ("x", "y"))
    pair(x[:100, :8].copy(), x[:100, :8].copy())  # loads and compiles what is loaded only once
    for line in sys.stdin:
        start = time.perf_counter()
        {"graph": graph, "pair": pair}[line.strip()](x, y)
        print(json.dumps({"seconds": time.perf_counter() - start}), flush=True)


if __name__ == "__main__":
    main()
