"""Attention of samples of unequal length, behind each other."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sttabt.engine.packed import _attend_ragged, attend_packed

READ, WRITE = [20, 7, 3], [9, 2, 1]


def test_ragged_attention_gives_torch_what_it_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's own function runs on CUDA alone: here a slow one of the same signature stands for it."""

    def varlen_attn(q: Tensor, k: Tensor, v: Tensor, written: Tensor, seen: Tensor, most_q: int, most_k: int) -> Tensor:
        assert written.dtype == seen.dtype == torch.int32 and (most_q, most_k) == (max(WRITE), max(READ))
        found = []
        for sample in range(len(written) - 1):
            rows, keys = slice(*written[sample : sample + 2]), slice(*seen[sample : sample + 2])
            one = (rows_of.transpose(0, 1) for rows_of in (q[rows], k[keys], v[keys]))
            found.append(F.scaled_dot_product_attention(*one).transpose(0, 1))
        return torch.cat(found)

    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", varlen_attn)
    query, key, value = torch.randn(12, 24), torch.randn(30, 24), torch.randn(30, 24)
    expected = attend_packed(query, key, value, 3, READ, WRITE)
    torch.testing.assert_close(_attend_ragged(query, key, value, 3, READ, WRITE), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.gpu
def test_ragged_attention_on_cuda() -> None:
    query, key, value = (torch.randn(n, 192, device="cuda", dtype=torch.bfloat16) for n in (12, 30, 30))
    expected = attend_packed(query.float(), key.float(), value.float(), 3, READ, WRITE)
    found = attend_packed(query, key, value, 3, READ, WRITE)
    torch.testing.assert_close(found.float(), expected, rtol=2e-2, atol=2e-2)
