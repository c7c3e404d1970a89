"""The first and last Python of a keeper: load one native module and become it.

Run as a file by `python -I -S`, so that neither `site` nor any other module is loaded, and by
way of execve(2), so that nothing of the launcher stays in memory.

Arguments: the directory that holds the package `shim`, the pipe budget in bytes, the descriptor
of the front's command, and the descriptors of listening sockets, each with its flags: FD:FLAGS.
"""

import sys

if __name__ == "__main__":
    sys.path.insert(0, sys.argv[1])
    from shim import _keeper

    budget, command = (int(text) for text in sys.argv[2:4])
    pairs = [text.split(":") for text in sys.argv[4:]]
    listeners = [(int(descriptor), int(flags)) for descriptor, flags in pairs]
    _keeper.run(listeners, command, budget)
