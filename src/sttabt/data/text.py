"""Texts as numbers: one tokenizer, one data set and one way to split for every source of text."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer

from sttabt.core.text import Text
from sttabt.data.base import TEST_SEED, Batch, Sequences, Splits, hash_of, split_indices
from sttabt.data.rows import Rows, check_class_count, normalised
from sttabt.errors import UserError
from sttabt.pretrained.hub import find_pretrained, use_hub
from sttabt.settings import DatasetSettings, ModelSettings

CHUNK = 10_000  # texts that are tokenised at once
SIGNS = 20  # characters a token, of which there are seldom as many
WORD = 100  # tokens of a word at most (WordPiece gives up on longer ones): so many may change where a text is cut
STRATA = 10  # quantiles of a score that every split gets alike

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Tokens:
    """Texts one after another: text i is ids[starts[i]:starts[i+1]], types likewise.

    ids: int32; types: int8; starts: (texts+1,) int64; truncated, bare: (texts,) bool, what lost its end and what has
    special tokens alone; padding: the id to pad with.
    """

    ids: Tensor
    types: Tensor
    starts: np.ndarray
    truncated: np.ndarray
    bare: np.ndarray
    padding: int


class TextDataset(Sequences):
    """Items are Batch(Text, label) of one text without padding: ids, types and real are (N,)."""

    def __init__(self, tokens: Tokens, labels: np.ndarray) -> None:
        self.tokens, self.labels = tokens, torch.from_numpy(labels)
        self.lengths = np.diff(tokens.starts)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Batch:
        own = slice(*self.tokens.starts[[index, index + 1]])
        ids, types = self.tokens.ids[own].long(), self.tokens.types[own].long()
        return Batch(Text(ids, types, torch.ones(len(ids), dtype=torch.bool)), self.labels[index])

    def contents(self) -> str:
        """A hash of the tokens and labels, which is what a model reads of texts."""
        tokens = self.tokens
        return hash_of(tokens.ids, tokens.types, tokens.starts, np.array(tokens.padding), self.labels)

    def collate(self, items: Sequence[Batch]) -> Batch:
        """Padded at the end up to the longest."""
        lengths = torch.tensor([len(item.inputs.ids) for item in items])
        real = torch.arange(int(lengths.max())) < lengths[:, None]
        ids = torch.full(real.shape, self.tokens.padding)
        types = torch.zeros(real.shape, dtype=torch.long)
        ids[real] = torch.cat([item.inputs.ids for item in items])
        types[real] = torch.cat([item.inputs.types for item in items])
        return Batch(Text(ids, types, real), torch.stack([item.labels for item in items]))


def text_splits(
    settings: DatasetSettings, model: ModelSettings, train: Rows, validation: Rows | None, test: Rows | None
) -> Splits:
    """Tokenised splits; those that are not there are held out of train: test first, then validation."""
    check_class_count(train, settings)
    given = [rows for rows in (train, validation, test) if rows is not None]
    shares = ("test", test, settings.test_share), ("validation", validation, settings.validation_share)
    cut = {part: share for part, rows, share in shares if rows is None}
    if test is None:
        train, test = hold_out(train, settings.test_share, TEST_SEED, "dataset.test_share")
    if validation is None:
        train, validation = hold_out(train, settings.validation_share, settings.split_seed, "dataset.validation_share")
    _report_repeated(given, settings.name)
    parts = {"train": train, "validation": validation, "test": test}
    datasets = {
        part: text_dataset(rows, model, settings.max_tokens, f"{settings.name}, {part}") for part, rows in parts.items()
    }
    names = tuple(settings.class_names) or tuple(map(str, range(settings.classes)))
    contents = {part: each.contents() for part, each in datasets.items()}
    own = () if settings.task == "regression" else names
    log.info(
        "%s: %s texts%s%s",
        settings.name,
        ", ".join(f"{len(each)} {part}" for part, each in datasets.items()),
        f" of {len(own)} classes" if own else "",
        "".join(f", {part} is split off here (dataset.{part}_share={share:g})" for part, share in cut.items()),
    )
    return Splits(**datasets, class_names=own, mean=(), std=(), contents=contents)


def text_dataset(rows: Rows, model: ModelSettings, max_tokens: int, name: str) -> TextDataset:
    """Tokenised for `model`; warns once, by `name`, when texts lose their ends."""
    tokens = tokenise(rows.texts, model, max_tokens)
    if bare := int(tokens.bare.sum()):
        log.warning("%s: %d of %d texts have no token beside the special ones", name, bare, len(tokens.bare))
    if truncated := int(tokens.truncated.sum()):
        log.warning(
            "%s: %d of %d texts are longer than %d tokens and are truncated",
            *(name, truncated, len(tokens.truncated), max_tokens),
        )
    return TextDataset(tokens, rows.labels)


def hold_out(rows: Rows, share: float, seed: int, setting: str) -> tuple[Rows, Rows]:
    """The larger part and the smaller, `share` of the texts, stratified by class, or by the score's quantiles.

    A text that is there several times counts once, with its first label, and stays together.
    """
    first: dict[tuple[str, ...], int] = {}
    group = np.array([first.setdefault(normalised(texts), index) for index, texts in enumerate(rows.texts)])
    firsts = np.unique(group)
    strata = rows.labels[firsts]
    if strata.dtype.kind == "f":
        smaller = min(share, 1 - share) * len(firsts)
        bins = int(np.clip(smaller // 2, 1, STRATA))
        strata = strata.argsort(kind="stable").argsort(kind="stable") * bins // len(firsts)
    held_out = firsts[split_indices(strata.tolist(), share, seed, setting, "texts")[1]]
    inside = np.isin(group, held_out)
    return rows.take(np.flatnonzero(~inside)), rows.take(np.flatnonzero(inside))


def load_tokenizer(model: ModelSettings, max_tokens: int, texts: int = 1) -> Any:
    """The tokenizer of `model.huggingface`. Raises UserError when there is none or it does not fit the model."""
    source = find_pretrained(model.huggingface)
    use_hub()
    try:
        config = AutoConfig.from_pretrained(source)
        tokenizer = AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"model.huggingface={model.huggingface}: no configuration or tokenizer there ({reason}): give a folder with"
            " config.json and tokenizer.json or vocab.txt, or a hub id, with a network or in the hub's cache"
        ) from error
    if len(tokenizer) <= len(tokenizer.all_special_ids):  # what transformers makes of a folder without one
        raise UserError(
            f"model.huggingface={model.huggingface} has no tokenizer: put tokenizer.json or vocab.txt beside its"
            " config.json"
        )
    if len(tokenizer) > config.vocab_size:
        raise UserError(
            f"model.huggingface={model.huggingface}: its tokenizer knows {len(tokenizer)} tokens but the model embeds"
            f" {config.vocab_size}: they do not belong together, put the model's own tokenizer there"
        )
    if max_tokens > config.max_position_embeddings:
        raise UserError(
            f"dataset.max_tokens={max_tokens} is more than the {config.max_position_embeddings} positions of"
            f" model.huggingface={model.huggingface}: set dataset.max_tokens={config.max_position_embeddings}"
        )
    special = tokenizer.num_special_tokens_to_add(pair=texts == 2)
    if max_tokens < special + texts:
        raise UserError(
            f"dataset.max_tokens={max_tokens} leaves no room beside the {special} special tokens of"
            f" {texts} texts: set at least {special + texts}"
        )
    return tokenizer


def tokenise(texts: Sequence[tuple[str, ...]], model: ModelSettings, max_tokens: int) -> Tokens:
    """With special tokens; of two texts the longer one is truncated first. Done once a process for the same texts."""
    return _tokenise(tuple(texts), model.huggingface, max_tokens)


@lru_cache(maxsize=8)
def _tokenise(texts: tuple[tuple[str, ...], ...], huggingface: str, max_tokens: int) -> Tokens:
    tokenizer = load_tokenizer(ModelSettings(huggingface=huggingface), max_tokens, len(texts[0]))
    ids, types, lengths, truncated = [], [], [], []
    for start in range(0, len(texts), CHUNK):
        whole = texts[start : start + CHUNK]
        chunk = [_beginning(item, max_tokens) for item in whole]
        rows = _encode(tokenizer, chunk)
        if few := [i for i, (row, _) in enumerate(rows) if chunk[i] != whole[i] and len(row) <= max_tokens + WORD]:
            for index, row in zip(few, _encode(tokenizer, [whole[index] for index in few]), strict=True):
                chunk[index], rows[index] = whole[index], row
        long = [index for index, (row, _) in enumerate(rows) if len(row) > max_tokens]
        for index in long:
            cut = tokenizer(*chunk[index], truncation=True, max_length=max_tokens, return_token_type_ids=True)
            rows[index] = cut["input_ids"], cut["token_type_ids"]
        ids.append(np.concatenate([np.array(row, dtype=np.int32) for row, _ in rows]))
        types.append(np.concatenate([np.array(row, dtype=np.int8) for _, row in rows]))
        lengths += [len(row) for row, _ in rows]
        truncated.append(np.isin(np.arange(len(rows)), long))
    return Tokens(
        ids=torch.from_numpy(np.concatenate(ids)),
        types=torch.from_numpy(np.concatenate(types)),
        starts=np.concatenate([[0], np.cumsum(lengths)]),
        truncated=np.concatenate(truncated),
        bare=np.array(lengths) <= tokenizer.num_special_tokens_to_add(pair=len(texts[0]) == 2),
        padding=tokenizer.pad_token_id or 0,
    )


def _beginning(item: tuple[str, ...], max_tokens: int) -> tuple[str, ...]:
    """Of a single text what surely has the tokens that stay, so that a book is not read to its end."""
    return (item[0][: SIGNS * (max_tokens + WORD)],) if len(item) == 1 else item


def _encode(tokenizer: Any, items: Sequence[tuple[str, ...]]) -> list[tuple[list[int], list[int]]]:
    """Ids and types of each, as many as there are."""
    columns = [list(column) for column in zip(*items, strict=True)]
    found = tokenizer(*columns, return_token_type_ids=True, return_attention_mask=False, verbose=False)
    return list(zip(found["input_ids"], found["token_type_ids"], strict=True))


def _report_repeated(given: Sequence[Rows], name: str) -> None:
    seen: set[tuple[str, ...]] = set()
    for rows in given:
        own = [normalised(texts) for texts in rows.texts]
        distinct = set(own)
        if len(distinct) < len(own):
            log.info(
                "%s: %d rows of %s repeat the text of another one; equal texts stay in one split",
                *(name, len(own) - len(distinct), rows.where),
            )
        if shared := len(distinct & seen):
            log.warning("%s: %d texts of %s stand in an earlier split too", name, shared, rows.where)
        seen |= distinct
