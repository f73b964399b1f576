"""What the Python API is given to read: an answer, or one line that says what is wrong, whatever form the model has."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import timm
import torch
from torch import Tensor

import sttabt
from conftest import make_backbone, make_text
from sttabt.core.text import Text
from sttabt.errors import UserError
from sttabt.models.fixed import FixedModel
from sttabt.models.pruned import PrunedModel

METHODS = ("backtracking", "backtracking_actual", "concrete", "forward_topk", "ltp", "random", "dense")
FORMS = ("plain", "frozen", "fixed", "fixed frozen")
LAYERS = {"test_vit": 6, "lvvit": 3, "bert": 3, "distilbert": 3, "electra": 3}
WORDS, POSITIONS = 60, 24


@cache
def pruned(name: str, method: str) -> PrunedModel:
    return sttabt.prune(make_backbone(name), method, approx=2)


@cache
def formed(name: str, form: str) -> Callable[[Any], Tensor]:
    """A model in that form, from inputs to logits."""
    model = pruned(name, "backtracking")
    if form.startswith("fixed"):
        model = sttabt.prune(model.base, counts=[6, *[2] * (LAYERS[name] - 1)], approx=model.approx)
    model = sttabt.freeze(model) if form.endswith("frozen") else model
    return FixedModel(model) if form.startswith("fixed") else lambda inputs: model.run(inputs).logits


def images(*shape: int) -> Tensor:
    return torch.randn(shape or (3, 3, 32, 32), generator=torch.Generator().manual_seed(1))


def with_pixel(value: float, dtype: torch.dtype = torch.float32) -> Tensor:
    found = images().to(dtype)
    found[1, 2, 31, 31] = value
    return found


IMAGES: dict[str, tuple[Any, str]] = {
    "smaller": (images(2, 3, 30, 30), "images are 30x30 pixels"),
    "another grid": (images(2, 3, 16, 64), "images are 16x64 pixels"),
    "one channel": (images(2, 1, 32, 32), "images have the shape (2, 1, 32, 32): give (B, 3, height, width)"),
    "four channels": (images(2, 4, 32, 32), "give (B, 3, height, width)"),
    "channels last": (images(2, 32, 32, 3), "by images.permute(0, 3, 1, 2)"),
    "one image": (images(3, 32, 32), "one image as image[None]"),
    "video": (images(1, 2, 3, 32, 32), "images have the shape (1, 2, 3, 32, 32)"),
    "no pixels": (images(2, 3, 0, 0), "they have no pixels"),
    "bytes": (images().byte(), "images are torch.uint8: scale and normalise them"),
    "integers": (images().long(), "images are torch.int64: scale and normalise them"),
    "booleans": (images() > 0, "images are torch.bool"),
    "complex": (images().to(torch.complex64), "images are torch.complex64"),
    "double": (images().double(), "images are torch.float64, but the model computes in torch.float32"),
    "half": (images().half(), "images are torch.float16, but the model computes in torch.float32"),
    "NaN": (with_pixel(float("nan")), "image 1 of the batch holds NaN or infinity (1 such)"),
    "infinity": (with_pixel(-float("inf")), "image 1 of the batch holds NaN or infinity (1 such)"),
    "no data": (images().to("meta"), "images are on meta, but the model is on cpu"),
    "list": ([images()], "images are a list"),
    "array": (images().numpy(), "images are a ndarray"),
    "encoding": ({"input_ids": torch.ones(1, 3)}, "images are a dict"),
    "nothing": (None, "images are a NoneType"),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", IMAGES)
@torch.no_grad()
def test_images_that_cannot_be_read_are_one_line(case: str, form: str) -> None:
    given, message = IMAGES[case]
    for name in ("lvvit",) if case == "another grid" else ("test_vit", "lvvit"):  # timm's test_vit takes any grid
        _refused(lambda name=name: formed(name, form)(given), message)


@pytest.mark.parametrize("method", METHODS)
@torch.no_grad()
def test_no_method_reads_numbers_that_are_none(method: str) -> None:
    for model in (pruned("test_vit", method), sttabt.freeze(pruned("test_vit", method))):
        for value in (float("nan"), float("inf")):
            _refused(lambda model=model, value=value: model(with_pixel(value)), "image 1 of the batch holds NaN")
        assert model(images()[:0]).shape == (0, 5)
        assert model(images()).isfinite().all()


def test_large_images_in_half_precision_are_finite() -> None:
    """Their sum is not."""
    model = sttabt.prune(make_backbone("test_vit").half(), "forward_topk")
    with torch.no_grad():
        assert model.run(images().half() * 0 + 300).logits.shape == (3, 5)
    _refused(lambda: model(with_pixel(float("nan"), torch.float16)), "image 1 of the batch holds NaN")


@torch.no_grad()
def test_autocast_takes_what_it_casts() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert pruned("test_vit", "forward_topk")(images().bfloat16()).shape == (3, 5)


def test_a_compiled_graph_looks_at_shapes_alone() -> None:
    model = formed("test_vit", "fixed")
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(images()), model(images()))
    exported = torch.export.export(model, (images(),))
    with torch.no_grad():
        torch.testing.assert_close(exported.module()(images()), model(images()))


# --- texts


def encoding(**changes: Tensor | None) -> dict[str, Tensor]:
    ids = torch.randint(1, WORDS, (3, 8), generator=torch.Generator().manual_seed(2))
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}
    return {name: value for name, value in {**given, **changes}.items() if value is not None}


def masked(*lengths: int) -> Tensor:
    return (torch.arange(8) < torch.tensor(lengths)[:, None]).long()


IDS = encoding()["input_ids"]
TEXTS: dict[str, tuple[dict[str, Any], str]] = {
    "longer than the positions": (
        {"input_ids": torch.ones(2, 25, dtype=torch.long)},
        f"texts have 25 tokens, but the model has {POSITIONS} positions: truncate them",
    ),
    "beyond the vocabulary": (encoding(input_ids=IDS + 60), "but the model knows 0 to 59"),
    "below 0": (encoding(input_ids=-IDS), "but the model knows 0 to 59"),
    "a type too many": (encoding(token_type_ids=IDS), "but the model knows 0 to 1"),
    "types of another shape": (encoding(token_type_ids=IDS[:, 1:]), "token_type_ids has the shape (3, 7), not (3, 8)"),
    "numbers with a point": (encoding(input_ids=IDS.float()), "input_ids is torch.float32"),
    "a text without a token": (encoding(attention_mask=masked(8, 0, 3)), "text 1 of the batch has no real token"),
    "texts without a place": ({"input_ids": IDS[:, :0]}, "text 0 of the batch has no real token (3 such)"),
    "one text alone": ({"input_ids": IDS[0]}, "input_ids: the shape (8,)"),
    "three dimensions": ({"input_ids": IDS[None]}, "input_ids: the shape (1, 3, 8)"),
    "padding in front": (encoding(attention_mask=masked(8, 3, 3).flip(1)), "padding in front of a text"),
    "a list": ({"input_ids": IDS.tolist()}, "input_ids"),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", TEXTS)
@torch.no_grad()
def test_texts_that_cannot_be_read_are_one_line(case: str, form: str) -> None:
    given, message = TEXTS[case]
    _refused(lambda: formed("bert", form)(sttabt.text(given)), message)


@pytest.mark.parametrize("case", TEXTS)
@pytest.mark.parametrize("name", ["bert", "distilbert", "electra"])
@torch.no_grad()
def test_texts_are_looked_at_however_the_model_is_called(name: str, case: str) -> None:
    given, message = TEXTS[case]
    if name == "distilbert":  # it has no types, and its library does not take them
        if "type" in case:
            return
        given = {key: value for key, value in given.items() if key != "token_type_ids"}
    message = "input_ids" if case == "a list" else message
    for model in (pruned(name, "backtracking"), sttabt.freeze(pruned(name, "ltp"))):
        _refused(lambda model=model: model(**given), message)


@pytest.mark.parametrize("wrong", [None, {"input_ids": IDS}, images(), [IDS]], ids=["none", "dict", "images", "list"])
@torch.no_grad()
def test_what_is_no_text_is_refused(wrong: Any) -> None:
    for form in FORMS:
        _refused(lambda form=form: formed("bert", form)(wrong), "a model of text reads a Text, not a")


@pytest.mark.parametrize("method", [method for method in METHODS if method != "dense"])
@torch.no_grad()
def test_a_text_without_a_token_is_refused_and_changes_no_other(method: str) -> None:
    """The mask of a whole row: whoever leaves that row out has what the others are alone."""
    text = make_text()
    lengths = text.real.sum(1)
    none = Text(text.ids, text.types, text.real & (torch.arange(4) != 2)[:, None])
    for model in (pruned("bert", method), sttabt.freeze(pruned("bert", method))):
        _refused(lambda model=model: model.run(none), "text 2 of the batch has no real token (1 such)")
        others = torch.tensor([0, 1, 3])
        found = model.run(Text(*(field[others] for field in none))).logits
        for row, place in enumerate(others.tolist()):
            alone = Text(*(field[place : place + 1, : lengths[place]] for field in text))
            torch.testing.assert_close(found[row], model.run(alone).logits[0], atol=1e-5, rtol=1e-5)
        assert model.run(Text(*(field[:0] for field in none))).logits.shape == (0, 5)


def test_fixed_counts_of_texts_need_texts_of_one_length() -> None:
    for form in ("fixed", "fixed frozen"):
        model = formed("bert", form)
        given = encoding(attention_mask=masked(8, 7, 8))
        _refused(lambda model=model, given=given: model(sttabt.text(given)), "these texts are of unequal length")
        short = sttabt.text({"input_ids": IDS[:, :5]})
        _refused(lambda model=model, short=short: model(short), "begins with 6 tokens, but these texts have 5")
        with torch.no_grad():
            assert model(sttabt.text(encoding())).shape == (3, 5)


# --- settings


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"keep_ratio": 2}, "keep_ratio=2.0 is out of range: it must be above 0 and at most 1"),
        ({"keep_ratio": float("nan")}, "keep_ratio=nan is not a finite number"),
        ({"counts": [18, *[1] * 5]}, "begins with 18 tokens, but the model has 17"),
        ({"counts": [1, 2, 1, 1, 1, 1]}, "must not rise from layer to layer"),
        ({"counts": [3, 2, 1, 1, 1, 0]}, "must not rise from layer to layer, and hold 1 token at the least"),
        ({"counts": [-1] * 6}, "hold 1 token at the least"),
        ({"counts": [2] * 7}, "has 7 entries: give one for each of 6 layers"),
        ({"method": "backtracking_aktual"}, "did you mean 'backtracking_actual'?"),
        ({"method": None}, "method=None is unknown"),
        ({"method": "concrete", "p_logit": float("inf")}, "p_logit=inf is not a finite number"),
        ({"approx": None}, "approx=None is no network and no factor"),
        ({"approx": True}, "approx=True is no network and no factor"),
        ({"approx": 2.0}, "approx=2.0 is no network and no factor"),
        ({"approx": 0}, "approx.factor=0 does not divide"),
    ],
)
def test_settings_out_of_range_are_named(arguments: dict[str, Any], message: str) -> None:
    _refused(lambda: sttabt.prune(make_backbone("test_vit"), **{"approx": 2, **arguments}), message)


def test_an_approximate_network_of_another_model_is_refused() -> None:
    other = pruned("lvvit", "backtracking").approx
    _refused(lambda: sttabt.prune(make_backbone("test_vit"), approx=other), "approx is of a model with 3 layers")


def test_counts_of_a_distilled_model_keep_both_its_output_tokens() -> None:
    base = make_backbone("distilled")
    _refused(lambda: sttabt.prune(base, counts=[5, 3, 1], approx=2), "must hold at least 2 tokens in every layer")
    with torch.no_grad():
        assert FixedModel(sttabt.prune(base, counts=[5, 3, 2], approx=2))(images()).shape == (3, 5)


def test_the_name_of_a_preset_is_a_method_too() -> None:
    model = sttabt.prune(make_backbone("test_vit"), "backtracking_actual", keep_ratio=0.3)
    assert model.method.attention == "actual"
    assert model.method.settings.keep_ratio == 0.3


# --- distil


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batches": None}, "batches are a NoneType"),
        ({"batches": [images(2, 3, 30, 30)]}, "images are 30x30 pixels"),
        ({"batches": [images().byte()]}, "images are torch.uint8"),
        ({"batches": [images(), with_pixel(float("nan"))]}, "image 1 of the batch holds NaN"),
        ({"batches": [images()[:0]]}, "batch 1 is empty"),
        ({"batches": [()]}, "images are a tuple"),
        ({"batches": images()}, "batches are a Tensor: give a DataLoader or a list of batches"),
        ({"epochs": 0}, "epochs=0 is out of range"),
        ({"epochs": 1.5}, "epochs=1.5 is out of range"),
        ({"learning_rate": 0}, "learning_rate=0 is out of range"),
        ({"learning_rate": float("nan")}, "learning_rate=nan is out of range"),
        ({"learning_rate": 1e39}, "learning_rate=1e+39 is out of range"),
    ],
)
def test_a_distillation_that_cannot_be_is_one_line_and_changes_nothing(arguments: dict[str, Any], message: str) -> None:
    model = sttabt.prune(make_backbone("test_vit"), approx=2)
    assert model.approx is not None
    before = {name: value.clone() for name, value in model.approx.state_dict().items()}
    _refused(lambda: sttabt.distil(model, **{"batches": [images()], **arguments}), message)
    assert all(torch.equal(value, before[name]) for name, value in model.approx.state_dict().items())
    assert not any(module.training for module in model.modules())


def test_a_distillation_that_diverges_leaves_the_network_as_it_was() -> None:
    model = sttabt.prune(timm.create_model("test_vit", patch_size=8, img_size=32, num_classes=5), approx=2)
    assert model.approx is not None
    with torch.no_grad():
        model.base.model.head.bias.fill_(float("nan"))
    before = {name: value.clone() for name, value in model.approx.state_dict().items()}
    _refused(lambda: sttabt.distil(model, [images()]), "distillation diverged at batch 1 of epoch 1")
    assert all(torch.equal(value, before[name]) for name, value in model.approx.state_dict().items())


def test_a_frozen_model_is_not_distilled() -> None:
    frozen = sttabt.freeze(pruned("test_vit", "backtracking"))
    _refused(lambda: sttabt.distil(frozen, [images()]), "a frozen model cannot learn")


def _refused(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        call()
    assert message in str(error.value)
    assert "\n" not in str(error.value)
