"""`python -m sttabt.bench model=NAME [key=value ...]`: what dropping tokens saves on this machine.

Exit codes: 0, 1 when a variant fails or computes something else than the masked engine, 2 for a user's mistake.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from datetime import datetime
from difflib import get_close_matches
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from sttabt.cli.composition import OPEN_NODES, VERSION_BASE, config_folder
from sttabt.cli.help import names_of, section
from sttabt.cli.messages import explain, is_mistake
from sttabt.errors import UserError
from sttabt.settings import BenchSettings, SpeedSettings
from sttabt.settings.renamed import new_override
from sttabt.settings.values import check_values
from sttabt.system.signals import run_command

USAGE = """usage: python -m sttabt.bench [model=NAME] [hardware=cpu|gpu] [key=value ...]

Times the dense model, the masked and dropped engines, the planners, whole pruned forwards, ToMe, DynamicViT's masks and
a step of training, interleaved in one process, beside what the multiply-adds allow. Writes bench.jsonl, table.md and
speed.png.

For example: python -m sttabt.bench model=deit_tiny bench.batches=[1,8] bench.rounds=5 hardware.threads=2

"""
NEEDED = ("image_sizes", "keeps", "factors", "merged")
WITHOUT_EFFECT = (
    "model.pretrained", "model.checkpoint", "model.training", "hardware.devices", "hardware.batch_size",
    "hardware.accumulate_grad_batches", "hardware.workers",
)  # fmt: skip


log = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    logging.basicConfig(level=logging.INFO, format="[%(asctime)s] %(message)s", datefmt="%H:%M:%S")
    try:
        if {"-h", "--help"} & set(arguments):
            sys.stdout.write(help_text())
            return 0
        settings = read_settings([new_override(argument) for argument in arguments])
        # Imported after the checks: torch and timm take seconds to load.
        from sttabt.bench.session import run_benchmark

        result = run_benchmark(settings)
    except Exception as mistake:
        if not is_mistake(mistake):
            raise
        sys.stderr.write(f"{explain(mistake)}\n")
        return 2
    sys.stdout.write("\n".join([result.table, *map(str, result.files), ""]))
    if result.wrong:
        sys.stderr.write(f"failed or wrong logits, so not timed: {'; '.join(result.wrong)}\n")
    return 1 if result.wrong else 0


def help_text() -> str:
    """What `--help` prints: the settings of the benchmark, with values and meanings."""
    values: Any = OmegaConf.to_container(OmegaConf.load(config_folder() / "bench.yaml"))
    own = section("Settings (key=value):", BenchSettings, values["bench"], "bench.", names_of(BenchSettings))
    return f"{USAGE}{own}\n\nThose of model and hardware: sttabt --help model=NAME hardware=NAME\n"


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
    check_values(settings)
    _check_lists(settings.bench)
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


def _check_lists(bench: BenchSettings) -> None:
    for name, values in vars(bench).items():
        if name in NEEDED and not values:
            raise UserError(f"bench.{name}=[] leaves nothing to measure: give at least one value")
        if isinstance(values, list) and len(set(values)) < len(values):
            raise UserError(f"bench.{name}={values} names a value twice: give each once")


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


if __name__ == "__main__":
    run_command(main, "sttabt.bench")
