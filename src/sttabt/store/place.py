"""Which of several nodes this one is: SLURM's environment says it, or a user's own script."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass

from sttabt.errors import UserError

FIRST_PORT, PORTS = 15_000, 20_000  # of SLURM jobs, whose nodes agree on one without talking


@dataclass(frozen=True)
class Place:
    """A node's number, from 0, and where the first one listens."""

    number: int
    host: str
    port: int

    @classmethod
    def found(cls, nodes: int) -> Place:
        """This machine's place among `nodes`. Raises UserError when the environment does not say."""
        given = os.environ
        if "SLURM_NODEID" in given:
            place = cls._of_slurm(given)
            there = int(given.get("SLURM_NNODES", nodes))
            if there != nodes:
                raise UserError(f"hardware.nodes={nodes} is not the {there} nodes of this SLURM job: set {there}")
        else:
            try:
                place = cls(int(given["NODE_RANK"]), given["MASTER_ADDR"], int(given["MASTER_PORT"]))
            except (KeyError, ValueError) as error:
                raise UserError(
                    f"hardware.nodes={nodes} needs to know its nodes ({error} is missing or no number): on each start"
                    " the same command with MASTER_ADDR and MASTER_PORT of the first one and NODE_RANK=0, 1, ..., or"
                    " choose hardware=slurm"
                ) from error
        if not 0 <= place.number < nodes:
            raise UserError(f"NODE_RANK={place.number} is not among hardware.nodes={nodes}: they count from 0")
        return place

    @classmethod
    def _of_slurm(cls, given: Mapping[str, str]) -> Place:
        from lightning.fabric.plugins.environments import SLURMEnvironment

        host = SLURMEnvironment.resolve_root_node_address(given.get("SLURM_JOB_NODELIST", socket.gethostname()))
        port = FIRST_PORT + int(given["SLURM_JOB_ID"]) % PORTS
        return cls(int(given["SLURM_NODEID"]), given.get("MASTER_ADDR", host), int(given.get("MASTER_PORT", port)))
