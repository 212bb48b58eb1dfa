// The floor: what a container costs in bare system calls.
//
// Usage: floor SCRATCH ROOTFS MODE:CGROUPDIR...   MODE is 1 or 2 (unified)
//
// Reads commands on stdin, one a line, and answers each with the nanoseconds
// that one cycle took (negative: it failed). A command is two digits:
// first 1 = with a new, empty network namespace, 2 = in the one whose path follows; second 1 = join the version 1
// cgroups by "tasks" from within and the unified one at the clone (the fast
// way), 0 = by cgroup.procs, from the parent (the usual way).
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static char upper[512], work[512], inner[512], merged[512], base[512], overlay[2048];
static int ngroups;
static struct { int v2; const char *dir; char mine[600], procs[640], tasks[640]; } group[32];

static int put(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	if (fd < 0)
		return -1;
	int n = write(fd, text, strlen(text));
	close(fd);
	return n < 0 ? -1 : 0;
}

static void child(int ready, int fast, const char *ns)
{
	char c;
	int fd = ns ? open(ns, O_RDONLY | O_CLOEXEC) : -1;
	if (ns && (fd < 0 || setns(fd, CLONE_NEWNET)))
		_exit(105);
	if (fast) {
		for (int i = 0; i < ngroups; i++)
			if (!group[i].v2 && put(group[i].tasks, "0"))
				_exit(101);
	} else if (read(ready, &c, 1) != 1)
		_exit(102);
	char proc[600];
	snprintf(proc, sizeof proc, "%s/proc", merged);
	if (mount("", "/", NULL, MS_REC | MS_PRIVATE, NULL) || mount("overlay", merged, "overlay", 0, overlay) ||
	    mount("proc", proc, "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL) || chdir(merged) ||
	    syscall(SYS_pivot_root, ".", ".") || umount2(".", MNT_DETACH) || chdir("/") || sethostname("floor", 5))
		_exit(103);
	char *argv[] = {"true", NULL}, *envp[] = {"PATH=/bin", NULL};
	execve("/bin/busybox", argv, envp);
	_exit(104);
}

static int cycle(int net, int fast, const char *ns)
{
	int ready[2], v2 = -1, status, failed = 0;
	if (mkdir(base, 0700) || mkdir(upper, 0755) || mkdir(work, 0755) || mkdir(merged, 0755) || pipe2(ready, O_CLOEXEC))
		return -1;
	for (int i = 0; i < ngroups; i++) {
		if (mkdir(group[i].mine, 0755))
			return -2;
		if (group[i].v2 && fast)
			v2 = open(group[i].mine, O_PATH | O_DIRECTORY | O_CLOEXEC);
	}
	struct clone_args a = {0};
	a.flags = CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWIPC | CLONE_NEWUTS | (net ? CLONE_NEWNET : 0);
	a.exit_signal = SIGCHLD;
	if (v2 >= 0) {
		a.flags |= CLONE_INTO_CGROUP;
		a.cgroup = v2;
	}
	pid_t pid = syscall(SYS_clone3, &a, sizeof a);
	if (pid == 0)
		child(ready[0], fast, ns);
	if (pid < 0)
		return -3;
	if (!fast) {
		char text[16];
		snprintf(text, sizeof text, "%d", pid);
		for (int i = 0; i < ngroups; i++)
			failed |= put(group[i].procs, text);
		if (write(ready[1], "x", 1) != 1)
			failed = 1;
	}
	if (waitpid(pid, &status, 0) != pid || status != 0) {
		fprintf(stderr, "floor: the child ended with status %#x\n", status);
		failed = 1;
	}
	if (v2 >= 0)
		close(v2);
	close(ready[0]);
	close(ready[1]);
	for (int i = 0; i < ngroups; i++)
		failed |= rmdir(group[i].mine);
	rmdir(inner);
	failed |= rmdir(work) | rmdir(upper) | rmdir(merged) | rmdir(base);
	return failed ? -4 : 0;
}

int main(int argc, char **argv)
{
	if (argc < 3)
		return 2;
	snprintf(base, sizeof base, "%s/c", argv[1]);
	snprintf(upper, sizeof upper, "%s/c/upper", argv[1]);
	snprintf(work, sizeof work, "%s/c/work", argv[1]);
	snprintf(inner, sizeof inner, "%s/c/work/work", argv[1]);
	snprintf(merged, sizeof merged, "%s/c/merged", argv[1]);
	snprintf(overlay, sizeof overlay, "lowerdir=%s,upperdir=%s,workdir=%s", argv[2], upper, work);
	for (int i = 3; i < argc && ngroups < 32; i++, ngroups++) {
		group[ngroups].v2 = argv[i][0] == '2';
		group[ngroups].dir = argv[i] + 2;
		snprintf(group[ngroups].mine, sizeof group[0].mine, "%s/c", group[ngroups].dir);
		snprintf(group[ngroups].procs, sizeof group[0].procs, "%s/c/cgroup.procs", group[ngroups].dir);
		snprintf(group[ngroups].tasks, sizeof group[0].tasks, "%s/c/tasks", group[ngroups].dir);
	}
	char line[300];
	while (fgets(line, sizeof line, stdin)) {
		struct timespec a, b;
		line[strcspn(line, "\n")] = 0;
		clock_gettime(CLOCK_MONOTONIC, &a);
		int rc = cycle(line[0] == '1', line[1] == '1', line[0] == '2' ? line + 2 : NULL);
		int why = errno;
		clock_gettime(CLOCK_MONOTONIC, &b);
		if (rc)
			fprintf(stderr, "floor: step %d: %s\n", rc, strerror(why));
		printf("%lld\n", rc ? -1LL : (b.tv_sec - a.tv_sec) * 1000000000LL + b.tv_nsec - a.tv_nsec);
		fflush(stdout);
	}
	return 0;
}
