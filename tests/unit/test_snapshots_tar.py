"""Reading archives: what other programs write, what is damaged, and what is made to hurt."""

import bz2
import gzip
import io
import itertools
import lzma
import os
import resource
import subprocess
import tarfile
import time
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shim.errors import FailedPrecondition, InvalidArgument
from shim.snapshots import zstd
from shim.snapshots.entry import Entry, Type, parts_of
from shim.snapshots.inflate import Exact, inflated
from shim.snapshots.limits import Budget, Limits
from shim.snapshots.tar import Reader


def read(data, must_end=True):
    """[(entry, content)], the content with its holes."""
    reader = Reader(Exact(io.BytesIO(data)), must_end)
    found = []
    for entry in reader:
        content = bytearray(entry.size)
        for offset, part in reader.content():
            content[offset : offset + len(part)] = part
        found.append((entry, bytes(content)))
    return found


def header(name, size=0, kind=b"0", **fields):
    """One block as ustar has it; `fields` are bytes by their place, as at_136=…."""
    block = bytearray(512)
    block[0 : len(name)] = name
    block[100:108] = b"0000644\0"
    block[108:124] = b"0000000\0" * 2
    block[124:136] = b"%011o\0" % size
    block[136:148] = b"00000000000\0"
    block[156:157] = kind
    block[257:265] = b"ustar\x0000"
    for place, value in fields.items():
        start = int(place.removeprefix("at_"))
        block[start : start + len(value)] = value
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def padded(data):
    return data + bytes(-len(data) % 512)


def pax(*records, kind=b"x"):
    data = b""
    for key, value in records:
        rest = b" " + key + b"=" + value + b"\n"
        length = len(rest) + len(str(len(rest) + len(str(len(rest)))))
        data += str(length).encode() + rest
    return header(b"pax", len(data), kind) + padded(data)


END = bytes(1024)


def python_tar(format, members):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=format) as tar:
        for name, content, facts in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            for key, value in facts.items():
                setattr(info, key, value)
            tar.addfile(info, io.BytesIO(content))
    return file.getvalue()


names = st.lists(
    st.text(st.characters(blacklist_characters="/\0", blacklist_categories=["Cs"]), min_size=1),
    min_size=1,
    max_size=4,
).map("/".join)


@settings(max_examples=60, deadline=None)
@given(
    format=st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
    members=st.lists(
        st.tuples(
            names,
            st.binary(max_size=2000),
            st.fixed_dictionaries(
                {
                    "mode": st.integers(0, 0o7777),
                    "uid": st.integers(0, 2**32 - 2),
                    "gid": st.integers(0, 2**32 - 2),
                    "mtime": st.integers(-(2**39), 2**39),
                }
            ),
        ),
        max_size=5,
    ),
)
def test_what_python_writes_is_read(format, members):
    found = read(python_tar(format, members))
    expected = [
        (name, content, facts["mode"], facts["uid"], facts["gid"], facts["mtime"] * 10**9)
        for name, content, facts in members
    ]
    assert [(e.name, c, e.mode, e.uid, e.gid, e.mtime) for e, c in found] == expected


def make_tree(root):
    """One file of each kind that GNU tar tells apart."""
    (root / "d").mkdir()
    (root / "d" / ("long" * 30)).write_bytes(b"x" * 1000)
    os.link(root / "d" / ("long" * 30), root / "linked")
    (root / "symbolic").symlink_to("d/" + "far" * 50)
    os.mkfifo(root / "fifo")
    os.mknod(root / "device", 0o20600, os.makedev(1, 3))
    with open(os.fsencode(root) + b"/not \xff utf8", "wb") as file:
        file.write(b"n")
    with open(root / "sparse", "wb") as file:
        for place in range(0, 4 << 20, 1 << 18):
            file.seek(place)
            file.write(b"part %d" % place)
        file.truncate(5 << 20)


@pytest.mark.parametrize(
    "options",
    [
        ["--format=gnu", "--sparse"],
        ["--format=posix", "--sparse", "--sparse-version=0.0"],
        ["--format=posix", "--sparse", "--sparse-version=0.1"],
        ["--format=posix", "--sparse", "--sparse-version=1.0"],
        ["--format=gnu"],
        ["--format=posix"],
    ],
    ids=" ".join,
)
def test_what_gnu_tar_writes_is_read(tmp_path, options):
    make_tree(tmp_path)
    command = ["tar", "--create", *options, "--sort=name", "--directory", str(tmp_path), "."]
    data = subprocess.run(command, check=True, capture_output=True).stdout
    found = {entry.name.removeprefix("./"): (entry, content) for entry, content in read(data)}
    for name, (entry, content) in found.items():
        facts = os.lstat(tmp_path / name)
        if entry.type is Type.FILE:
            assert content == (tmp_path / name).read_bytes()
            # Only pax has more than seconds.
            assert entry.mtime in (facts.st_mtime_ns, int(facts.st_mtime) * 10**9)
    assert {name: entry.type for name, (entry, _) in found.items()} == {
        "": Type.DIRECTORY,
        "d/": Type.DIRECTORY,
        "d/" + "long" * 30: Type.FILE,
        "device": Type.CHARACTER,
        "fifo": Type.FIFO,
        "linked": Type.HARD_LINK,
        "not \udcff utf8": Type.FILE,
        "sparse": Type.FILE,
        "symbolic": Type.SYMLINK,
    }
    assert found["device"][0].device == (1, 3)
    assert found["symbolic"][0].link == "d/" + "far" * 50


def test_pax_records_count_more_than_the_header():
    data = pax(
        (b"path", b"real/\xff"), (b"size", b"3"), (b"uid", b"70000"), (b"mtime", b"-1.25"),
        (b"SCHILY.xattr.user.a", b"\xff\n\0="),
    )  # fmt: skip
    ((entry, content),) = read(data + header(b"other", 0) + padded(b"abc") + END)
    assert (entry.name, content, entry.uid) == ("real/\udcff", b"abc", 70000)
    assert (entry.mtime, entry.xattrs) == (-1_250_000_000, {"user.a": b"\xff\n\0="})


def test_a_global_header_is_for_all_that_follow_and_an_own_one_overrides_it():
    data = pax((b"uid", b"5"), (b"comment", b"x"), kind=b"g") + header(b"a")
    data += pax((b"uid", b"6")) + header(b"b") + header(b"c") + END
    assert [(entry.name, entry.uid) for entry, _ in read(data)] == [("a", 5), ("b", 6), ("c", 5)]


def test_old_archives_name_directories_by_a_slash_and_a_label_is_no_file():
    data = header(b"label", 0, b"V") + header(b"d/", 0, b"\0", at_257=bytes(8)) + END
    assert [(e.name, e.type) for e, _ in read(data)] == [("d/", Type.DIRECTORY)]


def test_a_check_sum_may_be_of_signed_bytes():
    block = bytearray(header(b"\xff\xfe"))
    unsigned = int(block[148:154], 8)
    block[148:156] = b"%06o\0 " % (unsigned - 2 * 256)
    assert [entry.name for entry, _ in read(bytes(block) + END)] == ["\udcff\udcfe"]


def test_only_files_have_content_whatever_a_link_says():
    data = header(b"l", 4096, b"1", at_157=b"t") + header(b"after") + END
    assert [entry.name for entry, _ in read(data)] == ["l", "after"]


@pytest.mark.parametrize(
    "data",
    {
        "nothing": b"",
        "no tar": b"x" * 1024,
        "no end": header(b"a"),
        "half a header": header(b"a") + header(b"b")[:100],
        "half a file": header(b"a", 2000) + b"x" * 600,
        "no padding": header(b"a", 5) + b"12345",
        "zeros, then more": header(b"a") + bytes(512) + header(b"b") + END,
        "a damaged header": header(b"a") + header(b"b").replace(b"b", b"c", 1) + END,
        "a number that is none": header(b"a", at_100=b"0000x44\0") + END,
        "a negative size": header(b"a", at_124=b"\xff" * 12) + END,
        "an unknown type": header(b"a", 0, b"Z") + END,
        "a name for nothing": header(b"L", 5, b"L") + padded(b"name\0") + END,
        "a name without an end": header(b"L", 1 << 40, b"L") + bytes(4096),
        "pax without an end": header(b"x", 1 << 40, b"x") + bytes(4096),
        "pax that is none": header(b"x", 5, b"x") + padded(b"hello") + header(b"a") + END,
        "pax beyond its header": header(b"x", 9, b"x") + padded(b"99 a=bcd\n") + header(b"a") + END,
        "pax of length 0": header(b"x", 6, b"x") + padded(b"0 a=b\n") + header(b"a") + END,
        "a size that is none": pax((b"size", b"1e3")) + header(b"a") + END,
        "a negative size in pax": pax((b"size", b"-1")) + header(b"a") + END,
        "a huge size": pax((b"size", b"9" * 19)) + header(b"a") + END,
        "a time that is none": pax((b"mtime", b"1e999999999")) + header(b"a") + END,
        "a time out of range": pax((b"mtime", b"9" * 15)) + header(b"a") + END,
        "nobody's uid": pax((b"uid", b"%d" % (2**32 - 1))) + header(b"a") + END,
        "a huge uid": pax((b"uid", b"9" * 18)) + header(b"a") + END,
        "a huge device": header(b"a", 0, b"3", at_329=b"7777777\0") + END,
        "NUL in a link": pax((b"linkpath", b"a\0b")) + header(b"a", 0, b"2") + END,
        "NUL in an attribute": pax((b"SCHILY.xattr.user.\0", b"")) + header(b"a") + END,
    }.items(),
    ids=lambda row: row[0],
)
def test_what_is_damaged_is_refused(data):
    with pytest.raises(InvalidArgument):
        read(data[1])


def test_a_layer_may_lack_the_mark_of_its_end():
    assert [entry.name for entry, _ in read(header(b"a"), must_end=False)] == ["a"]
    assert read(b"", must_end=False) == []


def sparse(size, *numbers, stored=0):
    text = b",".join(b"%d" % number for number in numbers)
    records = ((b"GNU.sparse.size", b"%d" % size), (b"GNU.sparse.map", text))
    return pax(*records) + header(b"a", stored) + bytes(-(-stored // 512) * 512) + END


@pytest.mark.parametrize(
    "data",
    {
        "over each other": sparse(100, 0, 10, 5, 10, stored=20),
        "backwards": sparse(100, 50, 10, 0, 10, stored=20),
        "beyond the end": sparse(10, 5, 10, stored=10),
        "more than there is": sparse(100, 0, 50, stored=10),
        "less than there is": sparse(100, 0, 5, stored=10),
        "half a piece": sparse(100, 0, 10, 50, stored=10),
        "a file of no size": pax((b"GNU.sparse.size", b"x")) + header(b"a") + END,
        "too many": sparse(1 << 40, *range(1 << 18)),
        "a count of too many": pax(
            (b"GNU.sparse.major", b"1"), (b"GNU.sparse.realsize", b"9")
        ) + header(b"a", 512) + padded(b"99999999999\n") + END,
        "lines without an end": pax(
            (b"GNU.sparse.major", b"1"), (b"GNU.sparse.realsize", b"9")
        ) + header(b"a", 2048) + b"1" * 2048 + END,
    }.items(),
    ids=lambda row: row[0],
)  # fmt: skip
def test_a_sparse_file_that_does_not_fit_is_refused(data):
    with pytest.raises(InvalidArgument):
        read(data[1])


def repeated(data, times):
    """A source that gives `data` so many times, without holding all of it."""
    return Exact(Pieces(itertools.repeat(data, times)))


class Pieces:
    def __init__(self, pieces):
        self.pieces = iter(pieces)
        self.held = b""

    def read(self, size):
        self.held = self.held or next(self.pieces, b"")
        data, self.held = self.held[:size], self.held[size:]
        return data


@pytest.mark.parametrize("kind", [b"x", b"L", b"K", b"g"])
def test_headers_before_one_file_are_bounded_together(kind):
    """They would be held in memory, and packed they are small."""
    one = header(b"x", 1_000_000, kind) + padded(b"1000000 comment=".ljust(999_999, b"A") + b"\n")
    tracemalloc.start()
    try:
        with pytest.raises(InvalidArgument, match="headers for one file"):
            list(Reader(repeated(one, 100)))
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", [b"x", b"V"])
def test_headers_of_nothing_are_counted(kind):
    with pytest.raises(InvalidArgument, match="more than 40 headers"):
        list(Reader(repeated(header(b"x", 0, kind), 100), budget=Budget(Limits(entries=10))))


def test_a_tar_s_headers_are_counted_beside_its_files():
    """So many as a file may have: two long names, and pax records."""
    one = (
        header(b"L", 2, b"L") + padded(b"n\0") + header(b"K", 2, b"K") + padded(b"k\0")
        + pax((b"mtime", b"1")) + header(b"a")
    )  # fmt: skip
    entries = list(Reader(repeated(one, 10), must_end=False, budget=Budget(Limits(entries=10))))
    assert len(entries) == 10


def test_many_records_are_read_as_fast_as_few():
    """Copying what is left for each of them takes seconds."""
    data = b"6 ab=\n" * ((1 << 20) // 6)
    archive = header(b"x", len(data), b"x") + padded(data) + header(b"a") + END
    before = time.process_time()
    assert len(read(archive)) == 1
    assert time.process_time() - before < 1


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_damaged_archive_is_read_or_refused(data):
    members = [("a" * 120, b"12345", {"mtime": 1.5}), ("b", b"x" * 700, {})]
    whole = bytearray(python_tar(tarfile.PAX_FORMAT, members))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(whole) - 1))
        whole[place] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(whole)))
    reader = Reader(Exact(io.BytesIO(bytes(whole[:cut]))))
    try:
        for entry in reader:
            assert isinstance(entry, Entry)
            sum(len(part) for _, part in reader.content())
    except InvalidArgument:
        pass


@pytest.mark.parametrize("name", ["/a", "..", "a/../b", "a/..", "../a", "./../a", "//"])
def test_a_name_may_not_lead_out(name):
    with pytest.raises(InvalidArgument, match="leads out"):
        parts_of(name)


def test_dots_and_slashes_in_a_name_mean_nothing():
    assert parts_of("./a//b/./..c/") == ["a", "b", "..c"]
    assert parts_of("./") == parts_of("") == []


def zstd_compress(data):
    return subprocess.run(["zstd", "-c"], input=data, check=True, capture_output=True).stdout


PACKERS = {
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "zstd": zstd_compress,
}
packers = pytest.mark.parametrize("pack", PACKERS.values(), ids=PACKERS)


class Dribble:
    """Gives a few bytes at a time."""

    def __init__(self, data, step):
        self.file = io.BytesIO(data)
        self.step = step

    def read(self, size):
        return self.file.read(min(size, self.step))


def whole(source, size=70_000):
    parts = []
    while part := source.read(size):
        parts.append(part)
    return b"".join(parts)


DATA = os.urandom(100_000) + bytes(900_000)


@packers
@pytest.mark.parametrize("step", [1009, 1 << 20])
def test_compressed_data_are_read_in_any_number_of_streams(pack, step):
    packed = pack(DATA[:150_000]) + pack(b"") + pack(DATA[150_000:])
    assert whole(inflated(Dribble(packed, step))) == DATA


@packers
def test_zeros_may_follow(pack):
    assert whole(inflated(Dribble(pack(b"data") + bytes(4096), 100))) == b"data"


@packers
@pytest.mark.parametrize("change", ["cut", "flip", "append"])
def test_damaged_data_are_refused(pack, change):
    packed = bytearray(pack(DATA))
    if change == "cut":
        del packed[-3:]
    elif change == "flip":
        packed[len(packed) // 2] ^= 0xFF
    else:
        packed += b"garbage"
    with pytest.raises(InvalidArgument):
        assert whole(inflated(io.BytesIO(bytes(packed)))) == DATA, "a check sum was not looked at"


def test_what_is_not_compressed_stays_as_it_is():
    assert whole(inflated(io.BytesIO(DATA))) == DATA
    assert whole(inflated(io.BytesIO(b""))) == b""


@packers
def test_a_bomb_takes_no_memory(pack):
    source = inflated(io.BytesIO(pack(bytes(64 << 20))))
    tracemalloc.start()
    try:
        total = 0
        while part := source.read(1 << 16):
            total += len(part)
        assert total == 64 << 20
        assert tracemalloc.get_traced_memory()[1] < 16 << 20  # xz looks back by 8 MiB
    finally:
        tracemalloc.stop()


def test_an_xz_that_wants_too_much_memory_is_refused():
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 29}]
    packed = bytearray(lzma.compress(b"x", lzma.FORMAT_XZ, filters=filters))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InvalidArgument, match="xz"):
        whole(inflated(io.BytesIO(bytes(packed))))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10  # KiB


def test_without_its_library_zstd_is_refused_with_what_to_do(monkeypatch):
    monkeypatch.setattr(zstd, "_LIBRARY", "libnosuch.so.1")
    with pytest.raises(FailedPrecondition, match="install libzstd"):
        inflated(io.BytesIO(zstd_compress(b"x"))).read(1)
