# Memory and look-up without allocation per event: arenas that the kernel fills when touched,
# and a map from 64-bit keys to slots (open addressing, deletion by shifting back).

from libc.stdint cimport uint32_t, uint64_t
from linux cimport *

cdef enum:
    NONE = 0xFFFFFFFF    # no slot

cdef struct Map:
    uint64_t *keys       # 0: empty
    uint32_t *slots
    uint64_t mask


cdef inline void *arena(size_t size) noexcept nogil:
    """Zeroed memory that costs nothing until it is touched; NULL when there is none."""
    cdef void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE,
                             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
    return NULL if memory == MAP_FAILED else memory


cdef inline bint map_open(Map *map, uint32_t entries) noexcept nogil:
    """Room for `entries` keys, at most half full; False when there is no memory."""
    cdef uint64_t size = 16
    while size < 2 * <uint64_t>entries:
        size *= 2
    map.mask = size - 1
    map.keys = <uint64_t *>arena(size * sizeof(uint64_t))
    map.slots = <uint32_t *>arena(size * sizeof(uint32_t))
    return map.keys != NULL and map.slots != NULL


cdef inline uint64_t map_home(Map *map, uint64_t key) noexcept nogil:
    return (key * 0x9E3779B97F4A7C15ULL) >> 20 & map.mask


cdef inline uint64_t map_place(Map *map, uint64_t key) noexcept nogil:
    """Where the key is, or the empty place where it would be."""
    cdef uint64_t place = map_home(map, key)
    while map.keys[place] != 0 and map.keys[place] != key:
        place = (place + 1) & map.mask
    return place


cdef inline uint32_t map_find(Map *map, uint64_t key) noexcept nogil:
    cdef uint64_t place
    if key == 0:
        return NONE
    place = map_place(map, key)
    return map.slots[place] if map.keys[place] == key else <uint32_t>NONE


cdef inline void map_put(Map *map, uint64_t key, uint32_t slot) noexcept nogil:
    cdef uint64_t place = map_place(map, key)
    map.keys[place] = key
    map.slots[place] = slot


cdef inline void map_remove(Map *map, uint64_t key) noexcept nogil:
    """Empty the key's place and move back each follower that may stand nearer to its home."""
    cdef uint64_t hole = map_place(map, key)
    cdef uint64_t place, home
    if map.keys[hole] != key:
        return
    place = hole
    while True:
        place = (place + 1) & map.mask
        if map.keys[place] == 0:
            break
        home = map_home(map, map.keys[place])
        if ((place - home) & map.mask) >= ((place - hole) & map.mask):
            map.keys[hole] = map.keys[place]
            map.slots[hole] = map.slots[place]
            hole = place
    map.keys[hole] = 0
