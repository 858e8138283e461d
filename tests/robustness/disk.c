/* A disk that fails: preloaded before the C library, it makes calls on files below one directory fail, tears writes,
 * shifts the clock, and records every change and every sync, so that what a power cut could leave can be built.
 * Nothing happens until the functions at the end are called. Linux, glibc. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

enum { WRITE = 1, SYNC = 2, TRUNCATE = 4, OPEN = 8, NAMES = 16, READ = 32 };
enum { HOW_FAIL = 0, HOW_TEAR = 1, HOW_DIE = 2 };

static char below[PATH_MAX];
static int kinds, nth, error_number, sticky, how, recorder = -1;
static long met, struck;
static long shift;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

#define REAL(name) static __typeof__(name) *real; if (!real) real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

static int is_ours(const char *path) {
    size_t size = strlen(below);
    return size && strncmp(path, below, size) == 0 && (path[size] == '/' || path[size] == 0);
}

static int path_of(int fd, char *path) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t size = readlink(link, path, PATH_MAX - 1);
    if (size < 0) return 0;
    path[size] = 0;
    return is_ours(path);
}

static int full_path(int dir, const char *name, char *path) {
    if (name[0] == '/') { snprintf(path, PATH_MAX, "%s", name); return is_ours(path); }
    char base[PATH_MAX];
    if (dir == AT_FDCWD) { if (!getcwd(base, sizeof base)) return 0; }
    else {
        char link[64];
        snprintf(link, sizeof link, "/proc/self/fd/%d", dir);
        ssize_t size = readlink(link, base, sizeof base - 1);
        if (size < 0) return 0;
        base[size] = 0;
    }
    if (snprintf(path, PATH_MAX, "%s/%s", base, name) >= PATH_MAX) return 0;
    return is_ours(path);
}

/* Returns 0 to go on, 1 to fail (errno is set), 2 to tear. */
static int strikes(int kind) {
    int result = 0;
    if (!(kinds & kind)) return 0;
    pthread_mutex_lock(&lock);
    met++;
    if (nth && (met == nth || (sticky && met > nth))) {
        errno = error_number;
        result = how == HOW_FAIL ? 1 : 2;
        struck++;
    }
    pthread_mutex_unlock(&lock);
    return result;
}

static void put(const void *data, size_t size) {
    static ssize_t (*real_write)(int, const void *, size_t);
    if (!real_write) real_write = dlsym(RTLD_NEXT, "write");
    const char *at = data;
    while (size) {
        ssize_t done = real_write(recorder, at, size);
        if (done <= 0) abort();
        at += done; size -= (size_t)done;
    }
}

static void record(char kind, const char *path, const char *other, int64_t offset, const void *data, int64_t size) {
    if (recorder < 0) return;
    int saved = errno;
    pthread_mutex_lock(&lock);
    int32_t lengths[2] = {(int32_t)strlen(path), other ? (int32_t)strlen(other) : 0};
    put(&kind, 1); put(lengths, sizeof lengths); put(&offset, 8); put(&size, 8);
    put(path, (size_t)lengths[0]);
    if (other) put(other, (size_t)lengths[1]);
    if (data) put(data, (size_t)size);
    pthread_mutex_unlock(&lock);
    errno = saved;
}

static void die(void) { kill(getpid(), SIGKILL); pause(); }

ssize_t pwrite64(int fd, const void *data, size_t size, off64_t offset) {
    REAL(pwrite64);
    char path[PATH_MAX];
    if (!path_of(fd, path)) return real(fd, data, size, offset);
    int strike = strikes(WRITE);
    if (strike == 1) return -1;
    if (strike == 2) {
        int code = errno;
        real(fd, data, size / 2, offset);
        record('w', path, NULL, offset, data, (int64_t)(size / 2));
        if (how == HOW_DIE) die();
        errno = code;
        return -1;
    }
    ssize_t done = real(fd, data, size, offset);
    if (done > 0) record('w', path, NULL, offset, data, done);
    return done;
}
ssize_t pwrite(int fd, const void *data, size_t size, off_t offset) { return pwrite64(fd, data, size, offset); }

ssize_t write(int fd, const void *data, size_t size) {
    REAL(write);
    char path[PATH_MAX];
    if (fd == recorder || !path_of(fd, path)) return real(fd, data, size);
    int strike = strikes(WRITE);
    if (strike == 1) return -1;
    off64_t offset = lseek64(fd, 0, SEEK_CUR);
    if (strike == 2) {
        int code = errno;
        if (real(fd, data, size / 2) < 0) {}
        if (how == HOW_DIE) die();
        errno = code;
        return -1;
    }
    ssize_t done = real(fd, data, size);
    if (done > 0) record('w', path, NULL, offset, data, done);
    return done;
}

size_t fwrite(const void *data, size_t size, size_t count, FILE *file) {
    REAL(fwrite);
    char path[PATH_MAX];
    int fd = below[0] ? fileno(file) : -1;
    if (fd < 0 || !path_of(fd, path)) return real(data, size, count, file);
    int strike = strikes(WRITE);
    if (strike) {
        int code = errno;
        if (strike == 2) real(data, size, count / 2, file);
        if (how == HOW_DIE) die();
        errno = code;
        return strike == 2 ? count / 2 : 0;
    }
    off64_t offset = ftello64(file);
    size_t done = real(data, size, count, file);
    if (done) record('w', path, NULL, offset, data, (int64_t)(done * size));
    return done;
}

/* What was written through a mapping, or copied by the kernel, is known when it is synced. SQLite writes by call. */
static void record_content(int fd, const char *path) {
    struct stat now;
    if (recorder < 0 || strstr(path, ".sqlite") || fstat(fd, &now) || !S_ISREG(now.st_mode)) return;
    char *data = malloc((size_t)now.st_size + 1);
    ssize_t size = data ? pread(fd, data, (size_t)now.st_size, 0) : -1;
    if (size >= 0) {
        record('w', path, NULL, 0, data, size);
        record('t', path, NULL, size, NULL, 0);
    }
    free(data);
}

#define SYNCS(name)                                              \
    int name(int fd) {                                           \
        REAL(name);                                              \
        char path[PATH_MAX];                                     \
        if (!path_of(fd, path)) return real(fd);                 \
        int strike = strikes(SYNC);                              \
        if (strike && how == HOW_DIE) die();                     \
        if (strike) return -1;                                   \
        int done = real(fd);                                     \
        if (!done) record_content(fd, path);                     \
        if (!done) record('s', path, NULL, 0, NULL, 0);          \
        return done;                                             \
    }
SYNCS(fsync)
SYNCS(fdatasync)

int ftruncate64(int fd, off64_t size) {
    REAL(ftruncate64);
    char path[PATH_MAX];
    if (!path_of(fd, path)) return real(fd, size);
    int strike = strikes(TRUNCATE);
    if (strike && how == HOW_DIE) die();
    if (strike) return -1;
    int done = real(fd, size);
    if (!done) record('t', path, NULL, size, NULL, 0);
    return done;
}
int ftruncate(int fd, off_t size) { return ftruncate64(fd, size); }

static int opened(int dir, const char *name, int flags, mode_t mode) {
    static int (*real)(int, const char *, int, ...);
    if (!real) real = (int (*)(int, const char *, int, ...))dlsym(RTLD_NEXT, "openat64");
    char path[PATH_MAX];
    if (!below[0] || !(flags & (O_WRONLY | O_RDWR | O_CREAT | O_TRUNC)) || !full_path(dir, name, path))
        return real(dir, name, flags, mode);
    int strike = strikes(OPEN);
    if (strike && how == HOW_DIE) die();
    if (strike) return -1;
    struct stat before;
    int was_there = !stat(path, &before);
    int fd = real(dir, name, flags, mode);
    if (fd >= 0 && !was_there) record('c', path, NULL, 0, NULL, 0);
    else if (fd >= 0 && (flags & O_TRUNC)) record('t', path, NULL, 0, NULL, 0);
    return fd;
}
#define MODE mode_t mode = 0; if (flags & (O_CREAT | O_TMPFILE)) { va_list a; va_start(a, flags); mode = va_arg(a, mode_t); va_end(a); }
int open(const char *name, int flags, ...) { MODE return opened(AT_FDCWD, name, flags, mode); }
int open64(const char *name, int flags, ...) { MODE return opened(AT_FDCWD, name, flags, mode); }
int openat(int dir, const char *name, int flags, ...) { MODE return opened(dir, name, flags, mode); }
int openat64(int dir, const char *name, int flags, ...) { MODE return opened(dir, name, flags, mode); }

FILE *fopen64(const char *name, const char *mode) {
    REAL(fopen64);
    char path[PATH_MAX];
    if (!below[0] || mode[0] == 'r' || !full_path(AT_FDCWD, name, path)) return real(name, mode);
    int strike = strikes(OPEN);
    if (strike && how == HOW_DIE) die();
    if (strike) return NULL;
    FILE *file = real(name, mode);
    if (file) record('c', path, NULL, 0, NULL, 0);
    return file;
}
FILE *fopen(const char *name, const char *mode) { return fopen64(name, mode); }

/* Names: 'm'ake directory, 'r'ename, 'u'nlink, 'd' remove directory, 'l'ink. */
#define NAMED(kind, dir, name, other, call)                                          \
    char path[PATH_MAX];                                                             \
    if (!below[0] || !full_path(dir, name, path)) return call;                       \
    int strike = strikes(NAMES);                                                     \
    if (strike && how == HOW_DIE) die();                                             \
    if (strike) return -1;                                                           \
    int done = call;                                                                 \
    if (!done) record(kind, path, other, 0, NULL, 0);                                \
    return done;
int mkdir(const char *name, mode_t mode) { REAL(mkdir); NAMED('m', AT_FDCWD, name, NULL, real(name, mode)) }
int unlink(const char *name) { REAL(unlink); NAMED('u', AT_FDCWD, name, NULL, real(name)) }
int rmdir(const char *name) { REAL(rmdir); NAMED('d', AT_FDCWD, name, NULL, real(name)) }
int unlinkat(int dir, const char *name, int flags) {
    REAL(unlinkat);
    NAMED((flags & AT_REMOVEDIR) ? 'd' : 'u', dir, name, NULL, real(dir, name, flags))
}
int rename(const char *from, const char *to) {
    REAL(rename);
    char target[PATH_MAX];
    if (!full_path(AT_FDCWD, to, target)) return real(from, to);
    NAMED('r', AT_FDCWD, from, target, real(from, to))
}
int link(const char *from, const char *to) {
    REAL(link);
    char target[PATH_MAX];
    if (!full_path(AT_FDCWD, to, target)) return real(from, to);
    NAMED('l', AT_FDCWD, from, target, real(from, to))
}
int linkat(int from_dir, const char *from, int to_dir, const char *to, int flags) {
    REAL(linkat);
    char target[PATH_MAX];
    if (!full_path(to_dir, to, target)) return real(from_dir, from, to_dir, to, flags);
    NAMED('l', from_dir, from, target, real(from_dir, from, to_dir, to, flags))
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    REAL(clock_gettime);
    int done = real(clock, now);
    if (!done && clock == CLOCK_REALTIME && shift) {
        now->tv_sec += shift;
        pthread_mutex_lock(&lock);
        struck++;
        pthread_mutex_unlock(&lock);
    }
    return done;
}

/* What a test calls. */
void disk_watch(const char *directory) { snprintf(below, sizeof below, "%s", directory); }
void disk_fail(int which, int at, int code, int stays, int way) {
    pthread_mutex_lock(&lock);
    kinds = which; nth = at; error_number = code; sticky = stays; how = way; met = 0; if (which) struck = 0;
    pthread_mutex_unlock(&lock);
}
long disk_struck(void) { return struck; }
void disk_record(int fd) { recorder = fd; }
void disk_mark(int64_t number) { record('k', "", NULL, number, NULL, 0); }
void disk_shift_clock(long seconds) { shift = seconds; }
