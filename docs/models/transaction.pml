/* Transactions without a server: who decides, who writes markers, who cleans up after whom, what a power cut leaves.
 *
 * One transactional id, two partitions. `owner` is an open instance of the id (transactional_id.py), `completer` any process
 * that has the store open (coordinator.py: settle, finish, _resolve). A change of __transaction_state is one step here: read,
 * decide, and an append that compares the end offset; whoever was overtaken decides again (statelog.py: change). Time-outs are
 * not measured: anybody may find at any moment that a transaction takes too long. A process that is stopped takes no step for a
 * while and then goes on with what it knew. Of what was not synced a power cut leaves any prefix, of each log another one.
 */
#ifndef TRANSACTIONS
#define TRANSACTIONS 2          /* of the first instance; the second one has one, the last */
#endif
#ifndef COMPLETERS
#define COMPLETERS 1
#endif
#ifndef TAKEOVERS
#define TAKEOVERS 2             /* from the living: time-outs; the dead are always looked after */
#endif
#ifndef DEATHS
#define DEATHS 1
#endif
#ifndef CUTS
#define CUTS 0
#endif
#ifndef INSTANCES
#define INSTANCES 1             /* with a power cut the second one is opened after it */
#endif
                                /* RESOLVES: partitions that wait are looked into; always with power cuts */
#define PROCESSES 4             /* owners 0 and 1, completers 2 and 3 */
#define UNSYNCED 3              /* records of one log that may lie in the cache only: the kernel writes the older ones back */

/* --- a record of __transaction_state. `tx` is for the checker: which transaction it is about */
#define EMPTY 0
#define ONGOING 1
#define COMMITS 2               /* PrepareCommit */
#define ABORTS 3                /* PrepareAbort */
#define DONE 4                  /* CompleteCommit, CompleteAbort */
#define RECORD(epoch, status, parts, tx) ((epoch) + 16 * (status) + 128 * (parts) + 512 * (tx))
#define EPOCH(record) ((record) & 15)
#define STATUS(record) (((record) >> 4) & 7)
#define PARTS(record) (((record) >> 7) & 3)
#define TX(record) ((record) >> 9)
#define IS_OPEN(record) (STATUS(record) >= ONGOING && STATUS(record) <= ABORTS)
#define IS_PREPARED(record) (STATUS(record) == COMMITS || STATUS(record) == ABORTS)

/* --- what the records of a partition add up to: epoch seen, and transactions (a bit each) open, committed, aborted */
#define PARTITION(epoch, open, committed, aborted) ((epoch) + 16 * (open) + 256 * (committed) + 4096 * (aborted))
#define OPEN(partition) (((partition) >> 4) & 15)
#define COMMITTED(partition) (((partition) >> 8) & 15)
#define ABORTED(partition) (((partition) >> 12) & 15)
#define BIT(tx) (1 << (tx))

/* --- the logs: as they are, and what else a power cut may leave of each */
short state;
int part[2];
int older[9];                   /* 3 * UNSYNCED */
byte unsynced[3];
/* --- who lives */
bit begun[PROCESSES], killed[PROCESSES];
byte holder;                    /* the process whose turn it is: its transaction, or its decision */
/* --- what only the checker knows; a bit for each transaction */
byte decided, refused;          /* to be committed, to be aborted: as the surviving records say */
byte visible;                   /* a marker has shown some of it to readers, or commit() has returned */
byte wrote[2];                  /* its records were appended to the partition */
byte writer[16];                /* 1 + the instance that has an epoch */
byte deaths = DEATHS, cuts = CUTS, takeovers = TAKEOVERS;

#if CUTS > 0
#define SYNC(log) unsynced[log] = 0; older[(log) * 3] = 0; older[(log) * 3 + 1] = 0; older[(log) * 3 + 2] = 0
inline remember(log, was) {
    if
    :: cuts > 0 ->
        if
        :: unsynced[log] == UNSYNCED -> SYNC(log)
        :: else
        fi;
        older[(log) * 3 + unsynced[log]] = was; unsynced[log]++
    :: else
    fi
}
#else
#define remember(log, was) skip /* without power cuts the disk says nothing: fewer states */
#define SYNC(log) skip
#endif

#ifdef BUG_STATE_APPENDED_UNCONDITIONALLY
#define READ seen = state
#define LOOK skip
#else
#define READ skip
#define LOOK seen = state       /* the append fails when `state` is another one by then, and all starts over */
#endif

/* the append of a state record */
inline append_state() {
    remember(0, state);
    state = next; next = 0;
    holder = me;
    if
    :: IS_PREPARED(state) ->
        assert(!((STATUS(state) == COMMITS -> refused : decided) & BIT(TX(state)))); /* P13 */
        decided = decided | (STATUS(state) == COMMITS -> BIT(TX(state)) : 0);
        refused = refused | (STATUS(state) == ABORTS -> BIT(TX(state)) : 0)
    :: else
    fi
}

/* a marker; it has the epoch and the outcome of `marker`, and no transaction when it belongs to no decision. Where the partition has seen a newer epoch it is refused */
inline append_marker(p, marker) {
    if
    :: EPOCH(part[p]) > EPOCH(marker) -> skip
    :: else ->
        remember(1 + p, part[p]);
        ends = OPEN(part[p]);
        if
        :: STATUS(marker) == COMMITS ->
            assert(ends < 2 * BIT(TX(marker)));                         /* P16: records of a later transaction */
            assert(!(ends & ~BIT(TX(marker))));                         /* P17: records that an earlier instance left */
            visible = visible | ends
        :: else ->
            assert(!(ends & visible));                          /* P15 */
            assert(!(ends & decided));                          /* P16: records of a transaction that is decided otherwise */
            assert(!(STATUS(state) == ONGOING && (PARTS(state) & (1 << p)) && (ends & BIT(TX(state))))) /* P16: ... and of one that is going on */
        fi;
        part[p] = PARTITION(EPOCH(marker), 0, COMMITTED(part[p]) | (STATUS(marker) == COMMITS -> ends : 0), ABORTED(part[p]) | (STATUS(marker) == COMMITS -> 0 : ends));
        assert(!((COMMITTED(part[0]) | COMMITTED(part[1])) & (ABORTED(part[0]) | ABORTED(part[1])))); /* P14 */
        ends = 0
    fi
}

/* coordinator.py: finish. Markers of what was decided here, then that all are there, unless somebody took over */
inline finish(prepared) {
#ifdef BUG_COMPLETED_BEFORE_MARKED
    complete(prepared);
#endif
    if
    :: PARTS(prepared) & 1 -> d_step { append_marker(0, prepared) }
    :: else
    fi;                                                         /* transaction.marked */
    if
    :: PARTS(prepared) & 2 -> d_step { append_marker(1, prepared) }
    :: else
    fi;
#ifndef BUG_COMPLETED_BEFORE_MARKERS_SYNCED
    if
    :: STATUS(prepared) == COMMITS -> d_step { SYNC(1); SYNC(2) } /* else they are lost, and nobody writes them again */
    :: else
    fi;
#endif
#ifndef BUG_COMPLETED_BEFORE_MARKED
    complete(prepared)                                          /* transaction.completed */
#else
    skip
#endif
}

inline complete(prepared) {
    READ;
    atomic {
        LOOK;
        if
        :: seen == prepared -> next = RECORD(EPOCH(seen), DONE, 0, TX(seen)); append_state()
        :: else
        fi;
        seen = 0
    }
}

/* states.py: prepared(by_owner=False). The next epoch, so that markers of one epoch have one writer */
inline take_over() {
    READ;
    atomic {
        LOOK;
        if
        :: IS_OPEN(seen) ->
#ifdef BUG_TAKEN_OVER_WITH_THE_SAME_EPOCH
            mine = RECORD(EPOCH(seen) + (STATUS(seen) == ONGOING), (STATUS(seen) == COMMITS -> COMMITS : ABORTS), PARTS(seen), TX(seen));
#else
            mine = RECORD(EPOCH(seen) + 1, (STATUS(seen) == COMMITS -> COMMITS : ABORTS), PARTS(seen), TX(seen));
#endif
#ifdef BUG_DECISION_IS_CHANGED
            mine = RECORD(EPOCH(seen) + 1, ABORTS, PARTS(seen), TX(seen));
#endif
            next = mine; append_state()
        :: else
        fi;
        seen = 0
    }
    if
    :: mine != 0 -> d_step { SYNC(0) } /* transaction.decided */
    :: else
    fi
}

#define FENCED(epoch) (EPOCH(seen) != (epoch))

/* transactional_id.py: enter_partitions, then the producer's first batch there */
inline enter(p) {
    if
    :: !(touched & (1 << p)) ->
        touched = touched | (1 << p);
#ifndef BUG_LEFTOVERS_NOT_CLEARED
        if
        :: atomic { OPEN(part[p]) != 0 ->                       /* _clear */
#ifdef BUG_LEFTOVERS_CLEARED_WITH_THEIR_EPOCH
                mine = RECORD((EPOCH(part[p]) > epoch -> EPOCH(part[p]) : epoch), ABORTS, 0, 0);
#else
                mine = RECORD(epoch, ABORTS, 0, 0);
                if
                :: EPOCH(part[p]) > epoch -> goto fenced
                :: else
                fi;
#endif
                append_marker(p, mine); mine = 0
            }
        :: OPEN(part[p]) == 0
        fi
#endif
    :: else
    fi;
#ifdef BUG_DATA_BEFORE_ENTERED
    put(p);
#endif
    READ;
    atomic {
        LOOK;
        if
        :: FENCED(epoch) -> seen = 0; goto fenced
        :: else -> parts = parts | (1 << p); next = RECORD(EPOCH(seen), ONGOING, parts, tx); append_state(); seen = 0
        fi
    }
#ifndef BUG_ONGOING_NOT_SYNCED
    if
    :: parts == (1 << p) -> d_step { SYNC(0) } /* the first one: nothing of it is on disk before it is known */
    :: else
    fi;
#endif
#ifndef BUG_DATA_BEFORE_ENTERED
    put(p)
#endif
}

inline put(p) {
    atomic {                                                    /* transaction.entered */
        if
#ifndef BUG_OLD_EPOCH_NOT_REFUSED
        :: EPOCH(part[p]) > epoch -> goto fenced
#endif
        :: else ->
            assert(writer[epoch] == 1 + me);                    /* P17: an epoch is one instance's */
            remember(1 + p, part[p]);
            part[p] = PARTITION(epoch, OPEN(part[p]) | BIT(tx), COMMITTED(part[p]), ABORTED(part[p]));
            wrote[p] = wrote[p] | BIT(tx)
        fi
    }
}

proctype owner(byte me) {
    short seen, mine, next;
    byte epoch, tx, parts, touched, ends;
    bit commits;
    {
        skip;
#if CUTS > 0
        atomic { me == 0 || cuts == 0 -> begun[me] = 1 }
#else
        begun[me] = 1;
#endif
open:   /* coordinator.py: open */
        take_over();
        if
        :: mine != 0 -> finish(mine); mine = 0; goto open
        :: else
        fi;
        READ;
        atomic {
            LOOK;
            if
            :: IS_OPEN(seen) -> seen = 0; goto open
            :: else ->
#ifdef BUG_OPENED_WITH_THE_SAME_EPOCH
                epoch = (EPOCH(seen) == 0 -> 1 : EPOCH(seen));
#else
                epoch = EPOCH(seen) + 1;
#endif
                next = RECORD(epoch, EMPTY, 0, TX(seen)); append_state(); writer[epoch] = 1 + me; seen = 0
            fi
        }
        d_step { SYNC(0) } /* transaction.opened */
        tx = (me == 0 -> 0 : TRANSACTIONS);
        do
        :: tx < (me == 0 -> TRANSACTIONS : TRANSACTIONS + 1) ->
            atomic { tx++; parts = 0 }
            enter(0);
            if
            :: enter(1)
            :: tx > 1                                           /* the first one has both */
            fi;
            if
            :: commits = 1
#ifndef BUG_DATA_NOT_SYNCED
                ; d_step { SYNC(1); SYNC(2) } /* transaction.synced */
#endif
            :: commits = 0
            fi;
            READ;
            atomic {
                LOOK;
                if
                :: FENCED(epoch) -> seen = 0; goto fenced
                :: else ->
                    mine = RECORD(EPOCH(seen) + 1 - commits, (commits -> COMMITS : ABORTS), PARTS(seen), TX(seen));
                    next = mine; append_state(); seen = 0
                fi
            }
#ifndef BUG_MARKED_BEFORE_DECISION_SYNCED
            if
            :: commits -> d_step { SYNC(0) } /* transaction.decided */
            :: !commits
            fi;
#endif
            finish(mine);
            READ;
            atomic {
                /* commit() returns; _finish: may this instance go on? */
                if
                :: commits -> visible = visible | BIT(tx)
                :: else
                fi;
                LOOK;
                if
                :: STATUS(seen) == DONE && EPOCH(seen) == EPOCH(mine) -> epoch = EPOCH(seen); writer[epoch] = 1 + me
                :: STATUS(seen) == DONE && EPOCH(seen) == EPOCH(mine) + 1 -> /* _resume: others completed it */
                    epoch = EPOCH(seen) + 1; next = RECORD(epoch, EMPTY, 0, TX(seen)); append_state(); writer[epoch] = 1 + me
                :: else -> seen = 0; goto fenced
                fi;
                mine = 0; seen = 0; commits = 0
            }
        :: else -> break
        od;
fenced: skip
    } unless {
        killed[me]
    };
    atomic { begun[me] = 0; killed[me] = 0; seen = 0; mine = 0; next = 0; epoch = 0; tx = 0; parts = 0; touched = 0; ends = 0; commits = 0 }
}

proctype completer(byte me) {
    short seen, mine, next;
    int found;
    byte ends, p;
end:
    do
    :: {
        skip;
end_idle:
        do
        :: atomic { IS_OPEN(state) && (takeovers > 0 || !begun[holder]) ->
                takeovers = takeovers - (begun[holder] -> 1 : 0); begun[me] = 1 }
            take_over();
            if
            :: mine != 0 -> finish(mine)
            :: else
            fi;
            atomic { mine = 0; begun[me] = 0 }
#if CUTS > 0 || defined(RESOLVES)
        /* _resolve: in a partition that waits. End and open transactions first, the state after them */
        :: atomic { me == 2 && (OPEN(part[0]) || OPEN(part[1])) ->
                p = (OPEN(part[0]) -> 0 : 1);
                if
                :: OPEN(part[0]) && OPEN(part[1]) -> p = 1
                :: skip
                fi;
                found = part[p]
            }
            if
            :: atomic { IS_OPEN(state) && (PARTS(state) & (1 << p)) -> goto known }
            :: atomic { !(IS_OPEN(state) && (PARTS(state) & (1 << p))) }
            fi;
            atomic {
                if
#ifndef BUG_RESOLVER_DOES_NOT_COMPARE
                :: part[p] == found
#else
                :: true
#endif
                    -> mine = RECORD(EPOCH(found), ABORTS, 0, 0); append_marker(p, mine); mine = 0
                :: else
                fi
            }
known:      atomic { found = 0; p = 0 }
#endif
        od
        } unless {
            atomic { killed[me]; begun[me] = 0; killed[me] = 0; seen = 0; mine = 0; next = 0; found = 0; ends = 0; p = 0 }
        }
    od
}

#if CUTS > 0
inline lose(log, now) {
    /* what is there, or what was there before one of the records that were not synced */
    if
    :: skip
    :: unsynced[log] > 0 -> now = older[(log) * 3]
    :: unsynced[log] > 1 -> now = older[(log) * 3 + 1]
    :: unsynced[log] > 2 -> now = older[(log) * 3 + 2]
    fi;
    SYNC(log)
}
#endif

#define HAS(p) (OPEN(part[p]) | COMMITTED(part[p]))

proctype fate() {
end:
    do
    :: atomic { deaths > 0 && begun[0] && !killed[0] -> deaths--; killed[0] = 1; begun[0] = 0 }
    :: atomic { deaths > 0 && begun[2] && !killed[2] -> deaths--; killed[2] = 1; begun[2] = 0 }
#if CUTS > 0
    :: atomic { cuts > 0 -> cuts--;
            killed[0] = begun[0]; killed[1] = begun[1]; killed[2] = 1; killed[3] = (COMPLETERS == 2);
            begun[0] = 0; begun[1] = 0; begun[2] = 0; begun[3] = 0;
            lose(0, state); lose(1, part[0]); lose(2, part[1]);
            /* decisions that nobody has heard of are gone with their records */
            decided = decided & (STATUS(state) == EMPTY || STATUS(state) == ONGOING -> BIT(TX(state) + (STATUS(state) == EMPTY)) - 1 : 2 * BIT(TX(state)) - 1);
            refused = refused & (STATUS(state) == EMPTY || STATUS(state) == ONGOING -> BIT(TX(state) + (STATUS(state) == EMPTY)) - 1 : 2 * BIT(TX(state)) - 1);
            assert(!(visible & ~decided));                      /* P15: the decision */
            assert(!(visible & wrote[0] & ~HAS(0)) && !(visible & wrote[1] & ~HAS(1))) /* P15: the records */
        }
#endif
    :: timeout ->                                               /* everybody is done: nothing may be left over */
        assert(!IS_OPEN(state));                                /* P9 */
        assert(!OPEN(part[0]) && !OPEN(part[1]));               /* P9: the last stable offset stands still */
        assert(!(visible & wrote[0] & ~COMMITTED(part[0])) && !(visible & wrote[1] & ~COMMITTED(part[1]))); /* P15 */
        assert(!(refused & (COMMITTED(part[0]) | COMMITTED(part[1])))); /* P17 */
        break
    od
}

init {
    atomic {
        run owner(0);
#if INSTANCES == 2
        run owner(1);
#endif
        run completer(2);
#if COMPLETERS == 2
        run completer(3);
#endif
        run fate()
    }
}
