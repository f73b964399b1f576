"""What Hydra and OmegaConf raise, said in one line."""

from __future__ import annotations

import re
import traceback

import yaml
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import OmegaConfBaseException

from sttabt.cli.composition import setting_names, unknown_setting
from sttabt.errors import UserError, nearest, printable
from sttabt.system.faults import system_fault

# What a user's mistake can raise on the way to settings.
MISTAKES = (UserError, HydraException, OmegaConfBaseException, yaml.YAMLError)

# What Hydra's own code stumbles over in values that make no sense, as a list where a choice is wanted.
OF_COMPOSITION = (ValueError, TypeError, LookupError, AttributeError, AssertionError)
COMPOSING = ("hydra._internal.", "hydra.core.override_parser.", "hydra.core.default_element")

# Launchers that are there only with the package hydra-submitit-launcher.
OF_SUBMITIT = ("sttabt_slurm", "sttabt_submitit_local", "submitit_slurm", "submitit_local")


def is_mistake(error: BaseException) -> bool:
    """Whether the user can mend it: one of MISTAKES, a fault of the system, a complaint of Hydra's composition code."""
    if isinstance(error, MISTAKES) or system_fault(error) is not None:
        return True
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    where: str = frame.f_globals["__name__"]
    if isinstance(error, OverflowError):  # a number too large for its type
        return where.startswith("omegaconf.")
    return isinstance(error, OF_COMPOSITION) and where.startswith(COMPOSING)


def explain(error: BaseException) -> str:
    """One line that names the setting or file, its value and the nearest valid name."""
    if isinstance(error, UserError):
        return _one_line(str(error))
    if (fault := system_fault(error)) is not None:
        return _one_line(fault)
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        group, _, choice = error.missing_cfg_file.rpartition("/")
        if group == "hydra/launcher" and choice in OF_SUBMITIT:
            asked = "hardware=slurm" if choice == "sttabt_slurm" else f"{group}={choice}"
            return f'{asked} needs the package hydra-submitit-launcher: pip install "sttabt[launchers]"'
        return f"{group}={choice} is unknown: {nearest(choice, error.options)}"
    if isinstance(error, OverflowError):
        key = re.search(r"full_key: (\S+)", str(error))
        return f"{key[1] if key else 'a setting'} is out of range: the number is too large"
    if not isinstance(error, (*MISTAKES, ValueError)):
        return _one_line(f"the command line makes no sense to Hydra ({error}): see to its overrides one by one")
    if isinstance(error, OverrideParseException):
        given = printable(str(error.override))
        return f"cannot read '{given}': write key=value, and quote a value that has signs in it"
    text = "\n".join([str(error), str(error.__cause__ or "")])
    if sweep := re.search(r"(?:Ambiguous value for argument|Sweep parameters) '([^']*)'", text):
        return f"{sweep[1]} names several values: add -m to sweep over them"
    # Where it happened: a yaml file or an override of the command line.
    file = re.search(r"In '([^']+)'", text)
    override = re.search(r"Error merging override (\S+)", text)
    where = f"{file[1]}.yaml: " if file else f"{override[1]}: " if override else ""
    if override and re.search(r"Invalid type assigned: \S+ is not a subclass of", text):
        node, _, _ = override[1].lstrip("+").partition("=")
        own = [name for name in setting_names() if name.startswith(f"{node}.")]
        return f"{where}{node} holds settings of its own: give one of {', '.join(own)}"
    if override and re.search(r"Cannot (?:assign \S+ to Dict|merge DictConfig with ListConfig)", text):
        node, _, _ = override[1].lstrip("+").partition("=")
        return f"{where}{node} holds names and values: give {node}.NAME=VALUE"
    unknown = re.search(r"Key '[^']*' (?:is )?not in", text) or re.search(r"Could not override", text)
    key = re.search(r"full_key: (\S+)", text) or re.search(r"Could not override '([^']+)'", text)
    if unknown and key:
        return f"{where}{unknown_setting(key[1])}"
    if reference := re.search(r"Interpolation key '([^']+)' not found", text):
        return f"{where}{key[1] if key else ''}: ${{{reference[1]}}} leads nowhere: {unknown_setting(reference[1])}"
    if file or override:
        reason = re.search(r"^(.*(?:Value|Cannot|Invalid|Unexpected|Incompatible|not Optional).*)$", text, re.MULTILINE)
        setting = f"{key[1]}: " if file and key else ""
        return _one_line(f"{where}{setting}{reason[1] if reason else text}")
    return _one_line(text)


def _one_line(text: str) -> str:
    return " ".join(text.split())
