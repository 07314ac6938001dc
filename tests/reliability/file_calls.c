/* An LD_PRELOAD library that counts the write-side system calls on paths below a folder. It can record them with their
 * data, make one of them fail, or send the process a signal at one of them.
 *
 *     CALLS_BELOW    the folder; without it, nothing is counted
 *     CALLS_LOG      a file to which every call that succeeds is appended, see `struct record`
 *     CALLS_NUMBER   the call at which something happens, from 1
 *     CALLS_ERRNO    that call fails with this error number; 0: it writes only half of its bytes, if it is a write
 *     CALLS_FROM     if set, all later calls fail too
 *     CALLS_SIGNAL   instead, the process gets this signal just before the call
 *
 * Calls of several threads are made one at a time, so that the log has their order.
 */

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
#include <sys/uio.h>
#include <unistd.h>

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

/* A call in the log: this header, the path, the second path of a rename or link, and the bytes of a write. */
struct record {
    char call; /* a key of NAMES in call_log.py */
    uint32_t path_length, to_length;
    uint64_t offset, data_length; /* for a truncation, `offset` is the new length */
} __attribute__((packed));

enum fate { SUCCEED, FAIL, HALF };

static int calls;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;

static int is_below(const char *path) {
    const char *below = getenv("CALLS_BELOW");
    return below && strncmp(path, below, strlen(below)) == 0;
}

/* The absolute path of `path`, which is relative to a folder's descriptor, or to the working directory. */
static int locate(int folder, const char *path, char *absolute) {
    char link[64], parent[PATH_MAX];
    if (!getenv("CALLS_BELOW")) return 0;
    if (path[0] == '/') {
        snprintf(absolute, PATH_MAX, "%s", path);
    } else {
        if (folder == AT_FDCWD) snprintf(link, sizeof link, "/proc/self/cwd");
        else snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
        ssize_t length = readlink(link, parent, sizeof parent - 1);
        if (length < 0) return 0;
        parent[length] = 0;
        if (snprintf(absolute, PATH_MAX, "%s/%s", parent, path) >= PATH_MAX) return 0;
    }
    return is_below(absolute);
}

static int locate_descriptor(int descriptor, char *absolute) {
    char link[64];
    if (!getenv("CALLS_BELOW")) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, absolute, PATH_MAX - 1);
    if (length < 0) return 0;
    absolute[length] = 0;
    return is_below(absolute);
}

static enum fate begin(void) {
    const char *number = getenv("CALLS_NUMBER"), *signal_number = getenv("CALLS_SIGNAL");
    pthread_mutex_lock(&mutex);
    calls++;
    if (!number) return SUCCEED;
    int is_chosen = calls == atoi(number) || (getenv("CALLS_FROM") && calls > atoi(number));
    if (!is_chosen) return SUCCEED;
    if (signal_number) {
        kill(getpid(), atoi(signal_number));
        return SUCCEED;
    }
    errno = getenv("CALLS_ERRNO") ? atoi(getenv("CALLS_ERRNO")) : EIO;
    return errno ? FAIL : HALF;
}

static void end(char call, const char *path, const char *to, uint64_t offset, const void *data, uint64_t length) {
    const char *log = getenv("CALLS_LOG");
    int saved_errno = errno;
    if (log) {
        struct record record = {call, strlen(path), strlen(to), offset, length};
        struct iovec parts[] = {{&record, sizeof record}, {(void *)path, record.path_length},
                                {(void *)to, record.to_length}, {(void *)data, length}};
        int descriptor = REAL(open)(log, O_WRONLY | O_APPEND | O_CREAT, 0644);
        if (descriptor < 0 || REAL(writev)(descriptor, parts, 4) < 0) abort(); /* the log would have a gap */
        close(descriptor);
    }
    pthread_mutex_unlock(&mutex);
    errno = saved_errno;
}

static int fail(void) {
    int saved_errno = errno;
    pthread_mutex_unlock(&mutex);
    errno = saved_errno;
    return -1;
}

/* Count a call that returns 0 or -1, make it unless it must fail, and record it if it succeeds. */
#define CALL(located, real, call, path, to, offset)       \
    do {                                                  \
        if (!(located)) return real;                      \
        if (begin() == FAIL) return fail();               \
        int result = real;                                \
        if (result < 0) return fail();                    \
        end(call, path, to, offset, "", 0);               \
        return result;                                    \
    } while (0)

/* The same for a call that writes `count` bytes. `real` makes it with a count that may be the half. */
#define WRITE(real, bytes, offset)                                              \
    do {                                                                        \
        char path[PATH_MAX];                                                    \
        if (!locate_descriptor(descriptor, path)) return real;                  \
        enum fate fate = begin();                                               \
        if (fate == FAIL) return fail();                                        \
        if (fate == HALF && count > 1) count /= 2;                              \
        ssize_t written = real;                                                 \
        if (written < 0) return fail();                                         \
        end('w', path, "", offset, bytes, written);                             \
        return written;                                                         \
    } while (0)

ssize_t write(int descriptor, const void *bytes, size_t count) {
    WRITE(REAL(write)(descriptor, bytes, count), bytes, lseek(descriptor, 0, SEEK_CUR) - written);
}
ssize_t pwrite(int descriptor, const void *bytes, size_t count, off_t offset) {
    WRITE(REAL(pwrite)(descriptor, bytes, count, offset), bytes, offset);
}
ssize_t pwrite64(int descriptor, const void *bytes, size_t count, off64_t offset) {
    WRITE(REAL(pwrite64)(descriptor, bytes, count, offset), bytes, offset);
}
/* Only the first part is written; callers continue after a short write. */
ssize_t writev(int descriptor, const struct iovec *parts, int part_count) {
    char path[PATH_MAX];
    if (part_count < 1 || !locate_descriptor(descriptor, path)) return REAL(writev)(descriptor, parts, part_count);
    return write(descriptor, parts[0].iov_base, parts[0].iov_len);
}

#define ON_DESCRIPTOR(name, parameters, arguments, call, offset)                                       \
    int name parameters {                                                                              \
        char path[PATH_MAX];                                                                           \
        CALL(locate_descriptor(descriptor, path), REAL(name) arguments, call, path, "", offset);       \
    }
ON_DESCRIPTOR(fsync, (int descriptor), (descriptor), 's', 0)
ON_DESCRIPTOR(fdatasync, (int descriptor), (descriptor), 's', 0)
ON_DESCRIPTOR(ftruncate, (int descriptor, off_t length), (descriptor, length), 't', length)
ON_DESCRIPTOR(ftruncate64, (int descriptor, off64_t length), (descriptor, length), 't', length)
ON_DESCRIPTOR(fchmod, (int descriptor, mode_t mode), (descriptor, mode), 'm', 0)

#define ON_PATH(name, parameters, arguments, folder, call, offset)                                     \
    int name parameters {                                                                              \
        char absolute[PATH_MAX];                                                                       \
        CALL(locate(folder, path, absolute), REAL(name) arguments, call, absolute, "", offset);        \
    }
ON_PATH(truncate, (const char *path, off_t length), (path, length), AT_FDCWD, 't', length)
ON_PATH(truncate64, (const char *path, off64_t length), (path, length), AT_FDCWD, 't', length)
ON_PATH(mkdir, (const char *path, mode_t mode), (path, mode), AT_FDCWD, 'd', 0)
ON_PATH(mkdirat, (int folder, const char *path, mode_t mode), (folder, path, mode), folder, 'd', 0)
ON_PATH(unlink, (const char *path), (path), AT_FDCWD, 'u', 0)
ON_PATH(rmdir, (const char *path), (path), AT_FDCWD, 'x', 0)
ON_PATH(unlinkat, (int folder, const char *path, int flags), (folder, path, flags), folder,
        flags & AT_REMOVEDIR ? 'x' : 'u', 0)
ON_PATH(chmod, (const char *path, mode_t mode), (path, mode), AT_FDCWD, 'm', 0)

#define ON_TWO_PATHS(name, parameters, arguments, from_folder, to_folder, call)                        \
    int name parameters {                                                                              \
        char absolute[PATH_MAX], absolute_to[PATH_MAX];                                                \
        int is_counted = locate(to_folder, to, absolute_to);                                           \
        is_counted = locate(from_folder, from, absolute) || is_counted;                                \
        CALL(is_counted, REAL(name) arguments, call, absolute, absolute_to, 0);                        \
    }
ON_TWO_PATHS(rename, (const char *from, const char *to), (from, to), AT_FDCWD, AT_FDCWD, 'r')
ON_TWO_PATHS(renameat, (int from_folder, const char *from, int to_folder, const char *to),
             (from_folder, from, to_folder, to), from_folder, to_folder, 'r')
ON_TWO_PATHS(renameat2, (int from_folder, const char *from, int to_folder, const char *to, unsigned flags),
             (from_folder, from, to_folder, to, flags), from_folder, to_folder, 'r')
ON_TWO_PATHS(link, (const char *from, const char *to), (from, to), AT_FDCWD, AT_FDCWD, 'l')
ON_TWO_PATHS(linkat, (int from_folder, const char *from, int to_folder, const char *to, int flags),
             (from_folder, from, to_folder, to, flags), from_folder, to_folder, 'l')

/* Opening a file for writing. */
#define OPEN(name, parameters, folder, ...)                                                            \
    int name parameters {                                                                              \
        va_list variable;                                                                              \
        va_start(variable, flags);                                                                     \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(variable, mode_t) : 0;                    \
        va_end(variable);                                                                              \
        char absolute[PATH_MAX];                                                                       \
        int writes = (flags & O_ACCMODE) != O_RDONLY || flags & (O_CREAT | O_TRUNC);                   \
        CALL(writes && locate(folder, path, absolute), REAL(name)(__VA_ARGS__, flags, mode),           \
             flags & O_TRUNC ? 'c' : flags & O_CREAT ? 'o' : 'p', absolute, "", 0);                    \
    }
OPEN(open, (const char *path, int flags, ...), AT_FDCWD, path)
OPEN(open64, (const char *path, int flags, ...), AT_FDCWD, path)
OPEN(openat, (int folder, const char *path, int flags, ...), folder, folder, path)
OPEN(openat64, (int folder, const char *path, int flags, ...), folder, folder, path)
