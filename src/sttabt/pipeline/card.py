"""The model card of an artifact: `README.md` beside its weights, in the Hugging Face hub's format.

It says what the artifact's record and the results in the store say, and marks what was not measured.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from filelock import FileLock
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from sttabt.data.sources import find_source
from sttabt.report.points import spell
from sttabt.report.rows import METRICS, ROW_FILE, Row, with_times
from sttabt.report.table import format_table
from sttabt.settings import TRAININGS, method_settings
from sttabt.sharing.card import image_lines, text_lines
from sttabt.store.artifacts import CARD, MODEL_STAGES, RECORD, WEIGHTS, Store, fingerprint, parents, read_record
from sttabt.system.files import reason, write_atomically

NOT_MEASURED = "not measured"
TEMPLATE = Path(__file__).with_name("card.md.j2")
TITLES = {
    "base": "dense base model",
    "general": "general approximate attention network",
    "approx": "approximate attention network",
    "prune": "pruned model",
    "budget": "pruned model at a budget",
}
WHAT = {
    "base": "The dense model: the teacher of the approximate network, and what pruned models are compared with.",
    "general": "A narrow network that guesses the attention of a pretrained encoder, distilled on unlabelled text. "
    "Approximate networks of single tasks start from it.",
    "approx": "A narrow network that guesses the attention of its base model, so that tokens can be chosen before the "
    "base model runs.",
    "prune": "A transformer that drops the tokens its output does not need, trained with the method below.",
    "budget": "A transformer that drops the tokens its output does not need, brought to a share of the dense model's "
    "cost. Its weights are those of the artifacts that it is made from.",
}

log = logging.getLogger(__name__)


def write_card(folder: Path) -> None:
    """Writes the card of the artifact in `folder` of a store, with every result there that belongs to it."""
    _write(folder, results(folder))


def write_cards(store: Path, evaluations: Collection[str]) -> None:
    """Writes the cards of all models of a store that these results, given by their fingerprints, have measured.

    The store is read once, however many cards there are.
    """
    found = measured(store)
    for folder, rows in found.items():
        if any(row.config_hash in evaluations for row in rows) and (folder / RECORD).exists():
            _write(folder, rows)


def _write(folder: Path, rows: list[Row]) -> None:
    if "settings" not in read_record(folder / RECORD)["notes"]:
        log.info("no model card for %s: it was made before artifacts noted their settings", folder)
        return
    with FileLock(folder.with_suffix(".lock")):  # two jobs may bring a result at the same time
        write_atomically(folder / CARD, str(model_card(folder, rows)).encode())


def model_card(folder: Path, rows: list[Row]) -> ModelCard:
    """The card of a finished artifact that notes its settings; rows: what was measured of its model."""
    record = read_record(folder / RECORD)
    notes = record["notes"]
    settings: dict[str, Any] = notes["settings"]
    settings = settings | {"sparsity": settings["sparsity"] | notes.get("found", {})}
    stage = record["stage"]
    title = f"{settings['model']['name']} on {settings['dataset']['name']}, {TITLES[stage]}"
    return ModelCard.from_template(
        _data(title, settings, rows),
        template_path=str(TEMPLATE),
        title=title,
        what=WHAT[stage],
        facts=_facts(record, settings),
        tables=format_table(rows).replace("## ", "### ").strip() if rows else "",
        latency=[_latency(row) for row in rows],
        errors=[] if rows else _errors(notes.get("errors", {})),  # the tables have them
        limits=_limits(stage, settings, rows),
        use=_use(record, settings),
        command=notes["command"],
        version=record["version"],
        commit=notes["commit"],
        settings=json.dumps(record["description"], indent=1),
    )


def results(folder: Path) -> list[Row]:
    """The rows in the store whose model ends with the artifact in `folder`, in the order of their cost."""
    return measured(folder.parents[1]).get(folder, [])


def measured(store: Path) -> dict[Path, list[Row]]:
    """By the folder of the artifact that a model ends with: the rows of it in the store, in the order of their cost.

    What cannot be read is named in a warning and left out: one damaged record is not in the way of other jobs.
    """
    found: dict[Path, list[Row]] = {}
    times = _times(store)
    for own, record in Store(store).records("evaluate"):
        description = record["description"]
        try:
            row = Row.read(own / ROW_FILE)
        except (ValueError, OSError) as error:
            _left_out(own / ROW_FILE, error)
            continue
        if made_of := parents(description):
            last = last_stage(made_of)
            key = fingerprint(description)
            found.setdefault(store / last / made_of[last], []).append(_timed(row, *times.get(key, (own, {}))))
    return {
        folder: sorted(rows, key=lambda row: (row.macs_total, row.command, row.config_hash))
        for folder, rows in found.items()
    }


def _times(store: Path) -> dict[str, tuple[Path, Mapping[str, Any]]]:
    """What was measured last of the time of each evaluation, with its record, by the evaluation's fingerprint."""
    records = [((folder / RECORD).stat().st_mtime, folder, record) for folder, record in Store(store).records("timing")]
    found: dict[str, tuple[Path, Mapping[str, Any]]] = {}
    for _, folder, record in sorted(records, key=lambda each: each[:2]):
        own = {name: value for name, value in record["description"].items() if name != "timing"}
        found[fingerprint(own)] = folder / RECORD, record["notes"]
    return found


def _timed(row: Row, path: Path, notes: Mapping[str, Any]) -> Row:
    """The row with what was measured of its time; without, where that is not what rows of this version say."""
    try:
        return with_times(row, notes) if notes else replace(row, time=None, time_baseline=None)
    except ValueError as error:
        _left_out(path, error)
        return replace(row, time=None, time_baseline=None)


def _left_out(path: Path, error: Exception) -> None:
    log.warning("the model card leaves out %s: %s", path, reason(error))


def last_stage(stages: Iterable[str]) -> str:
    """The one of these stages that runs last: whose artifact a model is."""
    return max(stages, key=MODEL_STAGES.index)


def _data(title: str, settings: Mapping[str, Any], rows: list[Row]) -> ModelCardData:
    """The hub's metadata; a card without results has no metric there."""
    dataset, model = settings["dataset"], settings["model"]
    kind = "image" if find_source(dataset["source"]).holds == "images" else "text"
    given = model["huggingface"] or (f"timm/{model['timm']}" if model["pretrained"] else None)
    task = f"{kind}-classification"
    return ModelCardData(
        model_name=title,
        library_name="sttabt",
        pipeline_tag=task,
        tags=["token-pruning", "attention-back-tracking", "sttabt"],
        datasets=[dataset["name"]],
        base_model=None if given is None or given.startswith(("package:", "/")) else given,
        metrics=sorted({row.metric for row in rows}) or None,
        eval_results=[
            EvalResult(
                task_type=task,
                dataset_type=row.dataset,
                dataset_name=row.dataset,
                dataset_split=row.split,
                metric_type=row.metric,
                metric_name=f"{METRICS[row.metric].title}, {row.label}, {row.occupancy:.2f} of the tokens",
                metric_value=row.score,
            )
            for row in rows
        ],
    )


def _facts(record: Mapping[str, Any], settings: Mapping[str, Any]) -> list[tuple[str, str]]:
    stage, notes, description = record["stage"], record["notes"], record["description"]
    made_of = [f"[{parent}](../../{parent}/{key}/{CARD})" for parent, key in parents(description).items()]
    facts = [
        ("data", _dataset(stage, settings)),
        ("samples", _samples(notes.get("samples"))),
        ("teacher", _teacher(stage, settings, parents(description))),
        ("method", _method(stage, settings)),
        *([("budget", _budget(notes["calibration"]))] if "calibration" in notes else []),
        ("training", _training(stage, settings, trained="samples" in notes)),
        ("epoch", _epoch(notes)),
        ("at the end of training", _validation(stage, notes.get("validation"))),
        ("made from", ", ".join(made_of) or "no other artifact"),
        ("weights", f"`{WEIGHTS}`, {record['bytes']:,} bytes, SHA-256 `{record['sha256']}`"),
        ("made in", f"{notes['seconds']:.0f} s"),
    ]
    return [(name, value.replace("|", "\\|")) for name, value in facts]


def _dataset(stage: str, settings: Mapping[str, Any]) -> str:
    dataset = settings["dataset"]
    if stage == "general":
        return f"unlabelled text, `{Path(settings['approx']['corpus']).name}`"
    if find_source(dataset["source"]).holds == "images":
        return (
            f"{dataset['name']}: images of {dataset['image_size']} x {dataset['image_size']} pixels,"
            f" {dataset['channels']} channel(s), {dataset['classes']} classes"
        )
    what = "a score" if dataset["task"] == "regression" else f"{dataset['classes']} classes"
    return f"{dataset['name']}: texts of at most {dataset['max_tokens']} tokens, {what}"


def _samples(samples: Mapping[str, int] | None) -> str:
    if samples is None:
        return "none: nothing was trained"
    return f"{samples['train']:,} for training, {samples['validation']:,} for validation"


def _teacher(stage: str, settings: Mapping[str, Any], made_of: Mapping[str, str]) -> str:
    model = settings["model"]
    if stage == "budget":
        return "none: nothing was trained"
    if stage == "approx":
        return f"the base model `{made_of['base']}`, frozen"
    if stage == "prune":
        weight = settings["sparsity"]["distillation"]
        return f"the frozen base model's prediction, weight {weight:g}" if weight else "none: labels alone"
    given = model["checkpoint"] and Path(model["checkpoint"]).name
    given = given or (model["pretrained"] and (model["timm"] or model["huggingface"]))
    if stage == "general":
        return f"the pretrained encoder `{given}`"
    if not given:
        return "none: trained from random weights"
    return f"none: starts from the weights `{given}`" + ("" if model["fine_tune"] else ", used as they are")


def _method(stage: str, settings: Mapping[str, Any]) -> str:
    approx, sparsity = settings["approx"], settings["sparsity"]
    if stage == "base":
        return "no pruning"
    if stage in ("general", "approx"):
        return (
            f"distillation of attention ({approx['attention_loss']}) into a network {approx['factor']} times narrower,"
            f" start: {'interpolated' if stage == 'general' else approx['start']} (STTABT section 3.1)"
        )
    method = method_settings(sparsity["method"])
    return f"{method.title} ({method.source}): {', '.join(method.in_words(sparsity))}"


def _budget(calibration: Mapping[str, Any]) -> str:
    of, asked, reached = (calibration[name] for name in ("of", "asked", "reached"))
    return f"{of} {asked:g} of the dense model's asked for, {reached:.4g} reached on validation data"


def _training(stage: str, settings: Mapping[str, Any], trained: bool) -> str:
    if not trained:
        return "none"
    node, _, name = TRAININGS[stage].partition(".")
    training = settings[node][name]
    hardware = settings["hardware"]
    together = hardware["accumulate_grad_batches"] * hardware["devices"] * hardware["nodes"]
    batch = training["global_batch_size"] or hardware["batch_size"] * together
    text = (
        f"AdamW, {training['epochs']} epochs, learning rate {training['learning_rate']:g},"
        f" weight decay {training['weight_decay']:g}, {batch} samples an update, seed {settings['seed']},"
        f" {hardware['precision']}"
    )
    cut = settings["fast_dev_run"]
    return f"{text}; cut to {cut} batches of one epoch" if cut else text


def _epoch(notes: Mapping[str, Any]) -> str:
    """Which epoch the weights are of: callbacks may stop early, or keep the best."""
    return f"{notes['weights']}, of {notes['epochs']} trained" if "weights" in notes else "none"


def _validation(stage: str, validation: Mapping[str, float] | None) -> str:
    if not validation:
        return NOT_MEASURED
    whose = "its own classification" if stage == "approx" else "validation"
    return ", ".join(f"{whose} {name} {value:.4f}" for name, value in validation.items())


def _errors(errors: Mapping[str, Mapping[str, float]]) -> list[tuple[str, ...]]:
    return [(name, f"{each['kl']:.4g}", f"{each['mse']:.4g}") for name, each in errors.items()]


def _latency(row: Row) -> tuple[str, ...]:
    setting = "-" if row.knob is None else f"{row.knob} {spell(row.knob_value)}"
    device = f"{row.device}, {row.threads} thread(s), {row.precision}"
    if row.time is None:
        return row.label, setting, NOT_MEASURED, "-", "-", "-", device, row.commit or "-"
    frozen = row.time.get("dense_frozen_ms")
    return (
        *(row.label, setting, f"{row.time['ms']:.3g}", f"{row.time['dense_ms']:.3g}"),
        *("-" if frozen is None else f"{frozen:.3g}", f"{row.time['batch_size']:g}", device, row.commit or "-"),
    )


def _limits(stage: str, settings: Mapping[str, Any], rows: list[Row]) -> list[str]:
    limits = []
    if settings["fast_dev_run"]:
        limits.append(f"A trial run of {settings['fast_dev_run']} batches a stage: its numbers mean nothing.")
    if stage in ("general", "approx"):
        limits.append("Its attention is what is used; its own prediction is a by-product of distillation.")
    if rows:
        seeds = sorted({row.seed for row in rows})
        limits.append(
            f"Measured with {'one seed' if len(seeds) == 1 else f'{len(seeds)} seeds'}, on the data set above alone;"
            " times hold for the device and batch beside them."
        )
    else:
        limits.append("Its accuracy, cost and latency were not measured.")
    limits.append("Robustness, fairness and calibration: not measured.")
    limits.append("No licence of the data or of pretrained weights is recorded here: ask their sources.")
    return limits


def _use(record: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    folder = f"artifacts/{record['stage']}/{record['fingerprint']}"
    if record["stage"] == "general":
        return f"# python -m sttabt.run ... approx.start=general finds it: {folder}"
    arguments = ', method="backtracking", keep_ratio=0.4' if record["stage"] == "approx" else ""
    dataset, call = settings["dataset"], f'"{folder}"{arguments}'
    if find_source(dataset["source"]).holds == "images":
        return image_lines(call, (dataset["channels"], dataset["image_size"], dataset["image_size"]))
    return text_lines(call)
