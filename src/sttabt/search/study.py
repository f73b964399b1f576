"""A search that lives in a file: Optuna proposes trials, is told what they gave, and goes on after an interruption."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from sttabt.errors import UserError, nearest
from sttabt.search.space import Choices, Range, Space

if TYPE_CHECKING:
    import optuna

STUDY_NAME = "sttabt"
SQLITE = (".db", ".sqlite", ".sqlite3")
SAMPLERS = ("tpe", "nsga2", "random")
GENERATION = 10  # trials of a generation of nsga2: Optuna's 50 are more than most searches here have
MADE_OF, FOLDER = "made_of", "folder"  # what a study and a trial note beside what Optuna does


@dataclass(frozen=True)
class Trial:
    """values: of the searched settings. Of a trial that has a result: score and share of dense multiply-adds on the
    validation split, and the folder of its row.
    """

    number: int
    values: Mapping[str, Any]
    score: float = math.nan
    macs_share: float = math.nan
    folder: Path | None = None


class Study:
    """Trials of a space, to be asked for and told about by one command at a time. See `open_study`."""

    def __init__(self, study: optuna.Study, space: Space, sampler: str, seed: int) -> None:
        self._study, self._sampler, self._seed = study, sampler, seed
        self._space = {key: _distribution(domain) for key, domain in space.items()}
        self._asked: dict[int, optuna.trial.Trial] = {}

    @property
    def done(self) -> list[Trial]:
        """The trials that have a result, in their order."""
        from optuna.trial import TrialState

        found = self._study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
        return [
            Trial(one.number, self._values(one.params), one.values[0], one.values[1], Path(one.user_attrs[FOLDER]))
            for one in found
        ]

    def ask(self, count: int) -> list[Trial]:
        """Trials to run: first those that an interruption left without a result, as their trainings can go on."""
        from optuna.trial import Trial as Asked
        from optuna.trial import TrialState

        left = [
            one.number
            for one in self._study.get_trials(deepcopy=False, states=[TrialState.RUNNING])
            if one.number not in self._asked
        ]
        for number in left:
            trial = Asked(self._study, self._study.trials[number]._trial_id)
            if trial.params.keys() != self._space.keys():  # interrupted while it was being proposed
                self._study.tell(number, state=TrialState.FAIL)
            elif count > 0:
                self._asked[number] = trial
                count -= 1
        new = [self._propose() for _ in range(count)]
        self._asked |= {trial.number: trial for trial in new}
        numbers = [number for number in left if number in self._asked] + [trial.number for trial in new]
        return [Trial(number, self._values(self._asked[number].params)) for number in numbers]

    def tell(self, trial: Trial, score: float, macs_share: float, folder: Path) -> None:
        """The trial's result on the validation split; its row is in `folder`."""
        self._asked[trial.number].set_user_attr(FOLDER, str(folder.absolute()))
        self._study.tell(trial.number, [score, macs_share])

    def fail(self, trial: Trial) -> None:
        """The trial gave no result: another one takes its place when the command is repeated."""
        from optuna.trial import TrialState

        self._study.tell(trial.number, state=TrialState.FAIL)

    def _values(self, found: Mapping[str, Any]) -> dict[str, Any]:
        return {key: found[key] for key in self._space}  # a storage has an order of its own

    def _propose(self) -> optuna.trial.Trial:
        # Each draw has its own seed, so that an interrupted study proposes what it would have proposed at once.
        self._study.sampler = _sampler(self._sampler, self._seed, len(self._study.trials))
        return self._study.ask(self._space)


@contextmanager
def open_study(file: Path, space: Space, made_of: Mapping[str, Any], sampler: str, seed: int) -> Iterator[Study]:
    """The study in `file`, which may be there already; no other process can open it in the meantime.

    file: SQLite's if it ends in .db, .sqlite or .sqlite3, otherwise a journal, to which lines are added. made_of: what
    decides the results, and what nothing but the same study may differ in.

    Raises:
        UserError: the file holds something else, a study that is made of other things, or another command has it.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    file.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(f"{file}.busy")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise UserError(
            f"hydra.sweeper.storage={file} is used by another command: wait for it, or give another file"
        ) from error
    try:
        study = _load(file)
        _compare(study, file, json.loads(json.dumps(made_of)))
        yield Study(study, space, sampler, seed)
    finally:
        lock.release()


def check_optuna() -> None:
    """Raises UserError when the package is missing; does not import it."""
    from importlib.util import find_spec

    if find_spec("optuna") is None:
        raise UserError('hparams_search needs the package optuna: pip install "sttabt[search]"')


def check_sampler(name: str) -> None:
    """Raises UserError for a name that is not in SAMPLERS."""
    if name not in SAMPLERS:
        raise UserError(f"hydra.sweeper.sampler={name} is unknown: {nearest(name, SAMPLERS)}")


def _load(file: Path) -> optuna.Study:
    import optuna
    from optuna.storages import JournalStorage, RDBStorage
    from optuna.storages.journal import JournalFileBackend

    try:
        storage = (
            RDBStorage(f"sqlite:///{file}") if file.suffix in SQLITE else JournalStorage(JournalFileBackend(str(file)))
        )
        return optuna.create_study(
            study_name=STUDY_NAME, storage=storage, directions=["maximize", "minimize"], load_if_exists=True
        )
    except Exception as error:  # of SQLAlchemy, json, the disk
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"hydra.sweeper.storage={file} cannot hold a study: give another file ({reason})") from error


def _compare(study: optuna.Study, file: Path, made_of: dict[str, Any]) -> None:
    found = study.user_attrs.get(MADE_OF)
    if found is None and not study.trials:
        study.set_user_attr(MADE_OF, made_of)
        return
    found = found or {}
    for key in [*made_of, *found]:
        if found.get(key) != made_of.get(key):
            there, here = (json.dumps(one[key]) if key in one else "not there" for one in (found, made_of))
            raise UserError(
                f"hydra.sweeper.storage={file} holds another study, with {key} {there}, here {here}: give another file,"
                " or the same settings"
            )


def _distribution(domain: Range | Choices) -> optuna.distributions.BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(domain, Choices):
        return CategoricalDistribution(domain.choices)
    if isinstance(domain.low, int) and isinstance(domain.high, int):
        return IntDistribution(domain.low, domain.high, log=domain.log)
    return FloatDistribution(domain.low, domain.high, log=domain.log)


def _sampler(name: str, seed: int, number: int) -> optuna.samplers.BaseSampler:
    import numpy as np
    from optuna.samplers import NSGAIISampler, RandomSampler, TPESampler

    draw = int(np.random.SeedSequence((seed, number)).generate_state(1)[0])
    if name == "tpe":
        return TPESampler(seed=draw)
    return NSGAIISampler(seed=draw, population_size=GENERATION) if name == "nsga2" else RandomSampler(seed=draw)
