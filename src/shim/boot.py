"""The first and last Python of a keeper: load one native module and become it.

Run as a file by `python -I -S`, so that neither `site` nor any other module is loaded, and by
way of execve(2), so that nothing of the launcher stays in memory.

The first argument is the directory that holds the package `shim`. Then one of these:

    BUDGET COMMAND FD:FLAGS...   be a new keeper: the pipe budget in bytes, the descriptor of the
                                 front's command, and listening sockets, each with its flags
    --resume STATE BACK          be the keeper in another version's place: its state, and the argv
                                 by which it comes back should this fail, or -1
    --check VERSION              exit with 0 when that would do, for states of this version
"""

import posix
import sys


def resume(program: list[str], state: int, back: int) -> None:
    """Take over, or give everything back to the version that was before."""
    done = False
    try:
        from shim import _keeper

        _keeper.resume(program, state, back)
        done = True
    finally:
        if not done and back >= 0:
            sys.excepthook(*sys.exc_info())
            words = posix.pread(back, 1 << 20, 0).split(b"\0")[:-1]
            posix.close(back)
            posix.execv(words[0], [*words, b"--resume", str(state).encode(), b"-1"])


def check(version: int) -> None:
    """Raises ImportError, or SystemExit when the states of that version cannot be read."""
    from shim import _keeper

    if version != _keeper.STATE:
        sys.exit(f"this keeper takes over states of version {_keeper.STATE}, not of {version}")


def run(program: list[str], budget: int, command: int, sockets: list[str]) -> None:
    """Be a new keeper."""
    from shim import _keeper

    pairs = [text.split(":") for text in sockets]
    listeners = [(int(descriptor), int(flags)) for descriptor, flags in pairs]
    _keeper.run(program, listeners, command, budget)


def main() -> None:
    arguments = sys.argv[2:]
    program = sys.orig_argv[: len(sys.orig_argv) - len(arguments)]
    sys.path.insert(0, sys.argv[1])
    if arguments[0] == "--resume":
        resume(program, int(arguments[1]), int(arguments[2]))
    elif arguments[0] == "--check":
        check(int(arguments[1]))
    else:
        run(program, int(arguments[0]), int(arguments[1]), arguments[2:])


if __name__ == "__main__":
    main()
