"""Whatever a command line says: settings, or one line that says what is wrong, within seconds."""

from __future__ import annotations

import dataclasses
import time

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from sttabt.cli.composition import compose_settings, setting_names
from sttabt.cli.messages import explain, is_mistake
from sttabt.settings import Settings, method_names

pytestmark = pytest.mark.usefixtures("own_folder")

SLOWEST = 5.0  # seconds of this process, as the machine may be busy
BASE = "experiment=debug"
KEYS = sorted({name for method in method_names() for name in setting_names(method)})
TEXTS = st.one_of(
    st.text(max_size=12),
    st.text("abc=:,.[]{}()'\"\\$#~+- ", max_size=12),
    st.sampled_from(["null", "nan", "-inf", "???", "${seed}", "${nowhere}", "${oc.env:NOT_SET}", "[", "{a:1}", "''"]),
)
VALUES = st.one_of(
    st.integers(-(10**30), 10**30).map(str),
    st.floats(allow_subnormal=False).map(str),
    st.booleans().map(lambda value: str(value).lower()),
    st.lists(st.integers(-3, 300), max_size=4).map(str),
    st.lists(st.floats(allow_subnormal=False), max_size=3).map(str),
    st.sampled_from(["9" * 400, "1e999", "1e-999", "0x10", "[" * 60 + "]" * 60, "[[1],[2]]", "{a:{b:{c:1}}}"]),
    TEXTS,
)
OVERRIDES = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(KEYS), VALUES).map("=".join),
        st.tuples(st.sampled_from(["+", "++", "~", ""]), TEXTS, VALUES).map(
            lambda part: f"{part[0]}{part[1]}={part[2]}"
        ),
        TEXTS,
    ),
    min_size=1,
    max_size=3,
)


def settled(overrides: list[str]) -> Settings | str:
    """The settings, or the one line that a user reads."""
    started = time.process_time()
    try:
        found: Settings | str = compose_settings([BASE, *overrides])
    except Exception as error:
        if not is_mistake(error):
            raise
        found = explain(error)
        assert found and "\n" not in found and "Traceback" not in found
    assert time.process_time() - started < SLOWEST
    return found


def check(overrides: list[str]) -> None:
    found = settled(overrides)
    if isinstance(found, Settings):
        dataclasses.asdict(found)
        assert settled(overrides) == found, "the same command is the same job"


@given(OVERRIDES)
@example(["seed=" + "9" * 5000])
@example(["seed=" + "9" * 400])
@example(["approx.training.learning_rate=1e999"])
@example(["model.training.cutmix=" + "9" * 400])
@example(["dataset=[0]"])
@example(["\0=null"])
@example(["..=null"])
@example(["a" * 5000 + "=null"])
@example(["stages=" + "[" * 200 + "]" * 200])
@example(["name=\ud800"])
@example(["name='a\nb'"])
@example(["model.arguments={a:nan}"])
@example(["=1"])
@example(["\n"])
@example([""])
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_command_line_is_settings_or_one_line(overrides: list[str]) -> None:
    check(overrides)


@pytest.mark.long
@given(OVERRIDES)
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_very_many_command_lines(overrides: list[str]) -> None:
    check(overrides)
