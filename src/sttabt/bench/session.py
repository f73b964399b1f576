"""The whole benchmark: image size by image size, batch by batch; rows are on disk as soon as they are measured."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sttabt.backbones.base import Backbone
from sttabt.bench.figure import draw_speed
from sttabt.bench.graphs import compiled_planners, compiled_variants, graphed_variants
from sttabt.bench.measure import measure
from sttabt.bench.plans import reachable_mean
from sttabt.bench.table import SpeedRow, compare_with_tome, format_table
from sttabt.bench.training import make_steps
from sttabt.bench.variants import TOME, WHOLE, make_variants
from sttabt.errors import UserError
from sttabt.lit.launch import choose_threads, found_hardware
from sttabt.models.approximate import ApproximateNetwork
from sttabt.models.graphed import compile_graph, compile_whole
from sttabt.native import is_built
from sttabt.pipeline.evaluation import find_device
from sttabt.pipeline.result import device_name
from sttabt.pretrained.build import build_base
from sttabt.settings import BenchSettings, ModelSettings, SpeedSettings
from sttabt.store.job import source_commit
from sttabt.system.files import write_atomically
from sttabt.system.signals import tell_line

CHANNELS, CLASSES = 3, 1000
CPU_BATCHES = (1, 8, 32)
CUDA_BATCHES = tuple(2**power for power in range(10))
PRECISIONS = {"32-true": torch.float32, "16-mixed": torch.float16, "bf16-mixed": torch.bfloat16}
ROWS_FILE, TABLE_FILE = "bench.jsonl", "table.md"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Result:
    """table: markdown; files: what was written; wrong: variants that failed, or whose logits differ from the masked."""

    table: str
    files: list[Path]
    wrong: list[str]


def run_benchmark(settings: SpeedSettings) -> Result:
    """Measure everything that `settings.bench` asks for and write it to its folder.

    Raises UserError for a model, a device or a keep that is not there.
    """
    bench, hardware = settings.bench, found_hardware(settings.hardware)
    settings = replace(settings, hardware=hardware)
    torch.set_flush_denormal(True)  # as in every run: sttabt.lit.launch says why
    choose_threads(hardware)
    device = find_device(hardware.accelerator)
    bases = {size: _build(settings.model, size, bench) for size in bench.image_sizes}
    folder = Path(bench.out).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    tell_line(lambda: f"what was measured is in {folder}" if (folder / ROWS_FILE).exists() else "")
    common = {
        "machine": device_name(device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "commit": source_commit(),
        "model": settings.model.name,
        "weights": "random",
        "precision": hardware.precision,
        "kernels": is_frozen(device, hardware.precision),
    }
    log.info("random weights: speed needs no trained ones; results go to %s", folder)
    rows: list[SpeedRow] = []
    wrong: list[str] = []
    for size, base in bases.items():
        networks = [_network(base, factor).to(device) for factor in bench.factors]
        for found, failed in _measure_size(base.to(device), networks, size, settings, common):
            rows += found
            wrong += failed
            # After every batch, so that a run that is stopped has measured something.
            write_atomically(folder / ROWS_FILE, "".join(f"{row.to_json()}\n" for row in rows).encode())
            table = format_table(rows, compared=WHOLE)
            write_atomically(folder / TABLE_FILE, table.encode())
    return Result(table, [folder / ROWS_FILE, folder / TABLE_FILE, draw_speed(rows, folder)], wrong)


def is_frozen(device: torch.device, precision: str) -> bool:
    """Whether pruned models are timed as they are deployed on CPUs: frozen."""
    return is_built() and device.type == "cpu" and PRECISIONS[precision] == torch.float32


def _measure_size(
    base: Backbone, networks: Sequence[ApproximateNetwork], size: int, settings: SpeedSettings, common: dict[str, Any]
) -> Any:
    bench, device = settings.bench, next(base.parameters()).device
    precision = PRECISIONS[settings.hardware.precision]
    common = common | {"image_size": size}
    batches = bench.batches or (CUDA_BATCHES if device.type == "cuda" else CPU_BATCHES)
    for place, batch in enumerate(batches, start=1):
        log.info("%d pixels, batch %d (%d of %d)", size, batch, place, len(batches))
        inputs = _images(batch, size, device)
        with torch.inference_mode():
            frozen = is_frozen(device, settings.hardware.precision)
            variants = make_variants(base, networks, inputs, bench, frozen)
            if device.type == "cuda":
                variants += graphed_variants(base, networks, inputs, bench, precision)
            rows, wrong = measure(variants, base, inputs, bench.rounds, precision, common)
        yield compare_with_tome(rows, WHOLE, TOME), wrong
    if bench.train:
        log.info("%d pixels, a step of training, batch %d", size, bench.train_batch)
        inputs = _images(bench.train_batch, size, device)
        yield measure(make_steps(base, networks[0], inputs, bench), base, inputs, bench.rounds, precision, common)
    # Last, as it takes minutes.
    for batch in batches if bench.compile or device.type == "cuda" else ():
        log.info("%d pixels, batch %d: torch.compile takes a minute or two", size, batch)
        inputs = _images(batch, size, device)
        capture = compile_graph if device.type == "cuda" else compile_whole
        with torch.inference_mode():
            variants = compiled_variants(base, networks[-1], inputs, bench, precision, capture)
            baseline = variants[0]
            if device.type == "cuda":  # again, beside the compiled baseline
                variants += graphed_variants(base, networks, inputs, bench, precision)
            result = measure(variants, base, inputs, bench.rounds, precision, common)
        yield result
        with torch.inference_mode():
            variants = [baseline, *compiled_planners(base, networks[-1], inputs, bench, precision, capture)]
            result = measure(variants, base, inputs, bench.rounds, precision, common)
        yield result


def _build(model: ModelSettings, size: int, bench: BenchSettings) -> Backbone:
    torch.manual_seed(0)
    base = build_base(model, CLASSES, CHANNELS, size, pretrained=False).base.eval()
    low, high = base.outputs / base.tokens, reachable_mean(base.tokens, base.layers, base.outputs)
    for keep in bench.keeps:
        if not low <= keep <= high:
            raise UserError(
                f"bench.keeps: {keep:g} is out of reach: the mean over the boundaries of {model.name} at {size} pixels"
                f" is {low:.3f} to {high:.3f}"
            )
    return base


def _network(base: Backbone, factor: int) -> ApproximateNetwork:
    torch.manual_seed(0)
    network = ApproximateNetwork(base, factor)
    network.start_from(base)
    return network.eval()


def _images(batch: int, size: int, device: torch.device) -> Tensor:
    return torch.randn(batch, CHANNELS, size, size, generator=torch.Generator().manual_seed(batch)).to(device)
