# Listening sockets. They belong to the keeper, so that a caller who comes while there is no front
# waits. With FRAMES a caller speaks ttrpc to the keeper; otherwise its connection is relayed to
# the front's own socket, which is connected to through an O_PATH descriptor: its file is gone by
# then, so nobody else finds it.

from libc.errno cimport errno
from libc.stdint cimport uint32_t, uint64_t
from connection cimport Ttrpc
from fds cimport drop
from linux cimport *
from relay cimport end_stream
from stream cimport FROM_FRONT, TO_FRONT, Relay, relay_add
from table cimport NONE, Map, arena, map_find, map_open, map_put, map_remove
from ttrpc cimport ttrpc_accept
from wire cimport ANYBODY, DOOR, FRAMES

cdef extern from *:
    """
    #include <stdio.h>
    static inline void ds_descriptor_path(char *path, size_t size, int fd) {
        snprintf(path, size, "/proc/self/fd/%d", fd);
    }
    """
    void ds_descriptor_path(char *path, size_t size, int fd) nogil

cdef enum:
    RESERVED = 64            # descriptors kept for exit and delete when clients take all others

cdef struct Listener:
    uint64_t id              # 0: the slot is free
    uint32_t flags           # FRAMES, DOOR, ANYBODY
    uint32_t next            # free list
    int socket               # owned
    int front                # owned, O_PATH; -1: nobody serves, callers wait

cdef struct Listeners:
    int epoll
    uint64_t tag
    int highest              # descriptors from here on are the reserve
    uint32_t most, used, free
    Listener *all
    Map ids


cdef inline bint listeners_open(Listeners *listeners, int epoll, uint64_t tag, uint32_t most,
                                int highest) noexcept nogil:
    """Room for `most` listeners; False: no memory."""
    memset(listeners, 0, sizeof(Listeners))
    listeners.epoll = epoll
    listeners.tag = tag
    listeners.highest = highest
    listeners.most = most
    listeners.free = NONE
    listeners.all = <Listener *>arena(most * sizeof(Listener))
    return listeners.all != NULL and map_open(&listeners.ids, most)


cdef inline int listener_watch(Listeners *listeners, uint32_t index, int operation) noexcept nogil:
    """Accept where somebody takes the callers."""
    cdef Listener *listener = &listeners.all[index]
    cdef bint serves = listener.flags & FRAMES or listener.front >= 0
    cdef epoll_event event
    # Edge-triggered: no descriptor left to accept with means no endless loop.
    event.events = (EPOLLIN if serves else 0) | EPOLLET
    event.data.u64 = listeners.tag << 56 | index
    return errno if epoll_ctl(listeners.epoll, operation, listener.socket, &event) < 0 else 0


cdef inline int socket_number(int socket, int name) noexcept nogil:
    """An option of a socket: socket(7); -1 where it is none."""
    cdef int value = -1
    cdef socklen_t size = sizeof(value)
    return value if getsockopt(socket, SOL_SOCKET, name, &value, &size) == 0 else -1


cdef inline void free_listener(Listeners *listeners, uint32_t index) noexcept nogil:
    """Close its descriptors and give its slot back."""
    cdef Listener *listener = &listeners.all[index]
    drop(&listener.front)
    drop(&listener.socket)
    map_remove(&listeners.ids, listener.id)
    listener.id = 0
    listener.next = listeners.free
    listeners.free = index


cdef inline int listener_refused(Listeners *listeners, uint64_t id, int socket,
                                 uint32_t flags) noexcept nogil:
    """Why this cannot become a listener; 0: it can."""
    if id == 0 or flags & ~<uint32_t>(FRAMES | DOOR | ANYBODY):
        return EINVAL
    if (flags & DOOR and not flags & FRAMES) or (flags & ANYBODY and flags & FRAMES):
        return EINVAL
    if socket_number(socket, SO_DOMAIN) != AF_UNIX or socket_number(socket, SO_ACCEPTCONN) != 1:
        return EINVAL
    if map_find(&listeners.ids, id) != NONE:
        return EEXIST
    if listeners.free == NONE and listeners.used == listeners.most:
        return ENFILE
    return EMFILE if socket >= listeners.highest else 0


cdef inline int listener_place(Listeners *listeners, uint64_t id, int socket,
                               uint32_t flags) noexcept nogil:
    """As listener_add, but on an errno the socket is the caller's still."""
    cdef uint32_t index = listeners.free
    cdef Listener *listener
    cdef int error = listener_refused(listeners, id, socket, flags)
    if error:
        return error
    if index != NONE:
        listeners.free = listeners.all[index].next
    else:
        index = listeners.used
        listeners.used += 1
    listener = &listeners.all[index]
    listener.id = id
    listener.flags = flags
    listener.socket = socket
    listener.front = -1
    map_put(&listeners.ids, id, index)
    fcntl(socket, F_SETFL, fcntl(socket, F_GETFL) | O_NONBLOCK)
    error = listener_watch(listeners, index, EPOLL_CTL_ADD)
    if error:
        listener.socket = -1
        free_listener(listeners, index)
    return error


cdef inline int listener_add(Listeners *listeners, uint64_t id, int socket,
                             uint32_t flags) noexcept nogil:
    """Hold a listening unix socket; takes it. Without FRAMES nobody is accepted before
    `listener_serve`.

    An errno: EINVAL, no such socket, or the flags; EEXIST, the id; ENFILE, EMFILE, no room.
    """
    cdef int error = listener_place(listeners, id, socket, flags)
    if error:
        drop(&socket)
    return error


cdef inline int listener_remove(Listeners *listeners, uint64_t id) noexcept nogil:
    """Close it; its connections stay. ESRCH: there is none."""
    cdef uint32_t index = map_find(&listeners.ids, id)
    if index == NONE:
        return ESRCH
    free_listener(listeners, index)
    return 0


cdef inline int listener_serve(Listeners *listeners, uint64_t id, int front) noexcept nogil:
    """Accept from now on, for the front behind the O_PATH descriptor `front`; takes it."""
    cdef uint32_t index = map_find(&listeners.ids, id)
    if front < 0:
        return EINVAL
    if index == NONE or listeners.all[index].flags & FRAMES:
        drop(&front)
        return ESRCH if index == NONE else EINVAL
    drop(&listeners.all[index].front)
    listeners.all[index].front = front
    return listener_watch(listeners, index, EPOLL_CTL_MOD)


cdef inline void listeners_pause(Listeners *listeners) noexcept nogil:
    """The front is gone: callers of its own socket wait until there is one again."""
    cdef uint32_t i
    for i in range(listeners.used):
        if listeners.all[i].front >= 0:
            drop(&listeners.all[i].front)
            listener_watch(listeners, i, EPOLL_CTL_MOD)


cdef inline void listeners_close(Listeners *listeners) noexcept nogil:
    cdef uint32_t i
    for i in range(listeners.used):
        if listeners.all[i].id:
            free_listener(listeners, i)


cdef inline bint may_call(int socket, ucred *peer) noexcept nogil:
    """Only root and the shim's own user may: unix(7), SO_PEERCRED."""
    cdef socklen_t size = sizeof(ucred)
    if getsockopt(socket, SOL_SOCKET, SO_PEERCRED, peer, &size) < 0:
        return False
    return peer.uid == 0 or peer.uid == geteuid()


cdef inline int connect_front(int front) noexcept nogil:
    """A connection to the socket behind an O_PATH descriptor; -1 when the front takes none."""
    cdef sockaddr_un address
    cdef int made = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0)
    if made < 0:
        return -1
    memset(&address, 0, sizeof(address))
    address.sun_family = AF_UNIX
    ds_descriptor_path(address.sun_path, sizeof(address.sun_path), front)
    if connect(made, <sockaddr *>&address, sizeof(address)) < 0:
        drop(&made)
    return made


cdef inline void join(Relay *relay, int client, int front) noexcept nogil:
    """Relay both ways; takes both. Each stream owns descriptors of its own, hence the copies."""
    cdef int client_copy = fcntl(client, F_DUPFD_CLOEXEC, 0)
    cdef int front_copy = fcntl(front, F_DUPFD_CLOEXEC, 0)
    cdef uint32_t slot, back
    if client_copy < 0 or front_copy < 0:
        drop(&client_copy)
        drop(&front_copy)
        drop(&client)
        drop(&front)
        return
    if relay_add(relay, 0, client, front, -1, 0, TO_FRONT, &slot):
        drop(&client_copy)
        drop(&front_copy)
        return
    if relay_add(relay, 0, front_copy, client_copy, -1, 0, FROM_FRONT, &back):
        end_stream(relay, slot, False)


cdef inline void listener_accept(Listeners *listeners, Relay *relay, Ttrpc *ttrpc,
                                 uint32_t index) noexcept nogil:
    """Take all callers that wait; who may not call, or finds no room, is hung up on."""
    cdef Listener *listener = &listeners.all[index]
    cdef ucred peer
    cdef int client, front
    if listener.id == 0 or not (listener.flags & FRAMES or listener.front >= 0):
        return
    while True:
        client = accept4(listener.socket, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK)
        if client < 0:
            return
        if client >= listeners.highest or not (
            listener.flags & ANYBODY or may_call(client, &peer)
        ):
            drop(&client)
            continue
        if listener.flags & FRAMES:
            ttrpc_accept(ttrpc, client, listener.id, listener.flags & DOOR, &peer)
            continue
        front = connect_front(listener.front)
        if front < 0:
            drop(&client)
        else:
            join(relay, client, front)
