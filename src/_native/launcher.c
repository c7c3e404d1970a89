/* containerd-shim-dense-v2: what containerd runs to start, to clean up and to ask about a shim.
 *
 * It runs at least twice in every container's life, so it is no Python program: it tells the host
 * its command line and all that it has inherited, in one ttrpc call at the host's door (Launch of
 * proto/denseshim/host/v1/host.proto), and repeats what it is answered. Only where no host serves,
 * or where the host may not serve this container, it becomes `python -I -m shim.launcher`, which
 * starts what may. Of many that find no host at once, as when a keeper has died, one does so, and
 * the others wait for the host that it starts: containerd gives each of them five seconds.
 * It becomes Python at once when it is called by the name of 2017's launcher, which hands
 * a listening socket over.
 *
 * setup.py defines VERSION and PYTHON, the interpreter of the build.
 */

#define _GNU_SOURCE
#define _FILE_OFFSET_BITS 64

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define NAME "containerd-shim-dense-v2"
#define NAME_OF_2017 "containerd-shim-dense"
#define STATE "/run/denseshim"

extern char **environ;

enum {
    HEADER = 10,           /* of a ttrpc frame: length, stream, type, flags */
    REQUEST = 1,
    RESPONSE = 2,
    STREAM = 1,            /* of the only call */
    FRAME_MAX = 4 << 20,
    STDIN_MAX = 4 << 20,
    KILLED = 137,
};

/* ---- Descriptors, memory, errors ---- */

/* Whether the call on `fd` that has just failed can be made again; waits until it may succeed. */
static bool again(int fd, short event)
{
    struct pollfd waiting = {.fd = fd, .events = event};
    if (errno == EAGAIN)
        return poll(&waiting, 1, -1) >= 0 || errno == EINTR;
    return errno == EINTR;
}

/* Writes all; false and errno when the descriptor does not take it. */
static bool put(int fd, const void *data, size_t size)
{
    const uint8_t *rest = data;
    while (size > 0) {
        ssize_t done = write(fd, rest, size);
        if (done >= 0) {
            rest += done;
            size -= (size_t)done;
        } else if (!again(fd, POLLOUT)) {
            return false;
        }
    }
    return true;
}

struct bytes {
    uint8_t *data;
    size_t size, room;
};

/* Makes room for `more` bytes behind what is there. */
static void reserve(struct bytes *text, size_t more)
{
    static const char failed[] = NAME ": out of memory\n";
    size_t room = text->room ? text->room : 4096;
    uint8_t *data;
    if (text->data && text->room - text->size >= more)
        return;
    while (room - text->size < more)
        room *= 2;
    data = realloc(text->data, room);
    if (data == NULL) {
        put(2, failed, sizeof(failed) - 1);
        _exit(1);
    }
    text->data = data;
    text->room = room;
}

static void append(struct bytes *text, const void *data, size_t size)
{
    reserve(text, size);
    if (size > 0)
        memcpy(text->data + text->size, data, size);
    text->size += size;
}

/* Ends the program with 1 and one line on stderr, whatever is in the message. */
static _Noreturn void refuse(const void *message, size_t size)
{
    static const char name[] = NAME ": ";
    struct bytes line = {0};
    append(&line, name, sizeof(name) - 1);
    append(&line, message, size);
    for (size_t i = 0; i < line.size; i++)
        if (line.data[i] < ' ' || line.data[i] == 0x7f)
            line.data[i] = ' ';
    append(&line, "\n", 1);
    put(2, line.data, line.size);
    exit(1);
}

__attribute__((format(printf, 1, 2)))
static _Noreturn void fail(const char *format, ...)
{
    char message[PIPE_BUF];
    va_list values;
    va_start(values, format);
    vsnprintf(message, sizeof(message), format, values);
    va_end(values);
    refuse(message, strlen(message));
}

/* Adds the rest of a file, at most `most` bytes; false and errno (EFBIG: there is more). */
static bool read_to_end(int fd, size_t most, struct bytes *text)
{
    size_t start = text->size;
    ssize_t got = 1;
    while (got != 0) {
        reserve(text, 4096);
        got = read(fd, text->data + text->size, text->room - text->size);
        if (got < 0 && !again(fd, POLLIN))
            return false;
        if (got > 0)
            text->size += (size_t)got;
        if (text->size - start > most) {
            errno = EFBIG;
            return false;
        }
    }
    return true;
}

/* A file of /proc; empty when it cannot be read. */
static struct bytes read_proc(const char *path)
{
    struct bytes text = {0};
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return text;
    if (!read_to_end(fd, FRAME_MAX, &text))
        text.size = 0;
    close(fd);
    return text;
}

/* Closed standard streams would be taken by whatever is opened next. */
static void open_closed_streams(void)
{
    int fd;
    do
        fd = open("/dev/null", O_RDWR);
    while (fd >= 0 && fd <= 2);
    if (fd > 2)
        close(fd);
}

/* ---- Protobuf, written ---- */

enum { VARINT = 0, FIXED64 = 1, LENGTH = 2, FIXED32 = 5 };

static void put_varint(struct bytes *text, uint64_t value)
{
    uint8_t byte;
    do {
        byte = (uint8_t)(value & 0x7f);
        value >>= 7;
        if (value)
            byte |= 0x80;
        append(text, &byte, 1);
    } while (value);
}

static void put_number(struct bytes *text, unsigned field, uint64_t value)
{
    put_varint(text, field << 3 | VARINT);
    put_varint(text, value);
}

static void put_text(struct bytes *text, unsigned field, const void *data, size_t size)
{
    put_varint(text, field << 3 | LENGTH);
    put_varint(text, size);
    append(text, data, size);
}

/* ---- Protobuf, read: from a peer that may be broken, so every byte is looked for first ---- */

struct span {
    const uint8_t *at, *end;
};

struct field {
    uint64_t number, value;     /* value: of a VARINT */
    struct span text;           /* of a LENGTH */
    unsigned type;
};

/* False: cut short, or more than 64 bits. */
static bool take_varint(struct span *from, uint64_t *value)
{
    *value = 0;
    for (unsigned shift = 0; shift < 64 && from->at < from->end; shift += 7) {
        uint8_t byte = *from->at++;
        if (shift == 63 && byte > 1)
            return false;
        *value |= (uint64_t)(byte & 0x7f) << shift;
        if (byte < 0x80)
            return true;
    }
    return false;
}

static bool take_text(struct span *from, uint64_t size, struct span *text)
{
    if ((uint64_t)(from->end - from->at) < size)
        return false;
    text->at = from->at;
    text->end = from->at += size;
    return true;
}

/* Takes the next field of a message; false: it has none that is well-formed. */
static bool take_field(struct span *from, struct field *field)
{
    uint64_t tag;
    if (!take_varint(from, &tag))
        return false;
    field->number = tag >> 3;
    field->type = tag & 7;
    if (field->number == 0 || field->number >= 1 << 29)
        return false;
    switch (field->type) {
    case VARINT:
        return take_varint(from, &field->value);
    case FIXED64:
        return take_text(from, 8, &field->text);
    case FIXED32:
        return take_text(from, 4, &field->text);
    case LENGTH:
        return take_varint(from, &field->value) && take_text(from, field->value, &field->text);
    default:
        return false;
    }
}

static bool is_field(const struct field *field, uint64_t number, unsigned type)
{
    return field->number == number && field->type == type;
}

struct answer {
    uint32_t code;              /* of the call: 0, or why it failed */
    struct span message, payload;
    uint32_t status;            /* of the command line */
    struct span output, errors;
    bool apart;
};

/* google.rpc.Status */
static bool parse_status(struct span from, struct answer *answer)
{
    struct field field;
    while (from.at < from.end) {
        if (!take_field(&from, &field))
            return false;
        if (is_field(&field, 1, VARINT))
            answer->code = (uint32_t)field.value;
        else if (is_field(&field, 2, LENGTH))
            answer->message = field.text;
    }
    return true;
}

/* LaunchResponse */
static bool parse_launch(struct span from, struct answer *answer)
{
    struct field field;
    while (from.at < from.end) {
        if (!take_field(&from, &field))
            return false;
        if (is_field(&field, 1, VARINT))
            answer->status = (uint32_t)field.value;
        else if (is_field(&field, 2, LENGTH))
            answer->output = field.text;
        else if (is_field(&field, 3, LENGTH))
            answer->errors = field.text;
        else if (is_field(&field, 4, VARINT))
            answer->apart = field.value != 0;
    }
    return true;
}

/* ttrpc's Response, whose payload is a LaunchResponse unless there is an error in its status. */
static bool parse_answer(struct span from, struct answer *answer)
{
    struct field field;
    memset(answer, 0, sizeof(*answer));
    while (from.at < from.end) {
        if (!take_field(&from, &field))
            return false;
        if (is_field(&field, 1, LENGTH) && !parse_status(field.text, answer))
            return false;
        if (is_field(&field, 2, LENGTH))
            answer->payload = field.text;
    }
    return answer->code != 0 || parse_launch(answer->payload, answer);
}

/* ---- The request ---- */

static void put_limits(struct bytes *request)
{
    struct rlimit limit;
    for (int resource = 0; resource < RLIM_NLIMITS; resource++) {
        struct bytes one = {0};
        if (getrlimit(resource, &limit) < 0)
            continue;
        put_number(&one, 1, (uint64_t)resource);
        put_number(&one, 2, limit.rlim_cur);
        put_number(&one, 3, limit.rlim_max);
        put_text(request, 6, one.data, one.size);
        free(one.data);
    }
}

static uint64_t umask_now(void)
{
    mode_t mask = umask(0);
    umask(mask);
    return mask;
}

/* As sint32: the sign is the lowest bit. */
static uint64_t oom_score_adj(void)
{
    struct bytes text = read_proc("/proc/self/oom_score_adj");
    int value;
    append(&text, "", 1);
    value = (int)strtol((char *)text.data, NULL, 10);
    free(text.data);
    return value < 0 ? 2 * (uint64_t)-value - 1 : 2 * (uint64_t)value;
}

/* LaunchRequest */
static struct bytes launch_request(char **argv, const struct bytes *input)
{
    struct bytes request = {0};
    struct bytes cgroup = read_proc("/proc/self/cgroup");
    char *cwd = getcwd(NULL, 0);
    for (char **one = argv; *one; one++)
        put_text(&request, 1, *one, strlen(*one));
    for (char **one = environ; *one; one++)
        put_text(&request, 2, *one, strlen(*one));
    if (cwd)                    /* else it has been removed: the host decides what that means */
        put_text(&request, 3, cwd, strlen(cwd));
    put_text(&request, 4, input->data, input->size);
    put_number(&request, 5, umask_now());
    put_limits(&request);
    put_text(&request, 7, cgroup.data, cgroup.size);
    put_number(&request, 8, oom_score_adj());
    free(cgroup.data);
    free(cwd);
    return request;
}

static void store_big_endian(uint8_t *at, uint32_t value)
{
    for (int i = 0; i < 4; i++)
        at[i] = (uint8_t)(value >> (24 - 8 * i));
}

static uint32_t load_big_endian(const uint8_t *at)
{
    return (uint32_t)at[0] << 24 | (uint32_t)at[1] << 16 | (uint32_t)at[2] << 8 | at[3];
}

/* The whole frame. */
static struct bytes call_frame(char **argv, const struct bytes *input)
{
    static const char service[] = "denseshim.host.v1.Host", method[] = "Launch";
    struct bytes payload = launch_request(argv, input);
    struct bytes frame = {0};
    uint8_t header[HEADER] = {[8] = REQUEST};
    append(&frame, header, HEADER);
    put_text(&frame, 1, service, sizeof(service) - 1);
    put_text(&frame, 2, method, sizeof(method) - 1);
    put_text(&frame, 3, payload.data, payload.size);
    free(payload.data);
    if (frame.size - HEADER > FRAME_MAX)
        fail("arguments, environment and stdin are %zu bytes together; a call takes %d",
             frame.size - HEADER, FRAME_MAX);
    store_big_endian(frame.data, (uint32_t)(frame.size - HEADER));
    store_big_endian(frame.data + 4, STREAM);
    return frame;
}

/* ---- The door ---- */

static uint64_t namespace_number(const char *path)
{
    struct stat facts;
    if (stat(path, &facts) < 0)
        fail("cannot read %s: %s", path, strerror(errno));
    return facts.st_ino;
}

/* The directory of the host of this program's namespaces; -1: there is none. */
static int open_state(void)
{
    struct stat facts;
    char path[128];
    int state;
    snprintf(path, sizeof(path), STATE "/host-%" PRIu64 "-%" PRIu64 "-%" PRIu64,
             namespace_number("/proc/self/ns/mnt"), namespace_number("/proc/self/ns/pid"),
             namespace_number("/proc/self/ns/user"));
    state = open(path, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (state < 0 && errno == ENOENT)
        return -1;
    if (state < 0 || fstat(state, &facts) < 0)
        fail("cannot open %s: %s", path, strerror(errno));
    if (facts.st_uid != 0 || (facts.st_mode & 07777) != 0700)
        fail("%s is not a directory for root alone; remove it", path);
    return state;
}

static void check_peer(int door)
{
    struct ucred peer;
    socklen_t size = sizeof(peer);
    if (getsockopt(door, SOL_SOCKET, SO_PEERCRED, &peer, &size) < 0)
        fail("cannot tell who serves the host's door: %s", strerror(errno));
    if (peer.uid != 0 && peer.uid != geteuid())
        fail("the host's door is served by user %u, who is neither root nor the caller",
             (unsigned)peer.uid);
}

/* A connection to the host; -1: none serves. */
static int open_door(void)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int state = open_state();
    int door;
    if (state < 0)
        return -1;
    door = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (door < 0)
        fail("cannot make a socket: %s", strerror(errno));
    /* In the directory that was looked at, whatever has its name by now. */
    snprintf(address.sun_path, sizeof(address.sun_path), "/proc/self/fd/%d/door", state);
    if (connect(door, (struct sockaddr *)&address, sizeof(address)) < 0) {
        if (errno != ENOENT && errno != ECONNREFUSED)
            fail("cannot connect to the host's door: %s", strerror(errno));
        close(door);
        door = -1;
    } else {
        check_peer(door);
    }
    close(state);
    return door;
}

/* False: the host has hung up. */
static bool send_call(int door, const struct bytes *frame)
{
    if (put(door, frame->data, frame->size))
        return true;
    if (errno != EPIPE && errno != ECONNRESET)
        fail("cannot send to the host: %s", strerror(errno));
    return false;
}

/* False: the host has hung up. */
static bool receive(int door, uint8_t *data, size_t size)
{
    while (size > 0) {
        ssize_t got = recv(door, data, size, 0);
        if (got == 0 || (got < 0 && errno == ECONNRESET))
            return false;
        if (got < 0 && errno != EINTR)
            fail("cannot read the host's answer: %s", strerror(errno));
        if (got > 0) {
            data += got;
            size -= (size_t)got;
        }
    }
    return true;
}

/* The Response's bytes; false: the host has hung up before it had answered. */
static bool receive_answer(int door, struct bytes *body)
{
    uint8_t header[HEADER];
    uint32_t size;
    if (!receive(door, header, HEADER))
        return false;
    size = load_big_endian(header);
    if (size > FRAME_MAX)
        fail("the host's answer has %" PRIu32 " bytes; at most %d are allowed", size, FRAME_MAX);
    if (load_big_endian(header + 4) != STREAM || header[8] != RESPONSE)
        fail("what the host sent is no answer to the call: a frame of type %u on stream %" PRIu32,
             header[8], load_big_endian(header + 4));
    reserve(body, size);
    body->size = size;
    return receive(door, body->data, size);
}

/* Does what the host has answered; returns only when another one has to serve. */
static void obey(const struct bytes *body)
{
    struct span whole = {body->data, body->data + body->size};
    struct answer answer;
    if (!parse_answer(whole, &answer))
        fail("the host's answer of %zu bytes is malformed", body->size);
    if (answer.code != 0 && answer.message.at == answer.message.end)
        fail("the host refused the call with status %d", (int)answer.code);
    if (answer.code != 0)
        refuse(answer.message.at, (size_t)(answer.message.end - answer.message.at));
    if (answer.apart)
        return;
    put(2, answer.errors.at, (size_t)(answer.errors.end - answer.errors.at));
    if (!put(1, answer.output.at, (size_t)(answer.output.end - answer.output.at)))
        fail("cannot write to stdout: %s", strerror(errno));
    exit(answer.status > 255 ? 255 : (int)answer.status);
}

/* ---- Where no host serves ---- */

/* What has been read from stdin is there to be read again. */
static void give_back_input(const struct bytes *input)
{
    int memory = memfd_create("stdin", MFD_CLOEXEC);
    if (memory < 0 || !put(memory, input->data, input->size) || lseek(memory, 0, SEEK_SET) < 0 ||
        dup2(memory, 0) < 0)
        fail("cannot keep stdin: %s", strerror(errno));
}

/* The python3 beside this program, and whether that is in a virtual environment. */
static bool find_neighbour(char *python, size_t room)
{
    char folder[PATH_MAX], mark[PATH_MAX + 16];
    ssize_t size = readlink("/proc/self/exe", folder, sizeof(folder) - 1);
    if (size < 0)
        fail("cannot read /proc/self/exe: %s", strerror(errno));
    folder[size] = 0;
    *strrchr(folder, '/') = 0;
    snprintf(python, room, "%s/python3", folder);
    snprintf(mark, sizeof(mark), "%s/../pyvenv.cfg", folder);
    return access(mark, F_OK) == 0;
}

/* Becomes Python's launcher. A virtual environment's program uses that; a copy in, say, /usr/bin
 * must not take the python3 that happens to be there while the interpreter of the build is. */
static _Noreturn void become_python(int argc, char **argv)
{
    char neighbour[PATH_MAX + 16];
    bool prefer = find_neighbour(neighbour, sizeof(neighbour));
    char *order[] = {prefer ? neighbour : PYTHON, prefer ? PYTHON : neighbour};
    char **all = calloc((size_t)argc + 5, sizeof(char *));
    char *start[] = {NULL, "-I", "-m", "shim.launcher"};
    if (all == NULL)
        fail("out of memory");
    memcpy(all, start, sizeof(start));
    memcpy(all + 4, argv, (size_t)argc * sizeof(char *));
    for (int i = 0; i < 2; i++) {
        all[0] = order[i];
        execv(order[i], all);
    }
    fail("no host serves, and neither %s nor %s can be run to start one: %s; "
         "install denseshim where this program is, or link to it instead of copying it",
         order[0], order[1], strerror(errno));
}

/* Whether any pair, ours or one apart, has a state directory. */
static bool has_pairs(void)
{
    DIR *state = opendir(STATE);
    struct dirent *entry;
    bool found = false;
    if (state == NULL)
        return false;
    while (!found && (entry = readdir(state)) != NULL)
        found = strncmp(entry->d_name, "apart-", 6) == 0 || strncmp(entry->d_name, "host-", 5) == 0;
    closedir(state);
    return found;
}

/* Answers a delete when nobody has anything: a DeleteResponse (contract: runtime-v2, delete). */
static void print_deleted(void)
{
    struct bytes response = {0}, time = {0};
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    put_number(&time, 1, (uint64_t)now.tv_sec);
    put_number(&time, 2, (uint64_t)now.tv_nsec);
    put_number(&response, 2, KILLED);
    put_text(&response, 3, time.data, time.size);
    if (!put(1, response.data, response.size))
        fail("cannot write to stdout: %s", strerror(errno));
    exit(0);
}

/* Returns when no other launcher is starting a host. The lock is kept over execve(2): until
 * Python's launcher ends. */
static void take_turn(void)
{
    int state = open(STATE, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    int lock;
    if (state < 0)
        return;                 /* the very first one; those that race with it do no harm */
    lock = fcntl(state, F_DUPFD, 64);       /* not 3, which means something to a launcher */
    close(state);
    while (lock < 0 || flock(lock, LOCK_EX) < 0)
        if (errno != EINTR)
            fail("cannot lock %s: %s", STATE, strerror(errno));
}

/* ---- The command line ---- */

/* What of the command line matters here; `shim.bootstrap.arguments` judges the rest. */
struct invocation {
    bool version, id, start, delete;
};

static bool is_among(const char *const *names, const char *name, size_t length)
{
    for (; *names; names++)
        if (strlen(*names) == length && memcmp(*names, name, length) == 0)
            return true;
    return false;
}

/* Whether `following` is the value of a flag that has no '='; of one that we do not know: likely. */
static bool takes(const char *name, size_t length, const char *following)
{
    static const char *const without[] = {"debug", "h", "help", "info", "v", "version", NULL};
    static const char *const with[] = {"namespace", "id", "address", "publish-binary", "bundle",
                                       NULL};
    static const char *const actions[] = {"start", "delete", NULL};
    if (following == NULL || is_among(without, name, length))
        return false;
    if (is_among(with, name, length))
        return true;
    return following[0] != '-' && !is_among(actions, following, strlen(following));
}

/* Flags are as Go's: one dash or two, the value beside '=' or as the next word. */
static struct invocation read_arguments(char **argv)
{
    struct invocation found = {0};
    bool only_words = false;
    for (char **word = argv; *word && *++word;) {
        const char *name = *word + 1 + (strncmp(*word, "--", 2) == 0);
        size_t length = strcspn(name, "=");
        if (only_words || (*word)[0] != '-' || strcmp(*word, "-") == 0) {
            found.start |= strcmp(*word, "start") == 0;
            found.delete |= strcmp(*word, "delete") == 0;
        } else if (strcmp(*word, "--") == 0) {
            only_words = true;
        } else {
            found.id |= length == 2 && memcmp(name, "id", 2) == 0;
            found.version |= strcmp(name, "v") == 0 || strcmp(name, "version") == 0;
            if (name[length] == '\0' && takes(name, length, word[1]))
                word++;
        }
    }
    return found;
}

static bool has_name_of_2017(const char *called)
{
    const char *slash = strrchr(called, '/');
    return strcmp(slash ? slash + 1 : called, NAME_OF_2017) == 0;
}

/* All of stdin, which nobody types. */
static struct bytes read_input(void)
{
    struct bytes input = {0};
    if (isatty(0) || read_to_end(0, STDIN_MAX, &input))
        return input;
    if (errno == EFBIG)
        fail("stdin has more than %d bytes", STDIN_MAX);
    fail("cannot read stdin: %s", strerror(errno));
}

static void print_version(void)
{
    static const char version[] = NAME " " VERSION "\n";
    if (!put(1, version, sizeof(version) - 1))
        fail("cannot write to stdout: %s", strerror(errno));
}

/* Returns only when the host does not serve; true: there is, or was, one. */
static bool ask_host(char **argv, const struct bytes *input)
{
    int door = open_door();
    struct bytes frame, body = {0};
    if (door < 0)
        return false;
    frame = call_frame(argv, input);
    if (send_call(door, &frame) && receive_answer(door, &body))
        obey(&body);
    free(frame.data);
    free(body.data);
    close(door);
    return true;
}

int main(int argc, char **argv)
{
    char *unnamed[] = {NAME, NULL};
    struct invocation asked;
    struct bytes input;
    open_closed_streams();
    if (argc == 0) {            /* Linux before 5.18 */
        argc = 1;
        argv = unnamed;
    }
    if (has_name_of_2017(argv[0]))
        become_python(argc, argv);
    asked = read_arguments(argv);
    if (asked.version) {
        print_version();
        return 0;
    }
    signal(SIGPIPE, SIG_IGN);
    if (asked.start || asked.delete) {
        signal(SIGINT, SIG_IGN);
        signal(SIGTERM, SIG_IGN);
    }
    input = read_input();
    if (!ask_host(argv, &input)) {
        if (asked.delete && asked.id && !asked.start && !has_pairs())
            print_deleted();
        take_turn();
        ask_host(argv, &input);
    }
    if (!isatty(0))
        give_back_input(&input);
    become_python(argc, argv);
}
