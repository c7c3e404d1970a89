/* The load generators: one static program, in the containers and beside them.
 *
 *   pump write COUNT SIZE      COUNT writes of SIZE bytes to descriptor 1
 *   pump text COUNT LINE SIZE  COUNT lines of LINE bytes in writes of SIZE bytes to descriptor 1;
 *                              LINE is a multiple of SIZE, or SIZE of LINE
 *   pump discard FIFO          open the FIFO and read it to its end, 1 MiB at a time; prints how
 *                              many bytes there were
 *   pump copy                  the plain loop: read(0, 64 KiB), write(1, all of it)
 *   pump after GATE PROGRAM [ARGUMENT...]
 *                              run the program when a byte can be read from the FIFO GATE
 *   pump lines GATE COUNT RATE PHASE
 *                              for ever: read a byte from GATE, wait for PHASE ns, then write COUNT
 *                              lines of 100 bytes, RATE in a second, each with the time in it
 *   pump feed COUNT SIZE RATE DESCRIPTOR...
 *                              COUNT writes of SIZE bytes to the descriptors in turn, RATE in a
 *                              second
 *   pump flood BYTES SIZE DESCRIPTOR...
 *                              so many bytes in writes of SIZE, to all descriptors as fast as each
 *                              takes them
 *   pump drain BYTES DESCRIPTOR...
 *                              read from the descriptors until so many bytes have come
 *   pump receive LINES DESCRIPTOR...
 *                              read so many lines of `lines`; prints each one's age in ns, as
 *                              64-bit numbers of this machine
 *   pump ask TIMES [FRAMES SOCKET]...
 *                              call ttrpc servers, each pair a client of its own, TIMES each: send
 *                              the requests in the file FRAMES one after the other, each when the
 *                              one before has been answered; prints how long each time has taken,
 *                              as `receive` does
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

#include "pump.h"

#define LINE 100

static char buffer[1 << 20];

uint64_t now(void)
{
	struct timespec time;
	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec * SECOND + time.tv_nsec;
}

void sleep_until(uint64_t then)
{
	struct timespec time = {.tv_sec = then / SECOND, .tv_nsec = then % SECOND};
	while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &time, NULL) == EINTR)
		;
}

static void write_to(int descriptor, const char *data, size_t size)
{
	while (size) {
		ssize_t done = write(descriptor, data, size);
		if (done < 0 && errno != EINTR)
			_exit(1);
		if (done > 0) {
			data += done;
			size -= done;
		}
	}
}

void write_all(const char *data, size_t size)
{
	write_to(1, data, size);
}

static ssize_t read_some(int descriptor, size_t size)
{
	ssize_t done;
	do
		done = read(descriptor, buffer, size);
	while (done < 0 && errno == EINTR);
	return done;
}

static int write_blocks(long count, size_t size)
{
	if (size < 1 || size > sizeof buffer)
		return 2;
	memset(buffer, 'x', size);
	while (count--)
		write_all(buffer, size);
	return 0;
}

static int write_text(long count, size_t line, size_t size)
{
	size_t all = line > size ? line : size;
	if (line < 1 || size < 1 || all > sizeof buffer || all % line || all % size)
		return 2;
	memset(buffer, 'x', all);
	for (size_t end = line; end <= all; end += line)
		buffer[end - 1] = '\n';
	for (size_t left = count * line, at = 0; left; at = (at + size) % all) {
		size_t piece = size < left ? size : left;
		write_all(buffer + at, piece);
		left -= piece;
	}
	return 0;
}

static int discard(const char *fifo)
{
	long long total = 0;
	ssize_t size;
	int descriptor = open(fifo, O_RDONLY);
	if (descriptor < 0)
		return 1;
	while ((size = read_some(descriptor, sizeof buffer)) > 0)
		total += size;
	printf("%lld\n", total);
	return size < 0;
}

static int copy(void)
{
	ssize_t size;
	while ((size = read_some(0, 64 << 10)) > 0)
		write_all(buffer, size);
	return size < 0;
}

static int after(const char *gate, char **command)
{
	int descriptor = open(gate, O_RDONLY | O_CLOEXEC);
	if (descriptor < 0 || read_some(descriptor, 1) != 1)
		return 1;
	execvp(command[0], command);
	return 127;
}

static int write_lines(const char *gate, long count, long rate, uint64_t phase)
{
	char line[LINE + 1];
	int descriptor = open(gate, O_RDONLY);
	while (descriptor >= 0 && read_some(descriptor, 1) == 1) {
		uint64_t began = now() + phase;
		for (long i = 0; i < count; i++) {
			sleep_until(began + i * (SECOND / rate));
			snprintf(line, sizeof line, "@%-*llu\n", LINE - 2, (unsigned long long)now());
			write_all(line, LINE);
		}
	}
	return 1;
}

static void set_flags(char **descriptors, int streams, int flags)
{
	for (int i = 0; i < streams; i++)
		fcntl(atoi(descriptors[i]), F_SETFL, flags);
}

static int feed(long count, size_t size, long rate, char **descriptors, int streams)
{
	uint64_t began = now();
	if (size < 1 || size > sizeof buffer || rate < 1)
		return 2;
	prctl(PR_SET_TIMERSLACK, 1);
	set_flags(descriptors, streams, 0);
	memset(buffer, 'x', size);
	for (long i = 0; i < count; i++) {
		sleep_until(began + i * (SECOND / rate));
		write_to(atoi(descriptors[i % streams]), buffer, size);
	}
	return 0;
}

static void watch(struct pollfd *watched, char **descriptors, int streams, short events)
{
	for (int i = 0; i < streams; i++)
		watched[i] = (struct pollfd){.fd = atoi(descriptors[i]), .events = events};
}

/* How much the pipe has taken, at most so many bytes; -1: it has failed. */
static ssize_t fill(int descriptor, size_t size, size_t bytes)
{
	size_t total = 0;
	while (total < bytes) {
		size_t left = bytes - total;
		ssize_t done = write(descriptor, buffer, left < size ? left : size);
		if (done > 0)
			total += done;
		else if (errno == EAGAIN)
			break;
		else if (errno != EINTR)
			return -1;
	}
	return total;
}

static int flood(long long bytes, size_t size, char **descriptors, int streams)
{
	struct pollfd watched[streams];
	if (size < 1 || size > sizeof buffer)
		return 2;
	memset(buffer, 'x', size);
	watch(watched, descriptors, streams, POLLOUT);
	set_flags(descriptors, streams, O_NONBLOCK);
	while (bytes > 0) {
		if (poll(watched, streams, -1) < 0 && errno != EINTR)
			return 1;
		for (int i = 0; i < streams; i++) {
			/* At most what the largest pipe holds: then the others have their turn. */
			long long most = bytes < (long long)sizeof buffer ? bytes : (long long)sizeof buffer;
			ssize_t done = watched[i].revents ? fill(watched[i].fd, size, most) : 0;
			if (done < 0)
				return 1;
			bytes -= done;
		}
	}
	return 0;
}

static int drain(long long bytes, char **descriptors, int streams)
{
	struct pollfd watched[streams];
	watch(watched, descriptors, streams, POLLIN);
	while (bytes > 0) {
		if (poll(watched, streams, -1) < 0 && errno != EINTR)
			return 1;
		for (int i = 0; i < streams; i++) {
			ssize_t size;
			if (!watched[i].revents)
				continue;
			size = read_some(watched[i].fd, sizeof buffer);
			if (size <= 0)
				return 1;
			bytes -= size;
		}
	}
	return 0;
}

int main(int argc, char **argv)
{
	const char *mode = argc > 1 ? argv[1] : "";
	if (argc == 4 && !strcmp(mode, "write"))
		return write_blocks(atol(argv[2]), atol(argv[3]));
	if (argc == 5 && !strcmp(mode, "text"))
		return write_text(atol(argv[2]), atol(argv[3]), atol(argv[4]));
	if (argc == 3 && !strcmp(mode, "discard"))
		return discard(argv[2]);
	if (argc == 2 && !strcmp(mode, "copy"))
		return copy();
	if (argc > 3 && !strcmp(mode, "after"))
		return after(argv[2], argv + 3);
	if (argc == 6 && !strcmp(mode, "lines"))
		return write_lines(argv[2], atol(argv[3]), atol(argv[4]), strtoull(argv[5], NULL, 10));
	if (argc > 5 && !strcmp(mode, "feed"))
		return feed(atol(argv[2]), atol(argv[3]), atol(argv[4]), argv + 5, argc - 5);
	if (argc > 4 && !strcmp(mode, "flood"))
		return flood(atoll(argv[2]), atol(argv[3]), argv + 4, argc - 4);
	if (argc > 3 && !strcmp(mode, "drain"))
		return drain(atoll(argv[2]), argv + 3, argc - 3);
	if (argc > 3 && !strcmp(mode, "receive"))
		return receive(atol(argv[2]), argv + 3, argc - 3);
	if (argc > 4 && argc % 2 == 1 && !strcmp(mode, "ask"))
		return ask(atol(argv[2]), argv + 3, (argc - 3) / 2);
	return 2;
}
