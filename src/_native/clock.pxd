# Time in nanoseconds.

from libc.stdint cimport uint64_t
from linux cimport CLOCK_MONOTONIC, CLOCK_REALTIME, clock_gettime, timespec

cdef extern from *:
    """
    #define DS_FOREVER UINT64_MAX
    """
    uint64_t FOREVER "DS_FOREVER"    # no time limit

cdef enum:
    MICROSECOND = 1000
    MILLISECOND = 1000000
    SECOND = 1000000000


cdef inline uint64_t read_clock(int clock) noexcept nogil:
    cdef timespec now
    clock_gettime(clock, &now)
    return <uint64_t>now.tv_sec * SECOND + <uint64_t>now.tv_nsec


cdef inline uint64_t monotonic() noexcept nogil:
    return read_clock(CLOCK_MONOTONIC)


cdef inline uint64_t realtime() noexcept nogil:
    return read_clock(CLOCK_REALTIME)
