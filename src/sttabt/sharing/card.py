"""The model card of a saved model: `README.md` beside its weights, in the Hugging Face hub's format."""

from __future__ import annotations

import re
from dataclasses import asdict

from huggingface_hub import ModelCardData

from sttabt.models.pruned import PrunedModel
from sttabt.pretrained.description import Preparation

FRONT = re.compile(r"\A---\n.*?\n---\n", re.DOTALL)
USE = re.compile(r"## Use\n.*?(?=\n## |\Z)", re.DOTALL)
AWAY = re.compile(r"\[([^\]]*)\]\(\.\./[^)]*\)")  # links to other artifacts
EMBEDDING = {"text": "feature-extraction", "image": "image-feature-extraction"}  # as the hub calls these tasks
OWN_LINES = "## Use\n\n```python\n{}\n```\n"


def saved_card(pruned: PrunedModel, preparation: Preparation, tokenizer: bool, name: str) -> str:
    """name: of the folder or of the hub's repository, which its lines load."""
    use = OWN_LINES.format(use_lines(name, pruned, tokenizer))
    if preparation.card:  # what was measured still holds
        return AWAY.sub(r"\1", USE.sub(lambda _: use, preparation.card))
    base, settings = pruned.base, asdict(pruned.method.settings)
    kind, sizes = "text" if base.may_pad else "image", base.architecture
    task, gives = f"{kind} classification", f"{sizes.classes} classes"
    if base.embeds:
        task, gives = f"{kind} embedding", f"a vector of {sizes.classes} numbers"
    data = ModelCardData(
        library_name="sttabt",
        pipeline_tag=EMBEDDING[kind] if base.embeds else f"{kind}-classification",
        tags=["token-pruning", "sttabt"],
    )
    own = ", ".join(pruned.method.settings.in_words(settings))
    facts = [
        f"- base model: {type(base).__name__}, {sizes.layers} layers of width {sizes.width}, {gives}",
        f"- method: {pruned.method.title} ({pruned.method.settings.source}){': ' + own if own else ''}",
    ]
    if pruned.approx is not None:
        facts.append(f"- approximate attention network: {pruned.approx.factor} times narrower")
    if (found := pruned.calibration) is not None:
        facts.append(
            f"- budget: {found.of} {found.asked:g} of the dense model's asked for, {found.reached:.4g} reached"
        )
    return "\n".join(
        [
            *("---", data.to_yaml(), "---", "", f"# {name}", ""),
            *(f"A transformer for {task} that drops the tokens which its output does not need.", ""),
            *(*facts, "", "Accuracy, cost, robustness and fairness: not measured here.", ""),
            use,
        ]
    )


def use_lines(name: str, pruned: PrunedModel, tokenizer: bool) -> str:
    """Python that runs as it stands, beside the folder."""
    base = pruned.base
    if base.may_pad:
        return text_lines(f'"{name}"', None if tokenizer else base.model.config.vocab_size, base.answers)
    return image_lines(f'"{name}"', base.image_shape, base.answers)


def image_lines(arguments: str, shape: tuple[int, int, int], entry: str = "") -> str:
    """arguments: of `sttabt.load`, as Python writes them; shape: of an image, channels first; entry: what holds the
    result in what the library's model returns, "" where that is the result.
    """
    return _lines(
        arguments,
        f"images = torch.randn(1, {', '.join(map(str, shape))})  # yours, made as model.preparation.inputs says",
        "model(images)",
        entry,
    )


def text_lines(arguments: str, vocabulary: int | None = None, entry: str = "logits") -> str:
    """As `image_lines`, with the model's own tokenizer; where it has none, with ids of that vocabulary at random."""
    call = 'tokenizer(["A text.", "Another one."], padding=True, return_tensors="pt")'
    given = f"tokenizer = model.preparation.load_tokenizer()\nencoding = {call}"
    if vocabulary is not None:
        given = f'encoding = {{"input_ids": torch.randint({vocabulary}, (1, 8))}}  # yours, by the model\'s tokenizer'
    return _lines(arguments, given, "model(**encoding)", entry)


def _lines(arguments: str, given: str, call: str, entry: str) -> str:
    start = f"import sttabt\nimport torch\n\nmodel = sttabt.load({arguments})"
    result = f"{entry or 'logits'} = {call}{'.' if entry else ''}{entry}"
    return f"{start}\n{given}\nwith torch.inference_mode():\n    {result}"
