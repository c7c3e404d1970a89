# Descriptors: closing with one owner, and passing them beside a record.

from libc.errno cimport errno
from libc.stdint cimport uint32_t
from blocks cimport Chain, Pool, chain_append, chain_memory, chain_read, chain_vector
from linux cimport *
from wire cimport LARGE, MOST_INLINE, MOST_PAYLOAD, RECORD_DESCRIPTORS, Record

cdef enum:
    INLINE_VECTORS = 128     # the record, and the blocks of MOST_INLINE bytes

cdef struct Parcel:
    # A record, and the descriptors and the payload that have come with it. The receiver owns them.
    Record record
    int count
    int descriptors[RECORD_DESCRIPTORS]
    int memory               # LARGE: the sealed memfd; -1: the payload is at `payload`
    char *payload            # borrowed: the next receive_parcel overwrites it
    uint32_t size            # bytes of payload


cdef inline void drop(int *fd) noexcept nogil:
    """Close *fd unless it is -1, and store -1."""
    cdef int old = fd[0]
    fd[0] = -1
    if old >= 0:
        close(old)


cdef inline int take(Parcel *parcel, int index) noexcept nogil:
    """Move a descriptor out of the parcel; -1 where there is none."""
    cdef int fd
    if index >= parcel.count:
        return -1
    fd = parcel.descriptors[index]
    parcel.descriptors[index] = -1
    return fd


cdef inline void discard(Parcel *parcel) noexcept nogil:
    """Close every descriptor that nobody took."""
    cdef int i
    for i in range(parcel.count):
        drop(&parcel.descriptors[i])
    parcel.count = 0
    drop(&parcel.memory)


cdef inline bint is_sealed(int memory) noexcept nogil:
    """Whether nobody can change or cut this file while we read it."""
    cdef int seals = fcntl(memory, F_GET_SEALS)
    cdef int wanted = F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW
    return seals >= 0 and seals & wanted == wanted


cdef inline int send_packet(int socket, const Record *record, const int *descriptors, int count,
                            iovec *vectors, int pieces) noexcept nogil:
    """Send a record, which becomes vectors[0], with pieces - 1 vectors more; 0, or the errno."""
    cdef msghdr message
    cdef cmsghdr *header
    cdef char control[256]
    cdef size_t size = count * sizeof(int)
    memset(&message, 0, sizeof(message))
    vectors[0].iov_base = <void *>record
    vectors[0].iov_len = sizeof(Record)
    message.msg_iov = vectors
    message.msg_iovlen = pieces
    if count:
        memset(control, 0, sizeof(control))
        message.msg_control = control
        message.msg_controllen = CMSG_SPACE(size)
        header = CMSG_FIRSTHDR(&message)
        header.cmsg_level = SOL_SOCKET
        header.cmsg_type = SCM_RIGHTS
        header.cmsg_len = CMSG_LEN(size)
        memcpy(CMSG_DATA(header), descriptors, size)
    while sendmsg(socket, &message, MSG_NOSIGNAL) < 0:
        if errno != EINTR:
            return errno
    return 0


cdef inline int send_parcel(int socket, Parcel *parcel) noexcept nogil:
    """Send one record without a payload and borrow its descriptors; 0, or the errno."""
    cdef iovec vector
    return send_packet(socket, &parcel.record, parcel.descriptors, parcel.count, &vector, 1)


cdef inline int send_payload(int socket, Record *record, Pool *pool, Chain *payload,
                             const int *descriptors, int count) noexcept nogil:
    """Send a record with a payload and borrow its descriptors (one fewer than a record takes).

    0, or the errno. The record's LARGE is set as the payload's size asks for.
    """
    cdef iovec vectors[INLINE_VECTORS]
    cdef int all[RECORD_DESCRIPTORS]
    cdef int error
    record.flags &= ~<uint32_t>LARGE
    # A chain that was joined may have many short blocks.
    if payload.size <= MOST_INLINE and payload.blocks < INLINE_VECTORS:
        return send_packet(socket, record, descriptors, count, vectors,
                           1 + chain_vector(pool, payload, 0, payload.size, vectors + 1,
                                            INLINE_VECTORS - 1))
    all[0] = chain_memory(pool, payload)
    if all[0] < 0:
        return errno
    record.flags |= LARGE
    memcpy(all + 1, descriptors, count * sizeof(int))
    error = send_packet(socket, record, all, count + 1, vectors, 1)
    drop(&all[0])
    return error


cdef inline int unwrap(Parcel *parcel) noexcept nogil:
    """Take a LARGE payload's memfd from the descriptors; 0, or EPROTO: there is none."""
    cdef stat_t facts
    cdef int i
    parcel.record.flags &= ~<uint32_t>LARGE      # a reply has none
    if parcel.count == 0 or parcel.size:
        return EPROTO
    parcel.memory = parcel.descriptors[0]
    parcel.count -= 1
    for i in range(parcel.count):
        parcel.descriptors[i] = parcel.descriptors[i + 1]
    if not is_sealed(parcel.memory) or fstat(parcel.memory, &facts) < 0:
        return EPROTO
    if facts.st_size > MOST_PAYLOAD:
        return EPROTO
    parcel.size = <uint32_t>facts.st_size
    return 0


cdef inline int receive_parcel(int socket, Parcel *parcel, char *room) noexcept nogil:
    """Receive one record with its descriptors; 0, or the errno; EPIPE when the peer is gone.

    room: MOST_INLINE bytes for a payload; NULL: none is expected.
    EPROTO: not a record; it is all zero where it was too short, and valid where its payload was
    wrong. EMFILE: descriptors were lost for want of room (MSG_CTRUNC); the record is valid then,
    so that it can be answered. In both cases no descriptor is kept.
    """
    cdef msghdr message
    cdef iovec vectors[2]
    cdef cmsghdr *header
    cdef char control[256]
    cdef ssize_t size
    cdef int error = 0
    parcel.count = 0
    parcel.memory = -1
    parcel.payload = room
    parcel.size = 0
    memset(&message, 0, sizeof(message))
    memset(&parcel.record, 0, sizeof(Record))
    vectors[0].iov_base = &parcel.record
    vectors[0].iov_len = sizeof(Record)
    vectors[1].iov_base = room
    vectors[1].iov_len = MOST_INLINE
    message.msg_iov = vectors
    message.msg_iovlen = 1 if room == NULL else 2
    message.msg_control = control
    # Not CMSG_SPACE: the kernel fills its padding with one descriptor more than the parcel holds.
    message.msg_controllen = CMSG_LEN(RECORD_DESCRIPTORS * sizeof(int))
    size = recvmsg(socket, &message, MSG_CMSG_CLOEXEC)
    while size < 0:
        if errno != EINTR:
            return errno
        size = recvmsg(socket, &message, MSG_CMSG_CLOEXEC)
    header = CMSG_FIRSTHDR(&message)
    if header != NULL and header.cmsg_level == SOL_SOCKET and header.cmsg_type == SCM_RIGHTS:
        parcel.count = <int>((header.cmsg_len - CMSG_LEN(0)) // sizeof(int))
        memcpy(parcel.descriptors, CMSG_DATA(header), parcel.count * sizeof(int))
    if size == 0:
        error = EPIPE
    elif size < <ssize_t>sizeof(Record):
        memset(&parcel.record, 0, sizeof(Record))
        error = EPROTO
    elif message.msg_flags & MSG_CTRUNC:
        parcel.record.flags &= ~<uint32_t>LARGE
        error = EMFILE
    else:
        parcel.size = <uint32_t>(size - sizeof(Record))
        if message.msg_flags & MSG_TRUNC:
            error = EPROTO
        elif parcel.record.flags & LARGE:
            error = unwrap(parcel)
    if error:
        discard(parcel)
    return error


cdef inline int take_payload(Parcel *parcel, Pool *pool, Chain *chain) noexcept nogil:
    """Append the parcel's payload to a chain; 0, or an errno: ENOBUFS, the pool is exhausted.

    On an errno the chain may have grown by a part of it.
    """
    if parcel.memory >= 0:
        return chain_read(pool, chain, parcel.memory, parcel.size)
    return 0 if chain_append(pool, chain, parcel.payload, parcel.size) else ENOBUFS
