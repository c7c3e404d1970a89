"""The command run: a new container."""

from __future__ import annotations

import secrets
import sys
from pathlib import Path
from typing import Final

import click
from click.shell_completion import CompletionItem

from shim.cli.host_call import complete_image
from shim.cli.image import run_detached, run_image
from shim.cli.own import run_with_own_shim
from shim.cli.params import ATTACHED, DIRECTORY, LABEL, runtime_option
from shim.cli.report import OWN_FAILURE, reported
from shim.cli.wish import Wish

_END: Final = "--"


class _Run(click.Command):
    """Keeps the "--" between image and command, which click would swallow.

    The first one is doubled: then one is always left among the words.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As click's."""
        if _END in args:
            args.insert(args.index(_END), _END)
        return super().parse_args(ctx, args)


def _complete_first(
    ctx: click.Context, param: click.Parameter, word: str
) -> list[CompletionItem]:
    """The first word may be an image; the others are the command's."""
    return [] if ctx.params.get("words") else complete_image(ctx, param, word)


@click.command(cls=_Run, context_settings=ATTACHED)
@click.option("-t", "--terminal", is_flag=True, help="Give it a terminal.")
@click.option("-i", "--interactive", is_flag=True, help="Give it our stdin (else empty).")
@click.option("-d", "--detach", is_flag=True, help="Leave it running, and show its id.")
@click.option("--rm", "remove", is_flag=True, help="Remove what is made for it, too.")
@click.option("--label", "labels", type=LABEL, multiple=True, help="KEY=VALUE; may be repeated.")
@click.option("--bundle", type=DIRECTORY, help="Run this bundle's config.json.")
@click.option("--rootfs", type=DIRECTORY, help="Run in this root file system.")
@runtime_option
@click.option("--name", "--id", "id", help="The container's id (random).")
@click.argument("words", nargs=-1, metavar="[IMAGE] [--] [COMMAND]...",
                shell_complete=_complete_first)  # fmt: skip
def run(
    terminal: bool,
    interactive: bool,
    detach: bool,
    remove: bool,
    labels: tuple[tuple[str, str], ...],
    bundle: Path | None,
    rootfs: Path | None,
    runtime: str,
    id: str | None,
    words: tuple[str, ...],
) -> None:
    """Run COMMAND in a new container of IMAGE.

    IMAGE is a name that was imported; without COMMAND, what the image says is run. The container
    stays when this ends, as ps -a shows it, until rm; with --rm it is removed.

    With -d the container is left running, its output in its log, and, with -i, its stdin open for
    attach.

    Without IMAGE, as in "run -- COMMAND", or with --bundle or --rootfs, the container has a shim of
    its own and is gone when this ends. Its root holds the machine's busybox, and COMMAND is sh if
    not given; with --bundle COMMAND takes the place of the configured one. The bundle that was made
    for it, with what the container wrote to its root, stays, and is named on stderr; --rm removes
    it. A bundle or root of yours is never removed.

    Signals are sent on to COMMAND. The exit status is COMMAND's, 128+n if signal n ended it,
    125 if denseshim itself failed. When the reader of our output goes away, COMMAND is killed
    and the status is 141.
    """
    if bundle and rootfs:
        raise click.UsageError("--bundle names its own root: leave out --rootfs")
    image, command = image_and_command(words, bool(bundle or rootfs))
    _check(bool(image), detach, remove, bool(labels))
    name = id or f"denseshim-{secrets.token_hex(4)}"
    wish = Wish(name, image, command, dict(labels), runtime, terminal, interactive, remove)
    with reported(OWN_FAILURE):
        if not image:
            status = run_with_own_shim(wish, bundle, rootfs)
        elif detach:
            status = run_detached(wish)
        else:
            status = run_image(wish)
    sys.exit(status)


def image_and_command(words: tuple[str, ...], rooted: bool) -> tuple[str, tuple[str, ...]]:
    """The image, "" without one, and the command that `words`, with their "--" doubled, are.

    rooted: the root file system is given otherwise, so that no word names it.
    """
    before, end, after = _divided(words)
    if rooted or not before:
        return "", before + (end if before else ()) + after
    image, *command = before
    return image, (*command, *(end if command else ()), *after)


def _divided(words: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """What is before the first "--", this, and what is after it."""
    if _END not in words:
        return words, (), ()
    place = words.index(_END)
    rest = words[place + 1 :]
    return words[:place], (_END,), rest[1:] if rest[:1] == (_END,) else rest


def _check(image: bool, detach: bool, remove: bool, labels: bool) -> None:
    if not image and (detach or labels):
        raise click.UsageError("-d and --label need an IMAGE; import one: denseshim import")
    if detach and remove:
        raise click.UsageError("-d goes without --rm: nobody is there at its end; denseshim rm")
