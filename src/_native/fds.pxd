# Descriptors: closing with one owner, and passing them beside a record.

from libc.errno cimport errno
from linux cimport *
from wire cimport RECORD_DESCRIPTORS, Record

cdef struct Parcel:
    # A record and the descriptors that came or go with it. The receiver owns them.
    Record record
    int count
    int descriptors[RECORD_DESCRIPTORS]


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


cdef inline int send_parcel(int socket, Parcel *parcel) noexcept nogil:
    """Send one record and borrow its descriptors; 0, or the errno."""
    cdef msghdr message
    cdef iovec vector
    cdef cmsghdr *header
    cdef char control[256]
    cdef size_t size = parcel.count * sizeof(int)
    memset(&message, 0, sizeof(message))
    vector.iov_base = &parcel.record
    vector.iov_len = sizeof(Record)
    message.msg_iov = &vector
    message.msg_iovlen = 1
    if parcel.count:
        memset(control, 0, sizeof(control))
        message.msg_control = control
        message.msg_controllen = CMSG_SPACE(size)
        header = CMSG_FIRSTHDR(&message)
        header.cmsg_level = SOL_SOCKET
        header.cmsg_type = SCM_RIGHTS
        header.cmsg_len = CMSG_LEN(size)
        memcpy(CMSG_DATA(header), parcel.descriptors, size)
    while sendmsg(socket, &message, MSG_NOSIGNAL) < 0:
        if errno != EINTR:
            return errno
    return 0


cdef inline int receive_parcel(int socket, Parcel *parcel) noexcept nogil:
    """Receive one record with its descriptors; 0, or the errno; EPIPE when the peer is gone.

    EPROTO: not a record. EMFILE: descriptors were lost for want of room (MSG_CTRUNC); the
    record is valid then, so that it can be answered. In both cases none is kept.
    """
    cdef msghdr message
    cdef iovec vector
    cdef cmsghdr *header
    cdef char control[256]
    cdef ssize_t size
    parcel.count = 0
    memset(&message, 0, sizeof(message))
    vector.iov_base = &parcel.record
    vector.iov_len = sizeof(Record)
    message.msg_iov = &vector
    message.msg_iovlen = 1
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
        discard(parcel)
        return EPIPE
    if size != sizeof(Record) or message.msg_flags & MSG_TRUNC:
        discard(parcel)
        return EPROTO
    if message.msg_flags & MSG_CTRUNC:
        discard(parcel)
        return EMFILE
    return 0
