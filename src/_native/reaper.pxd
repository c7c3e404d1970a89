# Exits: every child's is collected at once, time-stamped, and kept until the front has taken it.
#
# A runtime's child (the container's init process) becomes the keeper's when the runtime ends,
# and may itself have ended before anybody could name its pid. Such unclaimed exits are kept in
# a ring, each valid only for a spawn that began before it; with no spawn unfinished there are
# none. That bounds the ring and keeps a reused pid from being taken for an old one.

from libc.errno cimport errno
from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t, uint64_t
from clock cimport realtime
from fds cimport drop
from linux cimport *
from table cimport NONE, Map, arena, map_find, map_open, map_put, map_remove

cdef enum:
    UNCLAIMED = 1 << 15      # exits: the ring's size
    BITS_LIVE = 1            # the slot is in use
    BITS_EXITED = 2          # the exit is known
    BITS_SPAWN = 4           # a spawn that has not been released

cdef struct Process:
    uint64_t id
    uint64_t time            # of the exit, ns since the epoch
    uint64_t began           # of the spawn: unclaimed exits from this count on may belong to it
    uint64_t serial          # of the spawn's request, until it is answered
    int32_t pid
    int pidfd                # owned; -1 once the exit is known
    uint32_t status
    int32_t error            # why it could not be executed
    uint32_t next            # free list
    uint32_t counted         # of PUBLISH with the counted mark, the last one queued
    uint16_t told            # marks of PUBLISH: what has been queued about it
    uint8_t bits

cdef struct Unclaimed:
    uint64_t time
    int32_t pid              # 0: claimed
    uint32_t status

cdef struct Reaper:
    uint32_t most, used, free
    Process *processes
    int32_t *errors          # shared with the children: why slot N could not execute
    Map ids, pids
    Unclaimed *unclaimed
    uint64_t unclaimed_count # ever; the place is this modulo UNCLAIMED
    uint32_t unfinished      # spawns not released
    uint32_t *news           # slots whose exit was learned just now
    uint32_t news_count


cdef inline bint reaper_open(Reaper *reaper, uint32_t most, int32_t *errors) noexcept nogil:
    """Room for `most` processes; `errors` is memory for as many, shared with the spawner."""
    memset(reaper, 0, sizeof(Reaper))
    reaper.most = most
    reaper.free = NONE
    reaper.errors = errors
    reaper.processes = <Process *>arena(most * sizeof(Process))
    reaper.unclaimed = <Unclaimed *>arena(UNCLAIMED * sizeof(Unclaimed))
    reaper.news = <uint32_t *>arena(most * sizeof(uint32_t))
    if reaper.processes == NULL or reaper.unclaimed == NULL or reaper.news == NULL:
        return False
    return map_open(&reaper.ids, most) and map_open(&reaper.pids, most)


cdef inline uint32_t process_add(Reaper *reaper, uint64_t id) noexcept nogil:
    """A slot for a new process; NONE when there is no room or the id is taken (or 0)."""
    cdef uint32_t slot
    cdef Process *process
    if id == 0 or map_find(&reaper.ids, id) != NONE:
        return NONE
    slot = reaper.free
    if slot != NONE:
        reaper.free = reaper.processes[slot].next
    elif reaper.used < reaper.most:
        slot = reaper.used
        reaper.used += 1
    else:
        return NONE
    process = &reaper.processes[slot]
    memset(process, 0, sizeof(Process))
    process.id = id
    process.pidfd = -1
    process.bits = BITS_LIVE
    process.began = reaper.unclaimed_count
    reaper.errors[slot] = 0
    map_put(&reaper.ids, id, slot)
    return slot


cdef inline void forget_pid(Reaper *reaper, uint32_t slot) noexcept nogil:
    """The pid may be anybody's from now on."""
    cdef Process *process = &reaper.processes[slot]
    drop(&process.pidfd)
    if process.pid and map_find(&reaper.pids, process.pid) == slot:
        map_remove(&reaper.pids, process.pid)


cdef inline void process_free(Reaper *reaper, uint32_t slot) noexcept nogil:
    cdef Process *process = &reaper.processes[slot]
    forget_pid(reaper, slot)
    map_remove(&reaper.ids, process.id)
    if process.bits & BITS_SPAWN:
        reaper.unfinished -= 1
    process.bits = 0
    process.next = reaper.free
    reaper.free = slot


cdef inline void process_exited(Reaper *reaper, uint32_t slot, uint32_t status,
                                uint64_t time) noexcept nogil:
    cdef Process *process = &reaper.processes[slot]
    forget_pid(reaper, slot)
    process.status = status
    process.time = time
    process.error = reaper.errors[slot]
    process.bits |= BITS_EXITED
    reaper.news[reaper.news_count] = slot    # each slot ends once before the keeper looks
    reaper.news_count += 1


cdef inline void forget_serials(Reaper *reaper) noexcept nogil:
    """Who asked for these spawns is gone; to the next front its serials mean something else."""
    cdef uint32_t slot
    for slot in range(reaper.used):
        reaper.processes[slot].serial = 0


cdef inline Unclaimed *find_unclaimed(Reaper *reaper, int32_t pid, uint64_t since) noexcept nogil:
    """The latest kept exit of `pid` from the count `since` on; NULL when there is none.

    Counted, not timed: the clock may be set back while a spawn runs.
    """
    cdef uint64_t i = reaper.unclaimed_count
    cdef Unclaimed *found
    if i > UNCLAIMED:
        since = max(since, i - UNCLAIMED)
    while i > since:
        i -= 1
        found = &reaper.unclaimed[i % UNCLAIMED]
        if found.pid == pid:
            return found
    return NULL


cdef inline void process_started(Reaper *reaper, uint32_t slot, int32_t pid, int pidfd,
                                 Unclaimed *early) noexcept nogil:
    """This process has a pid now; takes the pidfd. `early` is its exit, if that is known."""
    cdef Process *process = &reaper.processes[slot]
    process.pid = pid
    process.pidfd = pidfd
    if early != NULL:
        early.pid = 0
        process_exited(reaper, slot, early.status, early.time)
    else:
        map_put(&reaper.pids, pid, slot)


cdef inline bint is_child(int pidfd) noexcept nogil:
    """Whether this process is ours to collect: waitid(2), P_PIDFD."""
    cdef siginfo_t info
    memset(&info, 0, sizeof(info))
    return waitid(P_PIDFD, pidfd, &info, WNOHANG | WNOWAIT | WEXITED) == 0


cdef inline int track(Reaper *reaper, uint64_t id, int32_t pid, uint64_t owner) noexcept nogil:
    """Follow a child that the unfinished spawn `owner` has made; 0, or an errno: ECHILD, not ours.

    EEXIST: the id or the pid is followed already. ENFILE: no room.
    """
    cdef uint32_t spawn = map_find(&reaper.ids, owner)
    cdef Unclaimed *early
    cdef uint32_t slot
    cdef int pidfd
    if pid <= 1 or map_find(&reaper.pids, pid) != NONE or map_find(&reaper.ids, id) != NONE:
        return EINVAL if pid <= 1 else EEXIST
    if spawn == NONE or not reaper.processes[spawn].bits & BITS_SPAWN:
        return ESRCH
    early = find_unclaimed(reaper, pid, reaper.processes[spawn].began)
    pidfd = -1 if early != NULL else ds_pidfd_open(pid)
    if early == NULL and pidfd < 0:
        return ECHILD if errno == ESRCH else errno
    if pidfd >= 0 and not is_child(pidfd):
        drop(&pidfd)
        return ECHILD
    slot = process_add(reaper, id)
    if slot == NONE:
        drop(&pidfd)
        return ENFILE
    process_started(reaper, slot, pid, pidfd, early)
    return 0


cdef inline void spawn_started(Reaper *reaper, uint32_t slot, int32_t pid,
                               int pidfd) noexcept nogil:
    """The spawner has answered; takes the pidfd. SIGCHLD may have been faster."""
    cdef Unclaimed *early = find_unclaimed(reaper, pid, reaper.processes[slot].began)
    process_started(reaper, slot, pid, pidfd, early)


cdef inline void collect(Reaper *reaper) noexcept nogil:
    """Take every exit that the kernel has: one SIGCHLD may stand for many."""
    cdef Unclaimed *place
    cdef uint32_t slot, status
    cdef uint64_t now
    cdef int raw = 0
    cdef int pid = wait4(-1, &raw, WNOHANG | WALL, NULL)
    while pid > 0 or (pid < 0 and errno == EINTR):
        if pid > 0:
            now = realtime()
            status = 128 + WTERMSIG(raw) if WIFSIGNALED(raw) else WEXITSTATUS(raw)
            slot = map_find(&reaper.pids, pid)
            if slot != NONE:
                process_exited(reaper, slot, status, now)
            elif reaper.unfinished:
                place = &reaper.unclaimed[reaper.unclaimed_count % UNCLAIMED]
                place.pid, place.status, place.time = pid, status, now
                reaper.unclaimed_count += 1
        pid = wait4(-1, &raw, WNOHANG | WALL, NULL)


cdef inline int release(Reaper *reaper, uint64_t id) noexcept nogil:
    """A spawn's window closes: what it has not claimed is nobody's, or another open spawn's."""
    cdef uint32_t slot = map_find(&reaper.ids, id)
    if slot == NONE:
        return ESRCH
    if reaper.processes[slot].bits & BITS_SPAWN:
        reaper.processes[slot].bits &= ~BITS_SPAWN
        reaper.unfinished -= 1
    return 0


cdef inline int signal_process(Reaper *reaper, uint64_t id, int number) noexcept nogil:
    """pidfd_send_signal(2); ESRCH when the process has ended, so that nobody else is hit."""
    cdef uint32_t slot = map_find(&reaper.ids, id)
    if slot == NONE or reaper.processes[slot].pidfd < 0:
        return ESRCH
    return errno if ds_pidfd_send_signal(reaper.processes[slot].pidfd, number) < 0 else 0


cdef inline int forget_process(Reaper *reaper, uint64_t id) noexcept nogil:
    """Free the record of an exit that the front has taken; EBUSY while the process lives."""
    cdef uint32_t slot = map_find(&reaper.ids, id)
    if slot == NONE:
        return ESRCH
    if not reaper.processes[slot].bits & BITS_EXITED:
        return EBUSY
    process_free(reaper, slot)
    return 0
