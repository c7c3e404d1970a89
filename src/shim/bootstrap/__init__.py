"""What containerd's launcher is asked, and what it answers: bytes and values, nothing else.

The contract is runtime-v2's: command line, stdin and stdout of a launcher, options, groups.
Whatever the bytes are, these functions raise nothing but InvalidArgument.
"""
