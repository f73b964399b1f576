"""Slow references for the formulas of `sttabt.core`: plain loops in float64, written to be read beside the text.

"Section" is a section of the method notes (1 approximate network, 2 attention back-tracking, 3 concrete masks,
4 forward top-k, 6 multiply-adds), which restate STTABT (ICLR 2023). Nothing here is vectorised, so nothing here can
share an indexing or broadcasting mistake with the code that it checks. Layers count from 0; boundary l is what layer
l reads, boundary l + 1 what it writes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from sttabt.core.merge import Merging
from sttabt.core.trace import AttentionTrace

Array = NDArray[np.float64]
EPS = 1e-7


def random_trace(
    seed: int,
    real_tokens: Sequence[int],
    *,
    layers: int = 3,
    heads: int = 2,
    width: int = 4,
    padding: int = 0,
    scale: float = 1.0,
    dtype: torch.dtype = torch.float64,
) -> AttentionTrace:
    """A trace of random queries and keys: sample b has `real_tokens[b]` real tokens, padded to the longest + `padding`.

    `scale` is about the standard deviation of the scores: 1 gives flat attention, 3 gives peaked attention.
    """
    generator = torch.Generator().manual_seed(seed)
    tokens = max(real_tokens) + padding
    shape = (len(real_tokens), heads, tokens, width)

    def draw(std: float) -> torch.Tensor:
        return (torch.randn(shape, generator=generator, dtype=torch.float64) * std).to(dtype)

    queries = tuple(draw(scale / math.sqrt(width)) for _ in range(layers))
    keys = tuple(draw(1.0) for _ in range(layers))
    real = torch.arange(tokens)[None, :] < torch.tensor(real_tokens)[:, None]
    return AttentionTrace(queries=queries, keys=keys, real=real)


def random_probabilities(seed: int, batch: int, heads: int, tokens: int, scale: float = 1.0) -> torch.Tensor:
    """Random attention probabilities (B,H,N,N) in float64: every row sums to 1."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(batch, heads, tokens, tokens, generator=generator, dtype=torch.float64)
    return torch.softmax(scale * scores, -1)


def attention_scores(queries: Array, keys: Array, real: NDArray[np.bool_]) -> Array:
    """Notation: Z of one layer, (B,H,N,N), from queries (already scaled) and keys (B,H,N,d); padding keys at -inf."""
    batch, heads, tokens, width = queries.shape
    scores = np.full((batch, heads, tokens, tokens), -np.inf)
    for b in range(batch):
        for h in range(heads):
            for q in range(tokens):
                for k in range(tokens):
                    if real[b, k]:
                        scores[b, h, q, k] = sum(queries[b, h, q, i] * keys[b, h, k, i] for i in range(width))
    return scores


def attention_probabilities(scores: Array) -> Array:
    """Notation: A of one layer, the softmax of every row of Z."""
    probabilities = np.zeros_like(scores)
    batch, heads, tokens, _ = scores.shape
    for b in range(batch):
        for h in range(heads):
            for q in range(tokens):
                row = scores[b, h, q]
                top = max(row)
                total = sum(math.exp(z - top) for z in row)
                for k in range(tokens):
                    probabilities[b, h, q, k] = math.exp(row[k] - top) / total
    return probabilities


def trace_scores(trace: AttentionTrace) -> list[Array]:
    """Z of every layer of a trace, by `attention_scores`."""
    real = trace.real.numpy()
    pairs = zip(trace.queries, trace.keys, strict=True)
    return [attention_scores(q.detach().double().numpy(), k.detach().double().numpy(), real) for q, k in pairs]


def trace_probabilities(trace: AttentionTrace) -> list[Array]:
    """A of every layer of a trace, by `attention_probabilities`."""
    return [attention_probabilities(scores) for scores in trace_scores(trace)]


def backtrack(
    probabilities: Sequence[Array],
    real: NDArray[np.bool_],
    keep: Sequence[float | int] | None,
    propagation: float,
    outputs: int = 1,
    pools: bool = False,
) -> tuple[NDArray[np.bool_], Array]:
    """Section 2, steps 1 to 4, one sample at a time: the plan (B,L+1,N) and the impacts (B,L,N).

    `keep` has a ratio (float) or a count (int) a layer; None is `k = dynamic`, counted for each sample by itself.
    `pools`: the head reads all tokens behind the first `outputs`, which count among the kept ones.
    """
    layers = len(probabilities)
    batch, heads, tokens, _ = probabilities[0].shape
    alive = np.zeros((batch, layers + 1, tokens), dtype=bool)
    impacts = np.zeros((batch, layers, tokens))
    for b in range(batch):
        candidates = [n for n in range(tokens) if real[b, n]]
        first = list(range(outputs))
        read = [n for n in candidates if n not in first] if pools else first
        impact = dict.fromkeys(read, 1.0 / len(read))
        for n in first:
            alive[b, layers, n] = True
        for layer in reversed(range(layers)):
            rows = read
            score = {}
            for n in candidates:
                total = 0.0
                for q in rows:
                    head_mean = sum(probabilities[layer][b, h, q, n] for h in range(heads)) / heads
                    total += head_mean * (propagation * impact[q] + (1 - propagation))
                score[n] = total / len(rows)
            count = _dynamic_count(score) if keep is None else _kept(keep[layer], len(candidates))
            if pools:
                others = [n for n in candidates if n not in first]
                best = first + sorted(others, key=lambda n: -score[n])[: max(count, outputs + 1) - outputs]
                above = [] if layer == layers - 1 else rows
            else:
                best, above = sorted(candidates, key=lambda n: -score[n])[:count], rows
            read = sorted(set(best) | set(above))
            mass = sum(score[n] for n in read)
            impact = {n: score[n] / mass for n in read}
            for n in read:
                alive[b, layer, n] = True
                impacts[b, layer, n] = impact[n]
    return alive, impacts


def _kept(keep: float | int, real_tokens: int) -> int:
    return keep if isinstance(keep, int) else max(1, math.ceil(keep * real_tokens))


def _dynamic_count(score: dict[int, float]) -> int:
    top = max(score.values())
    count = sum(1 for s in score.values() if s > 0.00625 * top)
    # The notes do not say how the two limits round; the tests compare only where 0.2N and 0.95N are whole.
    return max(1, math.ceil(0.2 * len(score)), min(count, math.floor(0.95 * len(score))))


def concrete_masks(
    scores: Sequence[Array],
    real: NDArray[np.bool_],
    p_logit: Sequence[float],
    propagation: float,
    temperature: float,
    outputs: int = 1,
    pools: bool = False,
) -> Array:
    """Section 3, steps 1 to 4: soft masks (B,L+1,N), boundary L one-hot on the output tokens.

    `pools`: the head reads all real tokens behind these; the largest importance is looked for among them.
    """
    layers = len(scores)
    batch, heads, tokens, _ = scores[0].shape
    masks = np.zeros((batch, layers + 1, tokens))
    for b in range(batch):
        keys = [n for n in range(tokens) if real[b, n]]
        first = [1.0 if n < outputs else 0.0 for n in range(tokens)]
        masks[b, layers] = first
        impact = [float(n in keys and n >= outputs) for n in range(tokens)] if pools else first
        for layer in reversed(range(layers)):
            kept = masks[b, layer + 1]
            written = impact if pools and layer == layers - 1 else kept
            u = np.zeros((tokens, tokens))
            for h in range(heads):
                for q in keys:
                    row = [scores[layer][b, h, q, k] for k in keys]
                    mean = sum(row) / len(row)
                    deviation = math.sqrt(sum((z - mean) ** 2 for z in row) / len(row))
                    for k, z in zip(keys, row, strict=True):
                        u[q, k] += 0.5 * (1 + math.erf((z - mean) / deviation / math.sqrt(2))) / heads
            c = [0.0] * tokens
            for k in keys:
                weighted = sum(written[q] * u[q, k] * (propagation * impact[q] + 1 - propagation) for q in keys)
                c[k] = weighted / (sum(written[q] for q in keys) + EPS)
            top = max(c[outputs:] if pools else c)
            impact = [0.01 + 0.99 * min(c[k] / (top + EPS), 1.0) if real[b, k] else 0.0 for k in range(tokens)]
            pi = _logistic(p_logit[layer])
            for k in range(tokens):
                logit = math.log(pi + EPS) - math.log(1 - pi + EPS)
                logit += math.log(impact[k] + EPS) - math.log(1 - impact[k] + EPS)
                masks[b, layer, k] = max(_logistic(logit / temperature), kept[k])
    return masks


def _logistic(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def concrete_loss(
    p_logit: Sequence[float],
    masks: Array,
    real: NDArray[np.bool_],
    p_init: float,
    lambda_p: float,
    lambda_mask: float,
) -> tuple[float, float]:
    """Section 3, the two regularisers: sum of λ_p (p_logit_l - p_init)², and λ_mask (σ(p_init) - keep)²."""
    batch, boundaries, tokens = masks.shape
    kept = []
    for b in range(batch):
        real_tokens = sum(1 for n in range(tokens) if real[b, n])
        for layer in range(boundaries - 1):
            kept.append(sum(masks[b, layer + 1, n] for n in range(tokens) if real[b, n]) / real_tokens)
    keep = sum(kept) / len(kept)
    return sum(lambda_p * (p - p_init) ** 2 for p in p_logit), lambda_mask * (_logistic(p_init) - keep) ** 2


def forward_keep_ratios(target: float) -> list[float]:
    """Section 4, forward top-k over 12 layers."""
    if target <= 0.666:
        return [0.5 * target + (1 - layer / 10) * target for layer in range(12)]
    return [(1 - layer / 10) * (2 - 2 * target) + (2 * target - 1) for layer in range(12)]


def received_attention(probabilities: Array, rows: NDArray[np.bool_]) -> Array:
    """Section 4, forward top-k: the attention (B,N) that a token receives, over heads and the rows still kept."""
    batch, heads, tokens, _ = probabilities.shape
    received = np.zeros((batch, tokens))
    for b in range(batch):
        kept = [q for q in range(tokens) if rows[b, q]]
        for n in range(tokens):
            received[b, n] = sum(probabilities[b, h, q, n] for h in range(heads) for q in kept) / (heads * len(kept))
    return received


def forward_select(probabilities: Array, alive: NDArray[np.bool_], count: Sequence[int], outputs: int = 1) -> Array:
    """Section 4, forward top-k: the `count[b]` best alive tokens (B,N), the output tokens first of all."""
    received = received_attention(probabilities, alive)
    selected = np.zeros_like(alive)
    for b in range(alive.shape[0]):
        others = [n for n in range(outputs, alive.shape[1]) if alive[b, n]]
        best = sorted(others, key=lambda n: -received[b, n])[: max(0, count[b] - outputs)]
        for n in [*range(outputs), *best]:
            selected[b, n] = True
    return selected


def attention_divergence(base: Sequence[Array], approx: Sequence[Array], real: NDArray[np.bool_]) -> float:
    """Section 1, attention loss `kldiv` (MiniLM)."""
    batch, heads, tokens, _ = base[0].shape
    layer_means = []
    for a, a_hat in zip(base, approx, strict=True):
        head_means = []
        for b in range(batch):
            rows = [q for q in range(tokens) if real[b, q]]
            for h in range(heads):
                total = 0.0
                for q in rows:
                    for k in range(tokens):
                        total += a[b, h, q, k] * math.log((a[b, h, q, k] + EPS) / (a_hat[b, h, q, k] + EPS))
                head_means.append(total / len(rows))
        layer_means.append(sum(head_means) / len(head_means))
    return sum(layer_means) / len(layer_means)


def attention_squared_error(
    base: Sequence[Array], approx: Sequence[Array], real: NDArray[np.bool_], rows: NDArray[np.bool_] | None = None
) -> float:
    """Section 1, attention loss `tinybert`, without the factor 10 of vision.

    rows: the query rows that count, None for the real ones. The official implementation counts all of them.
    """
    rows = real if rows is None else rows
    batch, heads, tokens, _ = base[0].shape
    values = []
    for a, a_hat in zip(base, approx, strict=True):
        for b in range(batch):
            real_tokens = sum(1 for n in range(tokens) if real[b, n])
            total = 0.0
            for h in range(heads):
                for q in (q for q in range(tokens) if rows[b, q]):
                    for k in range(tokens):
                        total += (a_hat[b, h, q, k] - a[b, h, q, k]) ** 2
            values.append(total / real_tokens**2)
    return sum(values) / len(values)


def state_error(approx: Array, base: Array, rows: NDArray[np.bool_]) -> float:
    """Section 1, hidden and embedding loss of one layer: a mean over the rows of a sample, then over samples."""
    batch, tokens, width = base.shape
    means = []
    for b in range(batch):
        counted = [n for n in range(tokens) if rows[b, n]]
        total = sum((approx[b, n, d] - base[b, n, d]) ** 2 for n in counted for d in range(width))
        means.append(total / (len(counted) * width))
    return sum(means) / batch


def softmax(logits: Sequence[float]) -> list[float]:
    """Softmax of one row."""
    top = max(logits)
    total = sum(math.exp(x - top) for x in logits)
    return [math.exp(x - top) / total for x in logits]


def prediction_error(approx_logits: Array, base_logits: Array) -> float:
    """Section 1, prediction loss: MSE of the softmaxes of logits (B,C), without the factor 200 of vision."""
    errors = []
    for a, b in zip(approx_logits, base_logits, strict=True):
        errors += [(x - y) ** 2 for x, y in zip(softmax(a), softmax(b), strict=True)]
    return sum(errors) / len(errors)


def prediction_divergence(student_logits: Array, teacher_logits: Array) -> float:
    """Section 3, distillation without the factor 0.5: what `torch.nn.functional.kl_div` computes, batchmean.

    That function weights by its target, so the value is `sum_c t_c (log t_c - log s_c)`, t the teacher.
    """
    total = 0.0
    for student, teacher in zip(student_logits, teacher_logits, strict=True):
        for s, t in zip(softmax(student), softmax(teacher), strict=True):
            total += t * (math.log(t) - math.log(s))
    return total / len(student_logits)


def merged_sums(merging: Merging, rows: torch.Tensor) -> torch.Tensor:
    """The rows that are left, zeros behind: each the sum of those of `rows` (B, n, D) that become part of it."""
    found = rows.new_zeros(rows.shape[0], max(merging.left), rows.shape[2])
    for sample, places in enumerate(merging.place.tolist()):
        for row, place in enumerate(places):
            if place >= 0:
                found[sample, place] += rows[sample, row]
    return found
