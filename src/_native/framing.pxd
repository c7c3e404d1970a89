# ttrpc's frames, without any input or output: a parser that takes a client's bytes as they come
# and allocates nothing, and the few answers that need no front.
#
# A frame is a header of 10 bytes, big endian: u32 length, u32 stream, u8 type, u8 flags; then
# `length` bytes. Requests have odd stream numbers that only grow. All calls are served as unary
# ones, so that a request's flags mean nothing.

from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memcpy, strlen

cdef enum:
    HEADER_SIZE = 10
    MOST_MESSAGE = 4 << 20   # bytes of a frame's body
    STATUS_ROOM = 128        # bytes of any Response that `status_response` makes

cdef enum:    # type
    TYPE_REQUEST = 1
    TYPE_RESPONSE = 2
    TYPE_DATA = 3

cdef enum:    # status codes, as gRPC's
    INVALID_ARGUMENT = 3
    RESOURCE_EXHAUSTED = 8
    UNAVAILABLE = 14

cdef enum:    # state
    IN_HEADER = 0
    IN_BODY = 1              # of a request
    IN_SKIPPED = 2           # the body of what nobody takes

cdef enum:    # what a Step tells
    STEP_MORE = 0            # all bytes are used up
    STEP_BEGIN = 1           # a request begins: its stream and length are known
    STEP_PIECE = 2           # a piece of its body
    STEP_WHOLE = 3           # it is complete
    STEP_DATA = 4            # a Data frame; its body is skipped
    STEP_REFUSE = 5          # a frame that is answered with a status; its body is skipped

cdef struct Framing:
    # All zero is the state before the first byte.
    uint32_t last            # the highest stream of a request so far
    uint32_t stream          # of the present frame
    uint32_t left            # bytes of its body that have not come
    uint8_t state
    uint8_t have             # bytes of the header that have come
    unsigned char header[10]

cdef struct Step:
    int kind
    const char *piece        # PIECE: points into the bytes that were given
    size_t size
    int code                 # REFUSE: the status
    const char *reason


cdef inline uint32_t big_endian(const unsigned char *bytes) noexcept nogil:
    return (<uint32_t>bytes[0] << 24 | <uint32_t>bytes[1] << 16 | <uint32_t>bytes[2] << 8
            | <uint32_t>bytes[3])


cdef inline void put_big_endian(unsigned char *bytes, uint32_t value) noexcept nogil:
    bytes[0] = <unsigned char>(value >> 24)
    bytes[1] = <unsigned char>(value >> 16 & 0xFF)
    bytes[2] = <unsigned char>(value >> 8 & 0xFF)
    bytes[3] = <unsigned char>(value & 0xFF)


cdef inline bint is_between(Framing *framing) noexcept nogil:
    """Whether no byte of the next frame has come."""
    return framing.state == IN_HEADER and framing.have == 0


cdef inline uint32_t framing_wants(Framing *framing) noexcept nogil:
    """How many bytes there are to the end of the present header or body: at least one."""
    return HEADER_SIZE - framing.have if framing.state == IN_HEADER else framing.left


cdef inline void framing_skip(Framing *framing) noexcept nogil:
    """Give up the request that has begun: the rest of its body is skipped."""
    framing.state = IN_SKIPPED if framing.left else IN_HEADER


cdef inline void refuse(Step *step, int code, const char *reason) noexcept nogil:
    step.kind = STEP_REFUSE
    step.code = code
    step.reason = reason


cdef inline void open_frame(Framing *framing, Step *step) noexcept nogil:
    """The header is complete: what kind of frame it is."""
    cdef int type = framing.header[8]
    framing.have = 0
    framing.left = big_endian(framing.header)
    framing.stream = big_endian(framing.header + 4)
    framing.state = IN_SKIPPED if framing.left else IN_HEADER
    if framing.left > MOST_MESSAGE:
        refuse(step, RESOURCE_EXHAUSTED, "a message of more than 4 MiB")
    elif framing.stream % 2 == 0:
        refuse(step, INVALID_ARGUMENT, "a client's stream number must be odd")
    elif type == TYPE_DATA:
        step.kind = STEP_DATA
    elif type == TYPE_REQUEST:
        if framing.stream <= framing.last:
            refuse(step, INVALID_ARGUMENT, "a stream number must be above all before it")
        else:
            framing.last = framing.stream
            framing.state = IN_BODY
            step.kind = STEP_BEGIN


cdef inline void framing_next(Framing *framing, const char **data, size_t *size,
                              Step *step) noexcept nogil:
    """Use bytes up to the next thing worth telling; data and size are moved on.

    To be called until it tells STEP_MORE.
    """
    cdef size_t piece
    step.kind = STEP_MORE
    while step.kind == STEP_MORE:
        if framing.state == IN_BODY and framing.left == 0:
            framing.state = IN_HEADER
            step.kind = STEP_WHOLE
            return
        if size[0] == 0:
            return
        piece = min(<size_t>framing_wants(framing), size[0])
        if framing.state == IN_HEADER:
            memcpy(framing.header + framing.have, data[0], piece)
            framing.have += <uint8_t>piece
            if framing.have == HEADER_SIZE:
                open_frame(framing, step)
        else:
            framing.left -= <uint32_t>piece
            if framing.state == IN_BODY:
                step.kind = STEP_PIECE
                step.piece = data[0]
                step.size = piece
            elif framing.left == 0:
                framing.state = IN_HEADER
        data[0] += piece
        size[0] -= piece


cdef inline void response_header(unsigned char *target, uint32_t stream,
                                 uint32_t length) noexcept nogil:
    """The HEADER_SIZE bytes before a Response."""
    put_big_endian(target, length)
    put_big_endian(target + 4, stream)
    target[8] = TYPE_RESPONSE
    target[9] = 0


cdef inline size_t status_response(unsigned char *target, int code,
                                   const char *reason) noexcept nogil:
    """A Response with nothing but a status, at most STATUS_ROOM bytes; its size.

    Response{1: Status{1: code, 2: message}}; all lengths and codes are below 128, one byte each.
    """
    cdef size_t length = min(strlen(reason), <size_t>(STATUS_ROOM - 6))
    target[0] = 1 << 3 | 2
    target[1] = <unsigned char>(4 + length)
    target[2] = 1 << 3
    target[3] = <unsigned char>code
    target[4] = 2 << 3 | 2
    target[5] = <unsigned char>length
    memcpy(target + 6, reason, length)
    return 6 + length
