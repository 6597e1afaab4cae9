"""The image tower: a small ViT that is trained to say, at each patch, what stands there.

CLIP's architecture, trained from nothing: 6 layers, width 192, 16 patches of 16 pixels. Three linear maps on its last layer,
which are discarded afterwards, predict at each patch the name of the thing there (or that it is the ground), its group, and
the colour of the ground. So what the connector reads at a patch is about that patch, and the name of a thing stands at every
patch of it.

The training has two parts. After the first, with the grounds of the training split, the tower named 89 % of the things in such
pictures and 68 % of those on grounds that were held out: it had learned things together with what surrounds them. In the
second part it sees every emoji on all grounds.
"""

from __future__ import annotations

from functools import cache

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import CLIPVisionConfig, CLIPVisionModel

from interp.organisms.emoji.catalogue import catalogue
from interp.organisms.emoji.picture import GROUNDS, PATCH, SIZE, EmojiPicture, pictures

_ALSO = 0.3  # the weight of groups and grounds beside names


def emoji_tower() -> CLIPVisionModel:
    """A tower with new random weights."""
    sizes = {"hidden_size": 192, "intermediate_size": 576, "num_hidden_layers": 6, "num_attention_heads": 6}
    return CLIPVisionModel(CLIPVisionConfig(**sizes, image_size=SIZE, patch_size=PATCH, projection_dim=192))


@cache
def groups() -> tuple[str, ...]:
    """Unicode's groups, in its order."""
    return tuple(dict.fromkeys(emoji.group for emoji in catalogue()))


def tower_pixels(drawn: list[EmojiPicture]) -> Float[Tensor, "picture 3 64 64"]:
    """What the tower sees: channels from -1 to 1, as the processor makes them."""
    flat = torch.stack([torch.frombuffer(bytearray(each.image.tobytes()), dtype=torch.uint8) for each in drawn])
    return flat.view(-1, SIZE, SIZE, 3).permute(0, 3, 1, 2).to(torch.float32) / 127.5 - 1


def patch_labels(drawn: list[EmojiPicture]) -> dict[str, Int[Tensor, "picture patch"]]:
    """The name, the group and the ground of each patch: -100 for the group of the ground, which is also the last name."""
    numbers = torch.tensor([[*(thing.emoji.number for thing in each.things), *[-1] * 2][:2] for each in drawn])
    which = torch.stack([each.patches for each in drawn])
    names = torch.where(which >= 0, numbers.gather(1, which.clamp_min(0)), len(catalogue()))
    of_group = torch.tensor([*(groups().index(emoji.group) for emoji in catalogue()), -100])
    grounds = torch.tensor([list(GROUNDS).index(each.ground) for each in drawn])
    return {"names": names, "groups": of_group[names], "grounds": grounds[:, None].expand_as(names)}


class TowerLessons(torch.utils.data.Dataset):
    """A batch of new pictures for each step: their pixels and the labels of their patches."""

    def __init__(self, steps: int, batch: int, seed: int, split: str) -> None:
        self.steps, self.batch, self.seed, self.split = steps, batch, seed, split

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> dict[str, Tensor]:
        drawn = pictures(self.batch, seed=self.seed * 1_000_000 + step, split=self.split)
        return {"pixel_values": tower_pixels(drawn), **patch_labels(drawn)}


class PatchNamer(nn.Module):
    """The tower with its three linear maps; the loss is that of names, plus 0.3 times those of groups and of grounds.

    The ground fills most patches. So the loss of names is the mean over the patches of things, plus a tenth of the mean over
    those of the ground.
    """

    def __init__(self, tower: CLIPVisionModel) -> None:
        super().__init__()
        self.tower = tower
        width = tower.config.hidden_size
        sizes = {"names": len(catalogue()) + 1, "groups": len(groups()), "grounds": len(GROUNDS)}
        self.heads = nn.ModuleDict({name: nn.Linear(width, size) for name, size in sizes.items()})

    def scores(self, pixel_values: Float[Tensor, "picture 3 64 64"]) -> dict[str, Float[Tensor, "picture patch label"]]:
        """The scores of each label at each patch."""
        states = self.tower(pixel_values=pixel_values).last_hidden_state[:, 1:]
        return {name: head(states) for name, head in self.heads.items()}

    def forward(self, pixel_values: Tensor, **labels: Tensor) -> dict[str, Tensor]:
        """The loss of a batch."""
        scores = {name: each.flatten(0, 1) for name, each in self.scores(pixel_values).items()}
        flat = {name: each.flatten() for name, each in labels.items()}
        ground = flat["names"] == len(catalogue())
        of_names = cross_entropy(scores["names"], flat["names"], reduction="none")
        loss = of_names[~ground].mean() + 0.1 * of_names[ground].mean()
        for name in ("groups", "grounds"):
            loss = loss + _ALSO * cross_entropy(scores[name], flat[name])
        return {"loss": loss}


@torch.no_grad()
def named(model: PatchNamer, drawn: list[EmojiPicture]) -> tuple[list[float], float]:
    """The share of things that are named rightly, of large and of small ones, and of patches whose ground is.

    The scores of the patches of a thing are added up.
    """
    scores = model.scores(tower_pixels(drawn))
    right: tuple[list[bool], list[bool]] = ([], [])
    for picture, of_names in zip(drawn, scores["names"], strict=True):
        for number, thing in enumerate(picture.things):
            best = of_names[picture.patches == number, :-1].sum(dim=0).argmax()
            right[thing.place != "middle"].append(int(best) == thing.emoji.number)
    grounds = scores["grounds"].argmax(dim=-1) == patch_labels(drawn)["grounds"]
    return [sum(each) / len(each) for each in right], float(grounds.float().mean())
