/* Presence: who lives, which control page is believed, who closes the log.
 *
 * HANDLES handles open, append, close and die at any step, again and again, without a bound on how often they open. The
 * machine may lose power, somebody may delete the control file. The record data is a length only: append.pml has its
 * bytes. README.md beside this file says which line stands for which step of the engine.
 */
#ifndef HANDLES
#define HANDLES 3
#endif
#ifndef APPENDS
#define APPENDS 2               /* appends begun, all handles together */
#endif
#ifndef DEATHS
#define DEATHS 2                /* kill -9 of one handle, at any step */
#endif
#ifndef MORTALS
#define MORTALS DEATHS          /* handles are alike: with one death it is enough that the first one can die */
#endif
#ifndef CUTS
#define CUTS 1                  /* power cuts */
#endif
#ifndef DELETIONS
#define DELETIONS 1             /* the control file deleted by an outsider */
#endif

#define PAGES 6                 /* 0 is "none"; each handle and the name hold one at most, and one is fresh */
#define NONE 0
#define SHARED 1
#define EXCLUSIVE 2

/* --- the kernel's locks: a handle's are let go one after another, in any order, after its death */
byte folder[HANDLES];           /* flock on the folder */
byte attached[HANDLES];         /* page on whose byte 0 the handle holds a read lock */
byte writing[HANDLES];          /* page whose writer lock the handle holds */
/* --- the folder */
byte path;                      /* page that the name .fastlog-control leads to; a page stands for inode and instance id */
bit marker, marker_on_disk;     /* .fastlog-clean: as seen by name, and after a power cut */
byte marker_end;                /* the end that it names */
byte end_in_cache, end_on_disk; /* length of the data */
/* --- the control pages */
byte published[PAGES];
bit dirty[PAGES];
bit unmarked[PAGES];            /* this session's first append has removed the marker */
/* --- what only the checker knows */
byte page[HANDLES];             /* page that the handle has mapped */
byte live[HANDLES];             /* page that the handle works with */
bit killed[HANDLES];
bit inside[HANDLES];            /* between taking the writer lock and letting it go */
byte acknowledged, acknowledged_durable;
byte appends = APPENDS, deaths = DEATHS, cuts = CUTS, deletions = DELETIONS;

#define OTHER(i) ((i) != me && folder[i] != NONE)
#define OTHER_EX(i) ((i) != me && folder[i] == EXCLUSIVE)
#define ATTACHED(i) ((i) != me && attached[i] == page[me])
#define WRITING(i) ((i) != me && writing[i] == page[me])
#define INSIDE(i) ((i) != me && inside[i])
#define LIVE_ELSEWHERE(i) ((i) != me && live[i] != 0 && live[i] != page[me])
#define USED(i, n) (page[i] == n || attached[i] == n || writing[i] == n)
#if HANDLES == 3
#define ANY(what) (what(0) || what(1) || what(2))
#define IS_FREE(n) (path != n && !USED(0, n) && !USED(1, n) && !USED(2, n))
#else
#define ANY(what) (what(0) || what(1))
#define IS_FREE(n) (path != n && !USED(0, n) && !USED(1, n))
#endif

#ifdef PROGRESS
byte rounds[HANDLES];           /* how often one opening has started over */
#define PAUSE atomic { timeout -> rounds[me]++; assert(rounds[me] <= 3) };
#define rounds_end() rounds[me] = 0
#else
#define PAUSE                   /* a random time: as short as can be */
#define rounds_end() skip
#endif

inline fresh_page() {
    if
    :: IS_FREE(1) -> page[me] = 1
    :: else -> if
        :: IS_FREE(2) -> page[me] = 2
        :: else -> if
            :: IS_FREE(3) -> page[me] = 3
            :: else -> if
                :: IS_FREE(4) -> page[me] = 4
                :: else -> page[me] = 5
                fi
            fi
        fi
    fi
}

/* a page that nobody can reach any more says nothing: fewer states */
inline forget(n) {
    if
    :: n != 0 && IS_FREE(n) -> published[n] = 0; dirty[n] = 0; unmarked[n] = 0
    :: else
    fi
}

inline let_go_of_page() {
    d_step { was = page[me]; page[me] = 0; forget(was); was = 0 }
}

inline unlink_page() {
    d_step { was = path; path = 0; forget(was); was = 0 }
}

inline cut_to_published() {
    end_in_cache = published[page[me]];
    assert(end_in_cache >= acknowledged);                       /* P3 */
    dirty[page[me]] = 0
}

proctype handle(byte me) {
    byte was;
    do
    :: {
        skip;
begin:
        /* ---- opening: LOCK_EX | LOCK_NB on the folder */
        atomic {
            if
            :: !ANY(OTHER) -> folder[me] = EXCLUSIVE; goto sole
            :: else -> goto refused
            fi
        }

sole:   /* granted: nobody lives */
#ifdef BUG_OLD_PAGE_BELIEVED
        if
        :: atomic { path != 0 -> page[me] = path; goto to_shared }
        :: path == 0
        fi;
#endif
        unlink_page();                                          /* open.page_unlinked */
        /* recovery from disk; a marker is believed without a look at the data */
        d_step {
            assert(!marker || (marker_end == end_in_cache && end_on_disk == end_in_cache)); /* P6 */
            assert(end_in_cache >= acknowledged);               /* P3 */
#ifndef BUG_RECOVERY_DOES_NOT_SYNC
            marker_on_disk = marker;                            /* folder and files are synced */
            end_on_disk = end_in_cache
#endif
        }                                                       /* open.recovered */
        d_step {
            fresh_page();
            published[page[me]] = end_in_cache; dirty[page[me]] = 0; unmarked[page[me]] = !marker;
            attached[me] = page[me];                            /* while nobody can know the page yet */
            path = page[me]                                     /* open.page_written: rename */
        }
        goto to_shared;
to_shared:                                                      /* EX to SH, which is not atomic */
        folder[me] = NONE;
        atomic { !ANY(OTHER_EX) -> folder[me] = SHARED }        /* open.shared */
        atomic {
            if
#ifndef BUG_NO_RECHECK_AFTER_SHARED
            :: path != page[me] -> attached[me] = 0; goto again
#endif
            :: else -> goto attach
            fi
        }

refused:
#ifdef BUG_PAGE_READ_BEFORE_SHARED
        page[me] = path;
#endif
        atomic { !ANY(OTHER_EX) -> folder[me] = SHARED }
        atomic {
#ifndef BUG_PAGE_READ_BEFORE_SHARED
            page[me] = path;
#endif
            if
#ifdef BUG_MISSING_PAGE_IS_MADE
            :: page[me] == 0 ->
                fresh_page();
                published[page[me]] = end_in_cache; dirty[page[me]] = 0; unmarked[page[me]] = !marker;
                path = page[me]; goto attach
#else
            :: page[me] == 0 -> goto again
#endif
            :: else
            fi;
#if !defined(BUG_ATTACHED_WITHOUT_EVIDENCE) && !defined(BUG_EVIDENCE_AFTER_OWN_LOCK)
            if
            :: ANY(ATTACHED)                                    /* F_OFD_GETLK: somebody else lives on this page */
            :: else -> goto again
            fi
#endif
        }
#ifdef BUG_EVIDENCE_AFTER_OWN_LOCK
        attached[me] = page[me];
        atomic {
            if
            :: ANY(ATTACHED)
            :: else -> attached[me] = 0; goto again
            fi
        }
#endif

attach: atomic {
            attached[me] = page[me];                            /* open.attached */
            live[me] = page[me];
            assert(!ANY(LIVE_ELSEWHERE));                       /* P2 */
            assert(published[page[me]] <= end_in_cache);        /* P4 */
            assert(dirty[page[me]] || published[page[me]] >= acknowledged); /* P3 */
            rounds_end();
            goto working
        }

again:  /* start over: nothing is held while waiting */
        atomic {
#ifndef BUG_PRESENCE_KEPT_WHILE_WAITING
            folder[me] = NONE;
#endif
            let_go_of_page()
        }
        PAUSE                                                   /* P9 */
        goto begin;

working:
        do
        :: atomic {
                appends > 0 && !ANY(WRITING) -> appends--; writing[me] = page[me]; inside[me] = 1;
                assert(!ANY(INSIDE))                            /* P1 */
            }                                                   /* append.locked */
            atomic {
                if
                :: dirty[page[me]] -> cut_to_published()        /* takeover */
                :: else
                fi;
                assert(published[page[me]] == end_in_cache);    /* P4 */
                if
                :: unmarked[page[me]] -> goto writes
                :: else -> marker = 0
                fi
            }
            atomic { marker_on_disk = 0; marker_end = 0; unmarked[page[me]] = 1 } /* the folder is synced */
writes:     atomic {
                dirty[page[me]] = 1;                            /* append.dirty */
                end_in_cache++;                                 /* append.written */
                assert(!marker && !marker_on_disk)              /* P6 */
            }
            atomic {
                published[page[me]]++; acknowledged = published[page[me]]; /* append.published */
                dirty[page[me]] = 0;
#if CUTS > 0
                if
                :: end_on_disk = end_in_cache; acknowledged_durable = acknowledged
                :: skip
                fi
#endif
            }
            atomic { writing[me] = 0; inside[me] = 0 }          /* append.unlocked */
        :: break
        od;

        /* ---- closing: SH to EX, which is not atomic, and loses SH when it is refused */
        atomic {
            live[me] = 0;
#ifdef BUG_MARKED_WITHOUT_EXCLUSIVE
            goto mark
#else
            folder[me] = NONE
#endif
        }
        atomic {
            if
            :: !ANY(OTHER) -> folder[me] = EXCLUSIVE            /* close.exclusive */
            :: else -> goto closed
            fi
        }
        atomic {
            if
#ifndef BUG_CLOSER_DOES_NOT_RECHECK
            :: path != page[me] -> goto closed                  /* others came and went since: not ours to judge */
#endif
            :: else
            fi;
#ifndef BUG_MARKED_BEFORE_UNLINKED
            unlink_page()
#endif
        }
mark:   atomic {
#ifndef BUG_CLOSER_IGNORES_DIRTY
            if
            :: dirty[page[me]] -> cut_to_published()
            :: else
            fi;
#endif
#ifndef BUG_MARKED_BEFORE_SYNC
            end_on_disk = end_in_cache                          /* close.synced */
#endif
        }
        atomic {
            marker = 1; marker_on_disk = 1; marker_end = published[page[me]]; /* close.marked */
            assert(marker_end == end_in_cache && end_on_disk == end_in_cache); /* P6 */
            assert(!ANY(INSIDE))                                /* P6 */
        }
#ifdef BUG_MARKED_BEFORE_UNLINKED
        unlink_page();
#endif
closed:
        atomic { attached[me] = 0; folder[me] = NONE; let_go_of_page() }
        } unless {
            /* dead: the kernel closes the descriptors in an order that nobody promises */
            killed[me];
            do
            :: folder[me] != NONE -> folder[me] = NONE
            :: attached[me] != 0 -> attached[me] = 0
            :: writing[me] != 0 -> writing[me] = 0
            :: folder[me] == NONE && attached[me] == 0 && writing[me] == 0 -> break
            od;
            atomic { killed[me] = 0; let_go_of_page(); rounds_end() }
        }
#ifdef PROGRESS
        ; if
        :: skip
        :: break
        fi
#endif
    od
}

#define HAS_BEGUN(i) (page[i] != 0 || folder[i] != NONE || attached[i] != 0)

inline die(i) {
    deaths > 0 && HAS_BEGUN(i) && !killed[i] -> deaths--; killed[i] = 1; live[i] = 0; inside[i] = 0
}
inline lose(i) {
    killed[i] = 1; live[i] = 0; inside[i] = 0; folder[i] = NONE; attached[i] = 0; writing[i] = 0; page[i] = 0
}

proctype fate() {
    byte n;
end:
    do
#ifdef PROGRESS
    :: break                                                    /* nothing more happens to anybody */
#endif
    :: atomic { die(0) }
#if MORTALS >= 2
    :: atomic { die(1) }
#endif
#if MORTALS >= 3
    :: atomic { die(2) }
#endif
    :: atomic { deletions > 0 && path != 0 -> deletions--; n = path; path = 0; forget(n); n = 0 }
    :: atomic {
        /* power is lost: of what was not synced any prefix stays, of the page anything */
        cuts > 0 -> cuts--;
        lose(0); lose(1);
#if HANDLES == 3
        lose(2);
#endif
        n = 1;
        do
        :: n < PAGES -> published[n] = 0; dirty[n] = 0; unmarked[n] = 0; n++
        :: else -> break
        od;
        n = 0;
        do
        :: end_in_cache > end_on_disk -> end_in_cache--
        :: break
        od;
        acknowledged = acknowledged_durable;
        if
        :: marker = marker_on_disk
        :: marker_on_disk = marker
        fi;
        if
        :: path = 0
        :: path = 1;
            if
            :: published[1] = 0
            :: published[1] = end_in_cache
            :: published[1] = end_in_cache + 1
            fi;
            if
            :: dirty[1] = 0
            :: dirty[1] = 1
            fi;
            if
            :: unmarked[1] = 0
            :: unmarked[1] = 1
            fi
        fi
    }
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
