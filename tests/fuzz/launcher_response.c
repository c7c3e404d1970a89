/* libFuzzer: what the launcher makes of a host's answer. A byte too many is a fault, also without
 * a sanitizer: the answer ends where a page does that nobody may read. See scripts/fuzz.
 */

#define main launcher_main
#include "../../src/_native/launcher.c"
#undef main

enum { MOST = 1 << 16 };

static uint8_t *edge;            /* of what may be read */

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    int protection = PROT_READ | PROT_WRITE;
    uint8_t *pages = mmap(NULL, 2 * MOST, protection, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    (void)argc;
    (void)argv;
    if (pages == MAP_FAILED || mprotect(pages + MOST, MOST, PROT_NONE) < 0)
        abort();
    edge = pages + MOST;
    return 0;
}

static void inside(struct span part, struct span whole)
{
    if (part.at != NULL && (part.at < whole.at || part.at > part.end || part.end > whole.end))
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct span whole = {.end = edge};
    struct answer answer;
    if (size > MOST)
        return -1;
    whole.at = memcpy(edge - size, data, size);
    if (parse_answer(whole, &answer)) {
        inside(answer.message, whole);
        inside(answer.payload, whole);
        inside(answer.output, whole);
        inside(answer.errors, whole);
    }
    return 0;
}
