/*
 * Records what a program does to the files below one folder, in the order in which it happens.
 *
 * A library for LD_PRELOAD (Linux, glibc). It stands in front of every call that changes a file, a directory or what is
 * durable of them, makes the call itself, and writes down what was done. All threads and processes of a run share one
 * record, a mapped file. A robust mutex in it is held around the call and its entry, so that the order of entries is the
 * order of the calls. Only a sync is not held: its beginning and its end are entries of their own, since others write
 * meanwhile, and a sync speaks for nothing that was written after it began.
 *
 *   FASTLOG_RECORD         the file of the record; made by the one who starts the run, sparse, as large as it may become
 *   FASTLOG_RECORD_FOLDER  the folder, without symbolic links in its path
 *   FASTLOG_RECORD_LATENCY how many microseconds a sync takes at least: in memory it is over before anybody could write
 *
 * A program says what it was promised by fastlog_mark(text, size). Memory that is mapped for writing leaves an entry with
 * its content whenever it has changed at a mark or at the beginning of a sync.
 *
 * What cannot be replayed (a call that copies between files, a rename that exchanges) leaves an entry that says so.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

#ifndef RENAME_EXCHANGE
#define RENAME_EXCHANGE 2
#endif

enum kind {
    CREATE = 1, TRUNCATE, WRITE, RENAME, LINK, UNLINK, MKDIR, RMDIR, SYNC_BEGIN, SYNC_END, MARK, PAGE, UNSUPPORTED
};

/* The head of the record. */
struct record {
    uint64_t magic;
    uint64_t capacity;
    uint64_t tail;              /* where the next entry goes */
    uint64_t entries;
    pthread_mutex_t lock;
};

/* The head of an entry; two paths and the data follow. Entries are multiples of eight bytes. */
struct entry {
    uint32_t size;
    uint16_t kind;
    uint16_t is_directory;
    int32_t process;
    int32_t thread;
    uint64_t inode;
    int64_t position;           /* of a write; new size of a file; number of the entry that a sync began with */
    uint32_t path_size;
    uint32_t target_size;
    uint64_t data_size;
};

#define MAGIC 0x31646f6365526c66ull
#define FIRST 4096
#define MOST_MAPPINGS 512
#define MOST_MAPPED (1 << 20)

struct mapping {
    uint8_t *address;
    size_t size;
    uint64_t inode;
    uint8_t *seen;
    char path[PATH_MAX];
};

static struct record *record;
static char folder[PATH_MAX];
static size_t folder_size;
static useconds_t latency;
static struct mapping mappings[MOST_MAPPINGS];

/* --- the record ---------------------------------------------------------------------------------------------------- */

static void give_up(const char *why) {
    char text[256];
    int size = snprintf(text, sizeof text, "recorder: %s (errno %d)\n", why, errno);
    syscall(SYS_write, 2, text, size);
    abort();
}

/* At once where the environment says so; else a process may say it to itself later. */
__attribute__((constructor)) void fastlog_record(void) {
    const char *path = getenv("FASTLOG_RECORD"), *below = getenv("FASTLOG_RECORD_FOLDER");
    struct stat status;
    if (path == NULL || below == NULL || record != NULL)
        return;
    int fd = syscall(SYS_openat, AT_FDCWD, path, O_RDWR | O_CLOEXEC, 0);
    if (fd < 0 || fstat(fd, &status) != 0 || flock(fd, LOCK_EX) != 0)
        give_up("the record cannot be opened");
    void *address = (void *)syscall(SYS_mmap, NULL, status.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (address == MAP_FAILED)
        give_up("the record cannot be mapped");
    struct record *found = address;
    if (found->magic != MAGIC) {
        pthread_mutexattr_t attributes;
        pthread_mutexattr_init(&attributes);
        pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
        pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
        pthread_mutex_init(&found->lock, &attributes);
        found->capacity = status.st_size;
        found->tail = FIRST;
        found->magic = MAGIC;
    }
    syscall(SYS_close, fd);     /* lets go of the lock */
    folder_size = strlen(below);
    if (folder_size >= sizeof folder)
        give_up("the folder's path is too long");
    memcpy(folder, below, folder_size + 1);
    const char *microseconds = getenv("FASTLOG_RECORD_LATENCY");
    latency = microseconds ? atoi(microseconds) : 0;
    record = found;
}

static void lock(void) {
    int result = pthread_mutex_lock(&record->lock);
    if (result == EOWNERDEAD)
        pthread_mutex_consistent(&record->lock);
    else if (result != 0)
        give_up("the lock of the record cannot be taken");
}

static void unlock(void) {
    pthread_mutex_unlock(&record->lock);
}

/* Add an entry; the lock is held. Returns its number. */
static uint64_t note(
    enum kind kind, int is_directory, uint64_t inode, int64_t position, const char *path, const char *target,
    const struct iovec *vectors, int count, uint64_t data_size
) {
    uint64_t path_size = path ? strlen(path) : 0, target_size = target ? strlen(target) : 0;
    uint64_t size = (sizeof(struct entry) + path_size + target_size + data_size + 7) & ~7ull;
    if (record->tail + size > record->capacity)
        give_up("the record is full");
    uint8_t *at = (uint8_t *)record + record->tail;
    struct entry head = {
        (uint32_t)size, kind, is_directory, (int32_t)syscall(SYS_getpid), (int32_t)syscall(SYS_gettid), inode, position,
        (uint32_t)path_size, (uint32_t)target_size, data_size,
    };
    memcpy(at, &head, sizeof head);
    at += sizeof head;
    memcpy(at, path, path_size);
    at += path_size;
    memcpy(at, target, target_size);
    at += target_size;
    for (int i = 0; i < count && data_size > 0; i++) {
        uint64_t piece = vectors[i].iov_len < data_size ? vectors[i].iov_len : data_size;
        memcpy(at, vectors[i].iov_base, piece);
        at += piece;
        data_size -= piece;
    }
    record->tail += size;
    return record->entries++;
}

static void note_unsupported(const char *what, const char *path) {
    lock();
    note(UNSUPPORTED, 0, 0, 0, path, what, NULL, 0, 0);
    unlock();
}

/* --- which files --------------------------------------------------------------------------------------------------- */

static int is_below(const char *path) {
    return strncmp(path, folder, folder_size) == 0 && (path[folder_size] == '/' || path[folder_size] == 0);
}

/* Whether a descriptor's file lies in the folder; fills its path and status. */
static int is_ours(int fd, char *path, struct stat *status) {
    char link[64];
    if (record == NULL || fd < 0)
        return 0;
    int saved = errno;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t size = readlink(link, path, PATH_MAX - 1);
    errno = saved;
    if (size <= 0)
        return 0;
    path[size] = 0;
    if (!is_below(path) || fstat(fd, status) != 0)
        return 0;
    return S_ISREG(status->st_mode) || S_ISDIR(status->st_mode);
}

/* The same for a path that may not exist; the path is made absolute. */
static int is_ours_by_name(int directory, const char *name, char *path) {
    char link[64];
    if (record == NULL || name == NULL)
        return 0;
    size_t size = strlen(name);
    if (size >= PATH_MAX)
        return 0;
    if (name[0] == '/') {
        memcpy(path, name, size + 1);
        return is_below(path);
    }
    int saved = errno;
    if (directory == AT_FDCWD)
        snprintf(link, sizeof link, "/proc/self/cwd");
    else
        snprintf(link, sizeof link, "/proc/self/fd/%d", directory);
    ssize_t base = readlink(link, path, PATH_MAX - 1);
    errno = saved;
    if (base <= 0 || base + 1 + size >= PATH_MAX)
        return 0;
    path[base] = '/';
    memcpy(path + base + 1, name, size + 1);
    return is_below(path);
}

static uint64_t inode_of(const char *path) {
    struct stat status;
    int saved = errno;
    uint64_t inode = lstat(path, &status) == 0 ? status.st_ino : 0;
    errno = saved;
    return inode;
}

/* --- files ---------------------------------------------------------------------------------------------------------- */

static int record_open(int directory, const char *name, int flags, mode_t mode) {
    char path[PATH_MAX];
    struct stat status;
    if ((flags & O_TMPFILE) == O_TMPFILE && is_ours_by_name(directory, name, path))
        note_unsupported("O_TMPFILE", path);
    if (!(flags & (O_CREAT | O_TRUNC)) || !is_ours_by_name(directory, name, path))
        return syscall(SYS_openat, directory, name, flags, mode);
    lock();
    int saved = errno;
    int existed = syscall(SYS_faccessat, directory, name, F_OK) == 0;
    errno = saved;
    int fd = syscall(SYS_openat, directory, name, flags, mode);
    if (fd >= 0 && is_ours(fd, path, &status)) {
        if (!existed)
            note(CREATE, 0, status.st_ino, 0, path, NULL, NULL, 0, 0);
        else if (flags & O_TRUNC)
            note(TRUNCATE, 0, status.st_ino, 0, path, NULL, NULL, 0, 0);
    }
    unlock();
    return fd;
}

#define OPENING(name, before, directory, ...)                                                                                 \
    int name(before const char *path, int flags, ...) {                                                                       \
        mode_t mode = 0;                                                                                                      \
        if ((flags & O_CREAT) || (flags & O_TMPFILE) == O_TMPFILE) {                                                          \
            va_list rest;                                                                                                     \
            va_start(rest, flags);                                                                                            \
            mode = va_arg(rest, mode_t);                                                                                      \
            va_end(rest);                                                                                                     \
        }                                                                                                                     \
        return record_open(directory, path, flags, mode);                                                                     \
    }
#define IN_DIRECTORY int directory,
OPENING(open, , AT_FDCWD)
OPENING(open64, , AT_FDCWD)
OPENING(openat, IN_DIRECTORY, directory)
OPENING(openat64, IN_DIRECTORY, directory)
int __open_2(const char *path, int flags) { return record_open(AT_FDCWD, path, flags, 0); }
int __open64_2(const char *path, int flags) { return record_open(AT_FDCWD, path, flags, 0); }
int __openat_2(int directory, const char *path, int flags) { return record_open(directory, path, flags, 0); }
int __openat64_2(int directory, const char *path, int flags) { return record_open(directory, path, flags, 0); }
int creat(const char *path, mode_t mode) { return record_open(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode); }
int creat64(const char *path, mode_t mode) { return record_open(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode); }

enum { AT_CURSOR = -1 };

static ssize_t write_plainly(int fd, const struct iovec *vectors, int count, int64_t position, int flags) {
    if (position != AT_CURSOR || flags)
        return syscall(SYS_pwritev2, fd, vectors, (long)count, (long)position, 0L, flags);
    return syscall(SYS_writev, fd, vectors, count);
}

static ssize_t record_write(int fd, const struct iovec *vectors, int count, int64_t position, int flags) {
    char path[PATH_MAX];
    struct stat status;
    if (!is_ours(fd, path, &status))
        return write_plainly(fd, vectors, count, position, flags);
    lock();
    ssize_t done = write_plainly(fd, vectors, count, position, flags);
    if (done > 0) {
        int saved = errno;
        int64_t begin = position != AT_CURSOR ? position : lseek(fd, 0, SEEK_CUR) - done;
        note(WRITE, 0, status.st_ino, begin, path, NULL, vectors, count, done);
        errno = saved;
    }
    unlock();
    return done;
}

#define WRITING(name, offset_type)                                                                                            \
    ssize_t name(int fd, const void *data, size_t size, offset_type position) {                                               \
        struct iovec vector = {(void *)data, size};                                                                           \
        return record_write(fd, &vector, 1, position, 0);                                                                     \
    }
WRITING(pwrite, off_t)
WRITING(pwrite64, off64_t)
ssize_t pwritev(int fd, const struct iovec *vectors, int count, off_t position) {
    return record_write(fd, vectors, count, position, 0);
}
ssize_t pwritev64(int fd, const struct iovec *vectors, int count, off64_t position) {
    return record_write(fd, vectors, count, position, 0);
}
ssize_t pwritev2(int fd, const struct iovec *vectors, int count, off_t position, int flags) {
    return record_write(fd, vectors, count, position, flags);
}
ssize_t pwritev64v2(int fd, const struct iovec *vectors, int count, off64_t position, int flags) {
    return record_write(fd, vectors, count, position, flags);
}
ssize_t writev(int fd, const struct iovec *vectors, int count) {
    return record_write(fd, vectors, count, AT_CURSOR, 0);
}
ssize_t write(int fd, const void *data, size_t size) {
    struct iovec vector = {(void *)data, size};
    return record_write(fd, &vector, 1, AT_CURSOR, 0);
}

static int record_truncate(int fd, int64_t size) {
    char path[PATH_MAX];
    struct stat status;
    if (!is_ours(fd, path, &status))
        return syscall(SYS_ftruncate, fd, size);
    lock();
    int result = syscall(SYS_ftruncate, fd, size);
    if (result == 0)
        note(TRUNCATE, 0, status.st_ino, size, path, NULL, NULL, 0, 0);
    unlock();
    return result;
}

int ftruncate(int fd, off_t size) { return record_truncate(fd, size); }
int ftruncate64(int fd, off64_t size) { return record_truncate(fd, size); }

static int record_truncate_by_name(const char *name, int64_t size) {
    char path[PATH_MAX];
    if (is_ours_by_name(AT_FDCWD, name, path))
        note_unsupported("truncate", path);
    return syscall(SYS_truncate, name, size);
}

int truncate(const char *name, off_t size) { return record_truncate_by_name(name, size); }
int truncate64(const char *name, off64_t size) { return record_truncate_by_name(name, size); }

/* Blocks ahead of the end change nothing that can be read; a longer file, or a hole, would. */
static int record_allocate(int fd, int mode, int64_t position, int64_t size) {
    char path[PATH_MAX];
    struct stat status;
    if (mode != FALLOC_FL_KEEP_SIZE && is_ours(fd, path, &status))
        note_unsupported("fallocate", path);
    return syscall(SYS_fallocate, fd, mode, position, size);
}

int fallocate(int fd, int mode, off_t position, off_t size) { return record_allocate(fd, mode, position, size); }
int fallocate64(int fd, int mode, off64_t position, off64_t size) { return record_allocate(fd, mode, position, size); }

static int record_posix_allocate(int fd, int64_t position, int64_t size) {
    int saved = errno;
    int result = record_allocate(fd, 0, position, size) == 0 ? 0 : errno;
    errno = saved;
    return result;
}

int posix_fallocate(int fd, off_t position, off_t size) { return record_posix_allocate(fd, position, size); }
int posix_fallocate64(int fd, off64_t position, off64_t size) { return record_posix_allocate(fd, position, size); }

static void refuse_target(int fd, const char *what) {
    char path[PATH_MAX];
    struct stat status;
    if (is_ours(fd, path, &status))
        note_unsupported(what, path);
}

ssize_t copy_file_range(int source, off64_t *from, int target, off64_t *to, size_t size, unsigned flags) {
    refuse_target(target, "copy_file_range");
    return syscall(SYS_copy_file_range, source, from, target, to, size, flags);
}
ssize_t sendfile(int target, int source, off_t *from, size_t size) {
    refuse_target(target, "sendfile");
    return syscall(SYS_sendfile, target, source, from, size);
}
ssize_t sendfile64(int target, int source, off64_t *from, size_t size) {
    refuse_target(target, "sendfile");
    return syscall(SYS_sendfile, target, source, from, size);
}
ssize_t splice(int source, off64_t *from, int target, off64_t *to, size_t size, unsigned flags) {
    refuse_target(target, "splice");
    return syscall(SYS_splice, source, from, target, to, size, flags);
}

/* --- names ---------------------------------------------------------------------------------------------------------- */

static int record_rename(int from_directory, const char *from, int to_directory, const char *to, unsigned flags) {
    char path[PATH_MAX], target[PATH_MAX];
    int leaves = is_ours_by_name(from_directory, from, path), arrives = is_ours_by_name(to_directory, to, target);
    if (leaves != arrives || ((leaves || arrives) && (flags & RENAME_EXCHANGE)))
        note_unsupported("rename", leaves ? path : target);
    if (!leaves || !arrives)
        return syscall(SYS_renameat2, from_directory, from, to_directory, to, flags);
    lock();
    int result = syscall(SYS_renameat2, from_directory, from, to_directory, to, flags);
    if (result == 0)
        note(RENAME, 0, inode_of(target), 0, path, target, NULL, 0, 0);
    unlock();
    return result;
}

int rename(const char *from, const char *to) { return record_rename(AT_FDCWD, from, AT_FDCWD, to, 0); }
int renameat(int a, const char *from, int b, const char *to) { return record_rename(a, from, b, to, 0); }
int renameat2(int a, const char *from, int b, const char *to, unsigned flags) { return record_rename(a, from, b, to, flags); }

static int record_link(int from_directory, const char *from, int to_directory, const char *to, int flags) {
    char path[PATH_MAX], target[PATH_MAX];
    int leaves = is_ours_by_name(from_directory, from, path), arrives = is_ours_by_name(to_directory, to, target);
    if (!leaves && arrives)
        note_unsupported("link", target);
    if (!leaves || !arrives)
        return syscall(SYS_linkat, from_directory, from, to_directory, to, flags);
    lock();
    int result = syscall(SYS_linkat, from_directory, from, to_directory, to, flags);
    if (result == 0)
        note(LINK, 0, inode_of(target), 0, path, target, NULL, 0, 0);
    unlock();
    return result;
}

int link(const char *from, const char *to) { return record_link(AT_FDCWD, from, AT_FDCWD, to, 0); }
int linkat(int a, const char *from, int b, const char *to, int flags) { return record_link(a, from, b, to, flags); }

static int record_unlink(int directory, const char *name, int flags) {
    char path[PATH_MAX];
    if (!is_ours_by_name(directory, name, path))
        return syscall(SYS_unlinkat, directory, name, flags);
    lock();
    uint64_t inode = inode_of(path);
    int result = syscall(SYS_unlinkat, directory, name, flags);
    if (result == 0)
        note(flags & AT_REMOVEDIR ? RMDIR : UNLINK, 0, inode, 0, path, NULL, NULL, 0, 0);
    unlock();
    return result;
}

int unlink(const char *name) { return record_unlink(AT_FDCWD, name, 0); }
int unlinkat(int directory, const char *name, int flags) { return record_unlink(directory, name, flags); }
int rmdir(const char *name) { return record_unlink(AT_FDCWD, name, AT_REMOVEDIR); }
int remove(const char *name) {
    int result = record_unlink(AT_FDCWD, name, 0);
    return result != 0 && errno == EISDIR ? record_unlink(AT_FDCWD, name, AT_REMOVEDIR) : result;
}

static int record_mkdir(int directory, const char *name, mode_t mode) {
    char path[PATH_MAX];
    if (!is_ours_by_name(directory, name, path))
        return syscall(SYS_mkdirat, directory, name, mode);
    lock();
    int result = syscall(SYS_mkdirat, directory, name, mode);
    if (result == 0)
        note(MKDIR, 1, inode_of(path), 0, path, NULL, NULL, 0, 0);
    unlock();
    return result;
}

int mkdir(const char *name, mode_t mode) { return record_mkdir(AT_FDCWD, name, mode); }
int mkdirat(int directory, const char *name, mode_t mode) { return record_mkdir(directory, name, mode); }

static int record_symlink(const char *target, int directory, const char *name) {
    char path[PATH_MAX];
    if (is_ours_by_name(directory, name, path))
        note_unsupported("symlink", path);
    return syscall(SYS_symlinkat, target, directory, name);
}

int symlink(const char *target, const char *name) { return record_symlink(target, AT_FDCWD, name); }
int symlinkat(const char *target, int directory, const char *name) { return record_symlink(target, directory, name); }

/* --- memory that is mapped for writing --------------------------------------------------------------------------------- */

/* Entries for mapped memory that has changed; the lock is held. */
static void note_mappings(void) {
    for (int i = 0; i < MOST_MAPPINGS; i++) {
        struct mapping *mapping = &mappings[i];
        if (mapping->address == NULL || memcmp(mapping->seen, mapping->address, mapping->size) == 0)
            continue;
        memcpy(mapping->seen, mapping->address, mapping->size);
        struct iovec vector = {mapping->seen, mapping->size};
        note(PAGE, 0, mapping->inode, 0, mapping->path, NULL, &vector, 1, mapping->size);
    }
}

static void *record_mmap(void *address, size_t size, int protection, int flags, int fd, int64_t position) {
    char path[PATH_MAX];
    struct stat status;
    void *result = (void *)syscall(SYS_mmap, address, size, protection, flags, fd, position);
    int is_shared = (flags & MAP_TYPE) == MAP_SHARED || (flags & MAP_TYPE) == MAP_SHARED_VALIDATE;
    if (result == MAP_FAILED || !(protection & PROT_WRITE) || !is_shared || !is_ours(fd, path, &status))
        return result;
    if (size > MOST_MAPPED || position != 0) {
        note_unsupported("a large mapping for writing", path);
        return result;
    }
    uint8_t *seen = malloc(size);
    if (seen == NULL)
        give_up("no memory");
    lock();
    memcpy(seen, result, size);
    int i = 0;
    while (i < MOST_MAPPINGS && mappings[i].address != NULL)
        i++;
    if (i == MOST_MAPPINGS)
        give_up("too many mappings for writing");
    mappings[i].size = size;
    mappings[i].inode = status.st_ino;
    mappings[i].seen = seen;
    memcpy(mappings[i].path, path, sizeof path);
    mappings[i].address = result;
    /* from here on the content of this file may be anything that was ever stored */
    struct iovec vector = {seen, size};
    note(PAGE, 0, status.st_ino, 0, path, NULL, &vector, 1, size);
    unlock();
    return result;
}

void *mmap(void *address, size_t size, int protection, int flags, int fd, off_t position) {
    return record_mmap(address, size, protection, flags, fd, position);
}
void *mmap64(void *address, size_t size, int protection, int flags, int fd, off64_t position) {
    return record_mmap(address, size, protection, flags, fd, position);
}

int munmap(void *address, size_t size) {
    for (int i = 0; record != NULL && i < MOST_MAPPINGS; i++) {
        if (mappings[i].address != address || address == NULL)
            continue;
        lock();
        note_mappings();
        mappings[i].address = NULL;
        free(mappings[i].seen);
        unlock();
    }
    return syscall(SYS_munmap, address, size);
}

/* --- what is durable -------------------------------------------------------------------------------------------------- */

static int record_sync(int fd, long call) {
    char path[PATH_MAX];
    struct stat status;
    if (!is_ours(fd, path, &status))
        return syscall(call, fd);
    int is_directory = S_ISDIR(status.st_mode);
    lock();
    note_mappings();
    uint64_t number = note(SYNC_BEGIN, is_directory, status.st_ino, 0, path, NULL, NULL, 0, 0);
    unlock();
    if (latency)
        usleep(latency);
    int result = syscall(call, fd);
    if (result == 0) {
        lock();
        note(SYNC_END, is_directory, status.st_ino, number, path, NULL, NULL, 0, 0);
        unlock();
    }
    return result;
}

int fsync(int fd) { return record_sync(fd, SYS_fsync); }
int fdatasync(int fd) { return record_sync(fd, SYS_fdatasync); }

/* What the program was promised, or is about to do. */
void fastlog_mark(const char *text, size_t size) {
    if (record == NULL)
        return;
    struct iovec vector = {(void *)text, size};
    lock();
    note_mappings();
    note(MARK, 0, 0, 0, NULL, NULL, &vector, 1, size);
    unlock();
}
