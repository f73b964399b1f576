"""The approximate attention network of the base model, distilled from it, or given."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

from sttabt.backbones.base import Backbone
from sttabt.lit.modules import Approximation
from sttabt.models.approximate import ApproximateNetwork
from sttabt.pipeline.descriptions import training_of_stage, without
from sttabt.pipeline.evaluation import attention_error
from sttabt.pipeline.stage import Artifact, Context, Made, Stage
from sttabt.pipeline.start import check_given, new_approx
from sttabt.pretrained.weights import load_approx, verify


class ApproxStage(Stage):
    """made_of: the base model's artifact, and that of the general network where approx.start asks for it."""

    name = "approx"
    computation = 1

    def __init__(self, context: Context, made_of: Mapping[str, Artifact], base: Backbone) -> None:
        super().__init__(context, made_of)
        self.base = base

    @cached_property
    def network(self) -> ApproximateNetwork:
        """As it starts; `make` trains it."""
        network = new_approx(self.settings, self.base, self.settings.approx.start != "random")
        if "general" in self.made_of:
            network.start_from_general(self.made_of["general"].tensors)
        return network

    def description(self) -> dict[str, Any]:
        settings = self.settings.approx
        context = training_of_stage(self.settings, self.name)
        own = without(asdict(settings), "corpus", "corpus_training")  # the general network's
        own["training"] = context.pop("training")
        if settings.checkpoint:
            own = {name: own[name] for name in ("factor", "stem")}
            own["checkpoint"] = verify(Path(settings.checkpoint), "", "approx.checkpoint")
        return {**self.keys, "approx": own, "dataset": self.data, "computation": self.computation, **context}

    def make(self, folder: Path, loggers: list[Any]) -> Made:
        context, settings, network = self.context, self.settings, self.network
        controls = {
            "random": new_approx(settings, self.base, interpolated=False),
            "interpolated": new_approx(settings, self.base, interpolated=True),
        }
        if "general" in self.made_of:
            controls["general"] = copy.deepcopy(network)
        notes: dict[str, Any] = {}
        if settings.approx.checkpoint:
            load_approx(network, Path(settings.approx.checkpoint), "approx.checkpoint")
            check_given(network, f"approx.checkpoint={settings.approx.checkpoint}")
        else:
            module = Approximation(network, self.base, settings.approx, context.task)
            notes = self.train(module, context.splits, folder, loggers)
        if not context.nodes.first:
            return Made()
        networks = {"distilled": network.eval(), **controls}
        errors = attention_error(
            {name: each.to(context.device) for name, each in networks.items()},
            self.base.to(context.device),
            context.splits.validation,
            settings.evaluation.batch_size,
            settings.fast_dev_run,
            settings.hardware.workers,
        )
        return Made(network.state_dict(), {"errors": errors, **notes})

    def read(self, artifact: Artifact) -> ApproximateNetwork:
        """The network in evaluation mode."""
        self.network.load_state_dict(artifact.tensors, strict=True)
        return self.network.eval()
