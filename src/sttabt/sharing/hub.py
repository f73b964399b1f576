"""Saved models on the Hugging Face hub: put there, and fetched from it or from its cache on this machine."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from sttabt.errors import UserError
from sttabt.models.pruned import PrunedModel
from sttabt.pretrained.hub import use_hub
from sttabt.sharing.folder import STAGE, save
from sttabt.store.artifacts import CARD, RECORD, WEIGHTS, read_record
from sttabt.system.scratch import scratch

HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]*\w")
# Among the bases is what its HTTP library raises, whichever that is.
UNREACHABLE: tuple[type[BaseException], ...] = (OSError, *HfHubHTTPError.__bases__)
REFUSED: tuple[type[BaseException], ...] = (*UNREACHABLE, HFValidationError)


def push(pruned: PrunedModel, name: str, private: bool, token: str | None, saved: Mapping[str, Any]) -> str:
    """See PrunedModel.push_to_hub."""
    if not HUB_ID.fullmatch(str(name)):
        raise UserError(f"name={name!r} is no id of the hub: give USER/MODEL")
    if not use_hub():
        raise UserError(f"{name} cannot be put on the hub, which cannot be reached (or HF_HUB_OFFLINE is set)")
    api = HfApi(token=token)
    with scratch() as folder:
        target = folder / name
        target.parent.mkdir()
        save(pruned, target, **saved)
        card = target / CARD
        card.write_text(card.read_text(encoding="utf-8").replace(f'load("{target.name}"', f'load("{name}"'), "utf-8")
        try:
            address = api.create_repo(name, private=private, exist_ok=True)
            api.upload_folder(repo_id=name, folder_path=target, commit_message="A pruned model, by sttabt")
        except UNREACHABLE as error:
            raise UserError(f"{name} was not put on the hub: {_reason(error)} (log in with `hf auth login`)") from error
    return str(address)


def fetch(name: str) -> Path:
    """The folder of a saved model in the hub's cache, fetched where it is not there or not the newest.

    Raises UserError where neither has it, or it is no saved model.
    """
    use_hub()
    try:
        folder = Path(hf_hub_download(name, RECORD)).parent
        record = read_record(folder / RECORD)
        if record["stage"] != STAGE:
            raise UserError(f"{name} on the hub is an artifact of a run, no saved model: see save_pretrained")
        for file in (WEIGHTS, *record["files"]):
            if Path(file).name != file:
                raise UserError(f"{name} on the hub names a file {file!r}, which no saved model has: do not use it")
            hf_hub_download(name, file, revision=folder.name)  # the same state of the repository
        with suppress(EntryNotFoundError):
            hf_hub_download(name, CARD, revision=folder.name)
    except LocalEntryNotFoundError as error:
        raise UserError(
            f"{name} is no folder of an artifact here, and the hub's cache has none: load it once with a network"
        ) from error
    except EntryNotFoundError as error:
        raise UserError(f"{name} on the hub is no saved model of sttabt: {_reason(error)}") from error
    except REFUSED as error:
        raise UserError(f"{name} is no folder of an artifact here, and the hub gives none: {_reason(error)}") from error
    return folder


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
