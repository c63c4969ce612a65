/* SPDX-License-Identifier: Apache-2.0 */
/*
 * doctor.c - `shadowserve doctor`: what of this machine is fine, what is not, what to do.
 *
 * It changes nothing. A check has one of three verdicts: fine, note (works, but slower or less) and
 * problem (something will not work). Each that is not fine says what to do.
 */
#include "doctor.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdarg.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "cli.h"
#include "codec/kernels.h"

#define ARENA_USUAL (GIB)
#define FILES_USUAL 1024u

static const char *option_store, *option_socket, *option_python;
static uint64_t option_timeout = 3000;

static const struct arg doctor_args[] = {
    {"store", "URI", "check this store (default: $SHADOWSERVE_STORE, or the daemon's)", ARG_TEXT,
     &option_store, 0, 0},
    {"socket", "PATH", "the daemon's socket (default: $SHADOWSERVE_SOCKET, or the usual one)",
     ARG_TEXT, &option_socket, 0, 0},
    {"python", "PROGRAM", "look for vLLM with this Python (default python3)", ARG_TEXT,
     &option_python, 0, 0},
    {"timeout", "MS", "give up on store and daemon after this long (default 3000)", ARG_NUMBER,
     &option_timeout, 1, 600000},
    ARG_END,
};

static const char *const verdict_names[] = {"fine", "note", "problem"};

void doctor_say(struct doctor *doctor, enum verdict verdict, const char *name, const char *advice,
		const char *format, ...)
{
	char text[512];
	va_list list;

	va_start(list, format);
	vsnprintf(text, sizeof(text), format, list);
	va_end(list);
	doctor->counts[verdict]++;
	if (option_json) {
		cJSON *check = cli_object();

		cli_add_text(check, "check", name);
		cli_add_text(check, "verdict", verdict_names[verdict]);
		cli_add_text(check, "found", text);
		if (verdict != VERDICT_FINE)
			cli_add_text(check, "advice", advice);
		cJSON_AddItemToArray(doctor->checks, check);
		return;
	}
	printf("%-8s %-14s %s\n", verdict_names[verdict], name, text);
	if (verdict != VERDICT_FINE)
		printf("%-8s %-14s -> %s\n", "", "", advice);
}

/* First line of a small file of the kernel's; "" when it cannot be read. */
static void read_line(const char *path, char *line, size_t line_bytes)
{
	FILE *file = fopen(path, "r");

	line[0] = 0;
	if (!file)
		return;
	if (!fgets(line, (int)line_bytes, file))
		line[0] = 0;
	line[strcspn(line, "\n")] = 0;
	fclose(file);
}

/* ---- the machine ---------------------------------------------------------------------------- */

static void check_cpu(struct doctor *doctor)
{
	const char *in_use = kernels_get()->name;
	char names[64];
	cpu_set_t set;
	int cores;

	kernels_list(names, sizeof(names));
	if (strcmp(in_use, "scalar"))
		doctor_say(doctor, VERDICT_FINE, "simd", "", "codec uses %s (runs here: %s)",
			   in_use, names);
	else
		doctor_say(doctor, VERDICT_NOTE, "simd",
			   "AVX-512 (VBMI2), AVX2 or NEON make the codec several times faster; "
			   "unset SHADOWSERVE_SIMD if it is set",
			   "codec uses scalar (runs here: %s)", names);
	cores = sched_getaffinity(0, sizeof(set), &set) ? 0 : CPU_COUNT(&set);
	if (cores >= 2)
		doctor_say(doctor, VERDICT_FINE, "cores", "", "%d usable", cores);
	else
		doctor_say(doctor, VERDICT_NOTE, "cores",
			   "give the daemon a core of its own (--cores); on one core it takes the "
			   "engine's time",
			   "%d usable", cores);
}

static void check_huge_pages(struct doctor *doctor)
{
	char line[128];

	read_line("/sys/kernel/mm/transparent_hugepage/enabled", line, sizeof(line));
	if (strstr(line, "[always]") || strstr(line, "[madvise]"))
		doctor_say(doctor, VERDICT_FINE, "huge pages", "", "transparent: %s", line);
	else
		doctor_say(doctor, VERDICT_NOTE, "huge pages",
			   "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled (as root); "
			   "without them large copies are a little slower",
			   "transparent: %s", line[0] ? line : "unknown");
}

static void check_limits(struct doctor *doctor)
{
	struct rlimit limit;
	char text[32];

	if (getrlimit(RLIMIT_MEMLOCK, &limit))
		limit.rlim_cur = 0;
	if (limit.rlim_cur >= ARENA_USUAL)
		doctor_say(doctor, VERDICT_FINE, "memlock", "", "%s",
			   limit.rlim_cur == RLIM_INFINITY
			       ? "unlimited"
			       : cli_bytes((double)limit.rlim_cur, text));
	else
		doctor_say(doctor, VERDICT_NOTE, "memlock",
			   "to pin the arena: ulimit -l unlimited, or LimitMEMLOCK=infinity in the "
			   "unit; unpinned memory works, it may be swapped",
			   "%s", cli_bytes((double)limit.rlim_cur, text));
	if (getrlimit(RLIMIT_NOFILE, &limit))
		limit.rlim_cur = 0;
	if (limit.rlim_cur >= FILES_USUAL)
		doctor_say(doctor, VERDICT_FINE, "open files", "", "%llu",
			   (unsigned long long)limit.rlim_cur);
	else
		doctor_say(doctor, VERDICT_NOTE, "open files",
			   "ulimit -n 1024: each session, region and lane takes a descriptor",
			   "%llu", (unsigned long long)limit.rlim_cur);
}

static void check_memory_sharing(struct doctor *doctor)
{
	int fd = memfd_create("shadowserve-doctor", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	int pidfd = (int)syscall(SYS_pidfd_open, getpid(), 0);
	int sealed = fd >= 0 && !ftruncate(fd, 4096) && !fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK);

	if (sealed)
		doctor_say(doctor, VERDICT_FINE, "memfd", "", "can be created and sealed");
	else
		doctor_say(doctor, VERDICT_PROBLEM, "memfd",
			   "allow memfd_create and F_ADD_SEALS in the container's seccomp profile: "
			   "shared regions need them",
			   "%s", strerror(errno));
	if (pidfd >= 0)
		doctor_say(doctor, VERDICT_FINE, "pidfd", "", "can be opened");
	else
		doctor_say(doctor, VERDICT_PROBLEM, "pidfd",
			   "a kernel from 5.3 on, and pidfd_open allowed by seccomp: a daemon's "
			   "death is proven with it",
			   "%s", strerror(errno));
	if (fd >= 0)
		close(fd);
	if (pidfd >= 0)
		close(pidfd);
}

static void check_cross_memory(struct doctor *doctor)
{
	char from = 1, to = 0, line[16];
	struct iovec local = {.iov_base = &to, .iov_len = 1};
	struct iovec remote = {.iov_base = &from, .iov_len = 1};

	if (process_vm_readv(getpid(), &local, 1, &remote, 1, 0) != 1) {
		doctor_say(
		    doctor, VERDICT_NOTE, "cross memory",
		    "allow process_vm_readv and process_vm_writev in the seccomp profile, or "
		    "use regions of shared memory (the connector's default on CPUs)",
		    "process_vm_readv: %s", strerror(errno));
		return;
	}
	read_line("/proc/sys/kernel/yama/ptrace_scope", line, sizeof(line));
	if (!line[0] || line[0] == '0')
		doctor_say(doctor, VERDICT_FINE, "cross memory", "", "ptrace scope %s",
			   line[0] ? line : "not restricted");
	else if (line[0] == '1')
		doctor_say(doctor, VERDICT_FINE, "cross memory", "",
			   "ptrace scope 1: engines allow the daemon by PR_SET_PTRACER, as the "
			   "connector does");
	else
		doctor_say(doctor, VERDICT_NOTE, "cross memory",
			   "sysctl kernel.yama.ptrace_scope=1, or use regions of shared memory",
			   "ptrace scope %s", line);
}

static void check_versions(struct doctor *doctor)
{
	char versions[256];
	struct utsname kernel;

	doctor_library_versions(versions, sizeof(versions));
	if (uname(&kernel))
		snprintf(kernel.release, sizeof(kernel.release), "unknown");
	doctor_say(doctor, VERDICT_FINE, "versions", "", "shadowserve %s, kernel %s, %s",
		   ssv_version(), kernel.release, versions);
}

static int run_doctor(int argc, char **argv)
{
	struct doctor doctor = {.checks = cli_array()};
	struct doctor_daemon daemon;
	enum exit_code code;
	cJSON *object;

	(void)argc;
	(void)argv;
	check_cpu(&doctor);
	check_huge_pages(&doctor);
	check_limits(&doctor);
	check_memory_sharing(&doctor);
	check_cross_memory(&doctor);
	check_versions(&doctor);
	doctor_check_daemon(&doctor, option_socket, (uint32_t)option_timeout, &daemon);
	doctor_check_store(&doctor, &daemon, option_store, (uint32_t)option_timeout);
	doctor_daemon_clear(&daemon);
	doctor_check_python(&doctor, option_python ? option_python : "python3");
	code = doctor.counts[VERDICT_PROBLEM] ? EXIT_FOUND_BAD : EXIT_OK;
	if (!option_json) {
		printf("%u fine, %u to note, %u problems\n", doctor.counts[VERDICT_FINE],
		       doctor.counts[VERDICT_NOTE], doctor.counts[VERDICT_PROBLEM]);
		cJSON_Delete(doctor.checks);
		return (int)code;
	}
	object = cli_object();
	cli_add_number(object, "fine", doctor.counts[VERDICT_FINE]);
	cli_add_number(object, "notes", doctor.counts[VERDICT_NOTE]);
	cli_add_number(object, "problems", doctor.counts[VERDICT_PROBLEM]);
	cli_add(object, "checks", doctor.checks);
	return cli_print_json(object, code);
}

const struct command doctor_command = {
    .name = "doctor",
    .operands = "",
    .summary = "what of this machine is fine, what is not, what to do",
    .text = "Look at processor, limits, memory sharing, versions, daemon, store and vLLM, and say\n"
	    "what to do about what is not fine. Changes nothing.\n"
	    "Exit 0: no problems (notes are no problems); 1: something will not work.\n\n"
	    "  shadowserve doctor\n"
	    "  shadowserve doctor --store redis://kv:secret@10.0.0.5:6379/0\n"
	    "  shadowserve doctor --python .venv/bin/python --json",
    .args = doctor_args,
    .run = run_doctor,
};
