"""Encodings: the inputs of a model, checked before it runs.

An encoding is a dict of tensors as a processor makes it. A collator for training adds labels, which no run here needs: they
are left out. Whatever is visibly wrong in an encoding is refused in one line, before the model runs. Only the model can tell
that it makes more or fewer features of an image than there are image tokens, or that it cannot do without an input;
`explained` puts these complaints into one line.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from interp.errors import InputError, shown
from interp.models.batches.grids import patch_grids

# What a tokenizer or a collator adds that no forward pass needs: labels and the weights of a loss, and what helps to read
# the tokens.
_NOT_INPUTS = {"labels", "label", "label_ids", "loss_mask", "loss_weights", "num_items_in_batch", "return_loss"} | {
    *("special_tokens_mask", "offset_mapping", "length", "overflowing_tokens", "num_truncated_tokens"),
    "overflow_to_sample_mapping",
}
# What a forward pass takes and what is not an input of rows: how it runs, what was computed before.
_NOT_OF_ROWS = {"past_key_values", "cache_params", "cache_position", "use_cache", "return_dict", "logits_to_keep"} | {
    *("output_attentions", "output_hidden_states", "inputs_embeds")
}
# Names of arguments that come with pixels, and those of what a model computes of them itself.
_WITH_PIXELS = re.compile(
    r"(?!.*(video|audio|second|cache|(embeds|features|states|outputs)$)).*(image|pixel|grid|spatial|patch|sizes)"
)


def inputs_in(encoding: Any, takes: Sequence[str] | None) -> dict[str, Tensor]:
    """The inputs of an encoding as tensors on the CPU, where batches are put together: without labels and what is None.

    `takes` are the arguments of the model's forward pass, None for one that takes any. Raises `InputError` for anything but
    a dict, for what makes no tensor, and for what is not an input of this model.
    """
    if not isinstance(encoding, Mapping):
        raise InputError(f"encoding={shown(encoding)}: expected a dict of tensors, as a processor gives it")
    inputs = {name: value for name, value in encoding.items() if value is not None and name not in _NOT_INPUTS}
    for name in inputs:
        if name in _NOT_OF_ROWS:
            raise InputError(
                f"the encoding has {name!r}, which is not an input of rows: leave it out, and give input_ids"
            )
        if not isinstance(name, str) or (takes is not None and name not in takes):
            raise InputError(f"the encoding has {name!r}, which this model's forward pass does not take: leave it out")
    return {name: _as_tensor(name, value) for name, value in inputs.items()}


def _as_tensor(name: str, value: Any) -> Tensor:
    try:
        if isinstance(value, list | tuple) and value and all(isinstance(each, Tensor) for each in value):
            value = torch.stack(list(value))
        tensor = value.detach().cpu().to_dense() if isinstance(value, Tensor) else torch.as_tensor(np.array(value))
    except (TypeError, ValueError, RuntimeError):  # rows of different length, or no numbers
        raise InputError(
            f"encoding[{name!r}] is a {type(value).__name__} that makes no tensor: expected what a processor gives with "
            "return_tensors='pt', or leave it out"
        ) from None
    whole = not tensor.is_floating_point() and not tensor.is_complex() and tensor.dtype != torch.bool
    return tensor.long() if whole and name in ("input_ids", "attention_mask") else tensor


def check_ids(inputs: Mapping[str, Tensor], vocab_size: int | None, image_token_id: int | None) -> None:
    """Refuse ids and masks of a wrong shape or kind, ids outside the vocabulary, and rows of padding alone."""
    ids = inputs.get("input_ids")
    if ids is None or ids.ndim != 2 or not ids.numel():
        shapes = {name: tuple(value.shape) for name, value in inputs.items()}
        raise InputError(
            f"encoding={shapes!r}: expected tensors with input_ids of shape (batch, seq), neither of them 0"
        )
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise InputError(f"input_ids are of {ids.dtype}: expected ints, as a tokenizer gives them")
    mask = inputs.get("attention_mask", torch.ones_like(ids))
    if mask.shape != ids.shape:
        raise InputError(
            f"attention_mask has shape {tuple(mask.shape)}: expected that of input_ids, {tuple(ids.shape)} (batch, seq)"
        )
    odd = mask[(mask != 0) & (mask != 1)]
    if len(odd):
        raise InputError(f"attention_mask holds {odd[0].item()!r}: expected 1 for a real token and 0 for padding")
    for name, tensor in inputs.items():
        if name.endswith("token_type_ids") and tensor.shape != ids.shape:
            raise InputError(
                f"{name} has shape {tuple(tensor.shape)}: expected that of input_ids, {tuple(ids.shape)} (batch, seq)"
            )
    empty = (~mask.bool().any(dim=1)).nonzero().flatten().tolist()
    if empty:
        raise InputError(f"row {empty[0]} has no token: expected text or an image in every row")
    if vocab_size is not None:
        wrong = ((ids < 0) | (ids >= vocab_size)) & (ids != image_token_id)
        if wrong.any():
            row, column = wrong.nonzero()[0].tolist()
            raise InputError(
                f"input_ids hold {ids[row, column].item()} in row {row}: this model's ids go from 0 to {vocab_size - 1}, "
                "use the tokenizer that belongs to it"
            )


def refuse_unmasked(inputs: Mapping[str, Tensor], tokenizer: Any) -> None:
    """Refuse rows with padding and without the mask that says so: the model would read it as text. A token that also begins or
    ends texts is no sign of padding there."""
    padding, ids = getattr(tokenizer, "pad_token_id", None), inputs.get("input_ids")
    if padding is None or ids is None or ids.ndim != 2 or not ids.numel() or "attention_mask" in inputs:
        return
    for column, role in ((0, "bos_token_id"), (-1, "eos_token_id")):
        rows = (ids[:, column] == padding).nonzero().flatten().tolist()
        if rows and padding != getattr(tokenizer, role, None):
            raise InputError(
                f"the encoding has no attention_mask, and row {rows[0]} {'ends' if column else 'begins'} with the padding token "
                f"{padding}: pass the mask, 1 for a real token and 0 for padding"
            )


def pixels_of(inputs: Mapping[str, Tensor]) -> list[str]:
    """The names of the inputs that carry images: only these hold floats, beside masks and single numbers."""
    return [n for n, tensor in inputs.items() if tensor.is_floating_point() and tensor.ndim and n != "attention_mask"]


def check_pixels(
    inputs: Mapping[str, Tensor], images: Tensor, image_token_id: int | None, token_types: Sequence[str] = ()
) -> None:
    """Refuse image tokens without pixels, pixels without image tokens, and pixels without the model's `token_types`.

    `images` is Bool `[batch, seq]`. Without their token types some models raise; others run and see the image as text.
    """
    pixels = pixels_of(inputs)
    rows = images.any(dim=1).nonzero().flatten().tolist()
    if rows and not pixels:
        raise InputError(
            f"this is an encoding without pixel values: row {rows[0]} has {int(images[rows[0]].sum())} image tokens, "
            f"but its inputs are {', '.join(inputs)}; expected pixel_values or another input of pixels"
        )
    if pixels and not rows and image_token_id is not None:
        raise InputError(
            f"{pixels[0]} of shape {tuple(inputs[pixels[0]].shape)} is given, but no row holds the image token "
            f"{image_token_id}: use the processor that belongs to this model, with its placeholder in the text"
        )
    for name in pixels:
        if not inputs[name].isfinite().all():
            raise InputError(
                f"{name} hold NaN or infinity: expected finite numbers, look at the pictures they were made of"
            )
    missing = [name for name in token_types if name not in inputs]
    if missing and pixels:
        raise InputError(
            f"the encoding has images but no {missing[0]!r}, which tells the model where they are: pass all outputs of its "
            f"processor, with return_{missing[0]}=True"
        )


def as_made(inputs: Mapping[str, Tensor], examples: Mapping[str, Sequence[Tensor]]) -> dict[str, Tensor]:
    """The inputs with whole numbers as ints where the processor makes ints. `examples` are what it makes of some pictures.

    Raises `InputError` for numbers of another kind, such as pixels from 0 to 255, and for another number of axes.
    """
    cast = dict(inputs)
    for name in examples.keys() & inputs.keys():
        tensor, made = inputs[name], examples[name]
        if tensor.is_floating_point() and not made[0].is_floating_point() and bool((tensor == tensor.round()).all()):
            cast[name] = tensor = tensor.to(made[0].dtype)
        if tensor.is_floating_point() != made[0].is_floating_point():
            raise InputError(
                f"{name} are of {tensor.dtype}: expected {made[0].dtype}, as this model's processor makes them"
            )
        if tensor.ndim != made[0].ndim:
            raise InputError(
                f"{name} have shape {tuple(tensor.shape)}: expected what this model's processor makes, "
                f"{tuple(made[0].shape)} for one picture"
            )
    return cast


def check_companions(
    inputs: Mapping[str, Tensor], examples: Mapping[str, Sequence[Tensor]], images: Bool[Tensor, "batch seq"]
) -> None:
    """Refuse pixels without what the processor gives beside them (grids, sizes, masks), and fewer pictures than there are rows
    with image tokens. `examples` are the inputs that it makes of one picture, for some pictures."""
    pixels = [name for name in pixels_of(inputs) if name in examples]
    missing = [name for name in examples if name not in inputs]
    if pixels and missing:
        raise InputError(
            f"the encoding has {pixels[0]} but no {' and no '.join(missing)}, which this model's processor gives beside "
            "it: pass all outputs of the processor"
        )
    rows = int(images.any(dim=1).sum())
    for name in examples.keys() & inputs.keys():
        # One entry for each picture or for each row.
        if all(made.shape[:1] == (1,) for made in examples[name]) and len(inputs[name]) < rows:
            raise InputError(
                f"{name} have {len(inputs[name])} entries, and {rows} rows have image tokens: expected one entry or more for each"
            )
    patches, packed = sum(map(math.prod, patch_grids(inputs))), inputs.get("pixel_values")
    if "image_grid_thw" in inputs and packed is not None and packed.ndim == 2 and len(packed) != patches:
        raise InputError(
            f"pixel_values have {len(packed)} patches, and image_grid_thw speaks of {patches}: pass both as the "
            "processor gives them"
        )


def images_of(inputs: Mapping[str, Tensor], images: Tensor, own_counts: Sequence[int] | None) -> list[list[int] | None]:
    """How many tokens each image of each row has, for an encoding without its images; None where that is not clear.

    `own_counts` are the numbers that the processor writes for each image, in order. Without them, grids tell the images
    apart, or the pixels do where there is one picture for each row that has image tokens.
    """
    totals = images.sum(dim=1).tolist()
    counts = list(own_counts or ()) or _counts_of_grids(inputs, sum(totals)) or _one_each(inputs, totals)
    if own_counts is not None and sum(own_counts) > sum(totals):
        raise InputError(
            f"the rows have {totals!r} image tokens, but their {len(own_counts)} images make {sum(own_counts)}: "
            "a row was cut off inside an image, encode it without truncation"
        )
    rows: list[list[int] | None] = []
    for total in totals:
        row: list[int] = []
        while counts and sum(row) < total:
            row.append(counts.pop(0))
        rows.append(row)
    fits = not counts and all(sum(row or ()) == total for row, total in zip(rows, totals, strict=True))
    return rows if fits else [[] if not total else None for total in totals]


def _counts_of_grids(inputs: Mapping[str, Tensor], total: int) -> list[int]:
    """The tokens of each image whose grid is known: its patches, divided by the number that is merged into one token."""
    patches = [math.prod(grid) for grid in patch_grids(inputs)]
    if not patches or not total:
        return []
    merged, rest = divmod(sum(patches), total)
    return [] if rest or any(n % merged for n in patches) else [n // merged for n in patches]


def _one_each(inputs: Mapping[str, Tensor], totals: Sequence[int]) -> list[int]:
    """One image in every row that has image tokens, where there are as many pictures as such rows."""
    pixels = inputs.get("pixel_values")
    counts = [total for total in totals if total]
    if pixels is None or pixels.ndim != 4 or len(pixels) != len(counts):
        return []
    # Sizes or masks beside the pixels would say that pictures of one shape hold different images.
    alone = all(name == "pixel_values" or t.shape == inputs["input_ids"].shape for name, t in inputs.items())
    if alone and len(set(counts)) > 1:
        least, most = min(counts), max(counts)
        raise InputError(
            f"row {totals.index(least)} has {least} image tokens, row {totals.index(most)} has {most}, "
            "for pictures of one size: an image was cut off, encode it without truncation"
        )
    return counts


def own_counts(processor: Any, inputs: Mapping[str, Tensor], token: str | None) -> list[int] | None:
    """How many image tokens the processor's own rule writes for each image of an encoding; None where it has no rule.

    A rule may need more than the encoding holds, such as the number of tiles of a picture. Then it fails in its own way.
    """
    write = getattr(processor, "replace_image_token", None)
    sized = [inputs[name] for name in ("image_grid_thw", "image_sizes") if name in inputs]
    # Without sizes, one for each picture. A fifth axis would hold the tiles of a row, and empty ones beside them.
    sized += [pixels for pixels in (inputs.get("pixel_values"),) if pixels is not None and pixels.ndim == 4]
    if write is None or token is None or not sized:
        return None
    try:
        counts = [write(dict(inputs), image_idx=index).count(token) for index in range(len(sized[0]))]
    except Exception:
        return None
    return counts if all(counts) else None


@contextmanager
def explained(inputs: Mapping[str, Any] | None = None, model: Any = None) -> Iterator[None]:
    """Around a forward pass with these inputs: a model's complaint that features and image tokens do not match, that pictures
    have a wrong size, or that an input is missing, becomes one line. `model` has the `arguments` of the forward pass."""
    try:
        yield
    except (ValueError, TypeError, AttributeError, KeyError, RuntimeError) as error:
        message = str(error)
        missing = [] if inputs is None else _missing_of(inputs, model.arguments, message)
        if missing:
            raise InputError(
                f"the encoding has no {' and no '.join(missing)}, and the model fails without "
                f"({' '.join(message.split())[:100]}): pass all outputs of its processor"
            ) from error
        if inputs is not None and re.search(r"image size .*doesn't match", message):
            raise InputError(
                f"pictures of the encoding have another size than this model takes ({' '.join(message.split())[:100]}): use the "
                "processor that belongs to it"
            ) from error
        if "image tokens do not match" not in message:
            raise
        tokens, features = re.search(r"tokens: *(\d+)", message), re.search(r"features: *(\d+)", message)
        numbers = f": {tokens[1]} places, {features[1]} features or values" if tokens and features else ""
        raise InputError(
            f"the image tokens in the ids are not as many as this model makes of the images{numbers}; "
            "use the processor that belongs to it, without truncation"
        ) from error


def _missing_of(inputs: Mapping[str, Any], arguments: Mapping[str, Any], message: str) -> list[str]:
    """The inputs that the model was not given, where its complaint names them, or is of a None and pixels are there."""
    absent = {name: each.default for name, each in arguments.items() if name not in inputs}
    optional = [name for name, default in absent.items() if default is None and _WITH_PIXELS.match(name)]
    required = [name for name, default in absent.items() if default is inspect.Parameter.empty]
    named = [name for name in (*required, *optional) if f"{name!r}" in message or f"`{name}`" in message]
    pixels = any(isinstance(value, Tensor) and value.is_floating_point() for value in inputs.values())
    named = named or [name for name in optional if pixels and re.search(rf"\b{name}\b", message)]
    return named or (optional if pixels and re.search("NoneType|'bool' object", message) else [])
