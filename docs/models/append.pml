/* Append: the bytes of the log, publishing in two slots, readers beside, taking over from the dead, closing and reopening.
 *
 * Two writers and a reader share one segment; presence is taken for right (presence.pml). A batch is one cell of the file,
 * an append is one or two batches. Writers die at any step, writes fail, power is lost. Until a sync has returned the disk
 * may hold any value that a cell, or the file's size, has had since the last one.
 */
#ifndef APPENDS
#define APPENDS 2
#endif
#ifndef DEATHS
#define DEATHS 2
#endif
#ifndef CUTS
#define CUTS 1
#endif
#ifndef FAILURES
#define FAILURES 1              /* writes that fail half-way */
#endif
#ifndef WRITERS
#define WRITERS 2
#endif
#ifndef READERS
#define READERS 1
#endif
#define CELLS 4                 /* APPENDS * 2 */
#define TORN 1                  /* a batch half written; 0 is nothing; append `id`, batch `part` is id * 2 + part */

/* --- the segment file, and what the disk may hold of it: one bit for each value */
byte cell[CELLS], size;
byte on_disk[CELLS] = 1, size_on_disk = 1;
/* --- the folder */
bit marker;
byte marker_end;
/* --- the control page */
byte position[2], offset[2];    /* the published tuple, two slots of it: in this model both fields are equal */
byte version;
bit dirty, unmarked;
/* --- the kernel's locks */
byte present;                   /* handles with LOCK_SH on the folder */
bit closing;                    /* a closer has LOCK_EX on it */
byte lock;                      /* writer lock on the control file: 1 + writer */
bit attached[2], attached_reader;
bit closer;                     /* who that is */
bit killed[3];
/* --- what only the checker knows */
byte truth[CELLS], known;       /* what was published */
byte durable;                   /* how much of it a returned append at group or batch covers */
byte appends = APPENDS, deaths = DEATHS, cuts = CUTS, failures = FAILURES;

#define SLOT (version & 1)
#define IDLE (1 - (version & 1))

#if CUTS > 0
#define MAY_BE(i, what) on_disk[i] = on_disk[i] | (1 << (what))
#define MAY_HAVE_SIZE(what) size_on_disk = size_on_disk | (1 << (what))
#else
#define MAY_BE(i, what) skip    /* without power cuts the disk says nothing: fewer states */
#define MAY_HAVE_SIZE(what) skip
#endif

inline sync() {
#if CUTS > 0
    d_step {
        on_disk[0] = 1 << cell[0]; on_disk[1] = 1 << cell[1]; on_disk[2] = 1 << cell[2]; on_disk[3] = 1 << cell[3];
        size_on_disk = 1 << size
    }
#else
    skip
#endif
}

inline put(where, what) {
    d_step {
        assert(where >= known);                                 /* P4: published bytes never change */
        cell[where] = what; MAY_BE(where, what);
        if
        :: size < where + 1 -> size = where + 1; MAY_HAVE_SIZE(size)
        :: else
        fi
    }
}

inline cut(where) {
    d_step {
        assert(where >= known);                                 /* P4: and are never cut */
        do
        :: size > where -> size--; cell[size] = 0; MAY_BE(size, 0)
        :: else -> break
        od;
        MAY_HAVE_SIZE(size)
    }
}

inline fresh_page(end) {
    position[0] = end; offset[0] = end; position[1] = 0; offset[1] = 0; version = 0; dirty = 0; unmarked = !marker
}

/* the dirty tail of a dead owner is cut to the published end */
inline take_over() {
#ifndef BUG_TAKEOVER_DOES_NOT_CUT
    cut(position[SLOT]);                                        /* takeover.cut */
#ifndef BUG_TAKEOVER_DOES_NOT_SYNC
    sync();
#endif
#endif
    dirty = 0                                                   /* takeover.done */
}

/* a sole opener: the marker is believed, else the file is scanned; presence.pml has death in the middle of it */
inline recover() {
    d_step {
        at = 0;
        if
        :: marker && marker_end == size -> at = size
        :: else ->
            do
            :: at < size && cell[at] > TORN -> at++
            :: else -> break
            od
        fi;
        assert(!marker || at == marker_end);                    /* P6 */
        assert(at >= known);                                    /* P3 */
        n = 0;
        do
        :: n < at ->
            assert(cell[n] > TORN);                             /* P6: what the marker vouches for is whole */
            assert(n >= known || cell[n] == truth[n]);          /* P3 */
            assert((cell[n] & 1) == 0 || (n > 0 && cell[n - (n > 0)] == cell[n] - 1)); /* P5: a prefix of an append */
            n++
        :: else -> break
        od;
        do
        :: size > at -> size--; cell[size] = 0
        :: else -> break
        od;
        n = known;
        do
        :: n < at -> truth[n] = cell[n]; n++
        :: else -> break
        od;
        known = at;
        fresh_page(at);
        n = 0; at = 0
    }
    sync()
}

/* what the checker writes down in the instant when an append can be seen */
inline published_now() {
    truth[at] = id * 2;
    if
    :: n == 2 -> truth[at + 1] = id * 2 + 1
    :: else
    fi;
    known = at + n
}

proctype writer(byte me) {
    byte at, n, id;
    do
    :: {
        skip;
        /* ---- opening */
        atomic {
            !closing;
            if
            :: present == 0 -> recover()
            :: else
            fi;
            present++; attached[me] = 1
        }
        do
        :: atomic { lock == 0 && appends > 0 -> lock = me + 1; appends--; id = APPENDS - appends } /* append.locked */
#ifndef BUG_DIRTY_NOT_LOOKED_AT
            if
            :: dirty -> take_over()
            :: !dirty
            fi;
#endif
            atomic {
                if
                :: !unmarked -> marker = 0; marker_end = 0; unmarked = 1
                :: else
                fi;
                at = position[SLOT];
                if
                :: n = 1
                :: n = 2
                fi
            }
#if !defined(BUG_DIRTY_AFTER_FIRST_BYTE)
            dirty = 1;                                          /* append.dirty */
#endif
            put(at, TORN);
#ifdef BUG_DIRTY_AFTER_FIRST_BYTE
            put(at, id * 2);
            dirty = 1;
#endif
            if
            :: atomic { failures > 0 -> failures--; goto failed }
            :: put(at, id * 2)                                  /* append.batch_written */
            fi;
            if
            :: n == 2 ->
                put(at + 1, TORN);
                if
                :: atomic { failures > 0 -> failures--; goto failed }
                :: put(at + 1, id * 2 + 1)
                fi
            :: n == 1
            fi;                                                 /* append.written */
#ifdef BUG_DIRTY_CLEARED_BEFORE_PUBLISHED
            dirty = 0;
#endif
#if defined(BUG_PUBLISHED_IN_ONE_SLOT)
            atomic { published_now(); position[SLOT] = at + n }
            offset[SLOT] = at + n;
            version = version + 2;
#elif defined(BUG_VERSION_BEFORE_SLOT)
            atomic { published_now(); version++ }
            position[SLOT] = at + n;
            offset[SLOT] = at + n;
#else
            position[IDLE] = at + n;
            offset[IDLE] = at + n;
            atomic { published_now(); version++ }               /* append.published */
#endif
            dirty = 0;
            atomic { lock = 0; at = 0; n = 0; id = 0 }          /* append.unlocked */
#if CUTS > 0
            if
            :: skip                                             /* returned at interval or os */
            :: atomic { sync(); durable = known }               /* returned at group or batch: group_commit.pml */
            fi;
#endif
            goto next;
failed:
#ifndef BUG_FAILED_APPEND_DOES_NOT_CUT
            if
            :: cut(at); sync(); dirty = 0
            :: skip                                             /* that fails too: the next owner finds dirty */
            fi;
#else
            dirty = 0;
#endif
            atomic { lock = 0; at = 0; n = 0; id = 0 }
next:       skip
        :: break
        od;
        /* ---- closing */
        atomic {
            attached[me] = 0;
            if
            :: present == 1 -> closing = 1; closer = me                  /* close.exclusive */
            :: else -> present--; goto closed
            fi
        }
#ifndef BUG_CLOSER_IGNORES_DIRTY
        if
        :: dirty -> cut(position[SLOT])
        :: !dirty
        fi;
#endif
#ifdef BUG_MARKED_BEFORE_SYNC
        atomic { marker = 1; marker_end = position[SLOT] }
        sync();
#else
        sync();                                                 /* close.synced */
        atomic { marker = 1; marker_end = position[SLOT] };     /* close.marked */
#endif
        atomic { present = 0; closing = 0 }
closed:
        skip
        } unless {
            atomic { killed[me]; killed[me] = 0; at = 0; n = 0; id = 0 }
        }
    od
}

proctype reader() {
    byte v, p, o, seen;
    do
    :: {
        skip;
        atomic { present > 0 && !closing -> present++; attached_reader = 1 }
        do
        :: v = version;
            p = position[v & 1];
            o = offset[v & 1];
            atomic {
                if
#ifndef BUG_READER_DOES_NOT_RECHECK
                :: version != v
#endif
                :: else ->
                    assert(p == o);                             /* P5: a torn tuple */
                    assert(p <= known);                         /* P4: beyond the published end */
                    assert(p >= seen);                          /* P4: back in time */
                    seen = p
                fi;
                v = 0; p = 0; o = 0
            }
        :: atomic { seen > 0 -> assert(size >= seen && cell[seen - 1] == truth[seen - 1] && cell[0] == truth[0]) } /* P4 */
        :: break
        od;
        atomic { present--; attached_reader = 0; seen = 0; v = 0; p = 0; o = 0 }
        } unless {
            atomic { killed[2]; killed[2] = 0; seen = 0; v = 0; p = 0; o = 0 }
        }
    od
}
inline lose(i) {
    /* one of the values that the disk may hold */
    if
    :: on_disk[i] & 1 -> cell[i] = 0
    :: on_disk[i] & 2 -> cell[i] = 1
    :: on_disk[i] & 4 -> cell[i] = 2
    :: on_disk[i] & 8 -> cell[i] = 3
    :: on_disk[i] & 16 -> cell[i] = 4
    :: on_disk[i] & 32 -> cell[i] = 5
    fi;
    if
    :: i >= size -> cell[i] = 0
    :: else
    fi
}

proctype fate() {
end:
    do
    :: atomic {
        /* the closer is the only one who is there: `closing` stands for it */
        deaths > 0 && (attached[0] || attached[1] || closing) -> deaths--;
        if
        :: attached[0] -> attached[0] = 0; killed[0] = 1; present--; lock = (lock == 1 -> 0 : lock)
        :: attached[1] -> attached[1] = 0; killed[1] = 1; present--; lock = (lock == 2 -> 0 : lock)
        :: closing && !attached[0] && !attached[1] -> killed[closer] = 1; closing = 0; present = 0
        fi
    }
    :: atomic {
        cuts > 0 -> cuts--;
        killed[0] = 1; killed[1] = WRITERS - 1; killed[2] = READERS;
        attached[0] = 0; attached[1] = 0; attached_reader = 0; present = 0; closing = 0; lock = 0;
        if
        :: size_on_disk & 1 -> size = 0
        :: size_on_disk & 2 -> size = 1
        :: size_on_disk & 4 -> size = 2
        :: size_on_disk & 8 -> size = 3
        :: size_on_disk & 16 -> size = 4
        fi;
        lose(0); lose(1); lose(2); lose(3);
        known = durable;
        sync()
    }
    od
}

init {
    atomic {
        run writer(0);
#if WRITERS == 2
        run writer(1);
#endif
#if READERS == 1
        run reader();
#endif
        run fate()
    }
}
