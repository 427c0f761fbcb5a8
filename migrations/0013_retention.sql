-- What the log lets go of. How that works is told in src/log/retention.rs.

-- Positions noted from time to time, each of which includes the one before: `nth` is their order. Their times are not: the
-- clock may have been set back between two of them.
alter table crewcast.marks rename to marks_by_time;
create table crewcast.marks (
    nth      bigint      generated always as identity primary key,
    at       timestamptz not null,
    -- In the text form of a snapshot.
    position text        not null,
    -- Events of this position that the one before lacks; of the floor's own mark none.
    events   bigint      not null
);
insert into crewcast.marks (at, position, events) select at, position, events from crewcast.marks_by_time order by at;
drop table crewcast.marks_by_time;

-- How far the deletion of what lies below the floor has come. Nobody but retention reads or locks it.
create table crewcast.retention (
    one     boolean     primary key default true check (one),
    -- The node whose turn it is, and when it last did something.
    node    bigint,
    at      timestamptz not null default '-infinity',
    -- Everything of this set of transactions is deleted, in the text form of a snapshot ('B' is none of them).
    swept   text        not null default 'B',
    -- What is being deleted, a position that was the floor when that began: done are its transactions below `xact`, and of
    -- that one the events up to `seq`.
    target  text        not null default 'B',
    xact    bigint      not null default 0,
    seq     bigint      not null default 0,
    -- Events that the floor has passed, and events that were deleted.
    passed  bigint      not null default 0,
    deleted bigint      not null default 0
);
insert into crewcast.retention default values;

-- What is deleted makes room for what comes: vacuum looks often, so that no table grows by more than a small part of what it
-- holds. The end of a table is never cut off, since everybody would wait for that.
alter table crewcast.events set (
    autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_threshold = 1000, vacuum_truncate = off,
    toast.autovacuum_vacuum_scale_factor = 0.05, toast.autovacuum_vacuum_threshold = 1000, toast.vacuum_truncate = off);
alter table crewcast.event_rooms set (
    autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_threshold = 1000, vacuum_truncate = off);
alter table crewcast.commits set (
    autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_threshold = 1000, vacuum_truncate = off);
