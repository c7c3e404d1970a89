/* The ends of the relay's benchmark, and its baseline.
 *
 *   pump write COUNT SIZE   COUNT writes of SIZE bytes to descriptor 1
 *   pump discard FIFO       open the FIFO and read it to its end, 1 MiB at a time
 *   pump copy               the plain loop: read(0, 64 KiB), write(1, all of it)
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char buffer[1 << 20];

static void write_all(const char *data, size_t size)
{
	while (size) {
		ssize_t done = write(1, data, size);
		if (done < 0 && errno != EINTR)
			_exit(1);
		if (done > 0) {
			data += done;
			size -= done;
		}
	}
}

static ssize_t read_some(size_t size)
{
	ssize_t done;
	do
		done = read(0, buffer, size);
	while (done < 0 && errno == EINTR);
	return done;
}

int main(int argc, char **argv)
{
	ssize_t size;
	if (argc == 4 && !strcmp(argv[1], "write")) {
		memset(buffer, 'x', sizeof buffer);
		size = atol(argv[3]);
		if (size < 1 || size > (ssize_t)sizeof buffer)
			return 2;
		for (long i = atol(argv[2]); i; i--)
			write_all(buffer, size);
	} else if (argc == 3 && !strcmp(argv[1], "discard")) {
		if (close(0) < 0 || open(argv[2], O_RDONLY) != 0)
			return 1;
		while (read_some(sizeof buffer) > 0)
			;
	} else if (argc == 2 && !strcmp(argv[1], "copy")) {
		while ((size = read_some(64 << 10)) > 0)
			write_all(buffer, size);
	} else {
		return 2;
	}
	return 0;
}
