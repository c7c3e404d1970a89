# cython: language_level=3
"""The keeper: holds what the kernel would take away when a process dies.

One epoll loop, without the GIL, on the main thread of `python -I -S`. It collects exits, relays
bytes, accepts connections, keeps requests until they are answered, has programs started by the
spawner, and keeps a front running. It knows nothing of containers; it parses records and frames'
headers, all of fixed size, and nothing else from outside. Memory
is reserved at set-up, nothing is allocated for an event, nothing blocks, and no timer runs when
nothing is pending.
"""

from libc.errno cimport errno
from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t
from blocks cimport Pool, pool_open
from channel cimport (Channel, channel_attach, channel_detach, channel_flush, channel_open,
                      channel_send)
from clock cimport FOREVER, MILLISECOND, SECOND, monotonic, realtime
from connection cimport Ttrpc, ttrpc_open
from fds cimport Parcel, discard, drop, receive_parcel, send_parcel, take
from linux cimport *
from log cimport Log, is_name
from listener cimport (RESERVED, Listeners, listener_accept, listener_add, listener_remove,
                       listener_serve, listeners_close, listeners_open, listeners_pause)
from pace cimport looked, rests
from publisher cimport (Destination, Publisher, destination_forget, destination_set, leave_if_empty,
                        publish, publisher_event, publisher_idle, publisher_open, publisher_timers)
from reaper cimport (BITS_EXITED, BITS_LIVE, BITS_SPAWN, Process, Reaper, collect, forget_process,
                     forget_serials, process_add, process_exited, process_free, reaper_open,
                     release, signal_process, spawn_started, track)
from relay cimport (relay_cut, relay_delivered, relay_drop_front, relay_event, relay_finish,
                    relay_forget, relay_resize, relay_run, relay_settle, relay_timers, relay_unhold)
from spawner cimport CANNOT_EXECUTE, is_command, spawner_start
from stream cimport (ENDED_LIST, NOBODY, SINK_TAG, SOURCE_TAG, Relay, Stream, is_file, leave,
                     relay_add, relay_add_log, relay_open)
from table cimport NONE, arena, map_find
from ttrpc cimport (ttrpc_deliver, ttrpc_event, ttrpc_front_gone, ttrpc_is_quiet, ttrpc_replayable,
                    ttrpc_respond, ttrpc_run, ttrpc_signalled)
from upgrade cimport (SAVED_CONNECTION, SAVED_DESCRIPTORS, SAVED_DESTINATION, SAVED_KEEPER,
                      SAVED_LISTENER, SAVED_LOG, SAVED_PROCESS, SAVED_REQUEST, SAVED_STREAM,
                      SAVED_UNCLAIMED, STATE_VERSION, Program, Reader, SavedKeeper, Writer,
                      check_state, finish_requests, fixed_size, get_connection, get_destination,
                      get_listener, get_log, get_process, get_request, get_stream, get_unclaimed,
                      inherit, keep, next_entry, program_add, program_read, put_connections,
                      put_destinations, put_entry, put_listeners, put_logs, put_processes,
                      put_requests, put_streams, reader_close, writer_close, writer_finish,
                      writer_open)
cimport wire
from wire cimport MOST_INLINE, Record

RECORD_SIZE = sizeof(Record)
# Of what goes to another version of the keeper: the version of its form, and the sizes of its
# parts, which cannot change without it.
STATE = STATE_VERSION
STATE_SIZES = tuple(fixed_size(kind) for kind in range(SAVED_KEEPER, SAVED_DESCRIPTORS))

cdef enum:
    # epoll tags beside the relay's
    CONTROL_TAG = 9              # the keeper's own epoll set, within the relay's
    SIGNAL_TAG = 10
    CHANNEL_TAG = 11
    SPAWNER_TAG = 12
    LISTENER_TAG = 13
    CONNECTION_TAG = 14
    PUBLISHER_TAG = 15
    EVENTS = 256
    FRONT_ID = 1                 # the front's own process; other ids are the front's to choose
    FIRST_LISTENER_ID = 2
    MOST_SLOTS = 1 << 20

    # a silent front
    PING_AFTER = 5               # seconds that something is unanswered before the keeper asks
    KILL_AFTER = 10              # seconds without an answer before it is replaced
    DELAY_FIRST = 100            # milliseconds before a front that never served is started again
    DELAY_LAST = 5000
    WORDS_TIME = 1               # seconds for what a dead front has sent, or a process of its
    STOP_TIME = 2                # seconds for the last bytes of connections
    UPGRADE_TIME = 5             # seconds for the front to die and for spawns to be answered
    TRIAL_TIME = 30              # seconds for a new version's front to say READY
    TRIAL_DEATHS = 2             # of its fronts before that

cdef struct Keeper:
    int epoll
    int signals
    int spawner                  # the channel to it
    int32_t spawner_pid
    int32_t *errors              # shared with the spawner's children
    int errors_memory            # the memfd that they are in
    rlimit files                 # what the launcher had
    int command                  # the front's command, a sealed memfd
    int program                  # this keeper's argv but for its last part, the same
    int next_command             # the next version's; -1: there is none
    int next_program
    int old_command              # the earlier version's, while this one is on trial; -1: it is not
    int old_program
    uint64_t pipe_budget
    char *payload                # room for what comes with one record
    Pool pool                    # memory for requests, answers and events
    Relay relay
    Reaper reaper
    Channel channel
    Listeners listeners
    Ttrpc ttrpc
    Publisher publisher
    uint64_t now
    uint64_t front_due           # when to start a front; FOREVER: one runs
    uint64_t words_due           # how long to hear what a dead front has sent; FOREVER: it lives
    uint64_t front_delay
    bint front_served            # the present front has said READY
    bint asked_to_end            # by SIGTERM; each new front is told, too
    uint64_t asked_since         # since when the front owes a sign of life; 0: it does not
    uint64_t pinged_at           # 0: not asked
    uint64_t stop_due            # FOREVER: go on
    uint64_t upgrade_due         # until when the next version may begin; FOREVER: there is none
    bint returns                 # the next version is the earlier one
    uint64_t trial_due           # until when a front has to say READY; FOREVER: one has
    int trial_deaths


# ---- the spawner

cdef int start_spawner(Keeper *k) noexcept nogil:
    cdef epoll_event event
    k.spawner_pid = spawner_start(k.errors, k.reaper.most, &k.files, &k.spawner)
    if k.spawner_pid < 0:
        return -1
    event.events = EPOLLIN
    event.data.u64 = <uint64_t>SPAWNER_TAG << 56
    return epoll_ctl(k.epoll, EPOLL_CTL_ADD, k.spawner, &event)


cdef void spawn_failed(Keeper *k, uint32_t slot, int error) noexcept nogil:
    """Answer a spawn that started nothing; where nobody waits for that, it is an exit."""
    cdef Record reply
    cdef Process *process = &k.reaper.processes[slot]
    if process.id != FRONT_ID and process.serial == 0:
        k.reaper.errors[slot] = error
        process_exited(&k.reaper, slot, CANNOT_EXECUTE, realtime())
        report_exits(k)
        return
    memset(&reply, 0, sizeof(reply))
    reply.kind = wire.SPAWN
    reply.serial = process.serial
    reply.id = process.id
    reply.error = error
    process_free(&k.reaper, slot)
    if reply.id == FRONT_ID:
        front_gone(k)
    else:
        channel_send(&k.channel, &reply)


cdef void spawn(Keeper *k, Parcel *parcel) noexcept nogil:
    """Pass a request on to the spawner; the answer comes as its record. Borrows the parcel."""
    cdef uint32_t slot = process_add(&k.reaper, parcel.record.id)
    cdef bint taken
    cdef int error
    if slot == NONE:
        taken = map_find(&k.reaper.ids, parcel.record.id) != NONE
        parcel.record.error = EEXIST if taken else ENFILE
        if parcel.record.serial:
            channel_send(&k.channel, &parcel.record)
        return
    k.reaper.processes[slot].bits |= BITS_SPAWN
    k.reaper.processes[slot].serial = parcel.record.serial
    k.reaper.unfinished += 1
    parcel.record.number = slot
    if k.spawner < 0:
        start_spawner(k)         # the last attempt failed: for want of memory or processes
    error = send_parcel(k.spawner, parcel) if k.spawner >= 0 else EAGAIN
    if error:
        spawn_failed(k, slot, error)


cdef void spawner_answers(Keeper *k) noexcept nogil:
    cdef Parcel parcel
    cdef uint32_t slot
    cdef int error = receive_parcel(k.spawner, &parcel, NULL)
    while error == 0 or error == EMFILE:
        slot = parcel.record.number
        if error == EMFILE:
            parcel.record.error = 0      # it runs; only the pidfd found no room
        if slot < k.reaper.used and k.reaper.processes[slot].id == parcel.record.id:
            if parcel.record.error:
                spawn_failed(k, slot, parcel.record.error)
            else:
                parcel.record.serial = k.reaper.processes[slot].serial
                k.reaper.processes[slot].serial = 0
                spawn_started(&k.reaper, slot, parcel.record.pid, take(&parcel, 0))
                if parcel.record.serial:
                    channel_send(&k.channel, &parcel.record)
                report_exits(k)
        discard(&parcel)
        error = receive_parcel(k.spawner, &parcel, NULL)


cdef void spawner_gone(Keeper *k) noexcept nogil:
    """Start another; what the old one had not answered has failed."""
    cdef uint32_t slot
    cdef Process *process
    spawner_answers(k)
    drop(&k.spawner)
    for slot in range(k.reaper.used):
        process = &k.reaper.processes[slot]
        if process.bits & BITS_LIVE and not process.bits & BITS_EXITED and process.pid == 0:
            spawn_failed(k, slot, EIO)
    start_spawner(k)


# ---- the front

cdef void start_front(Keeper *k) noexcept nogil:
    """A new front with a channel of its own, as descriptor 3."""
    cdef Parcel parcel
    cdef int pair[2]
    k.front_due = FOREVER
    k.front_served = False
    if socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair) < 0:
        front_gone(k)
        return
    channel_attach(&k.channel, pair[0])
    memset(&parcel.record, 0, sizeof(Record))
    parcel.record.kind = wire.SPAWN
    parcel.record.id = FRONT_ID
    parcel.count = 2
    parcel.descriptors[0] = k.command
    parcel.descriptors[1] = pair[1]
    spawn(k, &parcel)
    close(pair[1])


cdef void front_died(Keeper *k) noexcept nogil:
    """Do what it has still asked for, until its channel is at its end; then it is gone.

    It may have written down that it has asked. Descriptors among it would otherwise be closed,
    and a client see the end of its FIFO: a process that opens one may outlive it for a moment.
    """
    k.words_due = k.now + <uint64_t>WORDS_TIME * SECOND
    if k.channel.socket < 0:
        front_gone(k)


cdef void front_gone(Keeper *k) noexcept nogil:
    """Hang up on its clients, and start the next: at once, unless it never served."""
    k.words_due = FOREVER
    k.asked_since = k.pinged_at = 0
    channel_detach(&k.channel)
    ttrpc_front_gone(&k.ttrpc, k.upgrade_due == FOREVER)
    listeners_pause(&k.listeners)
    relay_drop_front(&k.relay)
    forget_serials(&k.reaper)
    if k.front_served:
        k.front_delay = 0
    k.front_due = k.now + k.front_delay
    k.front_delay = min(max(2 * k.front_delay, <uint64_t>DELAY_FIRST * MILLISECOND),
                        <uint64_t>DELAY_LAST * MILLISECOND)
    if is_on_trial(k):
        k.trial_deaths += 1
        if k.trial_deaths >= TRIAL_DEATHS or k.now >= k.trial_due:
            go_back(k)


cdef void kill_front(Keeper *k) noexcept nogil:
    """Its exit does the rest."""
    signal_process(&k.reaper, FRONT_ID, SIGKILL)


cdef void expect_answer(Keeper *k) noexcept nogil:
    if k.asked_since == 0 and k.channel.socket >= 0:
        k.asked_since = k.now


cdef void heard_of_front(Keeper *k) noexcept nogil:
    k.asked_since = k.pinged_at = 0


cdef uint64_t watch_front(Keeper *k) noexcept nogil:
    """Start, ask or replace the front as is due; gives the time of the next look."""
    cdef Record ping
    if k.stop_due != FOREVER:
        return FOREVER
    if k.words_due <= k.now:
        front_gone(k)
        return k.now
    if k.words_due != FOREVER:
        return min(k.words_due, k.upgrade_due)
    if k.upgrade_due != FOREVER:
        return k.upgrade_due
    if k.front_due <= k.now:
        start_front(k)
    if k.front_due != FOREVER:
        return k.front_due
    if k.channel.overrun or k.now >= k.trial_due:
        kill_front(k)
    if k.asked_since == 0:
        return k.trial_due if k.now < k.trial_due else FOREVER
    if k.pinged_at == 0:
        if k.now < k.asked_since + <uint64_t>PING_AFTER * SECOND:
            return k.asked_since + <uint64_t>PING_AFTER * SECOND
        memset(&ping, 0, sizeof(ping))
        ping.kind = wire.PING
        k.pinged_at = k.now
        channel_send(&k.channel, &ping)
    if k.now >= k.pinged_at + <uint64_t>KILL_AFTER * SECOND:
        heard_of_front(k)
        kill_front(k)
        return FOREVER
    return k.pinged_at + <uint64_t>KILL_AFTER * SECOND


# ---- reports

cdef void report_exits(Keeper *k) noexcept nogil:
    """Tell what has ended; the record stays until it is forgotten."""
    cdef Record report
    cdef Process *process
    cdef uint32_t i
    cdef bint lost_front = False
    for i in range(k.reaper.news_count):
        process = &k.reaper.processes[k.reaper.news[i]]
        if process.id == FRONT_ID:
            process_free(&k.reaper, k.reaper.news[i])
            lost_front = True
            continue
        describe_process(process, &report)
        report.kind = wire.EXITED
        channel_send(&k.channel, &report)
        expect_answer(k)
    k.reaper.news_count = 0
    if lost_front:
        front_died(k)


cdef void report_ends(Keeper *k) noexcept nogil:
    cdef Record report
    cdef uint32_t slot = k.relay.first[ENDED_LIST]
    while slot != NONE:
        leave(&k.relay, slot)
        describe_stream(&k.relay.streams[slot], &report)
        report.kind = wire.ENDED
        channel_send(&k.channel, &report)
        expect_answer(k)
        slot = k.relay.first[ENDED_LIST]


cdef void report_terminate(Keeper *k) noexcept nogil:
    cdef Record report
    memset(&report, 0, sizeof(report))
    report.kind = wire.TERMINATE
    channel_send(&k.channel, &report)


cdef void report_lost(Keeper *k) noexcept nogil:
    """Tell how many events were given up; a front that there is not is told later."""
    cdef Record report
    cdef Destination *destination
    cdef uint32_t i
    if not k.publisher.lost or k.channel.socket < 0:
        return
    k.publisher.lost = False
    for i in range(k.publisher.used):
        destination = &k.publisher.all[i]
        if destination.lost:
            memset(&report, 0, sizeof(report))
            report.kind = wire.LOST
            report.id = destination.id
            report.number = destination.lost
            destination.lost = 0
            channel_send(&k.channel, &report)
            leave_if_empty(destination)


cdef void describe_process(Process *process, Record *record) noexcept nogil:
    memset(record, 0, sizeof(Record))
    record.kind = wire.PROCESS
    record.id = process.id
    record.pid = process.pid
    record.status = process.status
    record.time = process.time
    record.error = process.error
    if process.bits & BITS_EXITED:
        record.flags |= wire.GONE
    if process.bits & BITS_SPAWN:
        record.flags |= wire.SPAWNED


cdef void describe_stream(Stream *stream, Record *record) noexcept nogil:
    memset(record, 0, sizeof(Record))
    record.kind = wire.STREAM
    record.id = stream.id
    record.bytes = stream.bytes
    record.error = stream.error
    record.flags = stream.flags


cdef void snapshot(Keeper *k) noexcept nogil:
    """All that is held, for a new front."""
    cdef Record record
    cdef uint32_t i
    for i in range(k.reaper.used):
        if k.reaper.processes[i].bits & BITS_LIVE and k.reaper.processes[i].id != FRONT_ID:
            describe_process(&k.reaper.processes[i], &record)
            record.number = k.reaper.processes[i].told
            channel_send(&k.channel, &record)
    for i in range(k.relay.used):
        if k.relay.streams[i].id:
            describe_stream(&k.relay.streams[i], &record)
            channel_send(&k.channel, &record)
    for i in range(k.listeners.used):
        if k.listeners.all[i].id == 0:
            continue
        memset(&record, 0, sizeof(record))
        record.kind = wire.LISTENER
        record.id = k.listeners.all[i].id
        record.flags = k.listeners.all[i].flags
        channel_send(&k.channel, &record)
    for i in range(k.publisher.used):
        if k.publisher.all[i].id and not k.publisher.all[i].leaving:
            memset(&record, 0, sizeof(record))
            record.kind = wire.DESTINATION
            record.id = k.publisher.all[i].id
            record.number = k.publisher.all[i].queued
            channel_send(&k.channel, &record)
    if k.asked_to_end:
        report_terminate(k)


# ---- requests

cdef int begin_relay(Keeper *k, Parcel *parcel) noexcept nogil:
    cdef uint32_t slot
    cdef int i
    if parcel.record.id == 0:
        return EINVAL
    for i in range(parcel.count):
        if parcel.descriptors[i] >= k.listeners.highest:
            return EMFILE        # the reserve is for what ends things
        if i < 2 and not fcntl(parcel.descriptors[i], F_GETFL) & O_NONBLOCK:
            if i == 0 or not is_file(parcel.descriptors[i]):
                return EINVAL    # reading or writing it could stop the keeper
    return relay_add(&k.relay, parcel.record.id, take(parcel, 0), take(parcel, 1),
                     take(parcel, 2), parcel.record.flags, NOBODY, &slot)


cdef int begin_log(Keeper *k, Parcel *parcel) noexcept nogil:
    cdef Log wanted
    cdef stat_t facts
    cdef int i
    if parcel.record.id == 0 or parcel.count != 2 or parcel.memory >= 0:
        return EINVAL
    for i in range(parcel.count):
        if parcel.descriptors[i] >= k.listeners.highest:
            return EMFILE        # the reserve is for what ends things
    if not fcntl(parcel.descriptors[0], F_GETFL) & O_NONBLOCK:
        return EINVAL            # reading it could stop the keeper
    if fstat(parcel.descriptors[1], &facts) < 0 or not S_ISDIR(facts.st_mode):
        return EINVAL
    if not is_name(parcel.payload, parcel.size):
        return EINVAL
    memset(&wanted, 0, sizeof(wanted))
    wanted.id = parcel.record.owner
    wanted.limit = parcel.record.bytes
    wanted.files = parcel.record.number
    wanted.directory = take(parcel, 1)
    wanted.length = parcel.size
    memcpy(wanted.name, parcel.payload, parcel.size)
    return relay_add_log(&k.relay, parcel.record.id, take(parcel, 0), &wanted,
                         parcel.record.flags)


cdef int forget(Keeper *k, uint64_t id) noexcept nogil:
    cdef int error = forget_process(&k.reaper, id)
    return relay_forget(&k.relay, id) if error == ESRCH else error


cdef int set_destination(Keeper *k, Parcel *parcel) noexcept nogil:
    if parcel.memory >= 0:
        return ENAMETOOLONG
    return destination_set(&k.publisher, parcel.record.id, parcel.payload, parcel.size)


cdef int front_ready(Keeper *k) noexcept nogil:
    k.front_served = True
    end_trial(k)
    return 0


cdef int stop(Keeper *k) noexcept nogil:
    listeners_close(&k.listeners)
    k.stop_due = k.now + <uint64_t>STOP_TIME * SECOND
    return 0


cdef int listen(Keeper *k, Parcel *parcel) noexcept nogil:
    if parcel.count != 1:
        return EINVAL
    return listener_add(&k.listeners, parcel.record.id, take(parcel, 0), parcel.record.flags)


cdef int send_signal(Keeper *k, Record *asked) noexcept nogil:
    cdef int error = signal_process(&k.reaper, asked.id, asked.number)
    if not error:
        ttrpc_signalled(&k.ttrpc, asked.owner)
    return error


cdef int upgrade(Keeper *k, Parcel *parcel) noexcept nogil:
    """Become the next version once the front is gone and nothing is being spawned."""
    cdef Program program
    if k.stop_due != FOREVER or k.upgrade_due != FOREVER:
        return EBUSY
    if parcel.count != 2 or not is_command(parcel.descriptors[1]):
        return EINVAL
    if not program_read(&program, parcel.descriptors[0]):
        return EINVAL
    end_trial(k)                 # who asks for the next one serves
    k.next_program = take(parcel, 0)
    k.next_command = take(parcel, 1)
    k.upgrade_due = k.now + <uint64_t>UPGRADE_TIME * SECOND
    kill_front(k)                # what it has sent, or sends yet, is done first
    return 0


cdef bint has_payload(uint32_t kind) noexcept nogil:
    return (kind == wire.RESPOND or kind == wire.DESTINATION or kind == wire.PUBLISH
            or kind == wire.LOG)


cdef int perform(Keeper *k, Parcel *parcel) noexcept nogil:
    """Do what one request asks; 0 or the errno of the answer."""
    cdef Record *asked = &parcel.record
    cdef uint32_t kind = asked.kind
    if parcel.size and not has_payload(kind):
        return EPROTO
    if kind == wire.SNAPSHOT:
        snapshot(k)
        return 0
    if kind == wire.SERVE:
        return listener_serve(&k.listeners, asked.id, take(parcel, 0))
    if kind == wire.RELEASE:
        return release(&k.reaper, asked.id)
    if kind == wire.TRACK:
        return track(&k.reaper, asked.id, asked.pid, asked.owner)
    if kind == wire.SIGNAL:
        return send_signal(k, asked)
    if kind == wire.RELAY:
        return begin_relay(k, parcel)
    if kind == wire.LOG:
        return begin_log(k, parcel)
    if kind == wire.UNHOLD:
        return relay_unhold(&k.relay, asked.id)
    if kind == wire.SETTLE:
        return relay_settle(&k.relay, asked.id)
    if kind == wire.FINISH:
        return relay_finish(&k.relay, asked.id)
    if kind == wire.CUT:
        return relay_cut(&k.relay, asked.id)
    if kind == wire.RESIZE:
        return relay_resize(&k.relay, asked.id, asked.number)
    if kind == wire.FORGET:
        return forget(k, asked.id)
    if kind == wire.STREAM:
        return relay_delivered(&k.relay, asked.id, &asked.bytes, &asked.number,
                               &asked.status)
    if kind == wire.LISTEN:
        return listen(k, parcel)
    if kind == wire.UNLISTEN:
        return listener_remove(&k.listeners, asked.id)
    if kind == wire.REPLAYABLE:
        return ttrpc_replayable(&k.ttrpc, asked.id)
    if kind == wire.RESPOND:
        return ttrpc_respond(&k.ttrpc, parcel)
    if kind == wire.DESTINATION:
        return set_destination(k, parcel)
    if kind == wire.UNDESTINATION:
        return destination_forget(&k.publisher, asked.id)
    if kind == wire.PUBLISH:
        return publish(&k.publisher, &k.reaper, parcel)
    if kind == wire.READY:
        return front_ready(k)
    if kind == wire.STOP:
        return stop(k)
    if kind == wire.UPGRADE:
        return upgrade(k, parcel)
    return 0 if kind == wire.PONG else EPROTO


cdef void answer(Keeper *k, Parcel *parcel, int error) noexcept nogil:
    """Reply, unless none is wanted, and report what the request has brought to light."""
    parcel.record.error = error
    if parcel.record.serial:
        channel_send(&k.channel, &parcel.record)
    discard(parcel)
    report_exits(k)


cdef bint is_spawn(Parcel *parcel) noexcept nogil:
    return (parcel.record.kind == wire.SPAWN and parcel.record.id > FRONT_ID
            and parcel.size == 0)


cdef void serve_parcel(Keeper *k, Parcel *parcel, int error) noexcept nogil:
    """Do what a received packet asks for."""
    if error:
        answer(k, parcel, error)
    elif is_spawn(parcel):
        spawn(k, parcel)
        discard(parcel)
    else:
        answer(k, parcel, perform(k, parcel))


cdef void front_speaks(Keeper *k) noexcept nogil:
    """Serve a bounded number of requests, so that a busy front starves no stream."""
    cdef Parcel parcel
    cdef int error
    cdef int i
    for i in range(EVENTS):
        error = receive_parcel(k.channel.socket, &parcel, k.payload)
        if error == EAGAIN:
            return
        if error == ECONNRESET:
            continue    # it has died with something unread: told once, before what it has said
        if error == EPIPE or error == EBADF:
            drop(&k.channel.socket)    # it is dying, or has closed it: either way it must go
            kill_front(k)
            if k.words_due != FOREVER:
                front_gone(k)
            return
        heard_of_front(k)
        serve_parcel(k, &parcel, error)
        if k.channel.socket < 0:
            return


# ---- the next version

cdef bint is_spawning(Keeper *k) noexcept nogil:
    """Whether the spawner owes an answer."""
    cdef uint32_t slot
    cdef Process *process
    for slot in range(k.reaper.used):
        process = &k.reaper.processes[slot]
        if process.bits & BITS_LIVE and not process.bits & BITS_EXITED and process.pid == 0:
            return True
    return False


cdef int save(Keeper *k, Writer *writer) noexcept nogil:
    """Write all that is held to a new memfd; 0 or an errno."""
    cdef SavedKeeper saved
    cdef int error = writer_open(writer, k.reaper.most)
    if error:
        return error
    memset(&saved, 0, sizeof(saved))
    saved.soft, saved.hard = k.files.rlim_cur, k.files.rlim_max
    saved.pipe_budget = k.pipe_budget
    saved.unclaimed_count = k.reaper.unclaimed_count
    saved.sequence = k.ttrpc.sequence
    saved.errors = k.errors_memory
    saved.command = k.command
    saved.next_command = k.next_command
    saved.asked_to_end = k.asked_to_end
    saved.returns = k.returns
    put_entry(writer, SAVED_KEEPER, 0, &saved, sizeof(saved), 0)
    keep(writer, k.errors_memory)
    keep(writer, k.command)
    keep(writer, k.next_command)
    put_processes(writer, &k.reaper)
    put_logs(writer, &k.relay.logs)
    put_streams(writer, &k.relay)
    put_listeners(writer, &k.listeners)
    put_connections(writer, &k.ttrpc)
    put_requests(writer, &k.ttrpc)
    put_destinations(writer, &k.publisher)
    return writer_finish(writer)


cdef void execute(Keeper *k, Writer *writer) noexcept nogil:
    """Become the next version, with what was saved. Returns where that cannot be executed."""
    cdef Program program
    cdef char numbers[2][16]
    if not program_read(&program, k.next_program):
        return
    ds_number(numbers[0], sizeof(numbers[0]), writer.fd)
    ds_number(numbers[1], sizeof(numbers[1]), k.program)
    program_add(&program, <char *>b"--resume")
    program_add(&program, numbers[0])
    program_add(&program, numbers[1])
    keep(writer, writer.fd)
    keep(writer, k.program)
    inherit(<char *>writer.descriptors, writer.count, True)
    execve(program.words[0], program.words, environ)
    inherit(<char *>writer.descriptors, writer.count, False)


cdef void try_upgrade(Keeper *k) noexcept nogil:
    """Become the next version, or, when it takes too long or cannot be, go on as this one."""
    cdef Writer writer
    cdef bint waits = (map_find(&k.reaper.ids, FRONT_ID) != NONE or k.words_due != FOREVER
                       or is_spawning(k))
    if waits and k.now < k.upgrade_due:
        return
    if not waits:
        if save(k, &writer) == 0:
            execute(k, &writer)
        writer_close(&writer)
    drop(&k.next_program)
    drop(&k.next_command)
    k.upgrade_due = FOREVER
    k.returns = False


cdef bint is_on_trial(Keeper *k) noexcept nogil:
    """Whether no front of this version has served yet, and there is an earlier version."""
    return k.trial_due != FOREVER


cdef void begin_trial(Keeper *k, int program, int command) noexcept nogil:
    """Keep the way back to the earlier version (both are taken) until a front of this one serves.

    That it could be loaded before does not mean that it can serve.
    """
    fcntl(program, F_SETFD, FD_CLOEXEC)
    k.old_program = program
    k.old_command = command
    k.trial_due = monotonic() + <uint64_t>TRIAL_TIME * SECOND


cdef void end_trial(Keeper *k) noexcept nogil:
    k.trial_due = FOREVER
    drop(&k.old_program)
    drop(&k.old_command)


cdef void go_back(Keeper *k) noexcept nogil:
    """The earlier version is the next; it is not tried in its turn."""
    k.next_program, k.old_program = k.old_program, -1
    k.next_command, k.old_command = k.old_command, -1
    k.trial_due = FOREVER
    k.returns = True
    k.upgrade_due = k.now + <uint64_t>UPGRADE_TIME * SECOND


cdef int restore_entry(Keeper *k, Reader *reader) noexcept nogil:
    cdef uint32_t kind = reader.entry.kind
    if kind == SAVED_UNCLAIMED:
        return get_unclaimed(reader, &k.reaper)
    if kind == SAVED_PROCESS:
        return get_process(reader, &k.reaper)
    if kind == SAVED_LOG:
        return get_log(reader, &k.relay.logs)
    if kind == SAVED_STREAM:
        return get_stream(reader, &k.relay, k.now)
    if kind == SAVED_LISTENER:
        return get_listener(reader, &k.listeners)
    if kind == SAVED_CONNECTION:
        return get_connection(reader, &k.ttrpc)
    if kind == SAVED_REQUEST:
        return get_request(reader, &k.ttrpc)
    if kind == SAVED_DESTINATION:
        return get_destination(reader, &k.publisher)
    return 0 if kind == SAVED_DESCRIPTORS else EINVAL


cdef int restore(Keeper *k, Reader *reader, SavedKeeper *saved) noexcept nogil:
    """Hold all that a checked state tells of; 0 or an errno, and then nothing has changed."""
    cdef int error
    next_entry(reader)
    memcpy(saved, reader.fixed, sizeof(SavedKeeper))
    if set_up(k, saved.pipe_budget, saved.errors) < 0:
        return errno if errno else EINVAL
    k.now = monotonic()
    k.files.rlim_cur, k.files.rlim_max = saved.soft, saved.hard
    k.reaper.unclaimed_count = saved.unclaimed_count
    k.ttrpc.sequence = saved.sequence
    k.asked_to_end = saved.asked_to_end
    while next_entry(reader):
        error = restore_entry(k, reader)
        if error:
            return error
    return 0


cdef void take_over(Keeper *k, Reader *reader) noexcept nogil:
    """All is restored: from here on there is no way back. The last entry is the descriptors'."""
    inherit(reader.more, reader.entry.more // sizeof(int32_t), False)
    finish_requests(&k.ttrpc)
    start_spawner(k)             # where it cannot be, the next spawn tries again
    collect(&k.reaper)           # the signal for these may have been lost
    report_exits(k)


# ---- the loop

cdef void on_signal(Keeper *k) noexcept nogil:
    cdef signalfd_siginfo info
    while read(k.signals, &info, sizeof(info)) == sizeof(info):
        if info.ssi_signo == <uint32_t>SIGTERM:
            k.asked_to_end = True
            report_terminate(k)
    collect(&k.reaper)
    report_exits(k)


cdef void on_event(Keeper *k, epoll_event *event) noexcept nogil:
    cdef uint64_t tag = event.data.u64 >> 56
    cdef uint32_t low = <uint32_t>event.data.u64
    if tag == SOURCE_TAG or tag == SINK_TAG:
        relay_event(&k.relay, tag, low, <uint32_t>(event.data.u64 >> 32 & 0xFFFFFF), event.events)
    elif tag == CONTROL_TAG:
        take_events(k, k.epoll, k.now)
    elif tag == SIGNAL_TAG:
        on_signal(k)
    elif tag == CHANNEL_TAG and k.channel.socket >= 0:
        if event.events & EPOLLOUT:
            channel_flush(&k.channel)
        if event.events & (EPOLLIN | EPOLLHUP | EPOLLERR):
            front_speaks(k)
    elif tag == SPAWNER_TAG:
        spawner_answers(k)
        if event.events & EPOLLHUP:
            spawner_gone(k)
    elif tag == PUBLISHER_TAG:
        publisher_event(&k.publisher, low, event.events, k.now)
    elif tag == LISTENER_TAG:
        listener_accept(&k.listeners, &k.relay, &k.ttrpc, low)
    elif tag == CONNECTION_TAG:
        ttrpc_event(&k.ttrpc, low, <uint32_t>(event.data.u64 >> 32 & 0xFFFFFF), event.events)


cdef void note_traffic(Keeper *k) noexcept nogil:
    """Bytes of connections are questions to the front, and its answers signs of life."""
    if k.relay.answered:
        heard_of_front(k)
    elif k.relay.asked:
        expect_answer(k)
    k.relay.asked = k.relay.answered = False
    if k.front_served and k.words_due == FOREVER and ttrpc_deliver(&k.ttrpc):
        expect_answer(k)


cdef bint has_ended(Keeper *k) noexcept nogil:
    """After STOP: all connections are closed and all events delivered, or their time is over."""
    cdef uint32_t slot
    if k.stop_due == FOREVER:
        return False
    if k.now >= k.stop_due:
        return True
    for slot in range(k.relay.used):
        if k.relay.streams[slot].party != NOBODY:
            return False
    return ttrpc_is_quiet(&k.ttrpc) and publisher_idle(&k.publisher)


cdef void take_events(Keeper *k, int epoll, uint64_t due) noexcept nogil:
    """Serve what an epoll set tells until the time `due`, or what it tells first after that."""
    cdef epoll_event events[EVENTS]
    cdef timespec limit
    cdef int count, i
    limit.tv_sec = <long>((due - k.now) // SECOND) if due > k.now else 0
    limit.tv_nsec = <long>((due - k.now) % SECOND) if due > k.now else 0
    count = ds_epoll_wait(epoll, events, EVENTS, NULL if due == FOREVER else &limit)
    k.now = k.relay.now = monotonic()
    for i in range(count):
        on_event(k, &events[i])


cdef uint64_t do_timers(Keeper *k) noexcept nogil:
    """Do what is due; gives the time of the next, or FOREVER."""
    cdef uint64_t due = min(relay_timers(&k.relay), watch_front(k))
    return min(min(due, k.stop_due), publisher_timers(&k.publisher, k.now))


cdef void loop(Keeper *k) noexcept nogil:
    cdef uint64_t due
    cdef bint resting
    k.now = k.relay.now = monotonic()
    while not has_ended(k):
        if k.upgrade_due != FOREVER:
            try_upgrade(k)
        due = do_timers(k)
        report_ends(k)
        report_lost(k)
        resting = rests(&k.relay)
        take_events(k, k.epoll if resting else k.relay.epoll, due)
        relay_run(&k.relay)
        if not resting:
            looked(&k.relay)
        note_traffic(k)
        ttrpc_run(&k.ttrpc)
        report_ends(k)


# ---- set-up

cdef int open_signals(Keeper *k) noexcept nogil:
    """SIGCHLD and SIGTERM come through a descriptor; no other signal that can wait ends a keeper."""
    cdef sigset_t mask
    cdef epoll_event event
    sigfillset(&mask)
    sigprocmask(SIG_SETMASK, &mask, NULL)
    signal(SIGCHLD, SIG_DFL)
    sigemptyset(&mask)
    sigaddset(&mask, SIGCHLD)
    sigaddset(&mask, SIGTERM)
    k.signals = signalfd(-1, &mask, SFD_CLOEXEC | SFD_NONBLOCK)
    event.events = EPOLLIN
    event.data.u64 = <uint64_t>SIGNAL_TAG << 56
    return epoll_ctl(k.epoll, EPOLL_CTL_ADD, k.signals, &event)


cdef bint open_errors(Keeper *k, uint32_t most, int memory) noexcept nogil:
    """The memory that is shared with the spawner's children: a new memfd, or the old version's."""
    cdef stat_t facts
    k.errors_memory = memory
    if memory < 0:
        k.errors_memory = memfd_create(b"errors", MFD_CLOEXEC)
        if k.errors_memory < 0 or ftruncate(k.errors_memory, most * sizeof(int32_t)) < 0:
            return False
    if fstat(k.errors_memory, &facts) < 0:
        return False
    if facts.st_size < <long long>(most * sizeof(int32_t)):
        return False
    k.errors = <int32_t *>mmap(NULL, most * sizeof(int32_t), PROT_READ | PROT_WRITE, MAP_SHARED,
                               k.errors_memory, 0)
    return k.errors != MAP_FAILED


cdef bint open_tables(Keeper *k, uint32_t most, uint64_t pipe_budget, int errors) noexcept nogil:
    if not open_errors(k, most, errors) or not reaper_open(&k.reaper, most, k.errors):
        return False
    k.payload = <char *>arena(MOST_INLINE)
    if k.payload == NULL or not pool_open(&k.pool):
        return False
    if not publisher_open(&k.publisher, k.epoll, PUBLISHER_TAG, &k.pool):
        return False
    if not relay_open(&k.relay, k.epoll, most, pipe_budget):
        return False
    if not listeners_open(&k.listeners, k.epoll, LISTENER_TAG, most, <int>most - RESERVED):
        return False
    if not ttrpc_open(&k.ttrpc, k.epoll, CONNECTION_TAG, most, <int>most - RESERVED, &k.pool,
                      &k.channel):
        return False
    return channel_open(&k.channel, k.epoll, CHANNEL_TAG, 2 * most + 1024)


cdef int set_up(Keeper *k, uint64_t pipe_budget, int errors) noexcept nogil:
    """Everything but the sockets and the spawner; 0, or -1 and errno.

    errors: the memfd of a version before, or -1.
    """
    cdef epoll_event event
    cdef uint32_t most
    memset(k, 0, sizeof(Keeper))
    k.front_due = 0
    k.stop_due = k.upgrade_due = k.words_due = k.trial_due = FOREVER
    k.next_program = k.next_command = k.old_program = k.old_command = -1
    k.pipe_budget = pipe_budget
    if getrlimit(RLIMIT_NOFILE, &k.files) < 0 or prctl(PR_SET_CHILD_SUBREAPER, 1) < 0:
        return -1
    prctl(PR_SET_NAME, <char *>b"dense-keeper")
    most = <uint32_t>min(k.files.rlim_max, <rlim_t>MOST_SLOTS)
    k.epoll = epoll_create1(EPOLL_CLOEXEC)
    if k.epoll < 0 or not open_tables(k, most, pipe_budget, errors):
        return -1
    event.events = EPOLLIN
    event.data.u64 = <uint64_t>CONTROL_TAG << 56
    if epoll_ctl(k.relay.epoll, EPOLL_CTL_ADD, k.epoll, &event) < 0:
        return -1
    return open_signals(k)


cdef int raise_limit(Keeper *k) noexcept nogil:
    """As many descriptors as there may be; the spawner has the launcher's limit."""
    cdef rlimit files = k.files
    files.rlim_cur = files.rlim_max
    return setrlimit(RLIMIT_NOFILE, &files)


cdef int make_program(list words) except -1:
    """A sealed memfd of this keeper's argv."""
    cdef bytes text = b"".join(word.encode("utf-8", "surrogateescape") + b"\0" for word in words)
    cdef int memory = memfd_create(b"program", MFD_CLOEXEC | MFD_ALLOW_SEALING)
    if memory < 0 or write(memory, <const char *>text, len(text)) != len(text):
        raise OSError(errno, "keeping the keeper's argv")
    fcntl(memory, F_ADD_SEALS, F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE)
    return memory


def run(list program, list listeners, int command, unsigned long long pipe_budget):
    """Be the keeper until the front says STOP. Never releases the GIL to anything else.

    program: the argv by which another version comes back to this one, with its own words added.
    listeners: listening sockets (taken), each with its flags; the first gets id 2, and so on.
    command: sealed memfd (taken) of the front's command, see `shim.keeper.command`; its
    descriptor 0 becomes the channel.
    pipe_budget: bytes by which all pipes together may grow.

    Raises OSError when the kernel refuses what the set-up needs.
    """
    cdef Keeper keeper
    cdef uint64_t id = FIRST_LISTENER_ID
    cdef int error
    if set_up(&keeper, pipe_budget, -1) < 0 or start_spawner(&keeper) < 0:
        raise OSError(errno, "setting up the keeper")
    if raise_limit(&keeper) < 0:
        raise OSError(errno, "raising the limit of descriptors")
    keeper.program = make_program(program)
    keeper.command = command
    for socket, flags in listeners:
        error = listener_add(&keeper.listeners, id, socket, flags)
        if error:
            raise OSError(error, f"watching listening socket {socket}")
        id += 1
    with nogil:
        loop(&keeper)


def check(int state):
    """Whether this version can take over what is in a memfd. Raises ValueError with the reason."""
    cdef Reader reader
    cdef const char *wrong = check_state(&reader, state)
    reader_close(&reader)
    if wrong != NULL:
        raise ValueError("not a keeper's state: " + wrong.decode())


def resume(list program, int state, int back):
    """Be the keeper in another version's place until the front says STOP.

    program: as for `run`. state: the memfd (taken) of what the other version held.
    back: memfd (taken) of the argv of a version that can take it back, which also happens when no
    front of this one comes to serve; -1: this is that version, and the other one has failed.

    Raises ValueError, OSError: it cannot take over; descriptors and state are as they were.
    """
    cdef Keeper keeper
    cdef Reader reader
    cdef SavedKeeper saved
    cdef const char *wrong = check_state(&reader, state)
    cdef int error
    if wrong != NULL:
        raise ValueError("not a keeper's state: " + wrong.decode())
    error = restore(&keeper, &reader, &saved)
    if error:
        raise OSError(error, "taking over a keeper's state")
    keeper.program = make_program(program)
    keeper.command = saved.command if back < 0 else saved.next_command
    take_over(&keeper, &reader)
    reader_close(&reader)
    close(state)
    if back < 0:
        close(saved.next_command)
    elif saved.returns:
        close(saved.command)
        close(back)
    else:
        begin_trial(&keeper, back, saved.command)
    with nogil:
        loop(&keeper)
