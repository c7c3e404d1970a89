/* A shim that does nothing: whatever a container's life costs with it is not the shim's cost.
 *
 *   containerd-shim-null-v2 -namespace NAME -address PATH -publish-binary PATH -id ID start|delete
 *
 * Run by containerd in the container's bundle. `start` leaves a process behind that answers all calls
 * of containerd.task.v2.Task at once, the same way each time: the container's process is the shim's
 * own, and has ended with status 0 as soon as it has been started. No runtime is called, no FIFO
 * opened, no event sent. */
#include <fcntl.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#define MOST 16			/* connections, and Waits before Start */
#define ROOM (64 << 10)		/* for a request: they are small */
#define SCHEME "unix://"
/* A frame's header: length, stream, type, flags; ttrpc's PROTOCOL.md. */
#define HEADER 10
#define REQUEST 1
#define RESPONSE 2
/* containerd.v1.types.Status */
#define CREATED 1
#define STOPPED 3

struct connection {
	int socket;
	uint8_t text[ROOM];
	size_t got;
};

/* A Wait that is answered by Start. */
struct waiter {
	int socket;
	uint8_t stream[4];
};

static struct connection connections[MOST];
static struct waiter waiters[MOST];
static int waiting;
static int is_started;
static const char *path;	/* of the socket */

static int fail(const char *what)
{
	perror(what);
	return 1;
}

/* ---- protobuf */

static uint8_t *put_number(uint8_t *to, int field, uint32_t value)
{
	*to++ = field << 3;
	for (; value > 0x7f; value >>= 7)
		*to++ = value | 0x80;
	*to++ = value;
	return to;
}

/* A google.protobuf.Timestamp, when all containers ended: a second after the epoch. */
static uint8_t *put_time(uint8_t *to, int field)
{
	*to++ = field << 3 | 2;
	*to++ = 2;
	return put_number(to, 1, 1);
}

/* The answer to a call; its size. Exit statuses are 0, and so are left out. */
static size_t encode(const char *method, uint8_t *answer)
{
	uint8_t *to = answer;
	uint32_t pid = getpid();
	if (!strcmp(method, "Create") || !strcmp(method, "Start")) {
		to = put_number(to, 1, pid);
	} else if (!strcmp(method, "State")) {
		to = put_number(to, 3, pid);
		to = put_number(to, 4, is_started ? STOPPED : CREATED);
		to = put_time(to, 10);
	} else if (!strcmp(method, "Wait")) {
		to = put_time(to, 2);
	} else if (!strcmp(method, "Delete")) {
		to = put_number(to, 1, pid);
		to = put_time(to, 3);
	} else if (!strcmp(method, "Connect")) {
		to = put_number(to, 1, pid);
		to = put_number(to, 2, pid);
	} else if (!strcmp(method, "Pids")) {
		uint8_t *end = put_number(to + 2, 1, pid);
		to[0] = 1 << 3 | 2;
		to[1] = end - to - 2;
		to = end;
	}
	return to - answer;
}

/* ---- calls */

static void answer(int socket, const uint8_t *stream, const char *method)
{
	uint8_t frame[64] = {0};
	size_t size = encode(method, frame + HEADER + 2);
	memcpy(frame + 4, stream, 4);
	frame[8] = RESPONSE;
	if (size) {		/* Response{payload=2} */
		frame[3] = size + 2;
		frame[HEADER] = 2 << 3 | 2;
		frame[HEADER + 1] = size;
	}
	/* Whoever does not read it is found to be gone by the next recv. */
	send(socket, frame, HEADER + frame[3], MSG_NOSIGNAL);
}

/* Request{service=1, method=2, ...}, whose names are shorter than 128 bytes; -1: it is not. */
static int read_method(const uint8_t *body, size_t size, char *method, size_t room)
{
	size_t at = size > 2 && body[0] == (1 << 3 | 2) ? 2u + body[1] : size;
	if (at + 2 > size || body[at] != (2 << 3 | 2))
		return -1;
	size_t length = body[at + 1];
	if (length >= room || at + 2 + length > size)
		return -1;
	memcpy(method, body + at + 2, length);
	method[length] = 0;
	return 0;
}

static int call(int socket, const uint8_t *stream, const char *method)
{
	if (!strcmp(method, "Wait") && !is_started) {
		if (waiting == MOST)
			return -1;
		waiters[waiting].socket = socket;
		memcpy(waiters[waiting++].stream, stream, 4);
		return 0;
	}
	is_started |= !strcmp(method, "Start");
	answer(socket, stream, method);
	if (is_started)
		while (waiting) {
			waiting--;
			answer(waiters[waiting].socket, waiters[waiting].stream, "Wait");
		}
	if (!strcmp(method, "Shutdown")) {
		unlink(path);
		_exit(0);
	}
	return 0;
}

/* All whole frames that have come; -1: the connection is of no more use. */
static int take(struct connection *from)
{
	char method[32];
	ssize_t size = recv(from->socket, from->text + from->got, ROOM - from->got, 0);
	if (size <= 0)
		return -1;
	from->got += size;
	while (from->got >= HEADER) {
		uint8_t *text = from->text;
		size_t whole = (size_t)text[0] << 24 | text[1] << 16 | text[2] << 8 | text[3];
		whole += HEADER;
		if (whole > ROOM || text[8] != REQUEST)
			return -1;
		if (from->got < whole)
			return 0;
		if (read_method(text + HEADER, whole - HEADER, method, sizeof method) < 0 ||
		    call(from->socket, text + 4, method) < 0)
			return -1;
		from->got -= whole;
		memmove(text, text + whole, from->got);
	}
	return 0;
}

/* ---- the process */

static void forget(int socket)
{
	int kept = 0;
	for (int i = 0; i < waiting; i++)
		if (waiters[i].socket != socket)
			waiters[kept++] = waiters[i];
	waiting = kept;
	close(socket);
}

static int serve(int listener)
{
	struct pollfd polled[MOST + 1] = {[MOST] = {.fd = listener, .events = POLLIN}};
	for (int i = 0; i < MOST; i++)
		polled[i] = (struct pollfd){.fd = -1, .events = POLLIN};
	while (poll(polled, MOST + 1, -1) >= 0) {
		for (int i = 0; i < MOST; i++)
			if (polled[i].fd >= 0 && polled[i].revents && take(&connections[i]) < 0) {
				forget(polled[i].fd);
				polled[i].fd = -1;
			}
		if (polled[MOST].revents) {
			int spare = 0;
			int accepted = accept(listener, NULL, NULL);
			while (spare < MOST && polled[spare].fd >= 0)
				spare++;
			if (spare == MOST) {
				close(accepted);
				continue;
			}
			connections[spare].got = 0;
			connections[spare].socket = polled[spare].fd = accepted;
		}
	}
	return fail("poll");
}

static int listen_at(struct sockaddr_un *address)
{
	int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	umask(0077);
	if (bind(listener, (struct sockaddr *)address, sizeof *address) < 0 ||
	    listen(listener, MOST) < 0)
		return -1;
	return listener;
}

/* containerd reads the address from this one's output, and from the file when it starts anew. */
static int start(struct sockaddr_un *address)
{
	int listener = listen_at(address);
	FILE *file = fopen("address", "w");
	if (listener < 0 || !file || fprintf(file, SCHEME "%s", path) < 0 || fclose(file))
		return fail("start");
	pid_t server = fork();
	if (server < 0)
		return fail("fork");
	if (server) {
		printf(SCHEME "%s", path);
		return 0;
	}
	/* containerd reads to the end of the output, which this one must not keep from coming. */
	int nothing = open("/dev/null", O_RDWR);
	for (int i = 0; i < 3; i++)
		dup2(nothing, i);
	return serve(listener);
}

static int finish(void)
{
	uint8_t message[64];
	size_t size = encode("Delete", message);
	unlink(path);
	return fwrite(message, 1, size, stdout) == size ? 0 : 1;
}

int main(int count, char **arguments)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	const char *id = "", *action = count > 1 ? arguments[count - 1] : "";
	for (int i = 1; i < count - 1; i++)
		if (!strcmp(arguments[i], "-id"))
			id = arguments[i + 1];
	size_t room = sizeof address.sun_path;
	int length = snprintf(address.sun_path, room, "/run/containerd/null-%s", id);
	if ((size_t)length >= room) {
		fputs("the id is too long\n", stderr);
		return 1;
	}
	path = address.sun_path;
	if (!strcmp(action, "start"))
		return start(&address);
	if (!strcmp(action, "delete"))
		return finish();
	fputs("start or delete is meant\n", stderr);
	return 2;
}
