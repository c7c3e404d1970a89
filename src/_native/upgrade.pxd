# Becoming another version of the keeper by execve(2): all that is held goes through a sealed memfd,
# and the descriptors stay open under their numbers.
#
# The memfd is a Head, then entries, each an Entry, a fixed part and more bytes: first the keeper,
# then each process, log, stream, listener, connection, request (in order of arrival) and
# destination, whose fixed part is the struct itself. Whoever changes one of these structs, or what
# its fields mean, raises STATE_VERSION. The last entry names all descriptors.
#
# Nothing is closed or changed before all is restored, so that the old version can take the same
# state back.

from libc.errno cimport errno
from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t
from blocks cimport Chain, Pool, blocks_for, chain_append
from clock cimport FOREVER
from connection cimport (MOST_REQUESTS, PARKED, Connection, Request, Ttrpc, connection_watch,
                         request_link)
from fds cimport drop, is_sealed
from framing cimport IN_BODY, MOST_MESSAGE
from linux cimport *
from listener cimport Listener, Listeners, listener_place
from log cimport (LEAST_LIMIT, LOG_NAME, MOST_FILES, TEXT, Log, Logs, free_log, take_place,
                  text_at)
from pace cimport COOL_TIME
from publisher cimport MOST_DESTINATIONS, Destination, Publisher, watch_destination
from reaper cimport BITS_EXITED, BITS_LIVE, BITS_SPAWN, UNCLAIMED, Process, Reaper, Unclaimed
from stream cimport (CHUNK, LINGER, NOWHERE, RUN, SINK_TAG, SOURCE_TAG, Relay, Stream, enter,
                     free_slot, watch)
from table cimport NONE, arena, map_find, map_put
from wire cimport GONE

cdef enum:
    STATE_VERSION = 4
    STATE_MAGIC = 0x7065656B736E6564    # "densekeep"
    BUFFER = 16384

cdef enum:    # kind of an entry
    SAVED_KEEPER = 1
    SAVED_UNCLAIMED = 2
    SAVED_PROCESS = 3
    SAVED_LOG = 4
    SAVED_STREAM = 5             # more: what it has read and not written
    SAVED_LISTENER = 6
    SAVED_CONNECTION = 7         # more: what has come of a request, then the unsent output
    SAVED_REQUEST = 8            # more: the body
    SAVED_DESTINATION = 9        # more: the queue
    SAVED_DESCRIPTORS = 10

cdef struct Head:
    uint64_t magic
    uint64_t version
    uint64_t size                # of the whole memfd
    uint64_t sum                 # of all that follows

cdef struct Entry:
    uint32_t kind
    uint32_t slot
    uint64_t fixed, more         # bytes

cdef struct SavedKeeper:
    uint64_t soft, hard          # limits of descriptors that the launcher had
    uint64_t pipe_budget
    uint64_t unclaimed_count
    uint64_t sequence            # of the last request
    int32_t errors               # memfd
    int32_t command              # of the old version's front
    int32_t next_command         # of the new one's
    uint32_t asked_to_end
    uint32_t returns             # to the earlier version: the new one's front did not serve

cdef struct Writer:
    int fd
    int error                    # the first errno; nothing is written after it
    uint64_t size, sum
    uint32_t used                # bytes in `buffer`
    char buffer[16384]
    int32_t *descriptors
    uint32_t count, most

cdef struct Reader:
    const char *data
    uint64_t size, at
    Entry entry
    const char *fixed
    const char *more


cdef inline uint64_t add_up(uint64_t sum, const char *data, size_t size) noexcept nogil:
    """FNV-1a, by bytes."""
    cdef size_t i
    for i in range(size):
        sum = (sum ^ <uint8_t>data[i]) * 0x100000001B3ULL
    return sum


# ---- writing

cdef inline void write_out(Writer *writer) noexcept nogil:
    cdef uint32_t done = 0
    cdef ssize_t size
    while done < writer.used and not writer.error:
        size = write(writer.fd, writer.buffer + done, writer.used - done)
        if size > 0:
            done += <uint32_t>size
        elif errno != EINTR:
            writer.error = errno
    writer.used = 0


cdef inline void put(Writer *writer, const void *data, size_t size) noexcept nogil:
    cdef const char *at = <const char *>data
    cdef size_t piece
    writer.sum = add_up(writer.sum, at, size)
    writer.size += size
    while size:
        piece = min(size, <size_t>(BUFFER - writer.used))
        memcpy(writer.buffer + writer.used, at, piece)
        writer.used += <uint32_t>piece
        at += piece
        size -= piece
        if writer.used == BUFFER:
            write_out(writer)


cdef inline void put_entry(Writer *writer, uint32_t kind, uint32_t slot, const void *fixed,
                           size_t size, size_t more) noexcept nogil:
    """Begin an entry; `more` bytes are to follow."""
    cdef Entry entry
    entry.kind = kind
    entry.slot = slot
    entry.fixed = size
    entry.more = more
    put(writer, &entry, sizeof(entry))
    put(writer, fixed, size)


cdef inline void put_chain(Writer *writer, Pool *pool, Chain *chain) noexcept nogil:
    cdef uint32_t number = chain.first
    while number:
        put(writer, pool.blocks[number].data + pool.blocks[number].begin,
            pool.blocks[number].end - pool.blocks[number].begin)
        number = pool.blocks[number].next


cdef inline void keep(Writer *writer, int fd) noexcept nogil:
    """This descriptor goes along; -1: there is none."""
    if fd >= 0 and writer.count < writer.most:
        writer.descriptors[writer.count] = fd
        writer.count += 1


cdef inline void put_processes(Writer *writer, Reaper *reaper) noexcept nogil:
    cdef uint64_t kept = min(reaper.unclaimed_count, <uint64_t>UNCLAIMED)
    cdef uint64_t number
    cdef uint32_t slot
    if reaper.unfinished == 0:
        kept = 0                 # none of them can be claimed
    put_entry(writer, SAVED_UNCLAIMED, 0, NULL, 0, kept * sizeof(Unclaimed))
    for number in range(reaper.unclaimed_count - kept, reaper.unclaimed_count):
        put(writer, &reaper.unclaimed[number % UNCLAIMED], sizeof(Unclaimed))
    for slot in range(reaper.used):
        if reaper.processes[slot].bits & BITS_LIVE:
            put_entry(writer, SAVED_PROCESS, slot, &reaper.processes[slot], sizeof(Process), 0)
            keep(writer, reaper.processes[slot].pidfd)


cdef inline char *unwritten(Relay *relay, uint32_t slot) noexcept nogil:
    """What a stream has read and not written."""
    if relay.streams[slot].log:
        return text_at(&relay.logs, relay.streams[slot].place)
    return relay.rest + <size_t>slot * CHUNK + relay.streams[slot].offset


cdef inline void put_logs(Writer *writer, Logs *logs) noexcept nogil:
    cdef uint32_t slot
    for slot in range(logs.used):
        if logs.all[slot].streams:
            put_entry(writer, SAVED_LOG, slot, &logs.all[slot], sizeof(Log), 0)
            keep(writer, logs.all[slot].directory)
            keep(writer, logs.all[slot].file)


cdef inline void put_streams(Writer *writer, Relay *relay) noexcept nogil:
    cdef Stream *stream
    cdef uint32_t slot, pending
    for slot in range(relay.used):
        stream = &relay.streams[slot]
        if stream.flags & GONE and stream.id == 0:
            continue             # a free slot
        pending = 0 if stream.flags & GONE else stream.pending
        put_entry(writer, SAVED_STREAM, slot, stream, sizeof(Stream), pending)
        put(writer, unwritten(relay, slot), pending)
        keep(writer, stream.source)
        keep(writer, stream.sink)
        keep(writer, stream.hold)


cdef inline void put_listeners(Writer *writer, Listeners *listeners) noexcept nogil:
    cdef uint32_t index
    for index in range(listeners.used):
        if listeners.all[index].id:
            put_entry(writer, SAVED_LISTENER, index, &listeners.all[index], sizeof(Listener), 0)
            keep(writer, listeners.all[index].socket)


cdef inline void put_connections(Writer *writer, Ttrpc *t) noexcept nogil:
    cdef Connection *c
    cdef uint32_t slot
    cdef int i
    for slot in range(t.used):
        c = &t.connections[slot]
        if c.socket < 0:
            continue
        put_entry(writer, SAVED_CONNECTION, slot, c, sizeof(Connection),
                  c.body.size + <size_t>c.output.size)
        put_chain(writer, t.pool, &c.body)
        put_chain(writer, t.pool, &c.output)
        keep(writer, c.socket)
        for i in range(c.count):
            keep(writer, c.passed[i])


cdef inline void put_requests(Writer *writer, Ttrpc *t) noexcept nogil:
    """The front is gone: none of them has begun."""
    cdef Request *request
    cdef uint32_t slot = t.first
    cdef int i
    while slot != NONE:
        request = &t.requests[slot]
        put_entry(writer, SAVED_REQUEST, slot, request, sizeof(Request), request.body.size)
        put_chain(writer, t.pool, &request.body)
        for i in range(request.count):
            keep(writer, request.descriptors[i])
        slot = request.next


cdef inline void put_destinations(Writer *writer, Publisher *publisher) noexcept nogil:
    cdef Destination *destination
    cdef uint32_t index
    for index in range(publisher.used):
        destination = &publisher.all[index]
        if destination.id:
            put_entry(writer, SAVED_DESTINATION, index, destination, sizeof(Destination),
                      destination.queue.size)
            put_chain(writer, publisher.pool, &destination.queue)
            keep(writer, destination.socket)


cdef inline int writer_open(Writer *writer, uint32_t most) noexcept nogil:
    """A new memfd, where a Head has room; 0 or an errno."""
    cdef Head head
    memset(writer, 0, sizeof(Writer))
    memset(&head, 0, sizeof(head))
    writer.most = most
    writer.descriptors = <int32_t *>arena(most * sizeof(int32_t))
    writer.fd = memfd_create(b"keeper", MFD_CLOEXEC | MFD_ALLOW_SEALING)
    if writer.descriptors == NULL or writer.fd < 0:
        return errno
    put(writer, &head, sizeof(head))
    writer.sum = 0
    return 0


cdef inline int writer_finish(Writer *writer) noexcept nogil:
    """Name the descriptors, write the Head, and seal; 0 or an errno."""
    cdef Head head
    put_entry(writer, SAVED_DESCRIPTORS, 0, NULL, 0, writer.count * sizeof(int32_t))
    put(writer, writer.descriptors, writer.count * sizeof(int32_t))
    write_out(writer)
    head.magic = STATE_MAGIC
    head.version = STATE_VERSION
    head.size = writer.size
    head.sum = writer.sum
    if not writer.error and pwrite(writer.fd, &head, sizeof(head), 0) != sizeof(head):
        writer.error = EIO
    if not writer.error:
        fcntl(writer.fd, F_ADD_SEALS, F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE)
    return writer.error


cdef inline void writer_close(Writer *writer) noexcept nogil:
    drop(&writer.fd)
    if writer.descriptors != NULL:
        munmap(writer.descriptors, writer.most * sizeof(int32_t))


cdef inline int nth(const char *descriptors, uint64_t index) noexcept nogil:
    """One of a list, which may be anywhere in the memfd."""
    cdef int32_t fd
    memcpy(&fd, descriptors + index * sizeof(fd), sizeof(fd))
    return fd


cdef inline void inherit(const char *descriptors, uint64_t count, bint inherited) noexcept nogil:
    """Have execve(2) leave these descriptors open, or close them."""
    cdef uint64_t i
    for i in range(count):
        fcntl(nth(descriptors, i), F_SETFD, 0 if inherited else FD_CLOEXEC)


# ---- reading

cdef inline const char *reader_open(Reader *reader, int fd) noexcept nogil:
    """Map a state; NULL, or what is wrong with it."""
    cdef stat_t facts
    cdef const Head *head
    cdef void *found
    memset(reader, 0, sizeof(Reader))
    if not is_sealed(fd) or fstat(fd, &facts) < 0 or facts.st_size < <long long>sizeof(Head):
        return "it is no sealed memory"
    found = mmap(NULL, facts.st_size, PROT_READ, MAP_PRIVATE, fd, 0)
    if found == MAP_FAILED:
        return "it cannot be mapped"
    reader.data = <const char *>found
    reader.size = <uint64_t>facts.st_size
    reader.at = sizeof(Head)
    head = <const Head *>found
    if head.magic != STATE_MAGIC:
        return "it is no keeper's state"
    if head.version != STATE_VERSION:
        return "it is another version's"
    if head.size != reader.size:
        return "it is cut short"
    if head.sum != add_up(0, reader.data + sizeof(Head), reader.size - sizeof(Head)):
        return "its sum is wrong"
    return NULL


cdef inline void reader_close(Reader *reader) noexcept nogil:
    if reader.data != NULL:
        munmap(<void *>reader.data, reader.size)


cdef inline bint next_entry(Reader *reader) noexcept nogil:
    """Point at the next entry; False: there is none, or it is cut short."""
    cdef uint64_t left = reader.size - reader.at
    if left < sizeof(Entry):
        return False
    memcpy(&reader.entry, reader.data + reader.at, sizeof(Entry))
    left -= sizeof(Entry)
    if reader.entry.fixed > left or reader.entry.more > left - reader.entry.fixed:
        return False
    reader.fixed = reader.data + reader.at + sizeof(Entry)
    reader.more = reader.fixed + reader.entry.fixed
    reader.at += sizeof(Entry) + reader.entry.fixed + reader.entry.more
    return True


cdef inline uint64_t fixed_size(uint32_t kind) noexcept nogil:
    """Of an entry's fixed part; FOREVER: no such kind."""
    if kind == SAVED_KEEPER:
        return sizeof(SavedKeeper)
    if kind == SAVED_UNCLAIMED or kind == SAVED_DESCRIPTORS:
        return 0
    if kind == SAVED_PROCESS:
        return sizeof(Process)
    if kind == SAVED_LOG:
        return sizeof(Log)
    if kind == SAVED_STREAM:
        return sizeof(Stream)
    if kind == SAVED_LISTENER:
        return sizeof(Listener)
    if kind == SAVED_CONNECTION:
        return sizeof(Connection)
    if kind == SAVED_REQUEST:
        return sizeof(Request)
    return sizeof(Destination) if kind == SAVED_DESTINATION else FOREVER


cdef inline const char *check_descriptors(Reader *reader) noexcept nogil:
    cdef uint64_t i
    if reader.entry.more % sizeof(int32_t):
        return "its list of descriptors is cut short"
    for i in range(reader.entry.more // sizeof(int32_t)):
        if fcntl(nth(reader.more, i), F_GETFD) < 0:
            return "one of its descriptors is not open"
    return NULL


cdef inline const char *check_entries(Reader *reader) noexcept nogil:
    """Go through all entries, the first of which is the keeper's; NULL, or what is wrong."""
    cdef uint32_t last = 0
    while next_entry(reader):
        if reader.entry.fixed != fixed_size(reader.entry.kind):
            return "one of its entries has another size"
        if (last == 0) != (reader.entry.kind == SAVED_KEEPER) or reader.entry.kind < last:
            return "its entries are in disorder"
        last = reader.entry.kind
    if reader.at != reader.size or last != SAVED_DESCRIPTORS:
        return "its last entry is cut short"
    reader.at = sizeof(Head)
    return check_descriptors(reader)


cdef inline const char *check_state(Reader *reader, int fd) noexcept nogil:
    """Whether this can be taken over: NULL, or what is wrong. Nothing is changed."""
    cdef const char *wrong = reader_open(reader, fd)
    return check_entries(reader) if wrong == NULL else wrong


# ---- restoring; 0 or an errno, EINVAL for what cannot be

cdef inline int get_chain(Pool *pool, Chain *chain, const char *data, uint32_t size) noexcept nogil:
    memset(chain, 0, sizeof(Chain))
    return 0 if chain_append(pool, chain, data, size) else ENOBUFS


cdef inline int get_unclaimed(Reader *reader, Reaper *reaper) noexcept nogil:
    cdef uint64_t kept = reader.entry.more // sizeof(Unclaimed)
    cdef uint64_t i
    if kept > UNCLAIMED or kept > reaper.unclaimed_count:
        return EINVAL
    for i in range(kept):
        memcpy(&reaper.unclaimed[(reaper.unclaimed_count - kept + i) % UNCLAIMED],
               reader.more + i * sizeof(Unclaimed), sizeof(Unclaimed))
    return 0


cdef inline int get_process(Reader *reader, Reaper *reaper) noexcept nogil:
    """At its old slot, which its shared errno has, too."""
    cdef uint32_t slot = reader.entry.slot
    cdef Process *process
    if slot < reaper.used or slot >= reaper.most:
        return EINVAL
    while reaper.used < slot:
        reaper.processes[reaper.used].next = reaper.free
        reaper.free = reaper.used
        reaper.used += 1
    reaper.used = slot + 1
    process = &reaper.processes[slot]
    memcpy(process, reader.fixed, sizeof(Process))
    if process.id == 0 or map_find(&reaper.ids, process.id) != NONE:
        return EINVAL
    map_put(&reaper.ids, process.id, slot)
    if process.pid and not process.bits & BITS_EXITED:
        map_put(&reaper.pids, process.pid, slot)
    if process.bits & BITS_SPAWN:
        reaper.unfinished += 1
    return 0


cdef inline int get_log(Reader *reader, Logs *logs) noexcept nogil:
    """At its old slot, which its streams name; they are counted as they come."""
    cdef uint32_t slot = reader.entry.slot
    cdef Log *log
    if slot < logs.used or slot >= logs.most:
        return EINVAL
    while logs.used < slot:
        free_log(logs, logs.used)
        logs.used += 1
    logs.used = slot + 1
    log = &logs.all[slot]
    memcpy(log, reader.fixed, sizeof(Log))
    log.streams = 0
    log.checked = 0
    if log.id == 0 or map_find(&logs.ids, log.id) != NONE or log.limit < LEAST_LIMIT:
        return EINVAL
    if log.length > LOG_NAME or log.files - 1 >= MOST_FILES:
        return EINVAL
    map_put(&logs.ids, log.id, slot)
    return 0


cdef inline int join_log(Logs *logs, Stream *stream) noexcept nogil:
    if stream.log > logs.used or logs.all[stream.log - 1].id == 0:
        return EINVAL
    logs.all[stream.log - 1].streams += 1
    stream.place = take_place(logs)
    return 0 if stream.place != NONE else EMFILE


cdef inline void cool_stream(Stream *stream) noexcept nogil:
    """As after relay_add: what was learned of the stream's pace is learned again."""
    stream.previous = stream.next = NONE
    stream.where = NOWHERE
    stream.full_turns = 0
    stream.muted = stream.blocked = False
    stream.offset = 0


cdef inline int get_stream(Reader *reader, Relay *relay, uint64_t now) noexcept nogil:
    """Each stream has a turn at once, whatever it waited for."""
    cdef uint32_t slot = reader.entry.slot
    cdef Stream *stream
    cdef bint lingers
    cdef int error = 0
    if slot < relay.used or slot >= relay.most:
        return EINVAL
    while relay.used < slot:
        free_slot(relay, relay.used)
        relay.used += 1
    relay.used = slot + 1
    stream = &relay.streams[slot]
    memcpy(stream, reader.fixed, sizeof(Stream))
    lingers = stream.where == LINGER
    cool_stream(stream)
    if reader.entry.more > <uint64_t>(TEXT if stream.log else CHUNK):
        return EINVAL
    if stream.log:
        error = join_log(&relay.logs, stream)
        if error:
            return error
    stream.pending = <uint32_t>reader.entry.more
    memcpy(unwritten(relay, slot), reader.more, stream.pending)
    if stream.id and map_find(&relay.ids, stream.id) != NONE:
        return EINVAL
    if stream.id:
        map_put(&relay.ids, stream.id, slot)
    if stream.flags & GONE:
        return 0
    if stream.grown and relay.grown_count < relay.grown_most:
        relay.grown[relay.grown_count] = slot
        relay.grown_count += 1
        relay.cool_due = now + <uint64_t>COOL_TIME
    if stream.source >= 0:
        error = watch(relay, EPOLL_CTL_ADD, stream.source, SOURCE_TAG, slot, EPOLLIN | EPOLLRDHUP)
    if not error and not stream.file:
        error = watch(relay, EPOLL_CTL_ADD, stream.sink, SINK_TAG, slot, EPOLLOUT)
    enter(relay, slot, LINGER if lingers else RUN)
    return error


cdef inline int get_listener(Reader *reader, Listeners *listeners) noexcept nogil:
    cdef Listener saved
    memcpy(&saved, reader.fixed, sizeof(saved))
    return listener_place(listeners, saved.id, saved.socket, saved.flags)


cdef inline int get_connection(Reader *reader, Ttrpc *t) noexcept nogil:
    """Watched once its requests are there, too."""
    cdef uint32_t slot = reader.entry.slot
    cdef uint32_t body, output
    cdef Connection *c
    cdef epoll_event event
    cdef int error
    if slot < t.used or slot >= t.most:
        return EINVAL
    while t.used < slot:
        t.connections[t.used].socket = -1
        t.connections[t.used].next = t.free
        t.free = t.used
        t.used += 1
    t.used = slot + 1
    c = &t.connections[slot]
    memcpy(c, reader.fixed, sizeof(Connection))
    body, output = c.body.size, c.output.size
    if reader.entry.more != <uint64_t>body + output or c.socket < 0:
        return EINVAL
    c.first = c.last = NONE
    c.events = c.open = c.promised = 0
    c.bytes = 0
    c.starved = c.broken = False
    error = get_chain(t.pool, &c.body, reader.more, body)
    if not error:
        error = get_chain(t.pool, &c.output, reader.more + body, output)
    if error:
        return error
    if c.framing.state == IN_BODY and c.admitted:
        c.promised = blocks_for(c.framing.left)
        t.promised += c.promised
    event.events = 0
    event.data.u64 = t.tag << 56 | <uint64_t>(c.generation & 0xFFFFFF) << 32 | slot
    return errno if epoll_ctl(t.epoll, EPOLL_CTL_ADD, c.socket, &event) < 0 else 0


cdef inline int get_request(Reader *reader, Ttrpc *t) noexcept nogil:
    """At the slot that its id names, behind all before it."""
    cdef uint32_t slot = reader.entry.slot
    cdef Request *request
    if slot >= MOST_REQUESTS or t.requests[slot].id:
        return EINVAL
    request = &t.requests[slot]
    memcpy(request, reader.fixed, sizeof(Request))
    if request.id == 0 or (request.id & (MOST_REQUESTS - 1)) != slot or reader.entry.more > MOST_MESSAGE:
        return EINVAL
    if request.connection >= t.used or t.connections[request.connection].socket < 0:
        return EINVAL
    t.requests_used = max(t.requests_used, slot + 1)
    request_link(t, slot)
    if request.state == PARKED:
        t.connections[request.connection].open -= 1
    t.connections[request.connection].bytes += request.cost
    request.sent = False
    return get_chain(t.pool, &request.body, reader.more, <uint32_t>reader.entry.more)


cdef inline int get_destination(Reader *reader, Publisher *publisher) noexcept nogil:
    """With its connection and what is under way on it, so that no event is sent twice."""
    cdef Destination *destination = &publisher.all[publisher.used]
    cdef uint32_t size
    if publisher.used == MOST_DESTINATIONS:
        return EINVAL
    memcpy(destination, reader.fixed, sizeof(Destination))
    size = destination.queue.size
    if destination.id == 0 or reader.entry.more != size:
        return EINVAL
    publisher.used += 1
    publisher.lost = publisher.lost or destination.lost != 0
    if destination.socket >= 0:
        if watch_destination(publisher, destination, EPOLL_CTL_ADD,
                             EPOLLIN | (EPOLLOUT if destination.blocked else 0)) < 0:
            return errno
    return get_chain(publisher.pool, &destination.queue, reader.more, size)


cdef inline void finish_requests(Ttrpc *t) noexcept nogil:
    """All are there: the free slots, and what each connection may do now."""
    cdef uint32_t slot
    for slot in range(t.requests_used):
        if t.requests[slot].id == 0:
            t.requests[slot].next = t.requests_free
            t.requests_free = slot
    for slot in range(t.used):
        if t.connections[slot].socket >= 0:
            connection_watch(t, &t.connections[slot])


# ---- programs

cdef enum:
    MOST_WORDS = 64              # of a keeper's argv
    PROGRAM_SIZE = 65536         # bytes of one, NUL-ended strings

cdef struct Program:
    char text[65536]
    char *words[68]              # with room for what is added, and NULL
    int count


cdef inline bint program_read(Program *program, int memory) noexcept nogil:
    """An argv from a sealed memfd; False: it is none."""
    cdef stat_t facts
    cdef ssize_t size
    cdef char *at = program.text
    if not is_sealed(memory) or fstat(memory, &facts) < 0 or facts.st_size > PROGRAM_SIZE:
        return False
    size = pread(memory, program.text, PROGRAM_SIZE, 0)
    if size < 2 or size != facts.st_size or program.text[size - 1] != 0 or at[0] != c'/':
        return False
    program.count = 0
    while at < program.text + size:
        if program.count == MOST_WORDS:
            return False
        program.words[program.count] = at
        program.count += 1
        at = <char *>memchr(at, 0, program.text + size - at) + 1
    program.words[program.count] = NULL
    return True


cdef inline void program_add(Program *program, char *word) noexcept nogil:
    program.words[program.count] = word
    program.count += 1
    program.words[program.count] = NULL
