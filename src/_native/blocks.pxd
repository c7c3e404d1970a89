# Memory for messages whose size a peer decides: one pool of small blocks, and chains of them.
# The pool costs nothing until it is touched, and never grows. Blocks come from its lowest span
# that has a free one, so that after a flood the spans above empty, and are given back.

from libc.errno cimport errno
from libc.stdint cimport uint16_t, uint32_t, uint64_t
from linux cimport *
from table cimport arena

cdef enum:
    POOL_SIZE = 64 << 20     # bytes of all blocks together
    BLOCK_DATA = 504         # bytes that a block of 512 holds
    SPAN = 128               # blocks of a span: 64 KiB
    SPANS = 1024
    MOST_IDLE = 16           # spans without a block in use that are kept in memory: 1 MiB
    VECTORS = 64             # pieces of one sendmsg(2): 31 KiB

cdef struct Block:
    uint32_t next            # number of the next one in its chain, or its span's free list; 0: none
    uint16_t begin, end      # its bytes are data[begin:end]
    char data[504]

cdef struct Span:
    uint32_t free            # head of the free list; 0: empty
    uint16_t used            # its first ones have been given out at some time
    uint16_t held            # are in chains

cdef struct Pool:
    Block *blocks            # number 0 is never used
    uint32_t held            # blocks that are in chains
    uint32_t idle            # spans in memory of which none is
    uint64_t room[16]        # a bit for each span: it has a free block
    Span spans[1024]

cdef struct Chain:
    # All zero is an empty chain.
    uint32_t first, last     # block numbers; 0: none
    uint32_t blocks
    uint32_t size            # bytes


cdef inline bint pool_open(Pool *pool) noexcept nogil:
    """False: no memory."""
    memset(pool, 0, sizeof(Pool))
    memset(pool.room, 0xFF, sizeof(pool.room))
    pool.spans[0].used = pool.spans[0].held = 1    # number 0
    pool.blocks = <Block *>arena(POOL_SIZE)
    return pool.blocks != NULL


cdef inline uint32_t blocks_for(uint64_t size) noexcept nogil:
    """How many blocks a new chain of that many bytes has."""
    return <uint32_t>((size + BLOCK_DATA - 1) // BLOCK_DATA)


cdef inline uint32_t blocks_left(Pool *pool) noexcept nogil:
    return SPANS * SPAN - 1 - pool.held


cdef inline uint32_t block_take(Pool *pool) noexcept nogil:
    """An empty block's number. There must be one."""
    cdef uint32_t word = 0
    cdef uint32_t index, number
    cdef Span *span
    while pool.room[word] == 0:
        word += 1
    index = 64 * word + <uint32_t>lowest_bit(pool.room[word])
    span = &pool.spans[index]
    if span.held == 0 and span.used:
        pool.idle -= 1
    number = span.free
    if number:
        span.free = pool.blocks[number].next
    else:
        number = index * SPAN + span.used
        span.used += 1
    span.held += 1
    if span.held == SPAN:
        pool.room[word] &= ~(<uint64_t>1 << index % 64)
    pool.held += 1
    pool.blocks[number].next = 0
    pool.blocks[number].begin = pool.blocks[number].end = 0
    return number


cdef inline void block_give(Pool *pool, uint32_t number) noexcept nogil:
    """Free a block; its span is given back when it is the last one in use and enough are idle."""
    cdef uint32_t index = number // SPAN
    cdef Span *span = &pool.spans[index]
    pool.blocks[number].next = span.free
    span.free = number
    span.held -= 1
    pool.held -= 1
    pool.room[index // 64] |= <uint64_t>1 << index % 64
    if span.held:
        return
    if pool.idle < MOST_IDLE:
        pool.idle += 1
        return
    madvise(&pool.blocks[index * SPAN], SPAN * sizeof(Block), MADV_DONTNEED)
    span.free = 0
    span.used = 0


cdef inline bint chain_append(Pool *pool, Chain *chain, const void *data,
                              size_t size) noexcept nogil:
    """Copy bytes to the chain's end: all, or none when the pool has no room (False)."""
    cdef const char *source = <const char *>data
    cdef Block *last
    cdef uint32_t number
    cdef size_t room = BLOCK_DATA - pool.blocks[chain.last].end if chain.last else 0
    cdef size_t piece
    if size > room and blocks_for(size - room) > blocks_left(pool):
        return False
    while size:
        if room == 0:
            number = block_take(pool)
            if chain.last:
                pool.blocks[chain.last].next = number
            else:
                chain.first = number
            chain.last = number
            chain.blocks += 1
            room = BLOCK_DATA
        last = &pool.blocks[chain.last]
        piece = min(room, size)
        memcpy(last.data + last.end, source, piece)
        last.end += <uint16_t>piece
        chain.size += <uint32_t>piece
        source += piece
        size -= piece
        room -= piece
    return True


cdef inline void chain_free(Pool *pool, Chain *chain) noexcept nogil:
    """Free all blocks; the chain is empty then."""
    cdef uint32_t number = chain.first
    cdef uint32_t following
    while number:
        following = pool.blocks[number].next
        block_give(pool, number)
        number = following
    memset(chain, 0, sizeof(Chain))


cdef inline void chain_join(Pool *pool, Chain *chain, Chain *more) noexcept nogil:
    """Move all of `more` to the chain's end: nothing is copied, and it cannot fail."""
    if more.first == 0:
        return
    if chain.last:
        pool.blocks[chain.last].next = more.first
    else:
        chain.first = more.first
    chain.last = more.last
    chain.blocks += more.blocks
    chain.size += more.size
    memset(more, 0, sizeof(Chain))


cdef inline void chain_drop(Pool *pool, Chain *chain, size_t size) noexcept nogil:
    """Take `size` bytes (at most all) from the chain's beginning, and free emptied blocks."""
    cdef Block *first
    cdef uint32_t number, piece
    while size:
        number = chain.first
        first = &pool.blocks[number]
        piece = <uint32_t>min(size, <size_t>(first.end - first.begin))
        first.begin += <uint16_t>piece
        chain.size -= piece
        size -= piece
        if first.begin == first.end:
            chain.first = first.next
            chain.blocks -= 1
            if chain.first == 0:
                chain.last = 0
            block_give(pool, number)


cdef inline int chain_vector(Pool *pool, Chain *chain, size_t skip, size_t most, iovec *vectors,
                             int count) noexcept nogil:
    """Point at most `count` vectors at bytes skip to skip + most of the chain; how many."""
    cdef uint32_t number = chain.first
    cdef Block *block
    cdef size_t size
    cdef int made = 0
    while number and made < count and most:
        block = &pool.blocks[number]
        size = block.end - block.begin
        if skip >= size:
            skip -= size
        else:
            vectors[made].iov_base = block.data + block.begin + skip
            vectors[made].iov_len = min(size - skip, most)
            most -= vectors[made].iov_len
            made += 1
            skip = 0
        number = block.next
    return made


cdef inline size_t chain_copy(Pool *pool, Chain *chain, size_t skip, void *target,
                              size_t size) noexcept nogil:
    """Copy bytes skip to skip + size to `target`; how many there were."""
    cdef uint32_t number = chain.first
    cdef Block *block
    cdef size_t copied = 0
    cdef size_t piece
    while number and copied < size:
        block = &pool.blocks[number]
        piece = block.end - block.begin
        if skip >= piece:
            skip -= piece
        else:
            piece = min(piece - skip, size - copied)
            memcpy(<char *>target + copied, block.data + block.begin + skip, piece)
            copied += piece
            skip = 0
        number = block.next
    return copied


cdef inline ssize_t chain_send(Pool *pool, Chain *chain, size_t skip, int socket) noexcept nogil:
    """One sendmsg(2) of what follows the first `skip` bytes; bytes sent, or -1 and errno."""
    cdef iovec vectors[VECTORS]
    cdef msghdr message
    cdef ssize_t sent
    memset(&message, 0, sizeof(message))
    message.msg_iov = vectors
    message.msg_iovlen = chain_vector(pool, chain, skip, chain.size, vectors, VECTORS)
    sent = sendmsg(socket, &message, MSG_NOSIGNAL)
    while sent < 0 and errno == EINTR:
        sent = sendmsg(socket, &message, MSG_NOSIGNAL)
    return sent


cdef inline int chain_read(Pool *pool, Chain *chain, int fd, size_t size) noexcept nogil:
    """Append the first `size` bytes of a file; 0 or an errno: ENOBUFS, no room; EIO, shorter.

    On an errno the chain keeps what has been appended.
    """
    cdef char piece[16384]
    cdef size_t done = 0
    cdef ssize_t got
    while done < size:
        got = pread(fd, piece, min(sizeof(piece), size - done), <long>done)
        if got == 0:
            return EIO
        if got < 0 and errno != EINTR:
            return errno
        if got > 0 and not chain_append(pool, chain, piece, got):
            return ENOBUFS
        done += max(got, 0)
    return 0


cdef inline int chain_memory(Pool *pool, Chain *chain) noexcept nogil:
    """A new sealed memfd that holds the chain's bytes (at least one); -1 and errno."""
    cdef void *memory
    cdef int fd = memfd_create(b"payload", MFD_CLOEXEC | MFD_ALLOW_SEALING)
    if fd < 0:
        return -1
    # Allocated before it is written to: where memory is short, that is an errno and no signal.
    if fallocate(fd, 0, 0, chain.size) < 0:
        close(fd)
        return -1
    memory = mmap(NULL, chain.size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0)
    if memory == MAP_FAILED:
        close(fd)
        return -1
    chain_copy(pool, chain, 0, memory, chain.size)
    munmap(memory, chain.size)
    fcntl(fd, F_ADD_SEALS, F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE)
    return fd
