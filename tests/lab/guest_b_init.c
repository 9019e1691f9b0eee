// SPDX-License-Identifier: GPL-2.0-only
/*
 * Guest B's only program, as PID 1 of a Linux guest: uses perf the way a guest's user does.
 *
 * Opens a group of four hardware events with perf_event_open(), works, reads it, and prints one JSON line with the
 * counts, once per round; then powers off. Kernel command line: vpmu.rounds=N (default 1), vpmu.ms=N milliseconds
 * of work per round (default 100), vpmu.hold=1 to keep the last round's events open until a line comes in.
 */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/perf_event.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define EVENTS 4

static const uint64_t configs[EVENTS] = {
	PERF_COUNT_HW_CPU_CYCLES,
	PERF_COUNT_HW_INSTRUCTIONS,
	PERF_COUNT_HW_BRANCH_INSTRUCTIONS,
	PERF_COUNT_HW_BRANCH_MISSES,
};

struct group_values {
	uint64_t nr;
	uint64_t values[EVENTS];
};

/* PID 1 must not return: the guest would panic instead of ending. */
static void power_off(void)
{
	sync();
	reboot(RB_POWER_OFF);
	for (;;)
		pause();
}

static void fail(const char *what)
{
	printf("{\"error\":\"%s: %s\"}\n", what, strerror(errno));
	fflush(stdout);
	power_off();
}

static long option(const char *name, long fallback)
{
	static char cmdline[4096];
	const char *found;

	if (!*cmdline) {
		int fd = open("/proc/cmdline", O_RDONLY);

		if (fd < 0 || read(fd, cmdline, sizeof(cmdline) - 1) <= 0)
			fail("/proc/cmdline");
		close(fd);
	}
	found = strstr(cmdline, name);
	return found ? atol(found + strlen(name)) : fallback;
}

static void work(long ms)
{
	struct timespec start, now;
	volatile unsigned long sum = 0;

	clock_gettime(CLOCK_MONOTONIC, &start);
	do {
		for (unsigned long i = 0; i < 1000; i++)
			sum += i & 3 ? i : sum;
		clock_gettime(CLOCK_MONOTONIC, &now);
	} while ((now.tv_sec - start.tv_sec) * 1000 + (now.tv_nsec - start.tv_nsec) / 1000000 < ms);
}

static void open_group(int fds[EVENTS])
{
	for (int i = 0; i < EVENTS; i++) {
		struct perf_event_attr attr = {
			.type = PERF_TYPE_HARDWARE,
			.size = sizeof(attr),
			.config = configs[i],
			.read_format = PERF_FORMAT_GROUP,
			.disabled = i == 0,
		};

		fds[i] = syscall(SYS_perf_event_open, &attr, 0, -1, i ? fds[0] : -1, 0);
		if (fds[i] < 0)
			fail("perf_event_open");
	}
}

int main(void)
{
	long rounds, ms, hold;

	mount("proc", "/proc", "proc", 0, NULL);
	rounds = option("vpmu.rounds=", 1);
	ms = option("vpmu.ms=", 100);
	hold = option("vpmu.hold=", 0);

	for (long round = 0; round < rounds; round++) {
		struct group_values group;
		int fds[EVENTS];

		open_group(fds);
		if (ioctl(fds[0], PERF_EVENT_IOC_ENABLE, PERF_IOC_FLAG_GROUP) < 0)
			fail("PERF_EVENT_IOC_ENABLE");
		work(ms);
		if (read(fds[0], &group, sizeof(group)) != sizeof(group))
			fail("reading the group");
		printf("{\"round\":%ld,\"cycles\":%llu,\"instructions\":%llu,\"branches\":%llu,\"branch_misses\":%llu}\n",
		       round, (unsigned long long)group.values[0], (unsigned long long)group.values[1],
		       (unsigned long long)group.values[2], (unsigned long long)group.values[3]);
		fflush(stdout);
		if (hold && round == rounds - 1)
			getchar();
		for (int i = EVENTS - 1; i >= 0; i--)
			close(fds[i]);
	}
	printf("{\"done\":true}\n");
	fflush(stdout);
	power_off();
}
