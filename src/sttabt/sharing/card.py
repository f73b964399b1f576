"""The model card of a saved model: `README.md` beside its weights, in the Hugging Face hub's format."""

from __future__ import annotations

import re
from dataclasses import asdict
from typing import Any

from huggingface_hub import ModelCardData

from sttabt.models.pruned import PrunedModel
from sttabt.pretrained.description import Preparation

FRONT = re.compile(r"\A---\n.*?\n---\n", re.DOTALL)
USE = re.compile(r"## Use\n.*?(?=\n## |\Z)", re.DOTALL)
AWAY = re.compile(r"\[([^\]]*)\]\(\.\./[^)]*\)")  # links to other artifacts
OWN_LINES = "## Use\n\n```python\n{}\n```\n"


def saved_card(pruned: PrunedModel, preparation: Preparation, tokenizer: bool, name: str) -> str:
    """name: of the folder or of the hub's repository, which its lines load."""
    use = OWN_LINES.format(use_lines(name, pruned, preparation, tokenizer))
    if preparation.card:  # what was measured still holds
        return AWAY.sub(r"\1", USE.sub(lambda _: use, preparation.card))
    base, settings = pruned.base, asdict(pruned.method.settings)
    kind = "text" if base.may_pad else "image"
    data = ModelCardData(
        library_name="sttabt",
        pipeline_tag=f"{kind}-classification",
        tags=["token-pruning", "sttabt"],
    )
    sizes = base.architecture
    own = ", ".join(f"{key} {value}" for key, value in settings.items() if key not in ("method", "training"))
    facts = [
        f"- base model: {type(base).__name__}, {sizes.layers} layers of width {sizes.width}, {sizes.classes} classes",
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
            *(f"A transformer for {kind} classification that drops the tokens which its output does not need.", ""),
            *(*facts, "", "Accuracy, cost, robustness and fairness: not measured here.", ""),
            use,
        ]
    )


def use_lines(name: str, pruned: PrunedModel, preparation: Preparation, tokenizer: bool) -> str:
    """Python that runs as it stands, beside the folder."""
    if pruned.base.may_pad:
        return text_lines(f'"{name}"', tokenizer, pruned.base.model.config.vocab_size)
    inputs = preparation.inputs
    shape = (pruned.base.model.in_chans, inputs["height"], inputs["width"])
    return image_lines(f'"{name}"', shape, inputs.get("mean"), inputs.get("std"))


def image_lines(arguments: str, shape: tuple[int, int, int], mean: Any, std: Any) -> str:
    """arguments: of `sttabt.load`, as Python writes them; mean, std: of the images, None where they are not known."""
    normalised = f", (pixels - {list(mean)}) / {list(std)}" if mean and std else ""
    return (
        f"import sttabt\nimport torch\n\nmodel = sttabt.load({arguments})\n"
        f"images = torch.rand(1, {', '.join(map(str, shape))})  # yours{normalised}\n"
        "with torch.inference_mode():\n    logits = model(images)"
    )


def text_lines(arguments: str, tokenizer: bool, vocabulary: int) -> str:
    """As `image_lines`, with the model's own tokenizer; without one, of ids at random."""
    start = f"import sttabt\nimport torch\n\nmodel = sttabt.load({arguments})\n"
    end = "with torch.inference_mode():\n    logits = model(**encoding).logits"
    if not tokenizer:
        return f'{start}encoding = {{"input_ids": torch.randint({vocabulary}, (1, 8))}}  # your tokenizer\'s\n{end}'
    call = 'tokenizer(["A text.", "Another one."], padding=True, return_tensors="pt")'
    return f"{start}tokenizer = model.preparation.load_tokenizer()\nencoding = {call}\n{end}"
