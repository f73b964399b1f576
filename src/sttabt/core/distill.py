"""Losses of the approximate network, and prediction distillation. (STTABT section 3.1; METHOD sections 1, 3)"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

EPSILON = 1e-7


def attention_divergence(base: Sequence[Tensor], approx: Sequence[Tensor], real: Tensor) -> Tensor:
    """Kullback-Leibler divergence of attention rows (MiniLM), a scalar: mean over real rows, heads, batch, layers.

    base, approx: L tensors (B, H, N, N) of probabilities; real: (B, N) bool.
    """
    rows = real.to(base[0].dtype) / real.sum(-1, keepdim=True)
    terms = [
        ((a * torch.log((a + EPSILON) / (b + EPSILON))).sum(-1) * rows[:, None]).sum(-1).mean()
        for a, b in zip(base, approx, strict=True)
    ]
    return torch.stack(terms).mean()


def attention_squared_error(
    base: Sequence[Tensor], approx: Sequence[Tensor], real: Tensor, rows: Tensor | None = None
) -> Tensor:
    """Squared error of attention maps (TinyBERT), a scalar: sum over heads, rows and columns over (real tokens)^2.

    base, approx: L tensors (B, H, N, N) of probabilities; real: (B, N) bool. Mean over batch and layers.
    rows: (B, N) bool, the query rows that count, None for the real ones; the official implementation counts all.
    """
    tokens, rows = real.sum(-1), real if rows is None else rows
    errors = [((b - a).square().sum((1, 3)) * rows).sum(-1) for a, b in zip(base, approx, strict=True)]
    return torch.stack([error.div(tokens.square()).mean() for error in errors]).mean()


def state_error(approx: Tensor, base: Tensor, rows: Tensor) -> Tensor:
    """Mean squared error of states (B, N, D) over the `rows` (B, N) bool of a sample, then over samples; a scalar."""
    weight = rows.to(approx.dtype) / rows.sum(-1, keepdim=True)
    return ((approx - base).square().mean(-1) * weight).sum(-1).mean()


def token_divergence(student: Tensor, teacher: Tensor, weight: Tensor) -> Tensor:
    """Mean squared error of last states (B, N, D), a scalar: over the rows of a batch that `weight` (B, N) says count.

    Both are normalised row by row first, as a head does, so that a residual stream's scale does not matter.
    """
    width = student.shape[-1:]
    error = (F.layer_norm(student, width) - F.layer_norm(teacher, width)).square().mean(-1)
    return (error * weight).sum() / weight.sum().clamp_min(1)


def prediction_error(approx_logits: Tensor, base_logits: Tensor) -> Tensor:
    """Mean squared error of the predicted probabilities, a scalar; logits (B, classes).

    A single column is a score, whose probability would always be 1: the squared error is that of the score itself.
    """
    if is_score(base_logits):
        return F.mse_loss(approx_logits, base_logits)
    return F.mse_loss(approx_logits.softmax(-1), base_logits.softmax(-1))


def prediction_divergence(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Divergence of the student's prediction from the teacher's, a scalar summed over classes, mean over the batch.

    For a score (one column) the squared error: the divergence of two normal distributions of equal variance, on the
    scale on which the squared error is the loss of the task.
    """
    if is_score(teacher_logits):
        return F.mse_loss(student_logits, teacher_logits)
    return F.kl_div(
        student_logits.log_softmax(-1), teacher_logits.log_softmax(-1), log_target=True, reduction="batchmean"
    )


def is_score(logits: Tensor) -> bool:
    """Whether (B, classes) holds scores rather than the logits of classes, of which there are two or more."""
    return logits.shape[-1] == 1
