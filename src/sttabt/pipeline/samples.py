"""Which samples of a data set are timed, counted, or drawn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor
from torch.utils.data import Dataset, Subset

from sttabt.data.base import Sequences, evaluation_loader
from sttabt.models.cascade import sureness
from sttabt.models.frozen import deployed
from sttabt.models.pruned import PrunedModel

COST_POOL = 2048  # samples that a cascade is asked for before some of them are timed
BATCHES_RANKED = 4  # batches of them that are timed


def even_sample(dataset: Dataset, samples: int) -> Subset:
    """So many items, or as many as there are, at even places; of texts at even ranks of their length."""
    total: int = len(dataset)  # type: ignore[arg-type]
    order = np.argsort(dataset.lengths, kind="stable") if isinstance(dataset, Sequences) else np.arange(total)
    samples = min(samples, total)
    return Subset(dataset, order[((np.arange(samples) + 0.5) / samples * total).astype(int)].tolist())


def typical(dataset: Dataset, samples: int) -> Subset:
    """So many items to time: the first images, texts at even ranks of their length."""
    if isinstance(dataset, Sequences):
        return even_sample(dataset, samples)
    return Subset(dataset, first_of(dataset, samples))


def ranked_by_cost(model: PrunedModel, dataset: Dataset, batch_size: int) -> list[int] | None:
    """Places of some items, by how many tokens the base model computes of them; None where samples cost about alike.

    A cascade computes none of many and nearly all of the others: what share of the first few goes on says little.
    """
    return _ranked(model, dataset, batch_size, lambda own, inputs: own.plan(inputs).lifetime.sum(1))


def ranked_by_sureness(model: PrunedModel, dataset: Dataset, batch_size: int) -> list[int] | None:
    """As `ranked_by_cost`, by how sure the approximate network is: the order in which they go on, wherever the model's
    threshold stands.
    """
    return _ranked(model, dataset, batch_size, lambda own, inputs: sureness(own, own.base.prepare(inputs)))


@torch.inference_mode()
def _ranked(
    model: PrunedModel, dataset: Dataset, batch_size: int, by: Callable[[PrunedModel, Any], Tensor]
) -> list[int] | None:
    if not model.method.settings.asks_network:
        return None
    device, own = next(model.base.parameters()).device, deployed(model)
    pool = even_sample(dataset, COST_POOL)
    loader = evaluation_loader(pool, batch_size)
    values = torch.cat([by(own, move_data_to_device(batch.inputs, device)) for batch in loader]).tolist()
    places = [pool.indices[place] for place in loader.sampler]
    return [place for _, place in sorted(zip(values, places, strict=True))]


def dealt(dataset: Dataset, ranked: Sequence[int], batch_size: int, batches: int) -> list[Subset]:
    """Items at even ranks, dealt in turn to so many whole batches, or fewer where there are not so many items."""
    batches = min(batches, max(len(ranked) // batch_size, 1))
    samples = min(batch_size * batches, len(ranked))
    chosen = [ranked[int((rank + 0.5) / samples * len(ranked))] for rank in range(samples)]
    return [Subset(dataset, chosen[turn::batches]) for turn in range(batches)]


def one_of_each_class(dataset: Dataset, samples: int) -> list[int]:
    """Places of the first so many items, one of each class in turn."""
    by_class: dict[int, list[int]] = {}
    for index in range(min(len(dataset), 50 * samples)):  # type: ignore[arg-type]
        by_class.setdefault(int(dataset[index].labels), []).append(index)
    turns = max(map(len, by_class.values()))
    order = [found[turn] for turn in range(turns) for _, found in sorted(by_class.items()) if turn < len(found)]
    return order[:samples]


def first_of(dataset: Dataset, samples: int) -> list[int]:
    """Places of so many items, or of as many as there are."""
    return list(range(min(samples, len(dataset))))  # type: ignore[arg-type]
