# Logs: what processes print, in files with one record a line, in the CRI's format of Kubernetes:
#
#     2026-01-31T23:59:59.000000000Z stdout F a whole line
#
# time (RFC 3339, UTC), stream, tag, and the text, whose bytes are kept as they are. The tag is F
# where the line ends with its record, and P where it goes on, or where the stream has ended in
# the middle of it. A record has at most LINE bytes of text.
#
# FILE is the newest; when a record does not fit any more, FILE becomes FILE.1, FILE.1 becomes
# FILE.2, and so on; the oldest is lost. The streams of one log share its file; each write appends
# whole records, and what a full disk cuts off is taken back, so that no reader and no other stream
# ever meets a torn one.
#
# Nothing here waits, and nothing is written to disk on purpose: the kernel does that.

from libc.errno cimport errno
from libc.stdint cimport uint32_t, uint64_t
from clock cimport SECOND, realtime
from fds cimport drop
from linux cimport *
from table cimport NONE, Map, arena, map_find, map_open, map_put, map_remove

cdef enum:
    LINE = 16 << 10            # bytes of text in one record, at most
    GULP = 64 << 10            # bytes of one read(2)
    TEXT = LINE + GULP         # bytes that a stream may have read and not written
    COMPOSED = 128 << 10       # bytes of one writev(2), but for long lines
    LONG = 2 << 10             # bytes of a line that is not copied for its writev(2)
    PIECES = 128               # vectors of one writev(2)
    PREFIX = 40                # bytes before the text
    STREAM_AT = 31             # where the stream's name is in it
    TAG_AT = 38
    LEAST_LIMIT = 32 << 10     # a file takes any record
    MOST_FILES = 100
    MOST_STREAMS = 1 << 16     # that write to logs
    MORE = -1                  # outcome: there are records left
    LOG_NAME = 200             # bytes of a file's name, at most
    NUMBERED = 208             # of one with its number, and NUL

cdef struct Log:
    uint64_t id
    uint64_t limit             # bytes of a file: only a longer record makes it longer
    uint64_t size              # of the present file
    uint64_t written           # bytes in all
    uint64_t device, inode     # the same
    uint64_t checked           # the loop's time when the file was last compared with its name
    int directory, file        # owned
    int error                  # of the last turn: no room, not rotated, not opened again
    uint32_t files             # how many, with the present one
    uint32_t streams           # that write to it; 0: a free slot
    uint32_t next              # of the free list
    uint32_t length            # of the name
    char name[208]             # the rest is NUL

cdef struct Logs:
    Log *all
    uint32_t most, used, free
    Map ids
    char *kept                 # TEXT bytes for each place, which is a stream's
    uint32_t *places           # that were given back
    uint32_t places_back, places_used
    char *text                 # TEXT bytes: what is being written
    char *composed             # COMPOSED bytes
    uint64_t second            # what `prefix` tells; 0: nothing
    char prefix[48]

cdef struct Batch:
    # Records for one writev(2).
    iovec vectors[PIECES]
    int count
    size_t size                # bytes of all vectors
    size_t taken               # bytes of the text that they have


cdef inline bint logs_open(Logs *logs, uint32_t most) noexcept nogil:
    """Room for the logs of `most` streams. False: no memory."""
    most = min(most, <uint32_t>MOST_STREAMS)
    logs.most = most
    logs.free = NONE
    logs.all = <Log *>arena(most * sizeof(Log))
    logs.kept = <char *>arena(<size_t>most * TEXT)
    logs.places = <uint32_t *>arena(most * sizeof(uint32_t))
    logs.text = <char *>arena(TEXT)
    logs.composed = <char *>arena(COMPOSED)
    if logs.all == NULL or logs.kept == NULL or logs.places == NULL:
        return False
    return logs.text != NULL and logs.composed != NULL and map_open(&logs.ids, most)


cdef inline uint32_t take_place(Logs *logs) noexcept nogil:
    """A place for what a stream has read and not written; NONE: there is none left."""
    if logs.places_back:
        logs.places_back -= 1
        return logs.places[logs.places_back]
    if logs.places_used == logs.most:
        return NONE
    logs.places_used += 1
    return logs.places_used - 1


cdef inline void give_place(Logs *logs, uint32_t place) noexcept nogil:
    logs.places[logs.places_back] = place
    logs.places_back += 1


cdef inline char *text_at(Logs *logs, uint32_t place) noexcept nogil:
    return logs.kept + <size_t>place * TEXT


# ---- files

cdef inline bint ends_in_the_middle(int file, uint64_t size) noexcept nogil:
    """Whether the last record is torn: whoever wrote it has died over it."""
    cdef char last = c'\n'
    pread(file, &last, 1, <long>size - 1)
    return last != c'\n'


cdef inline int create(Log *log) noexcept nogil:
    """A descriptor of the file under the log's name, new or found; -1 and errno."""
    cdef int flags = O_RDWR | O_APPEND | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC
    cdef int file = openat(log.directory, log.name, flags | O_CREAT | O_EXCL, 0o640)
    if file >= 0:
        fchmod(file, 0o640)    # whatever the umask is
    elif errno == EEXIST:
        file = openat(log.directory, log.name, flags)
    return file


cdef inline int open_file(Log *log) noexcept nogil:
    """Append to the file under the log's name from now on; on an errno, to the one before."""
    cdef stat_t facts
    cdef int error = 0
    cdef int file = create(log)
    if file < 0:
        return errno
    if fstat(file, &facts) < 0 or not S_ISREG(facts.st_mode):
        error = EINVAL
    elif facts.st_size and ends_in_the_middle(file, facts.st_size):
        error = 0 if write(file, b"\n", 1) == 1 else errno
        facts.st_size += 1
    if error:
        close(file)
        return error
    drop(&log.file)
    log.file = file
    log.device, log.inode = facts.st_dev, facts.st_ino
    log.size = <uint64_t>facts.st_size
    return 0


cdef inline void check_file(Log *log, uint64_t now) noexcept nogil:
    """Once a turn of the loop: go on in a new file where somebody has moved or removed ours."""
    cdef stat_t facts
    if log.checked == now:
        return
    log.checked = now
    log.error = 0
    if fstatat(log.directory, log.name, &facts, AT_SYMLINK_NOFOLLOW) == 0:
        if facts.st_dev == log.device and facts.st_ino == log.inode:
            log.size = <uint64_t>facts.st_size
            return
    log.error = open_file(log)


cdef inline void put_name(Log *log, uint32_t number, char *name) noexcept nogil:
    """FILE.NUMBER; FILE itself is number 0."""
    memcpy(name, log.name, NUMBERED)
    if number:
        name[log.length] = c'.'
        ds_number(name + log.length + 1, NUMBERED - LOG_NAME - 1, number)


cdef inline bint is_there(Log *log, uint32_t number) noexcept nogil:
    cdef char name[NUMBERED]
    cdef stat_t facts
    put_name(log, number, name)
    return fstatat(log.directory, name, &facts, AT_SYMLINK_NOFOLLOW) == 0


cdef inline int move_on(Log *log) noexcept nogil:
    """FILE becomes FILE.1, and what was that FILE.2, up to the first gap: a keeper that has died
    over this leaves one. 0 or an errno.

    The oldest is removed, not replaced: a rename over a file has ext4 write out what takes its
    place (ext4(5), auto_da_alloc).
    """
    cdef char old[NUMBERED]
    cdef char new[NUMBERED]
    cdef uint32_t number = 0
    while number < log.files - 1 and is_there(log, number):
        number += 1
    put_name(log, number, old)
    if unlinkat(log.directory, old, 0) < 0 and errno != ENOENT:
        return errno
    while number:
        put_name(log, number - 1, old)
        put_name(log, number, new)
        if renameat(log.directory, old, log.directory, new) < 0 and errno != ENOENT:
            return errno
        number -= 1
    return 0


cdef inline int rotate(Log *log) noexcept nogil:
    """Go on in an empty file. On an errno the present one grows on; one that nobody can find any
    more, its directory having been removed, is emptied instead."""
    cdef stat_t facts
    cdef int error = move_on(log)
    if not error:
        error = open_file(log)
    if error and fstat(log.file, &facts) == 0 and facts.st_nlink == 0:
        if ftruncate(log.file, 0) == 0:
            log.size = 0
    return error


# ---- records

cdef inline void put_number(char *text, int digits, uint64_t number) noexcept nogil:
    while digits:
        digits -= 1
        text[digits] = <char>(c'0' + number % 10)
        number //= 10


cdef inline bint is_leap(uint32_t year) noexcept nogil:
    return year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)


cdef inline uint32_t days_of(uint32_t month, uint32_t year) noexcept nogil:
    if month == 2:
        return 28 + is_leap(year)
    return 30 if month == 4 or month == 6 or month == 9 or month == 11 else 31


cdef inline void put_second(char *text, uint64_t second) noexcept nogil:
    """The date and the time of day in UTC, 19 bytes: libc's own may read files and allocate."""
    cdef uint64_t days = second // 86400
    cdef uint32_t year = 1970
    cdef uint32_t month = 1
    while days >= <uint64_t>365 + is_leap(year):
        days -= 365 + is_leap(year)
        year += 1
    while days >= days_of(month, year):
        days -= days_of(month, year)
        month += 1
    put_number(text, 4, year)
    put_number(text + 5, 2, month)
    put_number(text + 8, 2, days + 1)
    put_number(text + 11, 2, second // 3600 % 24)
    put_number(text + 14, 2, second // 60 % 60)
    put_number(text + 17, 2, second % 60)


cdef inline void set_prefix(Logs *logs, const char *stream) noexcept nogil:
    """The present time, and the stream's name."""
    cdef uint64_t now = realtime()
    if now // SECOND != logs.second:
        logs.second = now // SECOND
        memcpy(logs.prefix, b"0000-00-00T00:00:00.000000000Z ?????? ? ", PREFIX)
        put_second(logs.prefix, logs.second)
    put_number(logs.prefix + 20, 9, now % SECOND)
    memcpy(logs.prefix + STREAM_AT, stream, 6)


cdef inline size_t record_length(const char *text, size_t size, bint ending,
                                 bint *whole) noexcept nogil:
    """Bytes of the text that the next record has, with the end of its line; 0: not all of it has
    come. whole: the line ends with it."""
    cdef const char *end = <const char *>memchr(text, c'\n', min(size, <size_t>(LINE + 1)))
    whole[0] = end != NULL
    if end != NULL:
        return end - text + 1
    if size > LINE:
        return LINE
    return size if ending else 0


cdef inline void add_piece(Batch *batch, const char *data, size_t size) noexcept nogil:
    batch.vectors[batch.count].iov_base = <void *>data
    batch.vectors[batch.count].iov_len = size
    batch.count += 1


cdef inline bint compose(Logs *logs, Batch *batch, const char *text, size_t size, bint ending,
                         uint64_t room) noexcept nogil:
    """Make records of the text, as many as there are and fit; False: one did not fit into `room`.

    Short lines are copied: that costs less than the kernel's care for a vector.
    """
    cdef char *run = logs.composed
    cdef char *at = run
    cdef char *full = run + COMPOSED - PREFIX - LONG - 1
    cdef size_t length, needed
    cdef bint whole
    cdef bint fits = True
    batch.count = 0
    batch.size = batch.taken = 0
    while at < full and batch.count < PIECES - 2:
        length = record_length(text, size - batch.taken, ending, &whole)
        if length == 0:
            break
        needed = PREFIX + length + (not whole)
        if batch.size + needed > room:
            fits = False
            break
        memcpy(at, logs.prefix, PREFIX)
        at[TAG_AT] = c'F' if whole else c'P'
        at += PREFIX
        if length < LONG:
            memcpy(at, text, length)
            at += length
        else:
            add_piece(batch, run, at - run)
            add_piece(batch, text, length)
            run = at
        if not whole:
            at[0] = c'\n'
            at += 1
        text += length
        batch.taken += length
        batch.size += needed
    if at > run:
        add_piece(batch, run, at - run)
    return fits


cdef inline int append(int file, Batch *batch, size_t *written) noexcept nogil:
    """Write the batch; 0, or an errno and how far it came."""
    cdef iovec *vector = batch.vectors
    cdef iovec *end = vector + batch.count
    cdef ssize_t size
    written[0] = 0
    while vector < end:
        size = writev(file, vector, <int>(end - vector))
        if size < 0 and errno != EINTR:
            return errno
        size = max(size, 0)
        written[0] += size
        while vector < end and <size_t>size >= vector.iov_len:
            size -= vector.iov_len
            vector += 1
        if size:
            vector.iov_base = <char *>vector.iov_base + size
            vector.iov_len -= size
    return 0


cdef inline void take_back(Log *log, Batch *batch, const char *text, size_t size, bint ending,
                           size_t written) noexcept nogil:
    """Cut a torn record off the file's end; the batch is then what has been written."""
    cdef long end = lseek(log.file, 0, SEEK_CUR)
    cdef stat_t facts
    cdef size_t length, needed
    cdef bint whole
    batch.size = batch.taken = 0
    while True:
        length = record_length(text + batch.taken, size - batch.taken, ending, &whole)
        needed = PREFIX + length + (not whole)
        if batch.size + needed > written:
            break
        batch.taken += length
        batch.size += needed
    # Not what others may have appended meanwhile.
    if written > batch.size and fstat(log.file, &facts) == 0 and facts.st_size == end:
        ftruncate(log.file, end - <long>(written - batch.size))


cdef inline uint64_t room_in(Log *log) noexcept nogil:
    return log.limit - log.size if log.size < log.limit else 0


cdef inline int log_write(Logs *logs, Log *log, const char *stream, const char *text, size_t size,
                          bint ending, uint64_t now, size_t *taken) noexcept nogil:
    """Append the records that the text has; `taken` bytes of it have been written then.

    stream: "stdout" or "stderr". ending: nothing comes after the text. now: the loop's time.
    0: what is left is the beginning of a line. MORE: the file has been rotated, which happens
    once in a turn at most. Else the errno of writing.
    """
    cdef Batch batch
    cdef size_t written
    cdef uint64_t room
    cdef bint fits
    cdef bint rotated = False
    cdef int error
    taken[0] = 0
    if record_length(text, size, ending, &fits) == 0:
        return 0
    check_file(log, now)
    set_prefix(logs, stream)
    room = room_in(log)
    while True:
        fits = compose(logs, &batch, text + taken[0], size - taken[0], ending, room)
        if batch.count:
            error = append(log.file, &batch, &written)
            if error:
                log.error = error
                take_back(log, &batch, text + taken[0], size - taken[0], ending, written)
            taken[0] += batch.taken
            log.size += batch.size
            log.written += batch.size
            room -= batch.size
            if error:
                return error
        elif fits:
            return 0
        if not fits:
            if rotated:
                return MORE
            rotated = True
            error = rotate(log)
            if error:
                log.error = error
            room = <uint64_t>-1 if error else room_in(log)


# ---- logs

cdef inline bint is_name(const char *text, size_t size) noexcept nogil:
    """Of a file in a directory, with room for its number; not `.`, and nothing with `..` first."""
    if size == 0 or size > LOG_NAME or memchr(text, 0, size) != NULL:
        return False
    return memchr(text, c'/', size) == NULL and memcmp(text, b"..", min(size, <size_t>2)) != 0


cdef inline bint is_same_file(int one, int other) noexcept nogil:
    cdef stat_t first, second
    if fstat(one, &first) < 0 or fstat(other, &second) < 0:
        return False
    return first.st_dev == second.st_dev and first.st_ino == second.st_ino


cdef inline uint32_t find_log(Logs *logs, Log *wanted) noexcept nogil:
    """The slot of the log of that id; NONE: there is none, or it is another file."""
    cdef uint32_t slot = map_find(&logs.ids, wanted.id)
    cdef Log *log
    if slot == NONE:
        return NONE
    log = &logs.all[slot]
    if memcmp(log.name, wanted.name, NUMBERED) or not is_same_file(log.directory, wanted.directory):
        return NONE
    return slot


cdef inline uint32_t add_log(Logs *logs, Log *log) noexcept nogil:
    """A slot for a log, whose descriptors are the slot's then. There must be one."""
    cdef uint32_t slot = logs.free
    if slot != NONE:
        logs.free = logs.all[slot].next
    else:
        slot = logs.used
        logs.used += 1
    memcpy(&logs.all[slot], log, sizeof(Log))
    map_put(&logs.ids, log.id, slot)
    return slot


cdef inline int log_join(Logs *logs, Log *wanted, uint32_t *joined) noexcept nogil:
    """Write to the log of that id, name and directory (taken) from now on, a new one or another
    stream's. On an errno nothing is left: EEXIST, the id is another log's; EINVAL."""
    cdef uint32_t slot = find_log(logs, wanted)
    cdef int error = 0
    if slot != NONE:
        drop(&wanted.directory)
        logs.all[slot].streams += 1
        joined[0] = slot
        return 0
    wanted.file = -1
    wanted.streams = 1
    if wanted.id == 0 or wanted.limit < LEAST_LIMIT or wanted.files - 1 >= MOST_FILES:
        error = EINVAL
    elif map_find(&logs.ids, wanted.id) != NONE:
        error = EEXIST
    elif logs.free == NONE and logs.used == logs.most:
        error = EMFILE
    else:
        error = open_file(wanted)
    if error:
        drop(&wanted.directory)
        return error
    joined[0] = add_log(logs, wanted)
    return 0


cdef inline void free_log(Logs *logs, uint32_t slot) noexcept nogil:
    cdef Log *log = &logs.all[slot]
    memset(log, 0, sizeof(Log))
    log.directory = log.file = -1
    log.next = logs.free
    logs.free = slot


cdef inline void log_leave(Logs *logs, uint32_t slot) noexcept nogil:
    """A stream writes to it no more; the last one closes it."""
    cdef Log *log = &logs.all[slot]
    log.streams -= 1
    if log.streams:
        return
    map_remove(&logs.ids, log.id)
    drop(&log.file)
    drop(&log.directory)
    free_log(logs, slot)
