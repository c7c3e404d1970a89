# The channel between front and keeper, and between keeper and spawner: SOCK_SEQPACKET, one
# record a packet, all of one fixed layout; descriptors travel beside it (SCM_RIGHTS).
# `shim.keeper.records` is the same layout in Python; a test compares the two.

from libc.stdint cimport int32_t, uint32_t, uint64_t

cdef enum:
    # Requests of the front. A reply has the request's kind and serial. Serial 0: no reply wanted.
    SNAPSHOT = 1     # tell all that is held: PROCESS, STREAM and LISTENER records, then the reply
    SERVE = 2        # accept on listener `id`; descriptor: the front's own socket (O_PATH)
    SPAWN = 3        # start a program as process `id`; descriptors: the command's memfd, then its own
    RELEASE = 4      # spawn `id` is finished: early exits need not be kept for it any longer
    TRACK = 5        # follow the child `pid` as process `id`; it came to life during spawn `owner`
    SIGNAL = 6       # send signal `number` to process `id`
    RELAY = 7        # copy a stream as `id`; descriptors: source, sink and, with OUTPUT or INPUT, hold
    UNHOLD = 8       # close the hold of stream `id`
    FINISH = 9       # end stream `id` when nothing more is there to read now
    CUT = 10         # end stream `id` at once
    RESIZE = 11      # the window of terminal stream `id`: number = rows << 16 | columns
    FORGET = 12      # the end of process or stream `id` has been taken
    READY = 13       # the front serves
    STOP = 14        # all is done: deliver what is under way, and end
    PONG = 15
    # Reports of the keeper.
    EXITED = 20      # process `id` has ended: status, time; error: why it could not be executed
    ENDED = 21       # stream `id` has ended: bytes, error
    PROCESS = 22     # snapshot: process `id`; flags GONE, SPAWNED
    STREAM = 23      # snapshot: stream `id`; flags GONE. As a request: `bytes` its client has read,
                     # and whether that is all there will be: `number`
    LISTENER = 24    # snapshot: listener `id`
    PING = 25
    TERMINATE = 26   # the keeper was asked to end (SIGTERM); a snapshot repeats it

cdef enum:
    OUTPUT = 1       # RELAY: the hold is a read end of the sink, kept until the stream's end
    INPUT = 2        # RELAY: the hold is a write end of the source, kept until UNHOLD
    GONE = 4         # snapshot: ended already, waits for FORGET
    SPAWNED = 8      # snapshot: a spawn that has not been released

cdef enum:
    RECORD_DESCRIPTORS = 17   # a command's memfd and MAX_DESCRIPTORS more

cdef struct Record:
    uint32_t kind
    uint32_t error       # errno; 0 when it went well
    uint64_t serial
    uint64_t id
    uint64_t owner       # another object's id
    uint64_t time        # nanoseconds since the epoch
    uint64_t bytes       # moved by a stream
    int32_t pid
    uint32_t status      # exit status 0 to 255: 128+n for signal n
    uint32_t number
    uint32_t flags
