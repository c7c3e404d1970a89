import contextlib
import errno
import fcntl
import os
import resource
import select
import signal
import socket
import stat
from concurrent.futures import ThreadPoolExecutor, wait
from functools import partial

import pytest

from shim import stdio, syscalls
from shim.errors import InvalidArgument, ResourceExhausted

WALL = 0x40000000  # waitid(2): children of every kind


def open_descriptors():
    return set(os.listdir("/proc/self/fd"))


def flags(descriptor):
    return fcntl.fcntl(descriptor, fcntl.F_GETFL)


def mode(descriptor):
    return flags(descriptor) & os.O_ACCMODE


@pytest.fixture
def fifo(tmp_path):
    path = tmp_path / "fifo"
    os.mkfifo(path)
    return str(path)


@pytest.fixture
def no_descriptors_left():
    """Call it to have none left from then on."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield lambda left: resource.setrlimit(resource.RLIMIT_NOFILE, (_next() + left, limits[1]))
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def _next():
    """The lowest number that is free, with none free below it after it is taken."""
    descriptor = os.open("/", os.O_RDONLY)
    os.close(descriptor)
    return descriptor


def test_a_fifo_is_found_and_not_opened(fifo):
    """Its client must not see an end when the finder dies."""
    before = open_descriptors()
    found = stdio.find_fifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    assert not select.select([reader], [], [], 0)[0]
    assert flags(found.path) & os.O_PATH
    assert not os.get_inheritable(found.path)
    assert os.path.samestat(os.fstat(found.path), os.stat(fifo))
    stdio.close_all([*found, reader])
    assert open_descriptors() == before


@pytest.mark.parametrize("input", [False, True])
def test_a_fifo_is_sent_with_both_its_ends(fifo, input):
    """To whom keeps them: the sender has none of them open afterwards, and no child."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    found, before = stdio.find_fifo(fifo), open_descriptors()
    with ours, theirs:
        syscalls.send_fifo(ours.fileno(), b"record", found.path, found.path, input=input)
        assert open_descriptors() == before
        with pytest.raises(ChildProcessError):
            os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT | WALL)
        text, sent, _, _ = socket.recv_fds(theirs, 100, 4)
        assert text == b"record"
        reading, other, writing = sent if input else [sent[2], sent[0], sent[1]]
        assert flags(other) & os.O_PATH
        assert (mode(writing), mode(reading)) == (os.O_WRONLY, os.O_RDONLY)
        assert flags(writing) & flags(reading) & os.O_NONBLOCK
        os.write(writing, b"through")
        assert os.read(reading, 100) == b"through"
        stdio.close_all([*sent, *found])


def test_a_fifo_s_reader_sees_no_end_though_its_sender_is_killed(fifo):
    """Between opening it, which wakes the reader, and sending it; the channel is full till then."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    found = stdio.find_fifo(fifo)
    with ours, theirs, ThreadPoolExecutor(1) as pool:
        ours.setblocking(False)
        waiting = _fill(ours)
        reading = pool.submit(os.open, fifo, os.O_RDONLY)  # as a client: it waits for a writer
        sender = os.fork()
        if sender == 0:
            syscalls.send_fifo(ours.fileno(), b"record", found.path, found.path, input=False)
            os._exit(1)
        reader = reading.result()
        os.kill(sender, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(sender, 0)[1]) == -signal.SIGKILL
        ours.close()
        for _ in range(waiting):
            theirs.recv(2000)
        text, sent, _, _ = socket.recv_fds(theirs, 100, 4)
        assert text == b"record"
        assert not select.select([reader], [], [], 0)[0]
        os.write(sent[1], b"words")
        assert os.read(reader, 100) == b"words"
        assert theirs.recv(100) == b""  # nobody is left
        stdio.close_all([*sent, *found, reader])


def _fill(sock):
    """Send until the socket takes no more; how many packets that were."""
    waiting = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            sock.send(b"x" * 1000)
            waiting += 1
    return waiting


def test_a_fifo_that_cannot_be_sent_is_closed(fifo):
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    found = stdio.find_fifo(fifo)
    with ours:
        theirs.close()
        before = open_descriptors()
        with pytest.raises(BrokenPipeError):
            syscalls.send_fifo(ours.fileno(), b"record", found.path, found.path, input=False)
        with pytest.raises(OSError, match="Bad file descriptor"):
            syscalls.send_fifo(ours.fileno(), b"record", -1, found.path, input=False)
        assert open_descriptors() == before
    stdio.close_all(found)


def test_sending_a_fifo_waits_until_the_receiver_has_room(fifo):
    """The channel never blocks the front; this is called from a thread that may wait."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    found = stdio.find_fifo(fifo)
    with ours, theirs, ThreadPoolExecutor(1) as pool:
        ours.setblocking(False)
        waiting = _fill(ours)
        send = partial(syscalls.send_fifo, ours.fileno(), b"record", found.path, found.path)
        sending = pool.submit(send, input=False)
        assert not wait([sending], timeout=0.1).done  # it would have failed by now
        for _ in range(waiting):
            theirs.recv(2000)
        text, sent, _, _ = socket.recv_fds(theirs, 100, 4)
        assert text == b"record"
        sending.result()
        stdio.close_all([*sent, *found])


def _refused(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "directory").mkdir()
    os.mkfifo(tmp_path / "real")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "socket"))
    names = ("missing", "file", "directory", "link", "socket", "file/below", "nul\0", "x" * 300)
    return [str(tmp_path / name) for name in names] + ["relative", "", "/dev/null"]


def test_what_is_not_the_absolute_path_of_a_fifo_is_refused_by_name(tmp_path):
    before = open_descriptors()
    for path in _refused(tmp_path):
        with pytest.raises(InvalidArgument) as caught:
            stdio.find_fifo(path)
        assert repr(path) in str(caught.value)
    assert open_descriptors() == before


def test_a_relative_path_is_refused_though_there_is_a_fifo(fifo, monkeypatch):
    monkeypatch.chdir(os.path.dirname(fifo))
    with pytest.raises(InvalidArgument, match="not an absolute path"):
        stdio.find_fifo(os.path.basename(fifo))


def test_a_linked_parent_directory_is_fine(tmp_path, fifo):
    (tmp_path / "link").symlink_to(tmp_path)
    stdio.close_all(stdio.find_fifo(str(tmp_path / "link" / "fifo")))


@pytest.mark.parametrize("opener", [stdio.find_fifo, stdio.open_sink])
def test_running_out_of_descriptors_is_told_by_name(fifo, opener, no_descriptors_left):
    no_descriptors_left(0)
    with pytest.raises(ResourceExhausted, match="fifo"):
        opener(fifo)


@pytest.mark.parametrize("left", [0, 1])
def test_a_fifo_that_cannot_be_opened_is_not_sent(fifo, left, no_descriptors_left):
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    found, before = stdio.find_fifo(fifo), len(open_descriptors())
    with ours, theirs:
        no_descriptors_left(left)
        with pytest.raises(OSError, match="Too many open files"):
            syscalls.send_fifo(ours.fileno(), b"record", found.path, found.path, input=True)
        resource.setrlimit(resource.RLIMIT_NOFILE, (1024, resource.getrlimit(7)[1]))
        assert len(open_descriptors()) == before
        assert not select.select([theirs], [], [], 0)[0]
    stdio.close_all(found)


def test_a_sink_is_a_fifo_or_a_file_that_is_there(tmp_path, fifo):
    opened = stdio.open_sink(fifo)
    assert isinstance(opened, stdio.FoundFifo)
    stdio.close_all(opened)
    (tmp_path / "file").write_text("old ")
    opened = stdio.open_sink(str(tmp_path / "file"))
    assert isinstance(opened, stdio.OutputFile)
    assert flags(opened.sink) & (os.O_APPEND | os.O_NONBLOCK) == os.O_APPEND | os.O_NONBLOCK
    os.write(opened.sink, b"new")
    stdio.close_all(opened)
    assert (tmp_path / "file").read_text() == "old new"
    before = open_descriptors()
    for path in _refused(tmp_path):
        if path != f"{tmp_path}/file":
            with pytest.raises(InvalidArgument):
                stdio.open_sink(path)
    assert open_descriptors() == before


@pytest.mark.parametrize("name", ["directory", "real", "file/below", "nul\0", "x" * 300])
def test_a_file_that_cannot_be_written_is_refused(tmp_path, name):
    _refused(tmp_path)
    before = open_descriptors()
    with pytest.raises(InvalidArgument, match="stdio"):
        stdio.open_file(str(tmp_path / name))
    with pytest.raises(InvalidArgument, match="not a regular file"):
        stdio.open_file("/dev/null")
    assert open_descriptors() == before


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", (stdio.Scheme.PATH, "", ())),
        ("/run/a:b?c#d%20", (stdio.Scheme.PATH, "/run/a:b?c#d%20", ())),
        ("fifo:///a%20b", (stdio.Scheme.FIFO, "/a b", ())),
        ("FILE:///a?x=1#y", (stdio.Scheme.FILE, "/a", ("x", "1"))),
        ("binary:/a", (stdio.Scheme.BINARY, "/a", ())),
        ("binary:///a?", (stdio.Scheme.BINARY, "/a", ())),
        ("binary-v2:///a?k=v&e&k=w", (stdio.Scheme.BINARY_V2, "/a", ("k", "v", "e", ""))),
        ("log:///a?max_files=2", (stdio.Scheme.LOG, "/a", ("max_files", "2"))),
        ("binary:///%ff?a%26=%ff+", (stdio.Scheme.BINARY, "/\udcff", ("a&", "\udcff "))),
    ],
)
def test_a_place_is_a_path_or_a_uri(text, expected):
    assert stdio.parse_place(text) == expected


def log_files(text):
    return stdio.parse_log(stdio.parse_place(text))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("log:///a/b%20c/0.log", ("/a/b c", "0.log", 16 << 20, 5)),
        ("LOG:/x?max_files=1&max_size=32768&max_size=1", ("/", "x", 32768, 1)),
        ("log:///a/x?max_size=1099511627776&max_files=100", ("/a", "x", 1 << 40, 100)),
        (f"log:///a/{'x' * 200}", ("/a", "x" * 200, 16 << 20, 5)),
    ],
)
def test_a_log_has_a_place_and_bounds(text, expected):
    assert log_files(text) == expected


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("log:///a/x?max_size=32767", "max_size .* 32768 to 1099511627776, not '32767'"),
        ("log:///a/x?max_size=1099511627777", "max_size"),
        ("log:///a/x?max_size=-1", "max_size"),
        ("log:///a/x?max_size=1e9", "max_size"),
        ("log:///a/x?max_size=", "max_size"),
        (f"log:///a/x?max_size={'9' * 5000}", "max_size"),
        ("log:///a/x?max_files=0", "max_files .* 1 to 100, not '0'"),
        ("log:///a/x?max_files=101", "max_files"),
        ("log:///a/x?max_files=%C2%B2", "max_files"),
        ("log:///a/x?max-size=65536&b", "know b, max-size; it has max_size and max_files"),
        ("log:///a/", "needs a name"),
        ("log:///", "needs a name"),
        (f"log:///a/{'x' * 201}", "200 bytes"),
        (f"log:///a/{'%C3%A4' * 101}", "200 bytes"),
        ("log:///a/../x", "without"),
        ("log:///a/%2e/x", "without"),
        ("log:///..x", "without"),
        ("log:///.", "without"),
        ("log://host/a/x", "absolute"),
        ("log:a/x", "absolute"),
    ],
)
def test_a_log_out_of_bounds_is_refused(text, says):
    with pytest.raises(InvalidArgument, match=says):
        log_files(text)


def test_a_log_s_directory_is_made_for_root_alone(tmp_path):
    before = open_descriptors()
    made = stdio.open_log(str(tmp_path / "a" / "id" / "0.log"))
    assert open_descriptors() - before == {str(made.directory)}
    assert os.path.samestat(os.fstat(made.directory), os.stat(tmp_path / "a" / "id"))
    assert stat.S_IMODE(os.fstat(made.directory).st_mode) == 0o700
    again = stdio.open_log(str(tmp_path / "a" / "id" / "0.log"))
    stdio.close_all([*made, *again])


@pytest.mark.parametrize("path", ["link/0.log", "link/id/0.log", "file/0.log", "fifo/0.log"])
def test_a_log_is_not_found_over_a_link_nor_below_what_is_no_directory(tmp_path, path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "fifo")
    before = open_descriptors()
    with pytest.raises(InvalidArgument, match="Not a directory"):
        stdio.open_log(str(tmp_path / path))
    assert open_descriptors() == before
    assert not list((tmp_path / "real").iterdir())


def test_no_pipe_without_descriptors(no_descriptors_left):
    no_descriptors_left(1)
    with pytest.raises(ResourceExhausted, match="pipe"):
        stdio.pipe_for_output()


@pytest.mark.parametrize(
    ("make", "ours"), [(stdio.pipe_for_output, os.O_RDONLY), (stdio.pipe_for_input, os.O_WRONLY)]
)
def test_only_our_end_of_a_pipe_is_non_blocking(make, ours):
    pipe = make()
    assert mode(pipe.ours) == ours
    assert flags(pipe.ours) & os.O_NONBLOCK
    assert not flags(pipe.theirs) & os.O_NONBLOCK
    assert not os.get_inheritable(pipe.ours)
    assert not os.get_inheritable(pipe.theirs)
    stdio.close_all(pipe)


def test_descriptors_closes_what_was_not_taken():
    reading, writing = os.pipe()
    with stdio.Descriptors() as owner:
        assert owner.own(reading) == reading
        owner.own(writing)
        assert owner.take(writing) == writing
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(reading)
    os.close(writing)


def test_taking_what_is_not_owned_is_an_error():
    with stdio.Descriptors() as owner, pytest.raises(KeyError):
        owner.take(0)


def test_one_failing_close_does_not_keep_the_others_open():
    reading, writing = os.pipe()
    os.close(reading)
    with pytest.raises(OSError, match="Bad file descriptor") as caught:
        stdio.close_all([writing, reading])
    assert caught.value.errno == errno.EBADF
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(writing)
