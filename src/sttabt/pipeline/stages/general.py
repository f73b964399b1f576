"""The approximate network of the encoder before it is fine-tuned, distilled on a corpus, without its head."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from sttabt.data.task import Task
from sttabt.lit.modules import GeneralApproximation
from sttabt.pipeline.descriptions import training_of_stage, weights_of
from sttabt.pipeline.stage import Made, Stage
from sttabt.pipeline.start import load_given, new_approx, new_base
from sttabt.store.contents import digest

ENCODER_CLASSES = 2  # of a pretrained encoder, whose head is not used; the same for all tasks
DESCRIBED = ("factor", "attention_loss", "attention_weight", "hidden_weight", "embedding_weight")


class GeneralStage(Stage):
    name = "general"
    computation = 1

    def description(self) -> dict[str, Any]:
        from sttabt.data.corpus import corpus_files  # transformers takes seconds to import

        own = {name: value for name, value in asdict(self.settings.approx).items() if name in DESCRIBED}
        corpus = self.settings.approx.corpus
        files = corpus_files(corpus)
        own |= {"corpus": digest(files, self.context.store.root) if files else corpus, "computation": self.computation}
        training = training_of_stage(self.settings, self.name)
        return weights_of(self.settings) | own | {"corpus_training": training.pop("training"), **training}

    def make(self, folder: Path, loggers: list[Any]) -> Made:
        from sttabt.data.corpus import load_corpus

        settings = self.settings.approx
        encoder = new_base(self.context, ENCODER_CLASSES).base
        load_given(encoder, self.settings, new_head=True)
        network = new_approx(self.settings, encoder, interpolated=True)
        module = GeneralApproximation(network, encoder, settings, Task("accuracy", ENCODER_CLASSES))
        corpus = load_corpus(settings.corpus, self.settings.model, self.settings.dataset.max_tokens)
        notes = self.train(module, corpus, folder, loggers)
        return Made({name: v for name, v in network.state_dict().items() if not network.is_head(name)}, notes)
