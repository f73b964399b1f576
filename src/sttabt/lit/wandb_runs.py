"""The W&B runs of one job: one of type `evaluate` for its result, and one for every artifact that it makes.

All runs of a sweep are one group. An artifact is called `<stage>-<fingerprint>`, as in the artifact store, so that
W&B's graph of artifacts reads base -> approx -> prune -> evaluate across the jobs of a sweep. Weights stay where they
are, as references with their checksums, unless `logger.upload_weights`.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import wandb
from lightning.pytorch.loggers import WandbLogger
from wandb.sdk.lib.wbauth import authenticate_session

from sttabt.lit.logged import result_values, shaded, strips, table
from sttabt.report.gallery import Gallery, ImageGallery, TextGallery
from sttabt.report.points import spell
from sttabt.report.rows import Row
from sttabt.settings import Settings
from sttabt.store.artifacts import RECORD, WEIGHTS, parents, read_record

if TYPE_CHECKING:
    from sttabt.store.job import Job

EVALUATE = "evaluate"
LONGEST_TAG = 64  # characters; W&B refuses longer ones
CONNECT = 5.0  # seconds for the server to take a connection
PATIENCE = 30.0  # seconds for the server to answer before a job goes on offline

log = logging.getLogger(__name__)


class WandbRuns:
    """Begins the job's run at once, so that it shows while its stages train."""

    def __init__(self, settings: Settings, job: Job, config: Mapping[str, Any]) -> None:
        self.output, self.upload = Path(settings.paths.output), settings.logger.upload_weights
        self.output.mkdir(parents=True, exist_ok=True)
        tags = [settings.name, settings.model.name, settings.dataset.name, settings.sparsity.method]
        self.common: dict[str, Any] = {
            "project": settings.logger.project,
            "entity": settings.logger.entity or None,
            "dir": str(self.output),
            "group": job.sweep,
            "tags": [tag[:LONGEST_TAG] for tag in dict.fromkeys(tags)],
            "config": dict(config),
        }
        self.online = _goes_online(settings.logger.kind)
        self.run = self._begin(EVALUATE, _name(settings))
        # A W&B agent names one run and its sweep in the environment: this one. The runs of the stages are beside it.
        session = wandb.setup().settings
        session.sweep_id = session.run_id = None

    @contextmanager
    def making(self, stage: str, folder: Path) -> Iterator[StageLogger]:
        """Lightning's logger into a run of type `stage`.

        At its end the run gives the artifact in `folder`, made from those the record names.
        """
        run = self._begin(stage, f"{stage} {folder.name}")
        failed = True
        try:
            yield StageLogger(run, stage)
            record = read_record(folder / RECORD)
            for parent, key in parents(record["description"]).items():
                self._use(run, folder.parents[1] / parent / key)
            run.summary.update({f"{stage}/seconds": record["notes"]["seconds"]})
            run.log_artifact(self._artifact(folder))
            failed = False
        finally:
            run.finish(exit_code=int(failed))

    def result(self, row: Row, gallery: Gallery | None, artifacts: Mapping[str, Path]) -> None:
        """The row as the run's summary, the gallery as pictures, page and table, and what the model is made of."""
        for folder in artifacts.values():
            self._use(self.run, folder)
        self.run.summary.update(result_values(row))
        if gallery is None:
            return
        columns, rows = table(gallery)
        shown: dict[str, Any] = {"tokens/table": wandb.Table(columns=[*columns], data=[*rows])}
        if isinstance(gallery, ImageGallery):
            shown["tokens/images"] = [wandb.Image(strip, caption=caption) for strip, caption in strips(gallery)]
        if isinstance(gallery, TextGallery):
            shown["tokens/texts"] = wandb.Html(shaded(gallery))
        self.run.log(shown)

    def finish(self, failed: bool) -> None:
        """Ends the job's run."""
        self.run.finish(exit_code=int(failed))

    def _begin(self, job_type: str, name: str) -> Any:
        settings = wandb.Settings(
            silent=True,  # a banner and a summary a run would bury the suite's own lines
            reinit="create_new",  # another run of this process, with its own id
            init_timeout=PATIENCE,
        )
        begin = {**self.common, "job_type": job_type, "name": name, "settings": settings}
        if self.online:
            try:
                return wandb.init(**begin)
            except wandb.errors.Error as error:
                _say_offline(str(error))
                self.online = False
        return wandb.init(**begin, mode="offline")

    def _use(self, run: Any, folder: Path) -> None:
        # What use_artifact does with an artifact that is only here, but does not do offline: the run logs it, and uses
        # the version that it then is, at once or when it is synced.
        run._log_artifact(self._artifact(folder), is_user_created=True, use_after_commit=True)

    def _artifact(self, folder: Path) -> wandb.Artifact:
        """The same content, and so the same version, from whatever job it is logged."""
        record = read_record(folder / RECORD)
        about = {name: record[name] for name in ("stage", "fingerprint", "sha256", "bytes", "version", "description")}
        artifact = wandb.Artifact(f"{record['stage']}-{record['fingerprint']}", record["stage"], metadata=about)
        for name in (RECORD, WEIGHTS):
            if name == RECORD or self.upload:
                artifact.add_file(str(folder / name), policy="immutable", skip_cache=True)
            else:
                artifact.add_reference((folder / name).absolute().as_uri(), name=name)
        return artifact


class StageLogger(WandbLogger):
    """Counts steps and epochs under the stage's own name, as each stage begins at 0."""

    def __init__(self, run: Any, stage: str) -> None:
        super().__init__(project=run.project, experiment=run)
        self.stage = stage
        run.define_metric(f"{stage}/*", step_metric=f"{stage}/step")

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        own = {name if "/" in name else f"{self.stage}/{name}": value for name, value in metrics.items()}
        self.experiment.log(own if step is None else {**own, f"{self.stage}/step": step})


def has_key() -> bool:
    """Whether W&B knows an API key or token for its server. Raises wandb.errors.Error for one that cannot be."""
    host = wandb.setup().settings.base_url
    return authenticate_session(host=host, source="sttabt", prompt=False, update_session=False) is not None


def _goes_online(kind: str) -> bool:
    if kind != "wandb_online" or os.environ.get("WANDB_MODE", "online") != "online":
        return False  # by the settings, or by the user's word
    try:
        if has_key():
            unreachable = _unreachable(wandb.setup().settings.base_url)
            if unreachable is None:
                return True
            reason = unreachable
        else:
            reason = "there is no API key (`wandb login` stores one)"
    except wandb.errors.Error as error:
        reason = str(error)
    _say_offline(reason)
    return False


def _unreachable(url: str) -> str | None:
    """Why the server cannot be spoken to; None if it can. W&B itself finds out after PATIENCE alone."""
    host, port = urlsplit(url).hostname or "", urlsplit(url).port or (443 if url.startswith("https") else 80)
    if getproxies() and not proxy_bypass(host):
        return None  # the proxy knows
    try:
        socket.create_connection((host, port), timeout=CONNECT).close()
    except OSError as error:
        return f"{host} does not answer ({(error.strerror or str(error)).lower()})"
    return None


def _say_offline(reason: str) -> None:
    reason = " ".join(reason.split())
    log.warning("logger=wandb_online: %s: logging offline instead, `wandb sync` uploads it later", reason)


def _name(settings: Settings) -> str:
    sparsity = settings.sparsity
    knob = [] if sparsity.knob is None else [f"{sparsity.knob[0]} {spell(sparsity.knob[1])}"]
    if settings.budget.asked:
        knob = [str(settings.budget)]
    return ", ".join([sparsity.label, *knob, f"seed {settings.seed}"])
