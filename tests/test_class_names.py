"""Weights that know their classes by name: the head follows the data's order, or nothing runs."""

from __future__ import annotations

import csv
import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features
from datasets import Image as ImageFeature
from PIL import Image
from safetensors.torch import load_file
from timm.data import ImageNetInfo
from torch import Tensor
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertTokenizerFast,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    ElectraConfig,
    ElectraForSequenceClassification,
    PreTrainedModel,
    ViTConfig,
    ViTForImageClassification,
)

from conftest import make_backbone
from sttabt.cli.composition import compose_settings
from sttabt.errors import UserError
from sttabt.lit.loggers import JobLoggers
from sttabt.pipeline.stage import Context
from sttabt.pipeline.stages import run_stages
from sttabt.pretrained.classes import ClassNames, class_order, configured_names, order_head
from sttabt.report.rows import Row
from sttabt.store.job import Job

VIT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "image_size": 16,
    "patch_size": 8,
}
ARGUMENTS = {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "mlp_ratio": 1.5}  # of timm, the same
COLOURS = {"cat": (230, 20, 20), "dog": (20, 20, 230)}
WORDS = {"cat": "meow", "dog": "woof"}
NORMALISED = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
ALONE = ["name=test", "logger=none", "sparsity=dense", "evaluation.timing_rounds=0", "hardware.workers=0"]


# --- the rule


@pytest.mark.parametrize(
    ("theirs", "ours", "order"),
    [
        (["dog", "cat"], ["cat", "dog"], [1, 0]),
        (["cat", "dog"], ["cat", "dog"], None),
        (["CONTRADICTION", "Neutral", "entailment"], ["entailment", "neutral", "contradiction"], [2, 1, 0]),
        (["not_entailment", "entailment"], ["entailment", "not entailment"], [1, 0]),
        (["T-shirt", " Ankle  boot "], ["ankle_boot", "t-shirt"], [1, 0]),
        (["LABEL_0", "LABEL_1"], ["cat", "dog"], None),
        (["0", "1"], ["cat", "dog"], None),
        (["dog", "cat"], ["0", "1"], None),
        (["1", "0"], ["0", "1"], [1, 0]),
        ([], ["cat", "dog"], None),
        (["score"], [], None),
        (["a", "A"], ["A", "a"], [1, 0]),  # their case tells them apart
        (["cat", "dog", "fox"], ["cat", "dog"], None),  # said where the head is loaded
        (["n01443537", "n01440764"], ["tench, Tinca tinca", "goldfish, Carassius auratus"], [1, 0]),
    ],
)
def test_the_order_of_a_head(theirs: list[str], ours: list[str], order: list[int] | None) -> None:
    assert class_order(ClassNames(tuple(theirs), "it"), ours, trained_on=False) == order


@pytest.mark.parametrize(
    ("theirs", "ours", "named"),
    [
        (["fox", "cat"], ["cat", "dog"], r"\(fox\) than the data \(dog\)"),
        (["fox", "owl"], ["cat", "dog"], r"\(fox, owl\) than the data \(cat, dog\)"),
        (["cat", "cat"], ["cat", "dog"], r"it names other classes"),
        (["negative", "pos"], ["negative", "positive"], r"\(pos\) than the data \(positive\)"),
    ],
)
def test_other_names_are_an_error_or_where_the_head_trains_a_warning(
    theirs: list[str], ours: list[str], named: str, caplog: pytest.LogCaptureFixture
) -> None:
    names = ClassNames(tuple(theirs), "it")
    with pytest.raises(UserError, match=rf"{named}.*model\.class_names=\[...\].*model\.fine_tune=true"):
        class_order(names, ours, trained_on=False)
    assert class_order(names, ours, trained_on=True) is None
    assert "fine-tuning starts from its head" in caplog.text
    caplog.clear()
    assert class_order(names._replace(stated=False), ours, trained_on=False) is None
    assert "names other classes" in caplog.text


def test_one_other_spelling_among_many_in_the_same_place_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    ours = [f"class {letter}" for letter in "abcdefghij"]
    theirs = [*ours[:4], "klass e", *ours[5:]]
    assert class_order(ClassNames(tuple(theirs), "it"), ours, trained_on=False) is None
    assert "the class klass e of the weights is taken to be class e of the data" in caplog.text
    with pytest.raises(UserError, match="names other classes"):
        class_order(ClassNames(tuple(reversed(theirs)), "it"), ours, trained_on=False)


def test_imagenet_by_its_ids_and_by_its_words_is_the_same() -> None:
    known = ImageNetInfo("imagenet-1k")
    ids = known.label_names()
    words = [known.label_name_to_description(name, detailed=False) for name in ids]
    assert class_order(ClassNames(tuple(words), "it"), ids, trained_on=False) is None
    assert class_order(ClassNames(tuple(ids), "it"), words, trained_on=False) is None


@pytest.mark.parametrize(
    ("config", "names"),
    [
        ({"id2label": {"0": "a", "1": "b"}}, ("a", "b")),
        ({"id2label": {1: "b", 0: "a"}}, ("a", "b")),
        ({"id2label": {"0": 3, "1": 4}}, ("3", "4")),
        ({"id2label": {"1": "a", "2": "b"}}, ()),
        ({"id2label": "ab"}, ()),
        ({"id2label": {"0": "LABEL_0", "1": "LABEL_1"}, "label2id": {"b": 1, "a": 0}}, ("a", "b")),
        ({"label_names": ["a", "b"]}, ("a", "b")),
        ({"label_names": {"1": "b", "0": "a"}}, ("a", "b")),
        ({}, ()),
    ],
)
def test_what_a_configuration_says(config: dict[str, Any], names: tuple[str, ...]) -> None:
    assert configured_names(config, "it").names == names


@pytest.mark.parametrize("name", ["test_vit", "distilled", "lvvit_auxiliary", "bert", "distilbert", "electra"])
def test_the_rows_of_every_head_move(name: str) -> None:
    base = make_backbone(name).eval()
    inputs = type(base).examples()[name]().inputs
    order = [3, 0, 4, 1, 2]
    with torch.no_grad():
        before = base(inputs)
        order_head(base, order)
        torch.testing.assert_close(base(inputs), before[:, order])


# --- from the files to a score


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def coloured(folder: Path, names: Sequence[str] = ("cat", "dog")) -> list[str]:
    """Red cats and blue dogs, as a folder of images."""
    for part, count in (("train", 6), ("val", 3)):
        for name, colour in zip(names, COLOURS.values(), strict=True):
            (folder / part / name).mkdir(parents=True)
            for number in range(count):
                Image.new("RGB", (16, 16), colour).save(folder / part / name / f"{number}.png")
    return ["dataset=image_folder", f"dataset.path={folder}"]


def as_table(folder: Path) -> list[str]:
    """The same as a saved data set whose labels have names."""
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=["cat", "dog"])})
    parts = {}
    for split, count in (("train", 6), ("test", 3)):
        pictures = [Image.new("RGB", (16, 16), colour) for colour in COLOURS.values() for _ in range(count)]
        labels = [0] * count + [1] * count
        parts[split] = Dataset.from_dict({"image": pictures, "label": labels}, features=features)
    DatasetDict(parts).save_to_disk(str(folder))
    return ["dataset=image_table", f"dataset.path={folder}"]


SIZES = ["dataset.classes=2", "dataset.image_size=16", "dataset.validation_share=0.34"]
WIDTHS = ["model.width=32", "model.depth=2", "model.heads=2", "approx.factor=2", "model.crop=1.0"]


def knowing(head: Tensor, features: Tensor) -> None:
    """Row i of the head answers to the features of class i alone."""
    directions = features - features.mean(0)
    head.copy_(40 * directions / directions.norm(dim=1, keepdim=True) ** 2)


def vit_that_knows(names: Sequence[str]) -> ViTForImageClassification:
    """Its own accuracy is 1 on red `names` "cat" and blue "dog", whatever place they have in its head."""
    torch.manual_seed(1)
    config = ViTConfig(**VIT, id2label=dict(enumerate(names)), label2id={name: i for i, name in enumerate(names)})
    model = ViTForImageClassification(config).eval()
    colours = {name.casefold(): colour for name, colour in COLOURS.items()}
    pixels = torch.tensor([colours.get(name.casefold(), (0, 0, 0)) for name in names]) / 127.5 - 1
    with torch.no_grad():
        images = pixels[:, :, None, None].expand(-1, -1, 16, 16).contiguous()
        features = model.vit(images).last_hidden_state[:, 0]
        knowing(model.classifier.weight, features)
        model.classifier.bias.copy_(-(model.classifier.weight @ features.mean(0)))
        assert model(images).logits.argmax(1).tolist() == list(range(len(names)))
    return model


def saved(model: PreTrainedModel, folder: Path) -> Path:
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(NORMALISED))
    return folder


def hugging(path: Path, *more: str) -> list[str]:
    own = ["model=vit_base", "model.timm=", f"model.huggingface={path}", "model.pretrained=true", "model.patch_size=8"]
    return [*own, *WIDTHS, *SIZES, *more]


def scored(overrides: list[str], output: Path) -> float:
    settings = compose_settings([*ALONE, "stages=[base,evaluate]", *overrides], output=output)
    run_stages(settings, Job("test", "alone", False, ""))
    return Row.read(output / "row.json").score


@pytest.mark.parametrize("names", [["dog", "cat"], ["cat", "dog"], ["Dog", "CAT"]], ids="-".join)
@pytest.mark.parametrize("data", [coloured, as_table], ids=["folder", "table"])
def test_a_vit_of_a_folder_scores_by_names(data: Callable[[Path], list[str]], names: list[str], folder: Path) -> None:
    model = saved(vit_that_knows(names), folder / "model")
    assert scored([*data(folder / "data"), *hugging(model)], folder / "out") == 1.0


def test_data_in_two_orders_have_two_artifacts(folder: Path) -> None:
    """The same weights on two data sets: neither reads the head of the other."""
    model = saved(vit_that_knows(["dog", "cat"]), folder / "model")
    assert scored([*coloured(folder / "a"), *hugging(model)], folder / "out1") == 1.0
    other = coloured(folder / "b")
    for part in ("train", "val"):  # whose name stands behind "dog"
        (folder / "b" / part / "cat").rename(folder / "b" / part / "zebra")
    assert scored([*other, *hugging(model, "model.class_names=[dog,zebra]")], folder / "out2") == 1.0
    assert scored([f"dataset.path={folder / 'a'}", "dataset=image_folder", *hugging(model)], folder / "out3") == 1.0
    assert len(list((folder / "artifacts" / "base").glob("*/artifact.json"))) == 2


@pytest.mark.parametrize("beside", ["transformers", "timm", "artifact"])
def test_a_checkpoint_is_read_by_the_names_beside_it(beside: str, folder: Path) -> None:
    model = saved(vit_that_knows(["dog", "cat"]), folder / "model")
    file = model / "model.safetensors"
    if beside == "timm":
        config = {"architecture": "vit_tiny_patch16_224", "num_classes": 2, "label_names": ["dog", "cat"]}
        (model / "config.json").write_text(json.dumps(config))
    if beside == "artifact":
        (model / "config.json").unlink()
        (model / "artifact.json").write_text(json.dumps({"notes": {"class_names": ["dog", "cat"]}}))
    own = ["model=vit_base", "model.timm=vit_tiny_patch16_224", "model.patch_size=8", *WIDTHS, *SIZES]
    own += [f"+model.arguments.{name}={value}" for name, value in ARGUMENTS.items()]
    own += ["model.pretrained=false", f"model.checkpoint={file}", *coloured(folder / "data")]
    assert scored(own, folder / "out") == 1.0
    (file.parent / "config.json").unlink(missing_ok=True)
    (file.parent / "artifact.json").unlink(missing_ok=True)
    assert scored(own, folder / "out2") == 0.0, "nothing says what its rows are"
    assert scored([*own, "model.class_names=[dog,cat]"], folder / "out3") == 1.0


def test_a_timm_folder_is_read_by_its_names(folder: Path) -> None:
    arguments = {**ARGUMENTS, "img_size": 16}
    state = saved(vit_that_knows(["dog", "cat"]), folder / "model")
    model = timm.create_model("vit_tiny_patch16_224", num_classes=2, **arguments)
    from sttabt.backbones.vit import ViT
    from sttabt.pretrained.weights import load_weights

    load_weights(ViT(model), state / "model.safetensors", "it")
    model.pretrained_cfg |= {"mean": (0.5,) * 3, "std": (0.5,) * 3, "input_size": (3, 16, 16)}
    timm.models.save_for_hf(model, folder / "timm", model_config={"label_names": ["dog", "cat"]}, model_args=arguments)
    own = ["model=vit_base", f"model.timm=local-dir:{folder / 'timm'}", "model.patch_size=8", *WIDTHS, *SIZES]
    own += ["model.pretrained=true", *coloured(folder / "data")]
    assert scored(own, folder / "out") == 1.0


def test_names_that_do_not_agree_stop_before_anything_is_made(folder: Path) -> None:
    model = saved(vit_that_knows(["dog", "cat"]), folder / "model")
    data = coloured(folder / "data", ("ant", "dog"))
    with pytest.raises(UserError, match=r"model\.huggingface=.*names other classes \(cat\) than the data \(ant\)"):
        scored([*data, *hugging(model)], folder / "out")
    assert not list(folder.glob("artifacts/base/*/artifact.json"))
    tuned = ["model.fine_tune=true", "model.training.epochs=1", "model.training.warmup_epochs=0"]
    tuned += ["model.training.learning_rate=1e-9", "hardware.batch_size=4"]
    assert scored([*data, *hugging(model), *tuned], folder / "out") == 0.0, "which starts from its head"


def test_no_names_are_no_error(folder: Path) -> None:
    torch.manual_seed(1)
    model = ViTForImageClassification(ViTConfig(**VIT, num_labels=2))
    assert 0 <= scored([*coloured(folder / "data"), *hugging(saved(model, folder / "model"))], folder / "out") <= 1


def test_as_many_names_as_classes(folder: Path) -> None:
    model = saved(vit_that_knows(["dog", "cat"]), folder / "model")
    with pytest.raises(UserError, match=r"model\.class_names=.* are 1 names for dataset\.classes=2"):
        scored([*coloured(folder / "data"), *hugging(model, "model.class_names=[dog]")], folder / "out")


# --- texts

TEXT = {"max_position_embeddings": 16, "num_attention_heads": 2, "num_hidden_layers": 2, "hidden_size": 32}
KINDS: dict[str, tuple[type[Any], type[Any], dict[str, Any]]] = {
    "bert": (BertForSequenceClassification, BertConfig, {**TEXT, "intermediate_size": 48}),
    "distilbert": (
        DistilBertForSequenceClassification,
        DistilBertConfig,
        {"max_position_embeddings": 16, "n_heads": 2, "n_layers": 2, "dim": 32, "hidden_dim": 48},
    ),
    "electra": (
        ElectraForSequenceClassification,
        ElectraConfig,
        {**TEXT, "intermediate_size": 48, "embedding_size": 32},
    ),
}
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "meow", "woof", "hush"]


def text_model_that_knows(kind: str, names: Sequence[str], folder: Path) -> Path:
    library, config, sizes = KINDS[kind]
    torch.manual_seed(2)
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY))
    tokenizer = BertTokenizerFast(vocab=str(folder / "vocab.txt"))
    tokenizer.save_pretrained(folder)
    model = library(config(vocab_size=len(VOCABULARY), id2label=dict(enumerate(names)), **sizes)).eval()
    words = {name.casefold(): word for name, word in WORDS.items()}
    given = tokenizer([words.get(name.casefold(), "hush") for name in names], return_tensors="pt")
    if kind == "distilbert":
        given.pop("token_type_ids", None)
    last = model.classifier.out_proj if kind == "electra" else model.classifier
    read: list[Tensor] = []
    handle = last.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
    with torch.no_grad():
        model(**given)
        handle.remove()
        features = read[0]
        knowing(last.weight, features)
        last.bias.copy_(-(last.weight @ features.mean(0)))
        assert model(**given).logits.argmax(1).tolist() == list(range(len(names)))
    model.save_pretrained(folder)
    return folder


def sentences(folder: Path, labels: Sequence[str]) -> list[str]:
    folder.mkdir()
    for part, count in (("train", 8), ("validation", 2), ("test", 4)):
        with (folder / f"{part}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["sentence", "label"])
            for number in range(count):
                for word, label in zip(WORDS.values(), labels, strict=True):
                    writer.writerow([" ".join([word] * (1 + number)), label])
    return ["dataset=text_file", f"dataset.path={folder}", "dataset.classes=2", "dataset.max_tokens=16"]


def of_text(path: Path) -> list[str]:
    widths = ["model.width=32", "model.depth=2", "model.heads=2", "approx.factor=2"]
    return ["model=bert_base", f"model.huggingface={path}", "model.pretrained=true", "model.fine_tune=false", *widths]


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_model_scores_by_names(kind: str, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    model = text_model_that_knows(kind, ["DOG", "Cat"], folder / "model")
    named = [*sentences(folder / "data", ["cat", "dog"]), "dataset.class_names=[cat,dog]", *of_text(model)]
    assert scored(named, folder / "out") > 0.8
    numbers = [*sentences(folder / "numbers", ["0", "1"]), *of_text(model)]
    assert scored(numbers, folder / "out2") < 0.2, "the data do not say what 0 and 1 are"
    assert "names the classes DOG, Cat, the data have numbers: they are taken in that order" in caplog.text
    assert scored([*numbers, "dataset.class_names=[cat,dog]"], folder / "out3") > 0.8
    with pytest.raises(UserError, match=r"names other classes \(DOG, Cat\) than the data \(good, bad\)"):
        scored([*numbers, "dataset.class_names=[good,bad]"], folder / "out4")


def test_what_was_trained_here_keeps_its_names(folder: Path) -> None:
    """The record of an artifact names the classes, and the next data set is held against them."""
    model = saved(vit_that_knows(["dog", "cat"]), folder / "model")
    data = coloured(folder / "data")
    scored([*data, *hugging(model)], folder / "out")
    artifact = next(folder.glob("artifacts/base/*/artifact.json")).parent
    context_settings = compose_settings([*ALONE, *data, *hugging(model)], output=folder / "out")
    job = Job("test", "alone", False, "")
    assert Context(context_settings, job, JobLoggers(context_settings, job)).splits.class_names == ("cat", "dog")
    own = ["model=vit_base", "model.timm=vit_tiny_patch16_224", "model.patch_size=8", *WIDTHS, *SIZES]
    own += [f"+model.arguments.{name}={value}" for name, value in ARGUMENTS.items()]
    own += ["model.pretrained=false", f"model.checkpoint={artifact / 'model.safetensors'}"]
    assert load_file(artifact / "model.safetensors")["model.head.weight"].shape == (2, 32)
    assert scored([*own, *data], folder / "out2") == 1.0
    with pytest.raises(UserError, match=r"artifact\.json names other classes \(cat\) than the data \(ant\)"):
        scored([*own, *coloured(folder / "other", ("ant", "dog"))], folder / "out3")
