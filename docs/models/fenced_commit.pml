/* Fenced commits: an append that compares the owner of the partition, while owners change and the page is replaced.
 *
 * One partition, one member of the group in each process. A member polls in one thread and commits from another (commit), so a
 * commit may be late by any time: that is a process that is stopped, too. Whoever holds the group's lock puts the owner out
 * (membership.py, table.py: strip) or has the page grow (_grow, _move_in), and may die at any step. Owners change by `exchange`,
 * under the writer lock of the partition that takes the commits (appending.pyx: require, exchange). handover.pml has the members.
 */
#ifndef MEMBERS
#define MEMBERS 2
#endif
#ifndef EVICTIONS
#define EVICTIONS 2
#endif
#ifndef GROWTHS
#define GROWTHS 1
#endif
#ifndef DEATHS
#define DEATHS 1                /* of whoever looks after the table */
#endif
#ifndef RECORDS
#define RECORDS 3               /* to be handled, in all */
#endif
#define LIVE 0
#define MOVING 1
#define GONE 255                /* a word of a page that was retired: no condition compares with it */
#define KEEPER 9

/* --- the pages: 0 is none. Their words: STATE, and the owner of the partition, by an epoch that is never given again */
byte state[4], owner[4];
byte path = 1, next;            /* what the names `table` and `table.next` lead to */
byte fresh = 1;
/* --- the kernel's locks: 0, or who has it */
byte group_lock, writer_lock;
bit killed;
/* --- the log of commits */
byte committed;
/* --- members: the page that is mapped, by which epoch it owns, how far it has come */
byte page[MEMBERS] = 1, held[MEMBERS], position[MEMBERS], epochs;
bit due[MEMBERS];               /* something was handled since the last commit */
/* --- what only the checker knows */
byte truth;                     /* who owns the partition */
byte growths = GROWTHS, evictions = EVICTIONS, deaths = DEATHS;

#define IS_RETIRED(n) (state[n] == GONE)

#ifdef BUG_OWNER_CHANGED_WITHOUT_LOCK
#define LOCK_WRITER(who) skip
#define UNLOCK_WRITER skip
#else
#define LOCK_WRITER(who) atomic { writer_lock == 0 -> writer_lock = who }
#define UNLOCK_WRITER writer_lock = 0
#endif

/* table.py: _move_in. The old page first: while the name still leads to it nobody can change the new one */
inline move_in(who) {
#ifdef BUG_RENAMED_BEFORE_RETIRED
    was = path;
    atomic { path = next; next = 0; assert(owner[path] == truth) } /* P10 */
    state[was] = GONE;
    owner[was] = GONE;
#else
#ifndef BUG_OLD_PAGE_NOT_RETIRED
    state[path] = GONE;                                         /* page.retiring */
    owner[path] = GONE;                                         /* group.retired */
#endif
    atomic { path = next; next = 0; assert(owner[path] == truth) } /* P10: what the copy says */
#endif
}

/* table.py: _settled, with the group's lock */
inline settle(who) {
#ifndef BUG_REPLACEMENT_NOT_FINISHED
    if
    :: state[path] != LIVE && next != 0 -> move_in(who)
    :: state[path] != LIVE && next == 0 -> state[path] = LIVE
    :: state[path] == LIVE
    fi
#else
    state[path] == LIVE                                         /* nobody sees to that */
#endif
}

/* table.py: _grow */
inline grow(who) {
    next = 0;
#ifdef BUG_COPIED_BEFORE_MOVING
    copy = owner[path];
#endif
#ifndef BUG_COPIED_BEFORE_MOVING
    LOCK_WRITER(who);
    state[path] = MOVING;
    UNLOCK_WRITER;                                              /* group.moving */
    copy = owner[path];
#endif
    atomic { fresh++; state[fresh] = LIVE; owner[fresh] = copy; next = fresh; copy = 0 } /* group.copied */
    move_in(who)
}

proctype keeper(byte me) {
    byte was, copy;
end:
    do
    :: {
        skip;
end_idle:
        do
        :: atomic { (evictions > 0 || growths > 0) && group_lock == 0 -> group_lock = me }
            settle(me);
            if
            :: atomic { evictions > 0 -> evictions-- }
                LOCK_WRITER(me);
                if
                :: state[path] == LIVE && owner[path] != 0 -> atomic { owner[path] = 0; truth = 0 } /* group.stripped */
                :: else
                fi;
                UNLOCK_WRITER
            :: atomic { growths > 0 -> growths-- }
                grow(me)
            :: skip
            fi;
            atomic { group_lock = 0; was = 0 }
        od
        } unless {
            atomic { killed; killed = 0; was = 0; copy = 0 }
        }
    od
}

/* the thread that polls */
proctype poller(byte me) {
    byte was, seen;
end:
    do
    :: atomic { IS_RETIRED(page[me]) && path != page[me] -> page[me] = path } /* view */
    :: atomic { IS_RETIRED(page[me]) && path == page[me] && group_lock == 0 -> group_lock = 1 + me; goto repairs }
    :: atomic { held[me] != 0 && owner[page[me]] != held[me] && owner[page[me]] != GONE -> held[me] = 0; /* _drop_lost */
#ifndef BUG_POSITION_KEPT_WHEN_LOST
            due[me] = 0                                         /* what it had come to belongs to that epoch */
#endif
        }
    :: atomic { held[me] == 0 && owner[page[me]] == 0 && state[page[me]] == MOVING && group_lock == 0 ->
            group_lock = 1 + me; goto repairs }                 /* the exchange failed: _recompute */
    :: atomic { held[me] == 0 && owner[page[me]] == 0 && state[page[me]] == LIVE -> was = page[me] } /* _take */
#ifdef BUG_POSITION_READ_BEFORE_TAKEN
        seen = committed;
#endif
        LOCK_WRITER(1 + me);
        if
#ifdef BUG_EXCHANGE_IGNORES_MOVING
        :: atomic { owner[was] == 0 -> held[me] = 1 }
#else
        :: atomic { owner[was] == 0 && state[was] == LIVE -> held[me] = 1 }
#endif
#ifdef BUG_EPOCH_GIVEN_AGAIN
            atomic { held[me] = 1 + me; owner[was] = held[me]; truth = held[me] }
#else
            atomic { epochs++; held[me] = epochs; owner[was] = held[me]; truth = held[me] } /* group.taken */
#endif
            UNLOCK_WRITER;
#ifndef BUG_POSITION_READ_BEFORE_TAKEN
            seen = committed;
#endif
            atomic { position[me] = seen; due[me] = 0; seen = 0; was = 0 }
        :: else -> UNLOCK_WRITER; atomic { was = 0; seen = 0 }
        fi
    :: atomic { held[me] != 0 && position[me] < RECORDS -> position[me]++; due[me] = 1 } /* a record is handled */
    :: atomic { held[me] != 0 && evictions > 0 -> evictions--; was = page[me] } /* release */
        LOCK_WRITER(1 + me);
        if
        :: owner[was] == held[me] && state[was] == LIVE -> atomic { owner[was] = 0; truth = 0; held[me] = 0; due[me] = 0 } /* group.released */
        :: else
        fi;
        UNLOCK_WRITER; was = 0
    :: atomic { false };
repairs: settle(1 + me);
        atomic { group_lock = 0; was = 0 }
    od
}

/* the thread that commits */
proctype committer(byte me) {
    byte at, epoch, offset;
end:
    do
    :: atomic { held[me] != 0 && due[me] && !IS_RETIRED(page[me]) ->
            due[me] = 0; at = page[me]; epoch = held[me]; offset = position[me] } /* conditions */
#ifdef BUG_COMPARED_BEFORE_LOCKED
        if
        :: owner[at] == epoch
        :: else -> goto refused
        fi;
#endif
        atomic { writer_lock == 0 -> writer_lock = 5 + me }
        if
#ifndef BUG_COMPARED_BEFORE_LOCKED
        :: owner[at] != epoch -> due[me] = due[me] || (owner[at] == GONE && held[me] == epoch); writer_lock = 0; goto refused /* CommitFailedError, or again on the larger page */
#endif
        :: else
        fi;
        atomic {
            assert(truth == epoch);                             /* P11 */
            assert(offset >= committed);                        /* P12 */
            committed = offset; writer_lock = 0
        }
refused: atomic { at = 0; epoch = 0; offset = 0 }
    od
}

proctype fate() {
end:
    do
    :: atomic { deaths > 0 && group_lock == KEEPER -> deaths--; killed = 1; group_lock = 0;
            writer_lock = (writer_lock == KEEPER -> 0 : writer_lock) }
    :: timeout ->                                               /* everybody is alive, and nobody has anything to do */
        assert(owner[path] != 0 && owner[path] != GONE);        /* P9 */
        assert(committed == RECORDS);                           /* P9 */
        break
    od
}

init {
    atomic {
        run keeper(KEEPER);
        run poller(0); run committer(0);
        run poller(1); run committer(1);
        run fate()
    }
}
