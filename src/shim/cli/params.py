"""The kinds of arguments that several commands take."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import click

DIRECTORY = click.Path(exists=True, file_okay=False, resolve_path=True, path_type=Path)
FIFO = click.Path(exists=True, dir_okay=False, resolve_path=True)
PID = click.IntRange(0)

# What follows the first word of COMMAND is COMMAND's own.
ATTACHED = {"allow_interspersed_args": False}

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
runtime_option = click.option(
    "--runtime", default="runc", show_default=True, help="OCI runtime, a name or a path."
)


class SignalType(click.ParamType[int]):
    """A signal by name, with or without SIG, or by number: TERM, sigterm, 15."""

    name = "signal"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        """The signal's number."""
        text = str(value).upper()
        number = int(text) if text.isdecimal() else _named(text.removeprefix("SIG"))
        if number not in signal.valid_signals():
            self.fail(f"{value!r} is no signal: give a name as TERM or a number", param, ctx)
        return number


SIGNAL = SignalType()


def _named(name: str) -> int:
    known = signal.Signals.__members__.get(f"SIG{name}")
    return 0 if known is None else known.value


class LabelType(click.ParamType[tuple[str, str]]):
    """KEY=VALUE."""

    name = "label"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, str]:
        """The key and the value, which may be empty."""
        key, equals, text = str(value).partition("=")
        if not key or not equals:
            self.fail(f"{value!r} is no label: give KEY=VALUE", param, ctx)
        return key, text


LABEL = LabelType()
