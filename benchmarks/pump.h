/* What the load generators have in common. */
#ifndef PUMP_H
#define PUMP_H

#include <stddef.h>
#include <stdint.h>

#define SECOND 1000000000ULL

/* CLOCK_MONOTONIC in nanoseconds: the same in all containers, and beside them. */
uint64_t now(void);

/* Sleep until then. */
void sleep_until(uint64_t then);

/* Write all of it to descriptor 1; ends the program when that fails. */
void write_all(const char *data, size_t size);

/* meter.c */
int receive(long lines, char **descriptors, int count);
int ask(long times, char **pairs, int count);

#endif
