# The channel between front and keeper, and between keeper and spawner: SOCK_SEQPACKET, one
# record a packet, all of one fixed layout; descriptors travel beside it (SCM_RIGHTS). Some kinds
# have a payload, opaque bytes: the rest of the packet or, with LARGE, in a sealed memfd, which is
# the packet's first descriptor.
# `shim.keeper.records` is the same layout in Python; a test compares the two.

from libc.stdint cimport int32_t, uint32_t, uint64_t

cdef enum:
    # Requests of the front. A reply has the request's kind and serial. Serial 0: no reply wanted.
    SNAPSHOT = 1     # tell all that is held: PROCESS, STREAM and LISTENER records, then the reply
    SERVE = 2        # accept on listener `id`; descriptor: the front's own socket (O_PATH)
    SPAWN = 3        # start a program as process `id`; descriptors: the command's memfd, then its own
    RELEASE = 4      # spawn `id` is finished: early exits need not be kept for it any longer
    TRACK = 5        # follow the child `pid` as process `id`; it came to life during spawn `owner`
    SIGNAL = 6       # send signal `number` to process `id`; with `owner`, once it is sent, request
                     # `owner` has begun, with the empty answer
    RELAY = 7        # copy a stream as `id`; descriptors: source, sink and, with OUTPUT or INPUT, hold
    UNHOLD = 8       # close the hold of stream `id`, an input
    FINISH = 9       # end stream `id` when nothing more is there to read now
    CUT = 10         # end stream `id` at once
    RESIZE = 11      # the window of terminal stream `id`: number = rows << 16 | columns
    FORGET = 12      # the end of process or stream `id` has been taken
    READY = 13       # the front serves
    STOP = 14        # all is done: deliver what is under way, and end
    PONG = 15
    SETTLE = 16      # stream `id` is to STAY no longer
    LISTEN = 30      # hold a listening socket as listener `id`; flags FRAMES, DOOR, ANYBODY
    UNLISTEN = 31    # close listener `id`; its connections stay
    REPLAYABLE = 32  # request `id` has had no effect: it may be given to any number of fronts
    RESPOND = 34     # answer request `id`; payload: a ttrpc Response
    DESTINATION = 35    # events for destination `id` go to the socket at the path in the payload;
                     # snapshot: `number` events are queued
    UNDESTINATION = 36  # forget destination `id` once its queue is empty
    PUBLISH = 37     # queue an event for destination `id`, about process `owner`; payload: a ttrpc
                     # Request; flags: the mark by which it is told once
    LOG = 39         # copy a stream as `id` into log `owner`, its own or another stream's: files of
                     # at most `bytes`, `number` in all; descriptors: source, directory; payload:
                     # the newest file's name; flags STDERR, STAY
    UPGRADE = 38     # become another keeper; descriptors: its argv, the command of its front
    # Reports of the keeper.
    EXITED = 20      # process `id` has ended: status, time; error: why it could not be executed
    ENDED = 21       # stream `id` has ended: bytes, error
    PROCESS = 22     # snapshot: process `id`; flags GONE, SPAWNED; `number`: marks of PUBLISH
    STREAM = 23      # snapshot: stream `id`; flags GONE. As a request: `bytes` its client has read,
                     # and whether that is all there will be: `number`; of a log, in `status` the
                     # errno for which it waits, or could not be rotated or opened again
    LISTENER = 24    # snapshot: listener `id`; flags FRAMES, DOOR, ANYBODY
    PING = 25
    TERMINATE = 26   # the keeper was asked to end (SIGTERM); a snapshot repeats it
    REQUEST = 40     # a ttrpc request came: its `id`, listener `owner`, `time` of arrival, the
                     # caller's `pid`, uid `status`, gid `number`; payload: a ttrpc Request;
                     # descriptors: what came with it through a DOOR
    CANCELLED = 41   # the caller of unanswered request `id` has hung up
    LOST = 42        # destination `id` has given up `number` events

cdef enum:
    OUTPUT = 1       # RELAY: the hold is a read end of the sink, kept until the stream's end
    INPUT = 2        # RELAY: the hold is a write end of the source, kept until UNHOLD
    STAY = 128       # RELAY, LOG, until SETTLE, while the process at the other end may not be there:
                     # with OUTPUT, and of LOG, the source's end is none, and the sink's reader sees
                     # no end; with INPUT nothing is read, and the source's writer sees no end
    STDERR = 16      # LOG: the stream's name is stderr, not stdout
    GONE = 4         # snapshot: ended already, waits for FORGET
    SPAWNED = 8      # snapshot: a spawn that has not been released
    FRAMES = 32      # LISTEN: callers speak ttrpc to the keeper; without: they are relayed, see SERVE
    DOOR = 64        # LISTEN with FRAMES: descriptors that come with a request are passed on
    ANYBODY = 256    # LISTEN without FRAMES: whom the socket's file lets in is served, not only root
    LARGE = 1 << 16  # the payload is in a memfd; above all marks of PUBLISH

cdef enum:
    RECORD_DESCRIPTORS = 17   # a command's memfd and MAX_DESCRIPTORS more
    MOST_INLINE = 60 << 10    # bytes of a payload in the packet
    MOST_PAYLOAD = (4 << 20) + (64 << 10)

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
