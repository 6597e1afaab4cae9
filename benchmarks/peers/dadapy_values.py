"""The values of DADApy 0.3 on small clouds drawn from seeds, with which the tests of `interp.geometry` compare.

DADApy pins numpy<2 and an old jax, so it needs its own environment, and its numbers are stored:

    python3.11 -m venv dadapy-environment
    dadapy-environment/bin/pip install dadapy
    dadapy-environment/bin/python benchmarks/peers/dadapy_values.py tests/geometry/peers/dadapy.json

The functions of `CLOUDS` and `PAIRS` below draw the clouds. They need only numpy: a test imports this file and draws the same
arrays again, and the stored sha256 of their bytes shows whether the random numbers are still the same. It takes one thread and
ten seconds.
"""

from __future__ import annotations

import hashlib
import json
import sys
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

DIGITS = 6
MAXK = 128  # how many neighbours DADApy keeps of each point: it bounds the search of clusters and PAk's k
RECIPES = {
    "gaussian2": "2-dimensional Gaussian turned into 50 dimensions, seed 2, n=1000",
    "gaussian5": "5-dimensional Gaussian turned into 50 dimensions, seed 5, n=1000",
    "gaussian10": "10-dimensional Gaussian turned into 50 dimensions, seed 10, n=1000",
    "blobs2": "three overlapping Gaussian blobs of 500, 300 and 200 points in 2 dimensions, seed 20",
    "blobs5": "three overlapping Gaussian blobs of 500, 300 and 200 points in 5 dimensions, seed 21",
    "moons": "two half circles with Gaussian noise of 0.12, seed 22, n=800",
    "pair": "x: 6-dimensional Gaussian; y: the first 3 columns of x with Gaussian noise of 0.3, seed 30, n=1000",
}


def gaussian(d: int) -> np.ndarray:
    """A d-dimensional Gaussian of 1,000 points, rotated into 50 dimensions by an orthonormalised Gaussian matrix."""
    rng = np.random.default_rng(d)
    turn = rng.normal(size=(50, d))
    for column in range(d):  # by hand, because the signs of a library's decomposition depend on its version
        for earlier in range(column):
            turn[:, column] -= (turn[:, earlier] * turn[:, column]).sum() * turn[:, earlier]
        turn[:, column] /= np.sqrt((turn[:, column] ** 2).sum())
    points = rng.normal(size=(1000, d))
    return np.stack([(points * row).sum(axis=1) for row in turn], axis=1)


def blobs(d: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Three overlapping Gaussian blobs of unequal size and width, and the index of each point's component."""
    rng = np.random.default_rng(seed)
    labels = np.repeat([0, 1, 2], [500, 300, 200])
    centres = np.zeros((3, d))
    centres[1, 0], centres[2, 1] = 4.0, 4.5
    widths = np.array([1.0, 0.8, 1.2])
    return centres[labels] + widths[labels, None] * rng.normal(size=(1000, d)), labels


def moons() -> tuple[np.ndarray, np.ndarray]:
    """Two half circles that reach into each other, with noise, and the index of each point's component."""
    rng = np.random.default_rng(22)
    labels = np.repeat([0, 1], 400)
    angle = rng.uniform(0, np.pi, size=800)
    first = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    second = np.stack([1 - np.cos(angle), 0.5 - np.sin(angle)], axis=1)
    return np.where(labels[:, None] == 0, first, second) + 0.12 * rng.normal(size=(800, 2)), labels


def pair() -> tuple[np.ndarray, np.ndarray]:
    """A cloud, and a noisy part of it with the same rows."""
    rng = np.random.default_rng(30)
    x = rng.normal(size=(1000, 6))
    return x, x[:, :3] + 0.3 * rng.normal(size=(1000, 3))


CLOUDS = {
    "gaussian2": lambda: gaussian(2),
    "gaussian5": lambda: gaussian(5),
    "gaussian10": lambda: gaussian(10),
    "blobs2": lambda: blobs(2, 20)[0],
    "blobs5": lambda: blobs(5, 21)[0],
    "moons": lambda: moons()[0],
}
LABELS = {"blobs2": lambda: blobs(2, 20)[1], "blobs5": lambda: blobs(5, 21)[1], "moons": lambda: moons()[1]}
PAIRS = {"pair": pair}
CLUSTERED = ("gaussian5", "blobs2", "blobs5", "moons")
WEIGHTS = {"ones": [1.0] * 6, "first three": [1.0, 1.0, 1.0, 0.0, 0.0, 0.0], "uneven": [0.2, 1.0, 0.5, 0.1, 2.0, 0.3]}


def digest(array: np.ndarray) -> str:
    """The sha256 of an array's bytes, rounded to 10 digits because the order of a sum changes the last ones."""
    return hashlib.sha256((np.round(array, 10) + 0.0).astype("<f8").tobytes()).hexdigest()


def rounded(value: Any) -> Any:
    """Arrays, numbers and lists of them in the form of JSON, with six decimals."""
    if isinstance(value, np.ndarray | list | tuple):
        return [rounded(item) for item in value]
    return int(value) if isinstance(value, int | np.integer) else round(float(value), DIGITS)


def dimensions(x: np.ndarray) -> dict[str, Any]:
    """2NN and GRIDE."""
    from dadapy import Data

    def fresh() -> Any:
        return Data(x, maxk=MAXK, n_jobs=1)

    values, errors, scales = fresh().return_id_scaling_gride(range_max=256)
    return {
        "2nn": fresh().compute_id_2NN(mu_fraction=0.9)[0],
        "2nn fraction 1": fresh().compute_id_2NN(mu_fraction=1)[0],
        "2nn-ml": fresh().compute_id_2NN(algorithm="ml")[0],
        "gride": {"values": values, "errors": errors, "scales": scales},
    }


def densities(x: np.ndarray) -> dict[str, Any]:
    """kNN and PAk densities with the dimension of GRIDE 16/32, and the density peaks of each."""
    from dadapy import Data

    dimension = float(Data(x, maxk=MAXK, n_jobs=1).return_id_scaling_gride(range_max=256)[0][4])
    values_by_name: dict[str, Any] = {"dimension": dimension}
    for name in ("knn", "pak"):
        data = Data(x, maxk=MAXK, n_jobs=1)
        data.compute_distances()
        data.set_id(dimension)
        if name == "knn":
            values, errors = data.compute_density_kNN(k=16)
        else:
            values, errors = data.compute_density_PAk()
        values_by_name[name] = {
            "values": values,
            "errors": errors,
            "k": data.kstar[:1] if name == "knn" else data.kstar,
        }
        for z in (1.65, 1.2, 0.5):
            clusters = data.compute_clustering_ADP(Z=z)
            values_by_name[name][f"peaks z={z}"] = {
                "clusters": clusters,
                "centres": data.cluster_centers,
                "number": data.N_clusters,
                "borders": data.log_den_bord,
                "border errors": data.log_den_bord_err,
                "border points": data.bord_indices,
            }
    return values_by_name


def comparisons(x: np.ndarray, y: np.ndarray) -> dict[str, Any]:
    """Overlap, information imbalance both ways, and the differentiable one for fixed weights of the columns of x."""
    from dadapy import Data, DiffImbalance

    first = Data(x, maxk=MAXK, n_jobs=1)
    forth, back = first.return_information_imbalace(y, k=1)
    forth5, back5 = first.return_information_imbalace(y, k=5)
    differentiable: dict[str, Any] = {}
    for name, weights in WEIGHTS.items():
        for k in (1, 20):
            task = DiffImbalance(x, y, k_init=k, k_final=k, lambda_factor=0.1, params_init=weights)
            task.params_final = task.params_init  # the value of these weights: nothing is trained
            value, _ = task.return_final_dii(compute_error=False, ratio_rows_columns=None)
            differentiable[f"{name}, k={k}"] = value
    return {
        "data overlap k=30": Data(x, maxk=MAXK, n_jobs=1).return_data_overlap(y, k=30),
        "information imbalance k=1": [forth[0], back[0]],
        "information imbalance k=5": [forth5[0], back5[0]],
        "differentiable information imbalance": differentiable,
    }


def label_overlaps(x: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Label overlap with classes weighted equally (DADApy's default) and unweighted."""
    from dadapy import Data

    return {
        "weighted": Data(x, maxk=MAXK, n_jobs=1).return_label_overlap(labels, k=30),
        "unweighted": Data(x, maxk=MAXK, n_jobs=1).return_label_overlap(labels, k=30, weighted=False),
    }


def rounded_tree(values: dict[str, Any]) -> dict[str, Any]:
    """The same tree of dictionaries with all its leaves rounded."""
    return {name: rounded_tree(item) if isinstance(item, dict) else rounded(item) for name, item in values.items()}


def main() -> None:
    """Compute everything and write it to the file that the command line names."""
    warnings.simplefilter("ignore")
    values: dict[str, Any] = {}
    for name, make in CLOUDS.items():
        x = make()
        values[name] = {"sha256": digest(x), "dimensions": rounded_tree(dimensions(x))}
        if name in CLUSTERED:
            values[name]["density"] = rounded_tree(densities(x))
        if name in LABELS:
            values[name]["label overlap k=30"] = rounded_tree(label_overlaps(x, LABELS[name]()))
        print(name, file=sys.stderr)
    for name, make_pair in PAIRS.items():
        x, y = make_pair()
        values[name] = {"sha256": [digest(x), digest(y)], **rounded_tree(comparisons(x, y))}
        print(name, file=sys.stderr)
    out = {
        "source": "DADApy, https://github.com/sissa-data-science/DADApy (Apache-2.0)",
        "versions": {package: version(package) for package in ("dadapy", "numpy", "scikit-learn", "scipy", "jax")},
        "made by": "benchmarks/peers/dadapy_values.py",
        "maxk": MAXK,
        "recipes": RECIPES,
        "weights of the differentiable information imbalance": WEIGHTS,
        "values": values,
    }
    Path(sys.argv[1]).write_text(json.dumps(out, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
