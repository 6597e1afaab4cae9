"""What each patch of a scene shows, as weights of words: a connector that is fitted once, and read into any table of vectors.

A patch of an object has the weight 1/3 for each of its colour, digit and place, every other patch the weight 1 for "and". The
connector learns these weights from the states of `toy:tuned`'s tower. They are the last step before any table of vectors of
words: whatever stands for words, the patches of an object enter as the mean of its three words.

``python -m interp.toy.word_connector --out FILE`` fits it again (half a minute); it is shipped in bf16.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from interp.files import whole_file
from interp.models import load
from interp.toy.grown import WIDTH
from interp.toy.language import IDS
from interp.toy.model import vision_config
from interp.toy.scenes import PATCHES, Scene, scenes

FILE = Path(__file__).parent / "weights" / "word_connector.safetensors"
GROUND = "and"  # the word of patches that show no object: with it, the toy answers best


def word_weights(scene: Scene) -> Float[Tensor, "patch word"]:
    """The weight of each word of the vocabulary in each patch of a scene, in reading order.

    >>> from interp.toy.language import VOCABULARY
    >>> scene = scenes(1, seed=0)[0]
    >>> [VOCABULARY[word] for word in word_weights(scene)[0].nonzero()]
    ['and']
    """
    weights = torch.zeros(PATCHES**2, len(IDS), dtype=torch.float32)
    for row, index in zip(weights, scene.patch_labels.flatten().tolist(), strict=True):
        item = None if index < 0 else scene.objects[index]
        words = (GROUND,) if item is None else (item.colour, str(item.digit), item.place)
        row[[IDS[word] for word in words]] = 1 / len(words)
    return weights


def fit(seed: int = 0, steps: int = 2000, n: int = 1000) -> nn.Sequential:
    """Fit the weights of words to patches of `n` scenes of the train split: least squares, half of the patches with objects.

    Returns LLaVA's connector: linear, GELU, linear, `[patch, 96]` to `[patch, word]`.
    """
    toy, rows = load("toy:tuned", device="cpu", check=False), scenes(n, seed, split="train")
    with torch.no_grad():
        pixels = toy.prepare(["<image>"] * n, [scene.image for scene in rows]).inputs["pixel_values"]
        states = toy.model.model.vision_tower(pixel_values=pixels).last_hidden_state[:, 1:].flatten(0, 1)
    weights = torch.cat([word_weights(scene) for scene in rows])
    ground = weights[:, IDS[GROUND]] > 0.5
    draw = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        connector = nn.Sequential(nn.Linear(vision_config().hidden_size, WIDTH), nn.GELU(), nn.Linear(WIDTH, len(IDS)))
    # The states are standardised while it is fitted, and the first map takes them as they are afterwards.
    mean, spread = states.mean(dim=0), states.std(dim=0)
    states = (states - mean) / spread
    sides = [side.nonzero().flatten() for side in (ground, ~ground)]
    optimizer = torch.optim.Adam(connector.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=steps)
    for _ in range(steps):
        chosen = torch.cat([side[torch.randint(len(side), (256,), generator=draw)] for side in sides])
        loss = (connector(states[chosen]) - weights[chosen]).square().sum(dim=1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    first: nn.Linear = connector[0]  # type: ignore[assignment]
    with torch.no_grad():
        first.weight /= spread
        first.bias.sub_(first.weight @ mean)
    return connector


def word_connector(vectors: Float[Tensor, "word feature"]) -> dict[str, Tensor]:
    """The weights of a connector that gives each patch the mean of the vectors of its words, by their names in LLaVA."""
    fitted = {name: tensor.float() for name, tensor in load_file(FILE).items()}
    return {
        "linear_1.weight": fitted["0.weight"],
        "linear_1.bias": fitted["0.bias"],
        "linear_2.weight": vectors.T @ fitted["2.weight"],
        "linear_2.bias": vectors.T @ fitted["2.bias"],
    }


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m interp.toy.word_connector", description="Fit the weights of words."
    )
    parser.add_argument("--out", type=Path, required=True, help="the file to write")
    parser.add_argument("--steps", type=int, default=2000)
    options = parser.parse_args(arguments)
    weights = {name: tensor.to(torch.bfloat16) for name, tensor in fit(steps=options.steps).state_dict().items()}
    with whole_file(options.out) as partial:
        save_file(weights, partial)


if __name__ == "__main__":
    main()
