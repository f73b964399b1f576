"""Files of weights and models: whether they are there. A source looks after its own files."""

from __future__ import annotations

from pathlib import Path

from sttabt.data.checks import check_corpus
from sttabt.errors import UserError
from sttabt.pretrained.hub import find_pretrained
from sttabt.settings import Settings

WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # what libraries call the weights in a folder


def check_files(settings: Settings) -> None:
    for key, file in (
        ("model.checkpoint", settings.model.checkpoint),
        ("approx.checkpoint", settings.approx.checkpoint),
    ):
        if file and not Path(file).is_file():
            inside = [path for name in WEIGHTS if (path := Path(file) / name).is_file()]
            hint = f"the weights file in it, {key}={inside[0]}" if inside else "a weights file"
            raise UserError(f"{key}={file} is no file: give {hint}")
    if settings.approx.start == "general":
        check_corpus(settings.approx.corpus)
    find_pretrained(settings.model.huggingface)
