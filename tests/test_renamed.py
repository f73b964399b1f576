"""Names of the last version: understood on the command line and in yaml files, with the new name in one line."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import pytest

from sttabt.cli.composition import compose_settings
from sttabt.cli.sweep import assignments
from sttabt.run import main
from sttabt.settings import renamed
from sttabt.settings.fields import walk
from sttabt.settings.renamed import NAMES, new_choice, new_override, new_values

pytestmark = pytest.mark.usefixtures("own_folder")

OLD = """# @package _global_
defaults: [override /sparsity: undecided, override /model: mine]
name: mine
approx: {training: {clip: 0.25}}
hardware: {accumulate: 2}
hydra:
  mode: MULTIRUN
  sweeper:
    grids:
      - sparsity: concrete
        sparsity.training.batch: [16, 32]
"""


@pytest.fixture(autouse=True)
def _say_again() -> None:
    renamed._say.cache_clear()


def test_old_names_on_the_command_line(caplog: pytest.LogCaptureFixture) -> None:
    overrides = ["name=test", "model.deviation=[0.5]", "+dataset.deviation=[0.25]", "hardware.accumulate=2"]
    overrides += ["sparsity.training.batch=128", "model.training.clip=1.5", "approx.corpus_training.clip=2"]
    settings = compose_settings([*overrides, "dataset=fashion_mnist", "dataset.path=."])
    assert (settings.model.std, settings.dataset.std) == ([0.5], [0.25])
    assert settings.hardware.accumulate_grad_batches == 2
    assert settings.sparsity.training.global_batch_size == 128
    assert (settings.model.training.grad_clip_norm, settings.approx.corpus_training.grad_clip_norm) == (1.5, 2)
    assert "model.deviation is now called model.std" in caplog.messages
    assert "sparsity.training.batch is now called sparsity.training.global_batch_size" in caplog.messages


def test_what_an_override_holds_stays_as_it_is() -> None:
    for kept in ("--multirun", "name=undecided", "name='a=b'", "sparsity=concrete", "~model.arguments", "-m", "x"):
        assert new_override(kept) == kept
    assert new_choice("callbacks", ["default"]) == ["default"]
    assert new_override("sparsity=undecided") == "sparsity=each_job"
    assert new_values({"a": {1: 2, "clip": 3}, "model": {"training": {"clip": 3}}}) == {
        "a": {1: 2, "clip": 3},
        "model": {"training": {"grad_clip_norm": 3}},
    }


def test_every_new_name_is_a_setting() -> None:
    settings = compose_settings(["name=test", "sparsity=concrete"])
    keys = {key for key, _, _ in walk(settings)}
    assert set(NAMES.values()) <= keys
    assert not set(NAMES) & keys


def test_yaml_files_with_old_names(tmp_path: Path, monkeypatch, capsys, caplog) -> None:
    for group in ("experiment", "model"):
        (tmp_path / group).mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(OLD)
    (tmp_path / "model" / "mine.yaml").write_text("defaults: [test_vit, _self_]\nname: mine\ndeviation: [0.5]\n")
    monkeypatch.setattr(sys, "argv", ["sttabt", "--config-dir", str(tmp_path), "experiment=mine", "--cfg", "job"])
    with caplog.at_level(logging.WARNING):
        main()
    text = capsys.readouterr().out
    for line in ("grad_clip_norm: 0.25", "accumulate_grad_batches: 2", "std:\n  - 0.5", "method: ???"):
        assert line in text
    assert "sparsity=undecided is now called sparsity=each_job" in caplog.messages
    assert caplog.messages.count("model.deviation is now called model.std") == 1

    # The sweep checks all its jobs before the first: the second one is named with what it was given.
    monkeypatch.setattr(sys, "argv", ["sttabt", "--config-dir", str(tmp_path), "experiment=mine", "approx.factor=3"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    assert f"{assignments('sparsity.training.global_batch_size', 16)[0]}" in capsys.readouterr().err
