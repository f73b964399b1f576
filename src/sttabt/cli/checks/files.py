"""Files of weights and models: whether they are there. A source looks after its own files."""

from __future__ import annotations

from pathlib import Path

from sttabt.errors import UserError
from sttabt.pretrained.hub import find_pretrained
from sttabt.settings import Settings


def check_files(settings: Settings) -> None:
    for key, file in (
        ("model.checkpoint", settings.model.checkpoint),
        ("approx.checkpoint", settings.approx.checkpoint),
    ):
        if file and not Path(file).is_file():
            raise UserError(f"{key}={file} is no file: give a weights file")
    find_pretrained(settings.model.huggingface)
