/*
 * Lets allocations fail, and knows the places where system calls and allocations are made.
 *
 * A library for LD_PRELOAD (Linux, glibc). It stands in front of the C library's allocators, and fails an allocation only
 * when it is armed and was asked for by code of a library whose path contains FASTLOG_INJECT_INTO; everybody else gets
 * what they want. Python's own allocators are replaced by fastlog_watch_python(); of them those fail that the thread asks
 * for which armed it.
 *
 *   fastlog_arm_allocations(kind, nth, count)    fail the nth from now on, and the ones behind it, so many in all
 *   fastlog_disarm_allocations()                 stop; how many were made to fail
 *   fastlog_count_allocations()                  how many were asked for since it was armed
 *   fastlog_failed_allocations()                 how many were made to fail
 *   fastlog_held_allocations()                   how many of those asked for while it was armed are not freed yet
 *
 * A place is a chain of return addresses within those libraries, and the Python function that called them, if the thread
 * has the GIL. fastlog_note_call is an observer of ``oscalls``.
 *
 *   fastlog_note_places(mode)                    0: no places, 1: those of all calls, 2: of those that fail; forget the others
 *   fastlog_place_count()                        different places so far
 *   fastlog_place(number, ...)                   call, frames, and Python function of one
 *   fastlog_noted(call, places, room)            the place of each call so far, in order; call is NATIVE_CALL for allocations
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <link.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unwind.h>

extern void *__libc_malloc(size_t size);
extern void *__libc_calloc(size_t count, size_t size);
extern void *__libc_realloc(void *memory, size_t size);
extern void *__libc_memalign(size_t alignment, size_t size);
extern void __libc_free(void *memory);

enum kind { NATIVE = 1, PYTHON = 2 };
enum { NATIVE_CALL = 31, MOST_CALLS = 32 };     /* of system calls there are less */

static int armed;                   /* which kind */
static int64_t countdown, wanted, asked, failed;
static __thread int is_inside;      /* this thread armed it */

static void note(int call, int error);

/* Whether this one shall fail. */
static int fails(void) {
    __atomic_add_fetch(&asked, 1, __ATOMIC_RELAXED);
    int64_t left = __atomic_sub_fetch(&countdown, 1, __ATOMIC_RELAXED);
    if (left <= 0 && left > -wanted) {
        __atomic_add_fetch(&failed, 1, __ATOMIC_RELAXED);
        return 1;
    }
    return 0;
}

/* --- allocations of the compiled modules ----------------------------------------------------------------------------- */

#define MOST_RANGES 256
static uintptr_t begins[MOST_RANGES], ends[MOST_RANGES];
static int ranges;

static int note_library(struct dl_phdr_info *library, size_t size, void *part) {
    (void)size;
    if (strstr(library->dlpi_name, part) == NULL)
        return 0;
    for (int i = 0; i < library->dlpi_phnum && ranges < MOST_RANGES; i++) {
        const ElfW(Phdr) *segment = &library->dlpi_phdr[i];
        if (segment->p_type == PT_LOAD && segment->p_flags & PF_X) {
            begins[ranges] = library->dlpi_addr + segment->p_vaddr;
            ends[ranges++] = library->dlpi_addr + segment->p_vaddr + segment->p_memsz;
        }
    }
    return 0;
}

static int is_ours(const void *caller) {
    for (int i = 0; i < ranges; i++) {
        if ((uintptr_t)caller >= begins[i] && (uintptr_t)caller < ends[i])
            return 1;
    }
    return 0;
}

/* --- what is not freed yet: of the compiled modules, while armed ------------------------------------------------------ */

#define MOST_HELD (1 << 16)         /* a power of two */
static void *held[MOST_HELD];
static int64_t held_count;
static int holds;                   /* whether anything was noted since it was armed */
static pthread_mutex_t holding = PTHREAD_MUTEX_INITIALIZER;
#define GONE ((void *)1)

static size_t slot_of(const void *memory) { return ((uintptr_t)memory >> 4) * 0x9E3779B97F4A7C15u >> 20 & (MOST_HELD - 1); }

static void hold(void *memory) {
    if (memory == NULL)
        return;
    pthread_mutex_lock(&holding);
    size_t slot = slot_of(memory);
    for (int i = 0; i < MOST_HELD; i++, slot = (slot + 1) & (MOST_HELD - 1)) {
        if (held[slot] == NULL || held[slot] == GONE) {
            held[slot] = memory;
            held_count++;
            break;
        }
    }
    pthread_mutex_unlock(&holding);
}

static int let_go(void *memory) {
    int was_held = 0;
    pthread_mutex_lock(&holding);
    size_t slot = slot_of(memory);
    for (int i = 0; i < MOST_HELD && held[slot] != NULL; i++, slot = (slot + 1) & (MOST_HELD - 1)) {
        if (held[slot] == memory) {
            held[slot] = GONE;
            held_count--;
            was_held = 1;
            break;
        }
    }
    pthread_mutex_unlock(&holding);
    return was_held;
}

/* Whether an allocation of ours is to be made; `shall_fail` says whether it shall. */
static int is_watched(const void *caller, int *shall_fail) {
    *shall_fail = 0;
    if (armed != NATIVE || !is_ours(caller))
        return 0;
    *shall_fail = fails();
    note(NATIVE_CALL, *shall_fail ? ENOMEM : 0);
    if (*shall_fail)
        errno = ENOMEM;
    return 1;
}

static void *watched(void *memory) {
    hold(memory);
    return memory;
}

void *malloc(size_t size) {
    int shall_fail;
    if (!is_watched(__builtin_return_address(0), &shall_fail))
        return __libc_malloc(size);
    return shall_fail ? NULL : watched(__libc_malloc(size));
}
void *calloc(size_t count, size_t size) {
    int shall_fail;
    if (!is_watched(__builtin_return_address(0), &shall_fail))
        return __libc_calloc(count, size);
    return shall_fail ? NULL : watched(__libc_calloc(count, size));
}
void *realloc(void *memory, size_t size) {
    int shall_fail = 0, is_ours_now = size && is_watched(__builtin_return_address(0), &shall_fail);
    if (shall_fail)
        return NULL;
    int was_held = holds && memory != NULL && let_go(memory);
    void *moved = __libc_realloc(memory, size);
    if (moved == NULL && size) {
        if (was_held)
            hold(memory);
        return NULL;
    }
    return is_ours_now || was_held ? watched(moved) : moved;
}
void *aligned_alloc(size_t alignment, size_t size) {
    int shall_fail;
    if (!is_watched(__builtin_return_address(0), &shall_fail))
        return __libc_memalign(alignment, size);
    return shall_fail ? NULL : watched(__libc_memalign(alignment, size));
}
void free(void *memory) {
    if (holds && memory != NULL)
        let_go(memory);
    __libc_free(memory);
}

/* --- allocations of Python -------------------------------------------------------------------------------------------- */

struct allocator {                  /* PyMemAllocatorEx */
    void *context;
    void *(*malloc)(void *context, size_t size);
    void *(*calloc)(void *context, size_t count, size_t size);
    void *(*realloc)(void *context, void *memory, size_t size);
    void (*free)(void *context, void *memory);
};
enum { RAW, MEM, OBJ, DOMAINS };
static struct allocator originals[DOMAINS];

static uintptr_t codecs_begin, codecs_end;

static int note_codecs(struct dl_phdr_info *library, size_t size, void *part) {
    (void)size;
    for (int i = 0; strstr(library->dlpi_name, part) != NULL && i < library->dlpi_phnum; i++) {
        const ElfW(Phdr) *segment = &library->dlpi_phdr[i];
        if (segment->p_type == PT_LOAD && segment->p_flags & PF_X) {
            codecs_begin = library->dlpi_addr + segment->p_vaddr;
            codecs_end = codecs_begin + segment->p_memsz;
        }
    }
    return 0;
}

static _Unwind_Reason_Code look_for_codecs(struct _Unwind_Context *context, void *found) {
    uintptr_t at = _Unwind_GetIP(context);
    *(int *)found |= at >= codecs_begin && at < codecs_end;
    return *(int *)found || is_ours((void *)at) ? _URC_END_OF_STACK : _URC_NO_REASON;
}

/* The library of codecs, which is not ours, panics, and may end the process, where Python has no object for it. */
static int is_in_codecs(void) {
    int found = 0;
    if (countdown - 1 <= 0 && codecs_end)
        _Unwind_Backtrace(look_for_codecs, &found);
    return found;
}

#define FAIL_INSIDE                                                                                                           \
    if (armed == PYTHON && is_inside && !is_in_codecs() && fails())                                                           \
        return NULL;

static void *python_malloc(void *context, size_t size) {
    struct allocator *original = context;
    FAIL_INSIDE
    return original->malloc(original->context, size);
}
static void *python_calloc(void *context, size_t count, size_t size) {
    struct allocator *original = context;
    FAIL_INSIDE
    return original->calloc(original->context, count, size);
}
static void *python_realloc(void *context, void *memory, size_t size) {
    struct allocator *original = context;
    FAIL_INSIDE
    return original->realloc(original->context, memory, size);
}
static void python_free(void *context, void *memory) {
    struct allocator *original = context;
    original->free(original->context, memory);
}

/* Stand in front of the allocators of objects and of what they own; the raw domain is Python's own. 0: it is not there. */
int fastlog_watch_python(void) {
    void (*get)(int, struct allocator *) = (void (*)(int, struct allocator *))dlsym(RTLD_DEFAULT, "PyMem_GetAllocator");
    void (*set)(int, struct allocator *) = (void (*)(int, struct allocator *))dlsym(RTLD_DEFAULT, "PyMem_SetAllocator");
    if (get == NULL || set == NULL)
        return 0;
    for (int domain = MEM; domain < DOMAINS; domain++) {
        struct allocator ours = {&originals[domain], python_malloc, python_calloc, python_realloc, python_free};
        get(domain, &originals[domain]);
        set(domain, &ours);
    }
    return 1;
}

/* --- places ----------------------------------------------------------------------------------------------------------- */

enum { DEPTH = 10, MOST_STEPS = 80, NAME = 200, MOST_PLACES = 4096, MOST_NOTED = 20000 };

struct place {
    int call;
    int depth;
    uintptr_t frames[DEPTH];
    char python[NAME];
};

static struct place places[MOST_PLACES];
static int place_count, mode;
static uint16_t noted[MOST_CALLS][MOST_NOTED];
static int noted_count[MOST_CALLS];
static pthread_mutex_t noting = PTHREAD_MUTEX_INITIALIZER;
static __thread int is_noting;

struct walk {
    struct place *place;
    int steps;
};

static _Unwind_Reason_Code step(struct _Unwind_Context *context, void *argument) {
    struct walk *walk = argument;
    uintptr_t at = _Unwind_GetIP(context);
    if (is_ours((void *)at))
        walk->place->frames[walk->place->depth++] = at;
    return walk->place->depth == DEPTH || ++walk->steps == MOST_STEPS ? _URC_END_OF_STACK : _URC_NO_REASON;
}

/* The function of Python that runs, as file:function:line; nothing without the GIL. */
static void name_python(char *name) {
    static int (*has_gil)(void);
    static void *(*get_frame)(void), *(*get_code)(void *), *(*get_attribute)(void *, const char *);
    static int (*get_line)(void *);
    static const char *(*get_text)(void *);
    static void (*decref)(void *), (*clear)(void);
    if (has_gil == NULL) {
        get_frame = (void *(*)(void))dlsym(RTLD_DEFAULT, "PyEval_GetFrame");
        get_code = (void *(*)(void *))dlsym(RTLD_DEFAULT, "PyFrame_GetCode");
        get_line = (int (*)(void *))dlsym(RTLD_DEFAULT, "PyFrame_GetLineNumber");
        get_attribute = (void *(*)(void *, const char *))dlsym(RTLD_DEFAULT, "PyObject_GetAttrString");
        get_text = (const char *(*)(void *))dlsym(RTLD_DEFAULT, "PyUnicode_AsUTF8");
        decref = (void (*)(void *))dlsym(RTLD_DEFAULT, "Py_DecRef");
        clear = (void (*)(void))dlsym(RTLD_DEFAULT, "PyErr_Clear");
        has_gil = (int (*)(void))dlsym(RTLD_DEFAULT, "PyGILState_Check");
        if (has_gil == NULL || get_frame == NULL || get_code == NULL || get_line == NULL || get_attribute == NULL || get_text == NULL)
            return;
    }
    if (!has_gil())
        return;
    void *frame = get_frame();
    if (frame == NULL)
        return;
    void *code = get_code(frame), *file = get_attribute(code, "co_filename"), *function = get_attribute(code, "co_qualname");
    const char *path = file ? get_text(file) : NULL, *text = function ? get_text(function) : NULL;
    if (path != NULL && text != NULL)
        snprintf(name, NAME, "%s:%d %s", path + (strlen(path) > 90 ? strlen(path) - 90 : 0), get_line(frame), text);
    else
        clear();
    if (file)
        decref(file);
    if (function)
        decref(function);
    decref(code);
}

static void note(int call, int error) {
    if (mode == 0 || (mode == 2 && error == 0) || is_noting)
        return;
    is_noting = 1;
    struct place found;
    struct walk walk = {&found, 0};
    memset(&found, 0, sizeof found);
    found.call = call;
    _Unwind_Backtrace(step, &walk);
    name_python(found.python);
    pthread_mutex_lock(&noting);
    int number = 0;
    while (number < place_count && memcmp(&places[number], &found, sizeof found) != 0)
        number++;
    if (number < MOST_PLACES && number == place_count)
        places[place_count++] = found;
    if (number < MOST_PLACES && noted_count[call] < MOST_NOTED)
        noted[call][noted_count[call]++] = (uint16_t)number;
    pthread_mutex_unlock(&noting);
    is_noting = 0;
}

void fastlog_note_call(int call, int error) { note(call, error); }

static void find_libraries(void) {
    if (ranges == 0) {
        const char *part = getenv("FASTLOG_INJECT_INTO");
        dl_iterate_phdr(note_library, (void *)(part ? part : "fastlog"));
    }
}

void fastlog_note_places(int new_mode) {
    find_libraries();
    pthread_mutex_lock(&noting);
    mode = new_mode;
    if (mode) {
        place_count = 0;
        memset(noted_count, 0, sizeof noted_count);
    }
    pthread_mutex_unlock(&noting);
}

int fastlog_place_count(void) { return place_count; }

int fastlog_place(int number, uintptr_t *frames, char *python) {
    memcpy(frames, places[number].frames, sizeof places[number].frames);
    memcpy(python, places[number].python, NAME);
    return places[number].call;
}

int fastlog_noted(int call, uint16_t *numbers, int room) {
    int count = noted_count[call] < room ? noted_count[call] : room;
    memcpy(numbers, noted[call], (size_t)count * sizeof *numbers);
    return count;
}

/* --- switching it on and off ------------------------------------------------------------------------------------------ */

void fastlog_arm_allocations(int kind, int64_t nth, int64_t count) {
    find_libraries();
    if (kind == PYTHON && codecs_end == 0)
        dl_iterate_phdr(note_codecs, (void *)"/cramjam");
    asked = failed = 0;
    if (kind == NATIVE) {
        pthread_mutex_lock(&holding);
        memset(held, 0, sizeof held);
        held_count = 0;
        pthread_mutex_unlock(&holding);
        holds = 1;
    }
    countdown = nth;
    wanted = count;
    is_inside = 1;
    __atomic_store_n(&armed, kind, __ATOMIC_SEQ_CST);
}

int64_t fastlog_disarm_allocations(void) {
    __atomic_store_n(&armed, 0, __ATOMIC_SEQ_CST);
    is_inside = 0;
    return failed;
}

int64_t fastlog_count_allocations(void) { return asked; }

int64_t fastlog_failed_allocations(void) { return failed; }

int64_t fastlog_held_allocations(void) { return held_count; }
