"""The manual page, made of what the commands say of themselves (man-pages(7))."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import click

from shim import __version__

_FILES: Final = (
    ("/run/denseshim.sock", "The socket of containers of images."),
    ("/var/lib/denseshim", "Their records, images, files and logs."),
)
_STATUS: Final = (
    "0 when all went well, 1 when the host or the system refuses, 2 for wrong usage. Commands that "
    "have a process attached end with its status, 128+n if signal n ended it; 125 is a failure of "
    "their own."
)


def manual(root: click.Group) -> str:
    """The page about `root` and all its commands, for troff."""
    name = "denseshim"
    lines = [
        f'.TH DENSESHIM 1 "" "{name} {_text(__version__)}"',
        ".SH NAME",
        f"{name} \\- {_text(_summary(root))}",
        ".SH SYNOPSIS",
        f".B {name}",
        "COMMAND [OPTIONS] [ARGUMENTS]",
        ".SH COMMANDS",
        *_commands(root, name),
        ".SH EXIT STATUS",
        _text(_STATUS),
        ".SH FILES",
    ]
    for path, what in _FILES:
        lines += [".TP", f".I {_text(path)}", _text(what)]
    return "\n".join(lines) + "\n"


def _summary(command: click.Command) -> str:
    return (command.help or "").partition("\n\n")[0].rstrip(".")


def _commands(group: click.Group, path: str) -> Iterator[str]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield f".SS {_text(f'{path} {name}')}"
            yield from _paragraphs(command)
            yield from _commands(command, f"{path} {name}")
        else:
            yield from _command(command, f"{path} {name}")


def _command(command: click.Command, path: str) -> Iterator[str]:
    context = click.Context(command, info_name=path)
    usage = " ".join(command.collect_usage_pieces(context))
    yield f".SS {_text(f'{path} {usage}')}"
    yield from _paragraphs(command)
    for parameter in command.params:
        record = parameter.get_help_record(context)
        if record is not None and isinstance(parameter, click.Option):
            yield from (".TP", f".B {_text(record[0])}", _text(record[1]))


def _paragraphs(command: click.Command) -> Iterator[str]:
    for paragraph in (command.help or "").split("\n\n"):
        yield ".PP"
        yield _text(" ".join(paragraph.split()))


def _text(text: str) -> str:
    """`text` as troff prints it: no escapes, no request at its beginning."""
    text = text.replace("\\", "\\e").replace("-", "\\-").replace("…", "...")
    return f"\\&{text}" if text[:1] in (".", "'") else text
