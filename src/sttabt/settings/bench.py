"""Settings of the speed benchmark, python -m sttabt.bench."""

from __future__ import annotations

from dataclasses import dataclass

from sttabt.settings.fields import ABOVE_ZERO, SHARE_ABOVE_ZERO, at_least, setting
from sttabt.settings.hardware import HardwareSettings
from sttabt.settings.model import ModelSettings


@dataclass
class BenchSettings:
    """What the speed benchmark measures."""

    image_sizes: list[int] = setting([], "sides in pixels", at_least(1))
    batches: list[int] = setting([], "images a forward; []: 1, 8, 32 on a CPU, 1, 2, 4, ... 512 on a GPU", at_least(1))
    keeps: list[float] = setting([], "mean occupancy over samples and layer boundaries", SHARE_ABOVE_ZERO)
    spread: float = setting(
        0.25, "standard deviation of the logarithm of a sample's counts; 0 leaves such plans out", at_least(0)
    )
    factors: list[int] = setting([], "of approximate networks; the first is trained, the last compiled", at_least(1))
    merged: list[int] = setting([], "ToMe's pairs a layer, scaled from 196 patches and 12 layers", ABOVE_ZERO)
    rounds: int = setting(
        0, "interleaved rounds; 0: 3 to 15 on a CPU, by the time that they take, 30 on a GPU", at_least(0)
    )
    compile: bool = setting(
        False, "time torch.compile of the dense model and of fixed counts too: some minutes more; on a GPU it always is"
    )
    train: bool = setting(True, "time steps of training too")
    train_batch: int = setting(8, "images a step of training", at_least(1))
    out: str = setting("", 'folder of the results; "": runs/DATE_bench')


@dataclass
class SpeedSettings:
    """The root node of the speed benchmark. Weights are random, `model.pretrained` or not."""

    model: ModelSettings = setting(ModelSettings, "the base model")
    hardware: HardwareSettings = setting(HardwareSettings, "where it is measured")
    bench: BenchSettings = setting(BenchSettings, "what is measured")
