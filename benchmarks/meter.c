/* What measures times: of lines on their way, and of calls. See pump.c. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "pump.h"

#define AT_ONCE 64
#define ROOM (64 << 10)
/* A frame's header: length, stream, type, flags; ttrpc's PROTOCOL.md. */
#define HEADER 10
#define RESPONSE 2

/* The times found so far, printed at the end: nothing is printed meanwhile. */
static uint64_t *found;
static long number;

static int fail(const char *what)
{
	perror(what);
	return 1;
}

static int finish(void)
{
	write_all((char *)found, number * sizeof *found);
	return 0;
}

static int watch(int epoll, int descriptor, uint32_t index)
{
	struct epoll_event event = {.events = EPOLLIN, .data.u32 = index};
	return epoll_ctl(epoll, EPOLL_CTL_ADD, descriptor, &event);
}

/* ---- lines */

struct line {
	int descriptor;
	int inside;		/* of the time that is written in it */
	uint64_t written;
};

/* All lines that the text has the ends of. Whatever stands before a time is passed over. */
static void scan(struct line *line, const char *text, ssize_t size, uint64_t came, long most)
{
	for (const char *end = text + size; text < end; text++) {
		if (!line->inside) {
			text = memchr(text, '@', end - text);
			if (!text)
				return;
			line->inside = 1;
			line->written = 0;
		} else if (*text >= '0' && *text <= '9') {
			line->written = line->written * 10 + *text - '0';
		} else {
			line->inside = 0;
			if (number < most)
				found[number++] = came - line->written;
		}
	}
}

int receive(long lines, char **descriptors, int count)
{
	static char text[ROOM];
	struct epoll_event events[AT_ONCE];
	struct line *all = calloc(count, sizeof *all);
	int epoll = epoll_create1(0);
	found = calloc(lines, sizeof *found);
	if (!all || !found)
		return fail("memory");
	for (int i = 0; i < count; i++) {
		all[i].descriptor = atoi(descriptors[i]);
		if (watch(epoll, all[i].descriptor, i) < 0)
			return fail("epoll");
	}
	while (number < lines) {
		int ready = epoll_wait(epoll, events, AT_ONCE, -1);
		for (int i = 0; i < ready; i++) {
			struct line *line = &all[events[i].data.u32];
			ssize_t size = read(line->descriptor, text, sizeof text);
			if (size <= 0)
				return fail("read");
			scan(line, text, size, now(), lines);
		}
	}
	return finish();
}

/* ---- calls */

struct client {
	int socket;
	uint32_t stream;	/* the last request's: odd, and always another */
	uint8_t *frames;	/* all requests of a turn */
	size_t size, next;
	uint8_t answer[ROOM];
	size_t got;
	uint64_t began;
	long left;
};

static uint32_t number_at(const uint8_t *bytes)
{
	return (uint32_t)bytes[0] << 24 | bytes[1] << 16 | bytes[2] << 8 | bytes[3];
}

static int send_next(struct client *client)
{
	uint8_t *frame = client->frames + client->next;
	size_t size = HEADER + number_at(frame);
	client->stream += 2;
	for (int i = 0; i < 4; i++)
		frame[4 + i] = client->stream >> (24 - 8 * i);
	client->next += size;
	client->got = 0;
	return send(client->socket, frame, size, MSG_NOSIGNAL) == (ssize_t)size ? 0 : -1;
}

static int begin(struct client *client)
{
	client->next = 0;
	client->began = now();
	return send_next(client);
}

/* 1: the answer to the last request is whole; -1: it is none, or an error. */
static int take(struct client *client)
{
	uint8_t *body = client->answer + HEADER;
	ssize_t size = recv(client->socket, client->answer + client->got, ROOM - client->got, 0);
	if (size <= 0)
		return -1;
	client->got += size;
	if (client->got < HEADER || client->got < HEADER + number_at(client->answer))
		return 0;
	if (client->answer[8] != RESPONSE || number_at(client->answer + 4) != client->stream)
		return -1;
	/* A response begins with its status, when it has one: field 1, of more than no bytes. */
	if (client->got > HEADER + 1 && body[0] == 0x0a && body[1]) {
		fprintf(stderr, "%.*s\n", (int)(client->got - HEADER), (char *)body);
		return -1;
	}
	return 1;
}

static int connect_to(struct client *client, const char *path)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	if (strlen(path) >= sizeof address.sun_path)
		return -1;
	strcpy(address.sun_path, path);
	client->socket = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	client->stream = -1;
	return connect(client->socket, (struct sockaddr *)&address, sizeof address);
}

static int load(struct client *client, const char *path)
{
	ssize_t size;
	int file = open(path, O_RDONLY | O_CLOEXEC);
	client->frames = malloc(ROOM);
	size = read(file, client->frames, ROOM);
	client->size = size;
	close(file);
	return size > 0 && size < ROOM ? 0 : -1;
}

/* What follows an answer: the next request, the next turn, or nothing (0). -1: failed. */
static int go_on(struct client *client)
{
	if (client->next < client->size)
		return send_next(client) < 0 ? -1 : 1;
	found[number++] = now() - client->began;
	if (--client->left == 0)
		return 0;
	return begin(client) < 0 ? -1 : 1;
}

int ask(long times, char **pairs, int count)
{
	struct epoll_event events[AT_ONCE];
	struct client *all = calloc(count, sizeof *all);
	int epoll = epoll_create1(0);
	int busy = count;
	found = calloc(times * count, sizeof *found);
	if (!all || !found || times < 1)
		return fail("memory");
	for (int i = 0; i < count; i++) {
		all[i].left = times;
		if (load(&all[i], pairs[2 * i]) < 0 || connect_to(&all[i], pairs[2 * i + 1]) < 0 ||
		    watch(epoll, all[i].socket, i) < 0)
			return fail(pairs[2 * i + 1]);
	}
	for (int i = 0; i < count; i++)
		if (begin(&all[i]) < 0)
			return fail("send");
	while (busy) {
		int ready = epoll_wait(epoll, events, AT_ONCE, -1);
		for (int i = 0; i < ready; i++) {
			struct client *client = &all[events[i].data.u32];
			int whole = take(client);
			int more = whole > 0 ? go_on(client) : 1;
			if (whole < 0 || more < 0)
				return fail("call");
			busy -= !more;
		}
	}
	return finish();
}
