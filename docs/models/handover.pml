/* Handing partitions over in a consumer group without a server: members, the table, and who may change what.
 *
 * MEMBERS processes, two partitions. The document (who is a member by which number, who should have what) changes under the
 * group's lock (table.py: update); numbers and owners are words that change under the writer lock of the group's partition of
 * __consumer_offsets (appending.pyx: exchange), one after the other, with death between any two. Members act when they are
 * polled, by a document of any age. Who is stopped takes no step for a while. The page is replaced in fenced_commit.pml.
 */
#ifndef MEMBERS
#define MEMBERS 2
#endif
#ifndef DEATHS
#define DEATHS 1
#endif
#ifndef EVICTIONS
#define EVICTIONS 1             /* for too long without a poll */
#endif
#ifndef LEAVES
#define LEAVES 0
#endif

/* --- the page: a number for each row (here: each process), and for each partition its owner's number */
byte seat[3], owner[2];
/* --- its document */
byte number[3], target[2], next_number = 1;
/* --- the kernel: locks are 1 + who has them */
byte group_lock, writer_lock;
bit alive[3], killed[3];
/* --- members: the number, and partitions that are held (a bit each); whether there is a document that was not read */
byte own[3], held[3];
bit news[3];
byte deaths = DEATHS, evictions = EVICTIONS, leaves = LEAVES;

#ifdef BUG_NO_GROUP_LOCK
#define LOCK_GROUP skip         /* the second one just goes on */
#else
#define LOCK_GROUP atomic { group_lock == 0 -> group_lock = 1 + me }
#endif
#define LOCK_WRITER atomic { writer_lock == 0 -> writer_lock = 1 + me }
#define UNLOCK_WRITER writer_lock = 0
#define IS_KEPT(n) (((n) == keep[0] && keep[0]) || ((n) == keep[1] && keep[1]) || ((n) == keep[2] && keep[2]))
/* table.py: _why_gone */
#define IS_GONE(i) (number[i] != 0 && (seat[i] != number[i] || !alive[i]))
#define IS_DEAD(i) (number[i] != 0 && !alive[i])
#define SAME_NUMBER(i) (i != me && seat[i] == fresh)
#define IS_FREE(p) (((want >> p) & 1) && !((held[me] >> p) & 1) && owner[p] == 0)
#define HOLDS(p) ((held[me] >> p) & 1)

inline clear_seat(i) {
    if
    :: seat[i] != 0 && !IS_KEPT(seat[i]) -> seat[i] = 0
    :: else
    fi
}
inline clear_owner(p) {
    if
    :: owner[p] != 0 && !IS_KEPT(owner[p]) -> owner[p] = 0
    :: else
    fi
}

/* table.py: strip. All that is nobody's any more */
inline strip() {
    LOCK_WRITER;
#ifdef BUG_OWNERS_STRIPPED_BEFORE_NUMBERS
    clear_owner(0); clear_owner(1);
    UNLOCK_WRITER;
    LOCK_WRITER;
#endif
    clear_seat(0); clear_seat(1); clear_seat(2);
#ifndef BUG_OWNERS_STRIPPED_BEFORE_NUMBERS
    clear_owner(0); clear_owner(1);
#endif
    UNLOCK_WRITER                                               /* group.stripped */
}

/* table.py: compute_targets, by number of members; then the document is there for all */
inline publish() {
    d_step {
        number[0] = keep[0]; number[1] = keep[1]; number[2] = keep[2];
        if
        :: fresh != 0 -> next_number = fresh + 1
        :: else
        fi;
        target[0] = (keep[0] -> keep[0] : (keep[1] -> keep[1] : keep[2]));
        target[1] = (keep[2] -> keep[2] : (keep[1] -> keep[1] : keep[0]));
        news[0] = 1; news[1] = 1; news[2] = 1
    }                                                           /* group.published */
}

/* table.py: update. `joins`, `goes`: what is done to the draft, that is `keep` */
inline update(joins, goes) {
    LOCK_GROUP;
    d_step {
        /* _bury */
        keep[0] = (IS_GONE(0) -> 0 : number[0]); keep[1] = (IS_GONE(1) -> 0 : number[1]); keep[2] = (IS_GONE(2) -> 0 : number[2]);
        if
        :: joins || goes -> keep[me] = 0
        :: else
        fi
    }
    if
    :: atomic { evictions > 0 && keep[(me + 1) % MEMBERS] != 0 -> evictions--; keep[(me + 1) % MEMBERS] = 0 }
    :: skip
    fi;
#ifdef BUG_DOCUMENT_BEFORE_WORDS
    publish();
#endif
    strip();
    if
    :: joins ->
        fresh = next_number;
        LOCK_WRITER;
        atomic {
#if MEMBERS == 3
            assert(!SAME_NUMBER(0) && !SAME_NUMBER(1) && !SAME_NUMBER(2)); /* P10: numbers are never given twice */
#else
            assert(!SAME_NUMBER(0) && !SAME_NUMBER(1));         /* P10: numbers are never given twice */
#endif
            seat[me] = fresh; UNLOCK_WRITER                     /* group.seated */
        }
        keep[me] = fresh; own[me] = fresh
    :: else
    fi;
    publish();
    atomic { group_lock = 0; keep[0] = 0; keep[1] = 0; keep[2] = 0; fresh = 0 }
}

inline take(p) {
    if
    :: free & (1 << p) ->
        atomic {
            assert(owner[p] == 0);                              /* P10: nobody is the owner */
            assert(seat[me] == own[me]);                        /* P10: only members get in */
            owner[p] = own[me]
        }
    :: else
    fi
}

inline commit(p) {
    if
    :: HOLDS(p) ->
        LOCK_WRITER;
        atomic {
            if
#ifndef BUG_COMMIT_NOT_COMPARED
            :: owner[p] != own[me] -> skip                      /* CommitFailedError */
#endif
            :: else -> assert(owner[p] == own[me])              /* P11 */
            fi;
            UNLOCK_WRITER
        }
    :: else
    fi
}

inline let_go(p) {
    if
    :: going & (1 << p) ->
        LOCK_WRITER;
        atomic {
            if
#ifndef BUG_RELEASE_NOT_COMPARED
            :: owner[p] != own[me] -> skip
#endif
            :: else -> assert(owner[p] == own[me]); owner[p] = 0 /* P10: of somebody else */
            fi;
            held[me] = held[me] & ~(1 << p); UNLOCK_WRITER      /* group.released */
        }
    :: else
    fi
}

proctype member(byte me) {
    byte keep[3], fresh, want, free, going;
    do
    :: {
        skip;
        alive[me] = 1;
join:   update(true, false);
end_idle:
        do
        /* membership.py: poll, _follow. Nothing new: nothing to do */
        :: atomic { news[me] || seat[me] != own[me] ||
#ifndef BUG_WAITS_FOR_THE_NEXT_DOCUMENT
                IS_FREE(0) || IS_FREE(1)
#else
                false
#endif
                ->
                news[me] = 0; want = (target[0] == own[me]) + 2 * (target[1] == own[me]);
                if
                :: number[me] != own[me] || seat[me] != own[me] -> held[me] = 0; want = 0; goto join /* _rejoin */
                :: else
                fi;
                held[me] = held[me] & ((owner[0] == own[me]) + 2 * (owner[1] == own[me])); /* _drop_lost */
                going = held[me] & ~want
            }
            if
            :: commit(0); commit(1)                             /* what was handled, late */
            :: skip
            fi;
            let_go(0); let_go(1);
            /* _take */
            free = IS_FREE(0) + 2 * IS_FREE(1);
            if
            :: free ->
#ifdef BUG_TAKER_COMPARES_BEFORE_LOCKED
                if
                :: atomic { seat[me] != own[me] || ((free & 1) && owner[0] != 0) || ((free & 2) && owner[1] != 0) -> free = 0 }
                :: else
                fi;
#endif
                LOCK_WRITER;
                atomic {
                    if
#ifdef BUG_TAKER_DOES_NOT_COMPARE_OWN_NUMBER
                    :: ((free & 1) && owner[0] != 0) || ((free & 2) && owner[1] != 0) -> free = 0
#elif !defined(BUG_TAKER_COMPARES_BEFORE_LOCKED)
                    :: seat[me] != own[me] || ((free & 1) && owner[0] != 0) || ((free & 2) && owner[1] != 0) -> free = 0
#endif
                    :: else
                    fi
                }
                take(0); take(1);
                atomic { UNLOCK_WRITER; held[me] = held[me] | free } /* group.taken */
            :: else
            fi;
            atomic { free = 0; going = 0 }
        /* the watcher of this process: somebody died, or has not polled for too long */
        :: atomic { IS_DEAD(0) || IS_DEAD(1) || IS_DEAD(2) || evictions > 0 }
            update(false, false)
        :: atomic { leaves > 0 -> leaves-- }
            held[me] = 0;
            update(false, true);
            break
        od;
        atomic { alive[me] = 0; own[me] = 0; held[me] = 0; want = 0 };
        break
        } unless {
            atomic { killed[me]; killed[me] = 0; own[me] = 0; held[me] = 0; keep[0] = 0; keep[1] = 0; keep[2] = 0; fresh = 0; want = 0; free = 0; going = 0 }
        };
        if
        :: skip                                                 /* a new member in its place */
        :: break
        fi
    od
}

#define IS_WELL(p) (owner[p] != 0 && owner[p] == target[p] && (owner[p] == seat[0] || owner[p] == seat[1] || owner[p] == seat[2]))

inline die(i) {
    deaths > 0 && alive[i] -> deaths--; alive[i] = 0; killed[i] = 1;
    group_lock = (group_lock == i + 1 -> 0 : group_lock); writer_lock = (writer_lock == i + 1 -> 0 : writer_lock)
}

proctype fate() {
end:
    do
    :: atomic { die(0) }
    :: atomic { die(1) }
    :: timeout ->                                               /* everybody is alive and has nothing to do */
        assert((!alive[0] && !alive[1] && !alive[2]) || (IS_WELL(0) && IS_WELL(1))); /* P9 */
        break
    od
}

init {
    atomic {
        run member(0);
        run member(1);
#if MEMBERS == 3
        run member(2);
#endif
        run fate()
    }
}
