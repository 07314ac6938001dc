/* An LD_PRELOAD library that makes one write-side system call fail: the Nth call on a path below a folder.
 *
 *     FAIL_BELOW   the folder
 *     FAIL_CALL    which call fails, from 1; 0: none
 *     FAIL_ERRNO   its error number; 0: a short write, or nothing if the call is not a write
 *     FAIL_LOG     a file; every call that counts is appended to it, a line each
 */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static int calls;

/* Whether this call fails. `path` may be relative to the working directory. */
static int fails(const char *name, const char *path) {
    const char *below = getenv("FAIL_BELOW"), *number = getenv("FAIL_CALL"), *log = getenv("FAIL_LOG");
    char absolute[2 * PATH_MAX];
    if (!below || !number || !path) return 0;
    if (path[0] == '/') {
        snprintf(absolute, sizeof absolute, "%s", path);
    } else {
        char folder[PATH_MAX];
        if (!getcwd(folder, sizeof folder)) return 0;
        snprintf(absolute, sizeof absolute, "%s/%s", folder, path);
    }
    if (strncmp(absolute, below, strlen(below)) != 0) return 0;
    int call = __sync_add_and_fetch(&calls, 1);
    if (log) {
        char line[2 * PATH_MAX + 64];
        int length = snprintf(line, sizeof line, "%d %s %s\n", call, name, absolute);
        int descriptor = REAL(open)(log, O_WRONLY | O_APPEND | O_CREAT, 0644);
        if (descriptor >= 0) {
            if (REAL(write)(descriptor, line, length) < 0) {}
            close(descriptor);
        }
    }
    return call == atoi(number);
}

static int fails_on_descriptor(const char *name, int descriptor) {
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return fails(name, path);
}

static int error_number(void) {
    const char *number = getenv("FAIL_ERRNO");
    return number ? atoi(number) : EIO;
}

#define FAIL_IF(condition)                        \
    do {                                          \
        if ((condition) && error_number() != 0) { \
            errno = error_number();               \
            return -1;                            \
        }                                         \
    } while (0)

ssize_t write(int descriptor, const void *bytes, size_t count) {
    if (fails_on_descriptor("write", descriptor)) {
        if (error_number() == 0) return REAL(write)(descriptor, bytes, count > 1 ? count / 2 : count);
        errno = error_number();
        return -1;
    }
    return REAL(write)(descriptor, bytes, count);
}

int fsync(int descriptor) {
    FAIL_IF(fails_on_descriptor("fsync", descriptor));
    return REAL(fsync)(descriptor);
}

int ftruncate(int descriptor, off_t length) {
    FAIL_IF(fails_on_descriptor("ftruncate", descriptor));
    return REAL(ftruncate)(descriptor, length);
}

#define WRITES(flags) ((flags) & (O_CREAT | O_WRONLY | O_RDWR))

#define OPEN(name)                                          \
    int name(const char *path, int flags, ...) {            \
        va_list arguments;                                  \
        va_start(arguments, flags);                         \
        mode_t mode = va_arg(arguments, mode_t);            \
        va_end(arguments);                                  \
        if (WRITES(flags)) FAIL_IF(fails("open", path));    \
        return REAL(name)(path, flags, mode);               \
    }
OPEN(open)
OPEN(open64)

int mkdir(const char *path, mode_t mode) {
    FAIL_IF(fails("mkdir", path));
    return REAL(mkdir)(path, mode);
}

int rename(const char *from, const char *to) {
    FAIL_IF(fails("rename", to));
    return REAL(rename)(from, to);
}

int unlink(const char *path) {
    FAIL_IF(fails("unlink", path));
    return REAL(unlink)(path);
}

int rmdir(const char *path) {
    FAIL_IF(fails("rmdir", path));
    return REAL(rmdir)(path);
}

int chmod(const char *path, mode_t mode) {
    FAIL_IF(fails("chmod", path));
    return REAL(chmod)(path, mode);
}
