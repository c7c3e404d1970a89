"""Commands for a shell and its user: completion, man."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from shim.cli.manual import manual

_SHELLS = ("bash", "zsh", "fish")


@click.command()
@click.argument("shell", type=click.Choice(_SHELLS))
def completion(shell: str) -> None:
    """Print what makes SHELL complete our commands, containers and images.

    For bash: denseshim completion bash > /etc/bash_completion.d/denseshim
    """
    kind = get_completion_class(shell)
    assert kind is not None, shell
    root = click.get_current_context().find_root().command
    click.echo(kind(root, {}, "denseshim", "_DENSESHIM_COMPLETE").source())


@click.command()
def man() -> None:
    """Print our manual page, for man(1).

    To install it: denseshim man > /usr/local/share/man/man1/denseshim.1
    """
    root = click.get_current_context().find_root().command
    assert isinstance(root, click.Group)
    click.echo(manual(root), nl=False)
