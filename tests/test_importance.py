"""The planner's kernel for CUDA: what it computes (triton_importance.py), and that it compiles for a card."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest

triton = pytest.importorskip("triton", reason="the planner's kernel is Triton's")

CHECKS = Path(__file__).with_name("triton_importance.py")
HOPPER = 90  # compute capability


def run_checks(**environment: str) -> None:
    found = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(CHECKS)],
        env=os.environ | environment, capture_output=True, text=True,
    )  # fmt: skip
    assert found.returncode == 0 and " passed" in found.stdout, found.stdout + found.stderr


def test_the_kernel_computes_torch_s_sums_in_triton_s_interpreter() -> None:
    """In a process of its own: the interpreter is chosen once, when Triton is imported."""
    run_checks(TRITON_INTERPRET="1", CUDA_VISIBLE_DEVICES="")


@pytest.mark.parametrize("cdf", [False, True], ids=["softmax", "percentile"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_the_kernel_compiles_for_a_card(dtype: str, cdf: bool) -> None:
    """No card is needed for that: Triton brings its assembler along."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from sttabt.native.importance import _kernel, _sums

    named = {"queries": f"*{dtype}", "keys": f"*{dtype}", "real": "*i1"}
    named |= dict.fromkeys(("places", "counts"), "*i64") | dict.fromkeys(("weight", "sums"), "*fp32")
    named |= dict.fromkeys(("scale", "smallest"), "fp32")
    named |= dict.fromkeys(("cdf", "rows", "span", "padded"), "constexpr")
    signature = {name: named.get(name, "i32") for name in inspect.signature(_sums).parameters}
    constants = {"cdf": cdf, "rows": 32, "span": 128, "padded": 16}
    made = triton.compile(ASTSource(_kernel, signature, constexprs=constants), target=GPUTarget("cuda", HOPPER, 32))
    assert made.asm["cubin"]


@pytest.mark.gpu
def test_the_kernel_computes_torch_s_sums_on_a_card() -> None:
    run_checks()
