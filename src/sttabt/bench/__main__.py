"""`python -m sttabt.bench model=NAME [key=value ...]`: what dropping tokens saves on this machine.

Exit codes: 0, 1 when a variant computes something else than the masked engine, 2 for a user's mistake.
"""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Sequence
from datetime import datetime
from difflib import get_close_matches
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from sttabt.cli.checks.ranges import ABOVE_ZERO, CHOICES, RANGES, SHARE_ABOVE_ZERO, Rule, at_least
from sttabt.cli.composition import OPEN_NODES, VERSION_BASE, config_folder
from sttabt.cli.messages import MISTAKES, explain
from sttabt.errors import UserError, nearest
from sttabt.settings import SpeedSettings

USAGE = """usage: python -m sttabt.bench [model=NAME] [hardware=cpu|gpu] [key=value ...]

Times the dense model, the masked and dropped engines, the planners, whole pruned forwards, ToMe and a step of training,
interleaved in one process, beside what the multiply-adds allow. Writes bench.jsonl, table.md and speed.png.

For example: python -m sttabt.bench model=deit_tiny bench.batches=[1,8] bench.rounds=5 hardware.threads=2

"""
BENCH_RANGES: dict[str, Rule] = {
    "image_sizes": at_least(1),
    "batches": at_least(1),
    "keeps": SHARE_ABOVE_ZERO,
    "spread": at_least(0),
    "factors": at_least(1),
    "merged": ABOVE_ZERO,
    "rounds": at_least(0),
    "train_batch": at_least(1),
}
NEEDED = ("image_sizes", "keeps", "factors", "merged")
WITHOUT_EFFECT = (
    "model.pretrained", "model.checkpoint", "model.training", "hardware.devices", "hardware.batch_size",
    "hardware.accumulate_grad_batches", "hardware.workers",
)  # fmt: skip
PRECISIONS = ("32-true", "16-mixed", "bf16-mixed")


log = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    logging.basicConfig(level=logging.INFO, format="[%(asctime)s] %(message)s", datefmt="%H:%M:%S")
    try:
        if {"-h", "--help"} & set(arguments):
            sys.stdout.write(USAGE + (config_folder() / "bench.yaml").read_text(encoding="utf-8"))
            return 0
        settings = read_settings(arguments)
        # Imported after the checks: torch and timm take seconds to load.
        from sttabt.bench.session import run_benchmark

        result = run_benchmark(settings)
    except MISTAKES as mistake:
        sys.stderr.write(f"{explain(mistake)}\n")
        return 2
    sys.stdout.write("\n".join([result.table, *map(str, result.files), ""]))
    if result.wrong:
        sys.stderr.write(f"wrong logits, so not timed: {'; '.join(result.wrong)}\n")
    return 1 if result.wrong else 0


def read_settings(overrides: Sequence[str]) -> SpeedSettings:
    """Typed and checked settings; `bench.out` becomes a path.

    Raises one of sttabt.cli.messages.MISTAKES.
    """
    ConfigStore.instance().store(name="schema_bench", node=SpeedSettings)
    _refuse_unknown(overrides)
    with initialize_config_dir(str(config_folder()), version_base=VERSION_BASE, job_name="bench"):
        config = compose("bench", overrides=list(overrides))
    values: Any = OmegaConf.to_container(config, resolve=True)
    settings: Any = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(SpeedSettings), values))
    for key, value in _leaves(values):
        _check(key, value)
    _check_sizes(settings)
    settings.bench.out = settings.bench.out or f"runs/{datetime.now():%Y-%m-%d_%H-%M-%S}_bench"
    return settings


def _refuse_unknown(overrides: Sequence[str]) -> None:
    """What Hydra would explain by settings that only other commands have."""
    known = _keys(OmegaConf.to_container(OmegaConf.structured(SpeedSettings)))
    for override in overrides:
        if override.startswith("-"):
            raise UserError(f"cannot read '{override}': give key=value pairs (python -m sttabt.bench --help)")
    for parsed in OverridesParser.create().parse_overrides(list(overrides)):
        key = parsed.key_or_group
        if key not in known and not key.startswith(tuple(f"{node}." for node in OPEN_NODES)):
            raise UserError(f"{key} is not a setting of the benchmark: {_hint(key, known)}")
        if parsed.is_sweep_override():
            raise UserError(f"{parsed.input_line} names several values: write {key}=[...] where it takes a list")
        if key.startswith(WITHOUT_EFFECT):
            log.warning("%s has no effect on the benchmark", parsed.input_line)


def _hint(key: str, known: Sequence[str]) -> str:
    last_names = {name.rpartition(".")[2]: name for name in known}
    close = get_close_matches(key, known, n=1, cutoff=0.75)
    close = close or [last_names[name] for name in get_close_matches(key.rpartition(".")[2], last_names, n=1)]
    return f"did you mean '{close[0]}'?" if close else "`python -m sttabt.bench --help` shows them all"


def _check(key: str, value: Any) -> None:
    node, _, name = key.partition(".")
    text, holds = (BENCH_RANGES if node == "bench" else RANGES).get(name if node == "bench" else key, ("", None))
    entries = value if isinstance(value, list) else [value]
    if node == "bench" and name in NEEDED and not entries:
        raise UserError(f"{key}=[] leaves nothing to measure: give at least one value")
    if node == "bench" and len(set(entries)) < len(entries):
        raise UserError(f"{key}={value} names a value twice: give each once")
    for entry in entries:
        if isinstance(entry, float) and not math.isfinite(entry):
            raise UserError(f"{key}={entry} is not a finite number: give one")
        if holds and not holds(entry):
            raise UserError(f"{key}: {entry} is out of range: it must be {text}")
    choices = PRECISIONS if key == "hardware.precision" else CHOICES.get(key)
    if choices and value not in choices:
        raise UserError(f"{key}={value} is unknown: {nearest(str(value), choices)}")


def _check_sizes(settings: SpeedSettings) -> None:
    model, head_width = settings.model, settings.model.width // settings.model.heads
    if model.patch_size < 1:
        raise UserError(f"model.patch_size={model.patch_size}: the benchmark measures images, choose a model of images")
    for size in settings.bench.image_sizes:
        if size % model.patch_size:
            multiple = max(1, round(size / model.patch_size)) * model.patch_size
            raise UserError(
                f"bench.image_sizes: {size} is no multiple of model.patch_size={model.patch_size}: take {multiple}"
            )
    for factor in settings.bench.factors:
        if head_width % factor:
            valid = ", ".join(str(f) for f in range(1, head_width + 1) if head_width % f == 0)
            raise UserError(f"bench.factors: {factor} does not divide the head width {head_width}: take of {valid}")


def _keys(values: Any, prefix: str = "") -> list[str]:
    return [
        name
        for key, value in values.items()
        for name in (f"{prefix}{key}", *(_keys(value, f"{prefix}{key}.") if isinstance(value, dict) else ()))
    ]


def _leaves(values: Any, prefix: str = "") -> list[tuple[str, Any]]:
    return [
        leaf
        for key, value in values.items()
        for leaf in (_leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else [(f"{prefix}{key}", value)])
    ]


if __name__ == "__main__":
    sys.exit(main())
