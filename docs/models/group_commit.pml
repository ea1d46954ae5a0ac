/* Group commit: one sync for many appends, waiting for it, a sync that fails, poison, recovery after the death of all.
 *
 * HANDLES handles append at durability "group": an append is one step here (append.pml has its inside). The log rolls
 * once, so that a sync has two files and a directory to bring to disk. Nobody has to cut the power: what a power cut
 * would leave is known at every step (SAFE) and compared with what was promised.
 */
#ifndef HANDLES
#define HANDLES 3
#endif
#ifndef APPENDS
#define APPENDS 3               /* all handles together */
#endif
#ifndef DEATHS
#define DEATHS 1
#endif
#ifndef FAILURES
#define FAILURES 1              /* fdatasync that gives EIO */
#endif
#define ROLL 1                  /* offsets from here on lie in the second segment */
#define NOBODY 255

/* --- the kernel */
byte cached;                    /* length of the log in the page cache */
byte on_disk[2];                /* of each segment: how much is on disk */
bit name_on_disk;               /* the directory entry of the second segment */
bit lost[2];                    /* write-back failed once: the pages count as clean and are not on disk */
bit unreported[HANDLES];        /* the descriptors of this handle have that error still to report */
byte owner = NOBODY;            /* of the sync_owner lock */
bit attached[HANDLES], killed[HANDLES];
/* --- the control page */
byte end, durable;
bit poisoned;
bit syncing;                    /* a sync has begun, and nobody has said yet how it ended */
bit woken[HANDLES];             /* the bell, a futex: its word changed since the handle read it */
bit waiters;                    /* somebody may sleep on it */
/* --- the folder */
bit poison_marker;
/* --- what only the checker knows */
byte slices[HANDLES];           /* how often a handle had to be woken by the end of a slice, for one append */
byte appends = APPENDS, deaths = DEATHS, failures = FAILURES;
byte durable_when_poisoned;

#define FIRST(n) ((n) < ROLL -> (n) : ROLL)
#define SECOND(n) ((n) < ROLL -> 0 : (n) - ROLL)
/* the prefix that a power cut leaves */
#define SAFE (on_disk[0] < ROLL || !name_on_disk -> on_disk[0] : ROLL + on_disk[1])

/* fdatasync: what was written when it began is on disk when it returns, unless the kernel lost it earlier */
inline fdatasync(segment, began, failed) {
    atomic {
        if
        :: unreported[me] -> unreported[me] = 0; failed = 1
        :: else -> if
            :: failures > 0 && on_disk[segment] < began -> failures--; lost[segment] = 1; failed = 1;
                unreported[0] = attached[0] && me != 0;
                unreported[1] = attached[1] && me != 1;
#if HANDLES == 3
                unreported[2] = attached[2] && me != 2;
#endif
            :: if
                :: !lost[segment] && on_disk[segment] < began -> on_disk[segment] = began
                :: else
                fi
            fi
        fi
    }
}

/* a flag, taken by exchange; every sleeper sets it again before it sleeps */
inline ring() {
    atomic {
        if
        :: waiters -> waiters = 0; woken[0] = 1; woken[1] = 1;
#if HANDLES == 3
            woken[2] = 1
#endif
        :: else
        fi
    }
}

inline publish_durable(what) {
    atomic {
        if
        :: what > durable -> durable = what
        :: else
        fi;
        assert(durable <= end);                                 /* P7 */
        assert(durable <= SAFE);                                /* P3: a durable reader may see it from now on */
        assert(!poisoned || durable <= durable_when_poisoned)   /* P8 */
    }
}

inline acknowledge() {
    atomic {
        assert(mine <= SAFE);                                   /* P3 */
        assert(!poisoned || mine <= durable_when_poisoned);     /* P8 */
        mine = 0; slices[me] = 0
    }
}

proctype handle(byte me) {
    byte mine, snapshot, began;
    bit failed;
#ifdef BUG_POISON_NOT_SHARED
    bit own_poison;
#endif
#ifdef BUG_FLAG_NOT_SET_AGAIN
    bit slept;
#endif
    do
    :: {
        skip;
        atomic {
            if
            :: attached[0] == 0 && attached[1] == 0 && attached[HANDLES - 1] == 0 ->
                /* a sole opener. Unclean: what is not on disk is looked for there, not in the page cache */
#ifdef BUG_RECOVERY_BELIEVES_THE_CACHE
                if
                :: poison_marker -> cached = SAFE; lost[0] = 0; lost[1] = 0
                :: else
                fi;
#else
                if
                :: lost[0] || lost[1] -> cached = SAFE
                :: else
                fi;
#endif
                owner = NOBODY; waiters = 0; poisoned = 0; syncing = 0; poison_marker = 0; durable_when_poisoned = 0;
#ifndef BUG_RECOVERY_DOES_NOT_SYNC
                if
                :: !lost[0] -> on_disk[0] = FIRST(cached)
                :: else
                fi;
                if
                :: !lost[1] -> on_disk[1] = SECOND(cached); name_on_disk = (cached > ROLL)
                :: else
                fi;
#endif
#ifndef BUG_RECOVERY_BELIEVES_THE_CACHE
                lost[0] = 0; lost[1] = 0;
#endif
                end = cached; durable = cached;
                assert(durable <= SAFE)                         /* P3 */
            :: else
            fi;
            attached[me] = 1; unreported[me] = 0
        }
        do
        :: atomic {
                appends > 0 -> appends--;
                if
#ifndef BUG_POISON_NOT_SHARED
                :: poisoned -> goto refused
#else
                :: own_poison -> goto refused
#endif
                :: else -> cached++; end = cached; mine = end
                fi
            }
#ifdef BUG_ACKNOWLEDGED_BEFORE_SYNC
            acknowledge();
            goto next;
#endif
again:      atomic {
                woken[me] = 0;                                  /* the word is read before anything is looked at */
                if
                :: durable >= mine -> acknowledge(); goto next
#ifndef BUG_POISON_NOT_SHARED
                :: durable < mine && poisoned -> goto refused
#else
                :: durable < mine && own_poison -> goto refused
#endif
                :: else
                fi
            }
#ifdef BUG_FLAG_NOT_SET_AGAIN
            atomic {
                if
                :: slept -> skip
                :: else -> waiters = 1
                fi;
                slept = 1
            }
#elif !defined(BUG_FLAG_SET_AFTER_LOOKING)
            waiters = 1;                                        /* before the last look */
#endif
            atomic {
                if
                :: owner == NOBODY -> owner = me; goto leads    /* sync.locked */
                :: else
                fi
            }
            if
            :: atomic { durable >= mine || poisoned -> goto again }
            :: atomic { durable < mine && !poisoned }
            fi;
#ifdef BUG_FLAG_SET_AFTER_LOOKING
            waiters = 1;
#endif
            /* FUTEX_WAIT: sleeps only while the word is what it was */
            if
            :: atomic { woken[me] -> goto again }
#ifndef NO_SLICES
            :: atomic { timeout -> slices[me]++; assert(slices[me] <= DEATHS); goto again } /* P9 */
#endif
            fi;

leads:      if
            :: atomic { durable >= mine || poisoned -> goto unlock }
            :: atomic { durable < mine && !poisoned }
            fi;
#ifndef BUG_END_READ_AFTER_SYNC
            snapshot = end;
#endif
#ifdef BUG_DURABLE_BEFORE_SYNC
            publish_durable(snapshot);
#endif
#ifndef BUG_DEAD_LEADER_BELIEVED
            atomic {
                /* the last leader died: its sync may have failed, and the kernel reports that once. The bytes between
                   durable and end, which never change, are written again as they are, so that a sync has to write them */
                if
                :: syncing -> lost[0] = 0; lost[1] = 0
                :: else -> syncing = 1
                fi
            }
#endif
            failed = 0;
#ifndef BUG_ONLY_ACTIVE_SEGMENT_SYNCED
            if
            :: durable < ROLL ->                                /* from the durable base on, oldest first */
                began = FIRST(cached);
                fdatasync(0, began, failed)
            :: durable >= ROLL
            fi;
#endif
            if
            :: !failed && cached > ROLL ->
#ifndef BUG_DIRECTORY_NOT_SYNCED
                name_on_disk = 1;
#endif
                began = SECOND(cached);
                fdatasync(1, began, failed)
#ifdef BUG_ONLY_ACTIVE_SEGMENT_SYNCED
            :: cached <= ROLL -> began = FIRST(cached); fdatasync(0, began, failed)
#endif
            :: else
            fi;                                                 /* sync.synced */
            if
            :: failed ->
#ifdef BUG_POISON_NOT_SHARED
                own_poison = 1
#else
#ifdef BUG_POISON_AFTER_UNLOCK
                owner = NOBODY;
#endif
                atomic { poisoned = 1; durable_when_poisoned = durable };
                poison_marker = 1
#endif
            :: !failed ->
#ifdef BUG_END_READ_AFTER_SYNC
                snapshot = end;
#endif
                publish_durable(snapshot)                       /* sync.published */
            fi;
            syncing = 0;
unlock:
#ifdef BUG_BELL_BEFORE_UNLOCK
            ring();
            owner = (owner == me -> NOBODY : owner);
#else
            owner = (owner == me -> NOBODY : owner);            /* sync.unlocked */
#ifndef BUG_NO_BELL
            ring();
#endif
#endif
            atomic { snapshot = 0; began = 0; failed = 0 };
            goto again;
refused:    atomic { mine = 0; slices[me] = 0 }                 /* StorageError */
next:       skip
        :: break
        od;
        attached[me] = 0
        } unless {
            atomic { killed[me]; killed[me] = 0; mine = 0; snapshot = 0; began = 0; failed = 0; slices[me] = 0 }
        };
        if
        :: skip
        :: break                                                /* never opens again: the others must not need it */
        fi
    od
}

inline die(i) {
    deaths > 0 && attached[i] -> deaths--; killed[i] = 1; attached[i] = 0; unreported[i] = 0;
    owner = (owner == i -> NOBODY : owner)
}

proctype fate() {
    do
    :: break
    :: atomic { die(0) }
    :: atomic { die(1) }
#if HANDLES == 3
    :: atomic { die(2) }
#endif
    od
}

init {
    atomic {
        run handle(0);
        run handle(1);
#if HANDLES == 3
        run handle(2);
#endif
        run fate()
    }
}
