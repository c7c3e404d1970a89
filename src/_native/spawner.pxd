# The spawner: a small child of the keeper, forked while the keeper is small, that starts
# programs with clone3(CLONE_PARENT), so that they are the keeper's children. Forking the keeper
# itself would stall every relay for as long as its descriptors take to copy.
#
# It takes one record at a time: SPAWN with the command's memfd (layout: `shim.keeper.command`)
# and the descriptors the program gets; it answers with the pid and a pidfd. What goes wrong in
# the child, after that answer, is told through shared memory: its errno, in the slot that the
# record's `number` names, before it exits with 127.

from libc.errno cimport EACCES, errno
from libc.stdint cimport int32_t, uint32_t, uint64_t
from libc.string cimport strlen
from fds cimport Parcel, discard, drop, is_sealed, receive_parcel, send_parcel, take
from linux cimport *
from table cimport arena
from wire cimport RECORD_DESCRIPTORS, SPAWN

cdef enum:
    MAX_DESCRIPTORS = 16
    MAX_LIMITS = 16
    MAX_SIZE = 16 << 20
    MAX_STRINGS = 1 << 20
    CANNOT_EXECUTE = 127
    SPAWNERS_SCORE = 0x7FFFFFFF     # as an oom_score_adj: none is written

cdef struct Limit:
    uint32_t resource
    uint32_t zero
    uint64_t soft
    uint64_t hard

cdef struct Command:
    uint32_t argc, envc, descriptors, mask, limits, joins
    int32_t death_signal
    int32_t oom_score_adj
    int32_t target[16]
    Limit limit[16]

cdef struct Spawner:
    int socket
    pid_t keeper
    int32_t *errors          # shared memory, one for each of the keeper's process slots
    uint32_t most
    rlimit files             # what the launcher had
    char **strings           # cwd, argv, NULL, envp, NULL, joins, NULL


cdef inline Command *map_command(int memory, size_t *size) noexcept nogil:
    """The command in a sealed memfd, or NULL: nobody can change or cut it while we read."""
    cdef stat_t facts
    cdef void *found
    if memory < 0 or not is_sealed(memory) or fstat(memory, &facts) < 0:
        return NULL
    if facts.st_size <= <long long>sizeof(Command) or facts.st_size > MAX_SIZE:
        return NULL
    size[0] = <size_t>facts.st_size
    found = mmap(NULL, size[0], PROT_READ, MAP_PRIVATE, memory, 0)
    return NULL if found == MAP_FAILED else <Command *>found


cdef inline bint is_command(int memory) noexcept nogil:
    cdef size_t size = 0
    cdef Command *command = map_command(memory, &size)
    if command != NULL:
        munmap(command, size)
    return command != NULL


cdef inline char *lay_out(char *text, char *end, char **strings, uint32_t count) noexcept nogil:
    """Point strings[0..count-1] at consecutive NUL-ended texts; what follows, NULL: cut short."""
    cdef uint32_t i
    cdef char *stop
    for i in range(count):
        stop = <char *>memchr(text, 0, end - text) if text < end else NULL
        if stop == NULL:
            return NULL
        strings[i] = text
        text = stop + 1
    strings[count] = NULL
    return text


cdef inline char **first_join(Spawner *spawner, Command *command) noexcept nogil:
    return spawner.strings + command.argc + command.envc + 3


cdef inline bint parse_command(Spawner *spawner, Command *command, size_t size,
                               int passed) noexcept nogil:
    """Fill spawner.strings; False: not a command."""
    cdef char *text = <char *>command + sizeof(Command)
    cdef char *end = <char *>command + size
    cdef uint64_t total = <uint64_t>command.argc + command.envc + command.joins
    if command.argc == 0 or total > MAX_STRINGS - 4 or command.limits > MAX_LIMITS:
        return False
    if command.descriptors > MAX_DESCRIPTORS or <int>command.descriptors != passed:
        return False
    text = lay_out(text, end, spawner.strings, command.argc + 1)
    if text != NULL:
        text = lay_out(text, end, spawner.strings + command.argc + 2, command.envc)
    if text == NULL:
        return False
    return lay_out(text, end, first_join(spawner, command), command.joins) == end


cdef inline int place_descriptors(Command *command, int *passed) noexcept nogil:
    """Give each passed descriptor its number; all others from 3 on are closed by execve(2).

    They are moved out of the way first, since a target may be another one's present number.
    """
    cdef uint32_t i
    for i in range(command.descriptors):
        passed[i] = fcntl(passed[i], F_DUPFD_CLOEXEC, 3 + 2 * MAX_DESCRIPTORS)
        if passed[i] < 0:
            return errno
    if ds_close_range(3, 0xFFFFFFFFU, CLOSE_RANGE_CLOEXEC) < 0:
        return errno
    for i in range(command.descriptors):
        if command.target[i] < 0 or command.target[i] >= 3 + 2 * MAX_DESCRIPTORS:
            return EINVAL
        if dup2(passed[i], command.target[i]) < 0:
            return errno
    return 0


cdef inline void join_cgroups(char **files) noexcept nogil:
    """Move into each cgroup by its cgroup.procs. One may be gone: then all goes on without it."""
    cdef int fd
    while files[0] != NULL:
        fd = open(files[0], O_WRONLY)
        if fd >= 0:
            write(fd, <char *>b"0", 1)
            close(fd)
        files += 1


cdef inline int take_score(int32_t score) noexcept nogil:
    """Write our oom_score_adj; an errno. One that is lower than we may have is done without."""
    cdef char text[16]
    cdef int error = 0
    cdef int fd = open(b"/proc/self/oom_score_adj", O_WRONLY)
    if fd < 0:
        return errno
    ds_number(text, sizeof(text), score)
    if write(fd, text, strlen(text)) < 0 and errno != EACCES:
        error = errno
    close(fd)
    return error


cdef inline int become(Spawner *spawner, Command *command, int *passed) noexcept nogil:
    """In the child: take the command's shape and execute it. Returns only with an errno."""
    cdef rlimit limit
    cdef uint32_t i
    cdef int error
    join_cgroups(first_join(spawner, command))
    if command.death_signal:
        if prctl(PR_SET_PDEATHSIG, command.death_signal) < 0:
            return errno
        if getppid() != spawner.keeper:    # it died before the request took effect
            _exit(CANNOT_EXECUTE)
    if command.oom_score_adj != SPAWNERS_SCORE:
        error = take_score(command.oom_score_adj)
        if error:
            return error
    error = place_descriptors(command, passed)
    if error:
        return error
    if setrlimit(RLIMIT_NOFILE, &spawner.files) < 0:
        return errno
    for i in range(command.limits):
        limit.rlim_cur = command.limit[i].soft
        limit.rlim_max = command.limit[i].hard
        if setrlimit(<int>command.limit[i].resource, &limit) < 0:
            return errno
    umask(command.mask)
    if chdir(spawner.strings[0]) < 0:
        return errno
    execve(spawner.strings[1], spawner.strings + 1, spawner.strings + command.argc + 2)
    return errno


cdef inline int start_child(Spawner *spawner, Command *command, Parcel *parcel,
                            int *pidfd) noexcept nogil:
    """clone3(2); the pid, or -1. The child shares nothing but the memory of `errors`."""
    cdef clone_args arguments
    cdef int pid
    memset(&arguments, 0, sizeof(arguments))
    arguments.flags = CLONE_PARENT | CLONE_PIDFD | CLONE_CLEAR_SIGHAND
    arguments.pidfd = <uint64_t>pidfd
    pid = ds_clone3(&arguments)
    if pid == 0:
        spawner.errors[parcel.record.number] = become(spawner, command, parcel.descriptors + 1)
        _exit(CANNOT_EXECUTE)
    return pid


cdef inline void answer_spawn(Spawner *spawner, Parcel *parcel) noexcept nogil:
    """Start what the parcel asks for; the parcel becomes the answer."""
    cdef size_t size = 0
    cdef Command *command = map_command(parcel.descriptors[0] if parcel.count else -1, &size)
    cdef int pidfd = -1
    cdef int pid = -1
    parcel.record.error = EINVAL
    if command != NULL and parcel.record.number < spawner.most:
        if parse_command(spawner, command, size, parcel.count - 1):
            pid = start_child(spawner, command, parcel, &pidfd)
            parcel.record.error = errno if pid < 0 else 0
    if command != NULL:
        munmap(command, size)
    discard(parcel)
    if pid > 0:
        parcel.record.pid = pid
        parcel.descriptors[0] = pidfd
        parcel.count = 1


cdef inline void spawner_main(Spawner *spawner) noexcept nogil:
    """Serve until the keeper is gone. Never returns."""
    cdef Parcel parcel
    cdef int error
    while True:
        error = receive_parcel(spawner.socket, &parcel, NULL)
        if error == EMFILE:
            parcel.record.error = EMFILE
        elif error:
            _exit(0)
        else:
            answer_spawn(spawner, &parcel)
        if send_parcel(spawner.socket, &parcel):
            _exit(0)
        discard(&parcel)


cdef inline void be_spawner(Spawner *spawner) noexcept nogil:
    """In the new child: keep nothing of the keeper but the socket and the standard streams."""
    cdef sigset_t none
    cdef int number
    cdef int socket = spawner.socket
    if socket != 3:
        dup2(socket, 3)
        spawner.socket = 3
    fcntl(3, F_SETFL, 0)
    ds_close_range(4, 0xFFFFFFFFU, 0)
    sigemptyset(&none)
    sigprocmask(SIG_SETMASK, &none, NULL)
    for number in range(1, 65):
        ds_default_signal(number)
    prctl(PR_SET_PDEATHSIG, SIGKILL)
    prctl(PR_SET_NAME, <char *>b"dense-spawner")
    if getppid() != spawner.keeper:
        _exit(0)
    spawner.strings = <char **>arena(MAX_STRINGS * sizeof(char *))
    if spawner.strings == NULL:
        _exit(1)
    spawner_main(spawner)


cdef inline int spawner_start(int32_t *errors, uint32_t most, rlimit *files,
                              int *channel) noexcept nogil:
    """Fork the spawner; gives its pid and, in *channel, the keeper's end; -1 and errno."""
    cdef Spawner spawner
    cdef int pair[2]
    cdef int pid
    if socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair) < 0:
        return -1
    memset(&spawner, 0, sizeof(spawner))
    spawner.keeper = getpid()
    spawner.errors = errors
    spawner.most = most
    spawner.files = files[0]
    spawner.socket = pair[1]
    pid = fork()
    if pid == 0:
        be_spawner(&spawner)
    close(pair[1])
    if pid < 0:
        close(pair[0])
        return -1
    channel[0] = pair[0]
    return pid
