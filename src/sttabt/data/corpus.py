"""Plain text without labels, for approximating a pretrained encoder before any task is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sttabt.data.arrow import failures, reason
from sttabt.data.base import Splits
from sttabt.data.checks import check_corpus
from sttabt.data.rows import Rows, normalised
from sttabt.data.tables import decode
from sttabt.data.text import hold_out, text_dataset
from sttabt.errors import UserError
from sttabt.pretrained.hub import use_hub
from sttabt.settings import ModelSettings

COLUMN = "text"


def load_corpus(
    source: str, model: ModelSettings, max_tokens: int, validation_share: float = 0.05, split_seed: int = 0
) -> Splits:
    """Passages as a TextDataset whose labels are 0; test is the validation split.

    source: a text file or a folder of .txt files (.gz too), each with a passage a line; or the id of a data set on the
    hub with a column `text`, and its configuration after a colon: Salesforce/wikitext:wikitext-103-raw-v1.
    Empty lines are left out. Raises UserError when there is no such source or nothing in it.
    """
    passages = _from_files(Path(source)) if check_corpus(source) else _from_hub(source)
    passages = [passage for passage in map(str.strip, passages) if passage]
    if all(normalised((passage,)) == normalised((passages[0],)) for passage in passages):
        count = "one passage" if passages else "no text"
        raise UserError(f"approx.corpus={source} holds {count}: give many, a passage a line")
    rows = Rows([(passage,) for passage in passages], np.zeros(len(passages), dtype=np.int64), source)
    parts = hold_out(rows, validation_share, split_seed, "the validation share of approx.corpus")
    train, validation = (
        text_dataset(part, model, max_tokens, f"{source}, {name}")
        for part, name in zip(parts, ("train", "validation"), strict=True)
    )
    return Splits(train, validation, validation, class_names=(), mean=(), std=())


def corpus_files(source: str) -> dict[str, Path]:
    """The files that `load_corpus` reads, by their order; {} of a data set on the hub."""
    path = Path(source)
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if _is_text(file.relative_to(path)))
    return {f"{place:09}": file for place, file in enumerate(files)}


def _from_files(path: Path) -> list[str]:
    files = corpus_files(str(path)).values()
    if not files:
        raise UserError(f"approx.corpus={path} has no .txt file: put text there, a passage a line")
    return [line for file in files for line in decode(file, "utf-8", "approx.corpus").splitlines()]


def _is_text(file: Path) -> bool:
    """By its name; what editors and systems hide is none."""
    return file.name.lower().endswith((".txt", ".txt.gz")) and not any(part.startswith(".") for part in file.parts)


def _from_hub(source: str) -> list[str]:
    name, _, configuration = source.partition(":")
    use_hub()
    from datasets import load_dataset  # after the line above, which may tell it to stay offline

    try:
        dataset = load_dataset(name, configuration or None, split="train")
    except failures() as error:
        raise UserError(
            f"approx.corpus={source} is no file or folder, and no data set of the hub or its cache"
            f" ({reason(error)}): give a text file, or load it once with a network"
        ) from error
    if COLUMN not in dataset.column_names:
        raise UserError(f"approx.corpus={source} has no column '{COLUMN}': its columns are {dataset.column_names}")
    return dataset[COLUMN]
