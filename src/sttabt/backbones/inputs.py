"""What a model is given to read, looked at before it runs: one line instead of an error deep inside it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sttabt.core.text import Text
from sttabt.errors import UserError

TEXT_REMEDY = "give a tokenizer's encoding through sttabt.text"


def check_images(images: Any, channels: int, weight: Tensor) -> None:
    """Raise UserError unless these are images (B, channels, height, width) as `weight` is, of finite numbers.

    In a graph (torch.compile) and on a device no numbers are looked at: the latter are left to `unreadable_images`.
    """
    if not isinstance(images, Tensor):
        raise UserError(f"images are a {type(images).__name__}: give a tensor (B, {channels}, height, width)")
    shape = tuple(images.shape)
    if len(shape) != 4 or shape[1] != channels:
        hint = ""
        if len(shape) == 3:
            hint = ", one image as image[None]"
        elif len(shape) == 4 and shape[3] == channels:
            hint = ", by images.permute(0, 3, 1, 2)"
        raise UserError(f"images have the shape {shape}: give (B, {channels}, height, width){hint}")
    if 0 in shape[2:]:
        raise UserError(f"images have the shape {shape}: they have no pixels")
    if images.device != weight.device:
        raise UserError(f"images are on {images.device}, but the model is on {weight.device}: move one of them")
    if not images.is_floating_point():
        raise UserError(
            f"images are {images.dtype}: scale and normalise them as the model was trained, which gives {weight.dtype}"
        )
    if images.dtype != weight.dtype and not torch.is_autocast_enabled(images.device.type):
        raise UserError(
            f"images are {images.dtype}, but the model computes in {weight.dtype}: give images.to({weight.dtype})"
        )
    if not (torch.compiler.is_compiling() or images.is_cuda):
        check_finite(images)


def check_finite(images: Tensor) -> None:
    """Raise UserError for images that hold NaN or infinity, naming the first; waits for a device."""
    if bool(images.sum().isfinite()):
        return
    wrong = (~images.isfinite()).flatten(1).any(1).nonzero().flatten().tolist()
    if wrong:  # of half precision a sum may overflow
        raise UserError(f"image {wrong[0]} of the batch holds NaN or infinity ({len(wrong)} such): leave it out")


def unreadable_images(images: Tensor) -> Tensor | None:
    """Which images (B,) on a device hold NaN or infinity, without waiting; None where `check_images` has looked."""
    if not images.is_cuda:
        return None
    least, largest = images.flatten(1).aminmax(dim=1)  # one pass, in which NaN prevails
    return ~(least.isfinite() & largest.isfinite())


def check_text(text: Any, positions: int) -> None:
    """Raise UserError unless this is a Text of a shape and kinds that a model of so many positions reads."""
    if not isinstance(text, Text):
        raise UserError(f"a model of text reads a Text, not a {type(text).__name__}: {TEXT_REMEDY}")
    ids, types, real = text
    if not all(isinstance(field, Tensor) for field in text) or ids.ndim != 2:
        found = f"the shape {tuple(ids.shape)}" if isinstance(ids, Tensor) else f"a {type(ids).__name__}"
        raise UserError(f"input_ids: {found} is no tensor (B, tokens): {TEXT_REMEDY}, made with return_tensors='pt'")
    for name, field in (("token_type_ids", types), ("attention_mask", real)):
        if field.shape != ids.shape:
            raise UserError(f"{name} has the shape {tuple(field.shape)}, not {tuple(ids.shape)} as input_ids")
    for name, field in (("input_ids", ids), ("token_type_ids", types)):
        if field.dtype not in (torch.int64, torch.int32):
            raise UserError(f"{name} is {field.dtype}: give places in a table, torch.int64")
    if ids.shape[1] > positions:
        raise UserError(
            f"texts have {ids.shape[1]} tokens, but the model has {positions} positions: truncate them,"
            f" tokenizer(..., truncation=True, max_length={positions})"
        )


def check_text_numbers(text: Text, vocabulary: int, kinds: int) -> None:
    """Raise UserError, naming what is wrong, unless the model can read all rows; see `unreadable_text`."""
    if not bool(unreadable_text(text, vocabulary, kinds).any()):
        return
    check_rows(text.real)
    for name, field, rows in _tables(text, vocabulary, kinds):
        wrong = field[(field < 0) | (field >= rows)]
        if wrong.numel():
            raise UserError(
                f"{name} holds {int(wrong[0])}, but the model knows 0 to {rows - 1}: give the encoding of its own"
                " tokenizer"
            )


def unreadable_text(text: Text, vocabulary: int, kinds: int) -> Tensor:
    """Which rows (B,) bool have no real token, or one behind padding, or a number that is not in the model's tables.

    vocabulary, kinds: how many ids and token types (0: they are not read) the model has.
    """
    real = text.real
    wrong = ~real[:, :1].any(1) | (real[:, 1:] > real[:, :-1]).any(1)
    for _, field, rows in _tables(text, vocabulary, kinds):
        wrong = wrong | ((field < 0) | (field >= rows)).any(1)
    return wrong


def check_rows(real: Tensor) -> None:
    """Raise UserError unless each text, real (B, N) bool, stands whole in front of its padding."""
    if in_graph(real) or bool(_whole(real)):
        return
    empty = (~real.any(1)).nonzero().flatten().tolist()
    if empty:
        raise UserError(
            f"text {empty[0]} of the batch has no real token ({len(empty)} such): leave it out, or give at least the"
            " class token"
        )
    if not real[:, :1].all():
        raise UserError("attention_mask has padding in front of a text: set tokenizer.padding_side='right'")
    if (real[:, 1:] > real[:, :-1]).any():
        raise UserError("attention_mask has holes: a text must stand whole in front of its padding")


def _tables(text: Text, vocabulary: int, kinds: int) -> list[tuple[str, Tensor, int]]:
    """What is looked up in tables: its name, the places, and how many rows there are."""
    types = [("token_type_ids", text.types, kinds)] if kinds else []
    return [("input_ids", text.ids, vocabulary), *types]


def _whole(real: Tensor) -> Tensor:
    """Whether every text has a token and stands in front of its padding, a bool."""
    return real[:, :1].any(1).all() & ~(real[:, 1:] > real[:, :-1]).any()


def in_graph(values: Tensor) -> bool:
    """Whether a graph is being made, which takes no decision by numbers."""
    return torch.compiler.is_compiling() or (values.is_cuda and torch.cuda.is_current_stream_capturing())
