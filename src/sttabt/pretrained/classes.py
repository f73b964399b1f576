"""Classes by name: in which order given weights know them, and the data.

A head that was trained elsewhere has a row a class, in an order of its own. Where both sides name their classes and the
names agree, its rows are put into the data's order.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sttabt.errors import UserError
from sttabt.pretrained.jsons import read_json
from sttabt.store.artifacts import RECORD

if TYPE_CHECKING:
    from sttabt.backbones.base import Backbone

CONFIG = "config.json"  # of transformers' and of timm's folders
GENERIC = re.compile(r"(label|class)[ _-]?\d+", re.IGNORECASE)  # what libraries name classes that nobody named
WORDNET = re.compile(r"n\d{8}")  # ImageNet's ids of classes
IMAGENET_CLASSES = 1000
ALIKE = 0.9  # share of names that agree, place by place, from which on the others are other spellings
SHOWN = 3  # names in a message

log = logging.getLogger(__name__)


class ClassNames(NamedTuple):
    """names: in the order of the head's rows, () where they are not known; source: what says so, for messages.

    stated: by the weights' own files, or by the user; otherwise it is what they are known to be trained on.
    """

    names: tuple[str, ...] = ()
    source: str = ""
    stated: bool = True


def class_order(theirs: ClassNames, ours: Sequence[str], trained_on: bool) -> list[int] | None:
    """Which row of the given head is that of each of the data's classes; None where they stand in that order already,
    or one side does not name them.

    trained_on: the head is fine-tuned, so that other names are a warning. Raises UserError where both sides name their
    classes, as many, and the names do not agree.
    """
    if not theirs.names or not ours:
        return None
    if len(theirs.names) != len(ours):
        log.warning(
            "%s names %d classes (%s), the data have %d: its names are not read",
            *(theirs.source, len(theirs.names), _shown(theirs.names), len(ours)),
        )
        return None
    order = _order(_spelled(theirs.names), _spelled(ours))
    if order is None and (_is_numbered(theirs.names) or _is_numbered(ours)):
        if not _is_numbered(theirs.names):
            log.info(
                "%s names the classes %s, the data have numbers: they are taken in that order",
                *(theirs.source, _shown(theirs.names)),
            )
        return None
    if order is not None:
        if order == list(range(len(order))):
            return None
        log.info("the head's classes are put into the order of the data, by their names (%s)", theirs.source)
        return order
    left, right = (_only(*sides) for sides in ((theirs.names, ours), (ours, theirs.names)))
    line = f"{theirs.source} names other classes ({_shown(left)}) than the data ({_shown(right)})"
    if trained_on or not theirs.stated:
        log.warning("%s: %s", line, "fine-tuning starts from its head" if trained_on else "see that they are the same")
        return None
    raise UserError(
        f"{line}: give weights for these classes, state the names in the head's order, model.class_names=[...], or"
        " train on with model.fine_tune=true"
    )


def order_head(base: Backbone, order: Sequence[int]) -> None:
    """Put the rows of the head into that order, in place."""
    for name, value in base.model.state_dict().items():
        if name.startswith(base.class_prefixes):
            value.copy_(value[list(order)])


def configured_names(config: Any, source: str) -> ClassNames:
    """What a transformers or timm configuration, as JSON gave it, says of its classes."""
    found, other = config.get("id2label") or config.get("label_names"), config.get("label2id")
    names: tuple[str, ...] = ()
    if isinstance(found, dict | list | tuple):
        names = _in_order(found) if isinstance(found, dict) else tuple(map(str, found))
    if (not found or (names and _is_numbered(names))) and isinstance(other, dict):
        names = _in_order({number: name for name, number in other.items()}) or names
    if found and not names:
        log.warning("%s: its names of classes are not numbered from 0 and are not read: %s", source, found)
    return ClassNames(names, source)


def imagenet_names(source: str) -> ClassNames:
    """ImageNet-1k's classes, as WordNet numbers them, in the order that everybody uses."""
    from timm.data import ImageNetInfo

    return ClassNames(tuple(ImageNetInfo("imagenet-1k").label_names()), f"{source} (ImageNet)", stated=False)


def names_beside(weights: Path) -> ClassNames:
    """What the folder of a weights file says of its classes: an artifact's record, or a configuration."""
    record, config = weights.with_name(RECORD), weights.with_name(CONFIG)
    if record.is_file():
        notes = read_json(record, "model.checkpoint").get("notes")
        names = notes.get("class_names") if isinstance(notes, dict) else None
        return ClassNames(tuple(map(str, names or ())), str(record))
    if config.is_file():
        return configured_names(read_json(config, "model.checkpoint"), str(config))
    return ClassNames()


def _in_order(names: Mapping[Any, Any]) -> tuple[str, ...]:
    """Names by number, in order; () where the numbers are not 0, 1, 2, ..."""
    numbered = {str(number): str(name) for number, name in names.items()}
    places = [str(place) for place in range(len(names))]
    return tuple(numbered[place] for place in places) if numbered.keys() == set(places) else ()


def _order(theirs: Sequence[str], ours: Sequence[str]) -> list[int] | None:
    if list(theirs) == list(ours):
        return list(range(len(ours)))
    if len(set(theirs)) == len(theirs) and set(theirs) == set(ours):
        return [theirs.index(name) for name in ours]
    same = [left == right for left, right in zip(theirs, ours, strict=True)]
    if sum(same) >= ALIKE * len(ours) and len(set(theirs) & set(ours)) == sum(same):
        odd = same.index(False)
        log.warning("the class %s of the weights is taken to be %s of the data", theirs[odd], ours[odd])
        return list(range(len(ours)))
    return None


def _spelled(names: Sequence[str]) -> list[str]:
    """Without case, and with one space where there is white space, _ or -; ImageNet's ids as its words."""
    if names and all(map(WORDNET.fullmatch, names)):
        from timm.data import ImageNetInfo

        for known in map(ImageNetInfo, ("imagenet-1k", "imagenet-22k")):
            if set(known.label_names()).issuperset(names):
                names = [known.label_name_to_description(name, detailed=False) for name in names]
                break
    plain = [re.sub(r"[\s_-]+", " ", name).strip().casefold() for name in names]
    return plain if len(set(plain)) == len(set(names)) else list(names)


def _is_numbered(names: Sequence[str]) -> bool:
    """Whether nobody named the classes: they are called by their places, or LABEL_0, LABEL_1, ..."""
    return all(GENERIC.fullmatch(name) for name in names) or all(
        name.isdecimal() and int(name) == place for place, name in enumerate(names)
    )


def _only(names: Sequence[str], others: Sequence[str]) -> list[str]:
    there = set(_spelled(others))
    return [name for name, plain in zip(names, _spelled(names), strict=True) if plain not in there] or list(names)


def _shown(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
