/* Preloaded (LD_PRELOAD) by faults.py: counts the calls of libc that touch files below one folder, and lets one of them go wrong.
 *
 * Working at the level of libc, it sees what Python, Rust (safetensors) and C++ libraries do alike. Not seen: what happens in a memory map
 * once it is made (the kernel answers a page that it cannot read with SIGBUS, not with an error), stdio's own reads and writes after
 * fopen, io_uring. Calls are numbered from 1 in the order in which this process makes them.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

/* What a call does; which of them an errno can come from is decided in `may_fail`. */
enum { READS = 1, CREATES = 2, WRITES = 4, SYNCS = 8, REMOVES = 16, LOOKS = 32 };
/* `error`: an errno, or one of these. SHORT: a read gives fewer bytes than are there, as a network's file system may; the rest comes next. */
enum { KILL_BEFORE = -1, KILL_AFTER = -2, SHORT = -3 };

static char root[PATH_MAX];
static long at;          /* the call that goes wrong; 0: none */
static int error, lasting, counted; /* lasting: so do all later ones that can; counted: bits of the calls that have a number */
static atomic_long calls;
static int record = -1;  /* a file descriptor to which each counted call is written */

void faults_arm(const char *folder, long call, int what, int until_the_end, int kinds, int log) {
    snprintf(root, sizeof root, "%s", folder ? folder : "");
    at = call, error = what, lasting = until_the_end, counted = kinds, record = log;
    atomic_store(&calls, 0);
}

long faults_calls(void) { return atomic_load(&calls); }

__attribute__((constructor)) static void from_environment(void) {
    const char *folder = getenv("FAULTS_ROOT");
    if (!folder) return;
    const char *call = getenv("FAULTS_AT"), *what = getenv("FAULTS_ERROR"), *always = getenv("FAULTS_LASTING"), *kinds = getenv("FAULTS_KINDS");
    faults_arm(folder, call ? atol(call) : 0, what ? atoi(what) : 0, always && *always == '1', kinds ? atoi(kinds) : 30, -1);
}

#define REAL(name) ({ static __typeof__(name) *real; if (!real) real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name); real; })

static int below(const char *path) {
    size_t n = strlen(root);
    return n && !strncmp(path, root, n) && (path[n] == '/' || !path[n]);
}

static void of_fd(int fd, char *out) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = REAL(readlink)(link, out, PATH_MAX - 1);
    out[n < 0 ? 0 : n] = 0;
}

static void of_path(int dir, const char *path, char *out) {
    if (path[0] == '/') {
        snprintf(out, PATH_MAX, "%s", path);
        return;
    }
    char base[PATH_MAX];
    if (dir == AT_FDCWD) { if (!getcwd(base, sizeof base)) base[0] = 0; }
    else of_fd(dir, base);
    snprintf(out, PATH_MAX, "%.2000s/%.2000s", base, path);
}

static int may_fail(int kind) {
    switch (error) {
    case ENOSPC: case EDQUOT: return kind & (CREATES | WRITES | SYNCS);
    case EROFS: return kind & (CREATES | REMOVES | WRITES);
    case EACCES: return kind & (READS | CREATES | REMOVES | LOOKS);
    default: return kind;
    }
}

/* Before a call: 1 when it is to fail (errno is set). *after: the process is to be killed when the call is done; SHORT: it reads less. */
static int strikes(const char *name, int kind, const char *path, int *after) {
    *after = 0;
    if (!below(path) || !(kind & counted)) return 0;
    long number = atomic_fetch_add(&calls, 1) + 1;
    if (record >= 0) dprintf(record, "%ld %s %s\n", number, name, path);
    if (!at || number < at || (number > at && !lasting)) return 0;
    if (error == KILL_BEFORE) kill(getpid(), SIGKILL);
    if (error == KILL_AFTER || error == SHORT) { *after = error; return 0; }
    if (!may_fail(kind)) return 0;
    errno = error;
    return 1;
}

static int writing(int flags) { return flags & (O_CREAT | O_TRUNC) || (flags & O_ACCMODE) != O_RDONLY ? CREATES : READS; }

#define AROUND(type, name, kind, call) \
    int after; \
    if (strikes(name, kind, path, &after)) return (type)-1; \
    type result = call; \
    if (after == KILL_AFTER) kill(getpid(), SIGKILL); \
    return result;
/* Of n bytes that are asked for. */
#define LESS(n) (after == SHORT && (n) > 1 ? (n) / 2 : (n))
#define PATH_OF(dir, given) char path[PATH_MAX]; of_path(dir, given, path)
#define PATH_OF_FD(fd) char path[PATH_MAX]; of_fd(fd, path)
#define MODE mode_t mode = 0; if (flags & (O_CREAT | O_TMPFILE)) { va_list list; va_start(list, flags); mode = va_arg(list, mode_t); va_end(list); }

int open(const char *given, int flags, ...) { MODE PATH_OF(AT_FDCWD, given); AROUND(int, "open", writing(flags), REAL(open)(given, flags, mode)) }
int open64(const char *given, int flags, ...) { MODE PATH_OF(AT_FDCWD, given); AROUND(int, "open", writing(flags), REAL(open64)(given, flags, mode)) }
int openat(int dir, const char *given, int flags, ...) { MODE PATH_OF(dir, given); AROUND(int, "open", writing(flags), REAL(openat)(dir, given, flags, mode)) }
int openat64(int dir, const char *given, int flags, ...) { MODE PATH_OF(dir, given); AROUND(int, "open", writing(flags), REAL(openat64)(dir, given, flags, mode)) }

static FILE *opened(const char *given, const char *how, FILE *(*real)(const char *, const char *)) {
    PATH_OF(AT_FDCWD, given);
    int after;
    if (strikes("fopen", strpbrk(how, "wa+") ? CREATES : READS, path, &after)) return NULL;
    FILE *file = real(given, how);
    if (after == KILL_AFTER) kill(getpid(), SIGKILL);
    return file;
}
FILE *fopen(const char *given, const char *how) { return opened(given, how, REAL(fopen)); }
FILE *fopen64(const char *given, const char *how) { return opened(given, how, REAL(fopen64)); }

ssize_t read(int fd, void *data, size_t n) { PATH_OF_FD(fd); AROUND(ssize_t, "read", READS, REAL(read)(fd, data, LESS(n))) }
ssize_t pread(int fd, void *data, size_t n, off_t o) { PATH_OF_FD(fd); AROUND(ssize_t, "read", READS, REAL(pread)(fd, data, LESS(n), o)) }
ssize_t pread64(int fd, void *data, size_t n, off_t o) { PATH_OF_FD(fd); AROUND(ssize_t, "read", READS, REAL(pread64)(fd, data, LESS(n), o)) }
void *mmap(void *at_, size_t n, int may, int flags, int fd, off_t o) {
    if (fd < 0) return REAL(mmap)(at_, n, may, flags, fd, o);
    PATH_OF_FD(fd); AROUND(void *, "mmap", READS, REAL(mmap)(at_, n, may, flags, fd, o))
}
void *mmap64(void *at_, size_t n, int may, int flags, int fd, off_t o) {
    if (fd < 0) return REAL(mmap64)(at_, n, may, flags, fd, o);
    PATH_OF_FD(fd); AROUND(void *, "mmap", READS, REAL(mmap64)(at_, n, may, flags, fd, o))
}
ssize_t write(int fd, const void *data, size_t n) { PATH_OF_FD(fd); AROUND(ssize_t, "write", WRITES, REAL(write)(fd, data, n)) }
ssize_t pwrite(int fd, const void *data, size_t n, off_t o) { PATH_OF_FD(fd); AROUND(ssize_t, "write", WRITES, REAL(pwrite)(fd, data, n, o)) }
ssize_t pwrite64(int fd, const void *data, size_t n, off_t o) { PATH_OF_FD(fd); AROUND(ssize_t, "write", WRITES, REAL(pwrite64)(fd, data, n, o)) }
ssize_t writev(int fd, const struct iovec *v, int n) { PATH_OF_FD(fd); AROUND(ssize_t, "write", WRITES, REAL(writev)(fd, v, n)) }
ssize_t sendfile(int fd, int in, off_t *o, size_t n) { PATH_OF_FD(fd); AROUND(ssize_t, "write", WRITES, REAL(sendfile)(fd, in, o, n)) }
ssize_t sendfile64(int fd, int in, off_t *o, size_t n) { PATH_OF_FD(fd); AROUND(ssize_t, "write", WRITES, REAL(sendfile64)(fd, in, o, n)) }
ssize_t copy_file_range(int in, off_t *a, int fd, off_t *b, size_t n, unsigned f) { PATH_OF_FD(fd); AROUND(ssize_t, "write", WRITES, REAL(copy_file_range)(in, a, fd, b, n, f)) }
int ftruncate(int fd, off_t n) { PATH_OF_FD(fd); AROUND(int, "truncate", WRITES, REAL(ftruncate)(fd, n)) }
int ftruncate64(int fd, off_t n) { PATH_OF_FD(fd); AROUND(int, "truncate", WRITES, REAL(ftruncate64)(fd, n)) }
int fsync(int fd) { PATH_OF_FD(fd); AROUND(int, "fsync", SYNCS, REAL(fsync)(fd)) }
int fdatasync(int fd) { PATH_OF_FD(fd); AROUND(int, "fsync", SYNCS, REAL(fdatasync)(fd)) }
int rename(const char *from, const char *to) { PATH_OF(AT_FDCWD, to); AROUND(int, "rename", CREATES, REAL(rename)(from, to)) }
int renameat(int a, const char *from, int b, const char *to) { PATH_OF(b, to); AROUND(int, "rename", CREATES, REAL(renameat)(a, from, b, to)) }
int renameat2(int a, const char *from, int b, const char *to, unsigned f) { PATH_OF(b, to); AROUND(int, "rename", CREATES, REAL(renameat2)(a, from, b, to, f)) }
int link(const char *from, const char *to) { PATH_OF(AT_FDCWD, to); AROUND(int, "link", CREATES, REAL(link)(from, to)) }
int linkat(int a, const char *from, int b, const char *to, int f) { PATH_OF(b, to); AROUND(int, "link", CREATES, REAL(linkat)(a, from, b, to, f)) }
int symlink(const char *from, const char *to) { PATH_OF(AT_FDCWD, to); AROUND(int, "link", CREATES, REAL(symlink)(from, to)) }
int mkdir(const char *given, mode_t m) { PATH_OF(AT_FDCWD, given); AROUND(int, "mkdir", CREATES, REAL(mkdir)(given, m)) }
int mkdirat(int dir, const char *given, mode_t m) { PATH_OF(dir, given); AROUND(int, "mkdir", CREATES, REAL(mkdirat)(dir, given, m)) }
int unlink(const char *given) { PATH_OF(AT_FDCWD, given); AROUND(int, "unlink", REMOVES, REAL(unlink)(given)) }
int unlinkat(int dir, const char *given, int f) { PATH_OF(dir, given); AROUND(int, "unlink", REMOVES, REAL(unlinkat)(dir, given, f)) }
int rmdir(const char *given) { PATH_OF(AT_FDCWD, given); AROUND(int, "unlink", REMOVES, REAL(rmdir)(given)) }
int chmod(const char *given, mode_t m) { PATH_OF(AT_FDCWD, given); AROUND(int, "chmod", REMOVES, REAL(chmod)(given, m)) }
int fchmod(int fd, mode_t m) { PATH_OF_FD(fd); AROUND(int, "chmod", REMOVES, REAL(fchmod)(fd, m)) }

/* Looking at names: what a path is, and what lies in a folder. A folder's names come in one piece, so that opening it stands for reading it. */
#define LIST(call) \
    int after; \
    if (strikes("list", LOOKS, path, &after)) return NULL; \
    return call;
DIR *opendir(const char *given) { PATH_OF(AT_FDCWD, given); LIST(REAL(opendir)(given)) }
DIR *fdopendir(int fd) { PATH_OF_FD(fd); LIST(REAL(fdopendir)(fd)) }
int stat(const char *given, struct stat *s) { PATH_OF(AT_FDCWD, given); AROUND(int, "stat", LOOKS, REAL(stat)(given, s)) }
int stat64(const char *given, struct stat64 *s) { PATH_OF(AT_FDCWD, given); AROUND(int, "stat", LOOKS, REAL(stat64)(given, s)) }
int lstat(const char *given, struct stat *s) { PATH_OF(AT_FDCWD, given); AROUND(int, "stat", LOOKS, REAL(lstat)(given, s)) }
int lstat64(const char *given, struct stat64 *s) { PATH_OF(AT_FDCWD, given); AROUND(int, "stat", LOOKS, REAL(lstat64)(given, s)) }
int fstatat(int dir, const char *given, struct stat *s, int f) { PATH_OF(dir, given); AROUND(int, "stat", LOOKS, REAL(fstatat)(dir, given, s, f)) }
int fstatat64(int dir, const char *given, struct stat64 *s, int f) { PATH_OF(dir, given); AROUND(int, "stat", LOOKS, REAL(fstatat64)(dir, given, s, f)) }
int statx(int dir, const char *given, int f, unsigned m, struct statx *s) { PATH_OF(dir, given); AROUND(int, "stat", LOOKS, REAL(statx)(dir, given, f, m, s)) }
int access(const char *given, int how) { PATH_OF(AT_FDCWD, given); AROUND(int, "stat", LOOKS, REAL(access)(given, how)) }
int faccessat(int dir, const char *given, int how, int f) { PATH_OF(dir, given); AROUND(int, "stat", LOOKS, REAL(faccessat)(dir, given, how, f)) }
