"""Settings of the machine, and how a weight update is spread over it."""

from __future__ import annotations

from dataclasses import dataclass

from sttabt.settings.fields import at_least, setting


@dataclass
class HardwareSettings:
    """Where and how fast a job runs."""

    accelerator: str = setting(
        "cpu",
        "in Lightning's names; auto: a GPU where CUDA finds one, else the CPU",
        choices=("cpu", "gpu", "cuda", "auto"),
    )
    devices: int = setting(1, "devices of a node that train together, a process each", at_least(1))
    nodes: int = setting(1, "machines that train together", at_least(1))
    precision: str = setting(
        "32-true",
        "of training, in Lightning's names; evaluation.precision is another",
        choices=("32-true", "16-mixed", "bf16-mixed"),
    )
    compile: bool = setting(
        False, "torch.compile what a step of training computes: minutes at its start, less time a step"
    )
    batch_size: int = setting(64, "samples a step and a device", at_least(1))
    accumulate_grad_batches: int = setting(1, "steps a weight update", at_least(1))
    checkpoint_minutes: float = setting(
        0.0, "minutes between the checkpoints within an epoch; 0: at its end alone", at_least(0)
    )
    workers: int = setting(0, "processes that load data", at_least(0))
    threads: int = setting(0, "CPU threads of torch; 0: as torch chooses, within what a container grants", at_least(0))


def processes_of(hardware: HardwareSettings) -> int:
    """How many processes train together, each on one device."""
    return hardware.devices * hardware.nodes


def steps_of(update: int, hardware: HardwareSettings) -> tuple[int, int]:
    """(samples a step and a device, steps a weight update): the fewest equal steps that hardware.batch_size allows."""
    processes = processes_of(hardware)
    steps = -(-update // (hardware.batch_size * processes))
    return update // steps // processes, steps
