-- The event log. What each table is for, and why reading it is exact, is told in src/log/mod.rs.

-- Which Postgres cluster counts the transactions of this log, and how far its count is shifted so that it never
-- goes back when the log moves to another one. Publishers read it; it changes only when a log is adopted.
create table crewcast.cluster (
    one   boolean primary key default true check (one),
    sysid bigint  not null,
    ofs   bigint  not null check (ofs >= 0)
);

-- What is true of the whole log. Publishers never read it, so nothing here can make one wait.
create table crewcast.log (
    one      boolean primary key default true check (one),
    -- Made with the log, and anew whenever positions of before can no longer be trusted.
    epoch    text not null check (epoch ~ '^[a-z0-9]{1,16}$'),
    -- The cluster's WAL timeline: it changes when a standby is promoted.
    timeline text not null,
    -- The oldest position that can still be resumed, in the text form of a snapshot ('B' has seen nothing).
    floor    text not null default 'B'
);

-- One row for each transaction that has published: what a reader asks "which transactions are new to me".
create table crewcast.commits (
    xact bigint primary key
);

create sequence crewcast.event_seq as bigint cache 1;

create table crewcast.events (
    seq         bigint      primary key,
    xact        bigint      not null,
    at          timestamptz not null,
    type        text        not null,
    rooms       text[]      not null,
    data        json        not null,
    version     bigint,
    mutation_id text
);
create index events_by_xact on crewcast.events (xact, seq);

-- The events of each room, by the hash of its name: a table of names would make a publisher that uses a new room
-- hold up the next one that does.
create table crewcast.event_rooms (
    room bigint not null,
    xact bigint not null,
    seq  bigint not null,
    primary key (room, xact, seq)
);

-- Positions noted from time to time, in the text form of a snapshot: the floor is one of them, and the history of a
-- room is read from one to the next.
create table crewcast.marks (
    at       timestamptz primary key,
    position text        not null,
    -- Events that were routed since the mark before.
    events   bigint      not null
);

insert into crewcast.cluster (sysid, ofs)
    select system_identifier, 0 from pg_control_system();
insert into crewcast.log (epoch, timeline)
    select left(gen_random_uuid()::text, 8), substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8);
insert into crewcast.marks (at, position, events) values (clock_timestamp(), 'B', 0);

-- Appends one event to the log inside the caller's transaction; returns its seq. The one way into the log.
--
-- Call it after the rows that the event speaks of were written: their locks, held to the commit, are what puts the
-- seqs of two events about one row into the order of their commits.
create function crewcast.append(rooms text[], type text, data json, version bigint, mutation_id text)
    returns bigint
    language plpgsql
    security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    home crewcast.cluster;
    xact bigint;
    seq  bigint;
begin
    select * into strict home from crewcast.cluster;
    -- A restored log must not be appended to before it was adopted: this cluster may count from far below. Asking
    -- the cluster who it is costs a tenth of an insert, so a session asks once and remembers.
    if current_setting('crewcast.sysid', true) is distinct from home.sysid::text then
        if (select system_identifier from pg_control_system()) <> home.sysid then
            raise exception 'crewcast: this event log was written by another Postgres cluster'
                using errcode = 'object_not_in_prerequisite_state',
                      hint = 'Start crewcast on this database, or run "crewcast epoch new": either adopts the log.';
        end if;
        perform set_config('crewcast.sysid', home.sysid::text, false);
    end if;
    -- What a reader sees must survive a crash; the trigger below says it again at commit.
    if current_setting('synchronous_commit') = 'off' then
        perform set_config('synchronous_commit', 'on', true);
    end if;
    xact := pg_current_xact_id()::text::bigint + home.ofs;
    -- Not "if not exists (select ..)": under SERIALIZABLE that select makes publishers fail one another.
    insert into crewcast.commits values (xact) on conflict do nothing;
    seq := nextval('crewcast.event_seq');
    insert into crewcast.events values (seq, xact, clock_timestamp(), type, rooms, data, version, mutation_id);
    -- Two names of one event may share a hash.
    insert into crewcast.event_rooms
        select hashtextextended(room, 0), xact, seq from unnest(rooms) room
        on conflict do nothing;
    return seq;
end
$$;

-- Raises synchronous_commit again at the last moment, for a transaction that lowered it after it published.
create function crewcast.commit_durably()
    returns trigger
    language plpgsql
    security definer
    set search_path = pg_catalog, pg_temp
as $$
begin
    if current_setting('synchronous_commit') = 'off' then
        perform set_config('synchronous_commit', 'on', true);
    end if;
    return null;
end
$$;
create constraint trigger commit_durably
    after insert on crewcast.commits
    deferrable initially deferred
    for each row execute function crewcast.commit_durably();

-- Publishes a custom event from SQL, inside the caller's own transaction: it goes out if and when that commits.
-- Returns the event's seq. Checks what the server checks of a posted event.
create function crewcast.publish(rooms text[], type text, data json)
    returns bigint
    language plpgsql
    security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    wrong text;
begin
    if rooms is null or array_ndims(rooms) is distinct from 1 or array_position(rooms, null) is not null then
        raise exception 'crewcast: rooms must be a list of names' using errcode = 'invalid_parameter_value';
    end if;
    -- Each room once, in the order given.
    rooms := array(select room from unnest(rooms) with ordinality as given (room, nth) group by room order by min(nth));
    if cardinality(rooms) > 20 then
        raise exception 'crewcast: an event goes to at most 20 rooms, not %', cardinality(rooms)
            using errcode = 'invalid_parameter_value';
    end if;
    select room into wrong from unnest(rooms) room
        where room !~ ('^(company|division:[a-z0-9-]{1,64}'
            || '|project:[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}'
            || '|user:[A-Za-z0-9._@|:+~-]{1,128}|topic:[A-Za-z0-9._-]{1,128})$')
        limit 1;
    if wrong is not null then
        raise exception 'crewcast: % is not the name of a room', quote_literal(left(wrong, 200))
            using errcode = 'invalid_parameter_value',
                  hint = 'Rooms are company, division:{slug}, project:{uuid}, user:{sub} and topic:{name}.';
    end if;
    if type is null or type !~ '^[a-z0-9-]+:[a-z0-9_.-]+$' or octet_length(type) > 64 then
        raise exception 'crewcast: % is not the name of an event', quote_nullable(left(type, 200))
            using errcode = 'invalid_parameter_value', hint = 'Names look like erp:synced and have at most 64 bytes.';
    end if;
    if split_part(type, ':', 1) in ('capacity', 'project', 'phase', 'alert', 'comment', 'preferences', 'membership',
                                    'presence', 'typing', 'stream') then
        raise exception 'crewcast: events named %:.. are made by crewcast alone', split_part(type, ':', 1)
            using errcode = 'invalid_parameter_value';
    end if;
    if data is null or json_typeof(data) <> 'object' then
        raise exception 'crewcast: data must be a JSON object' using errcode = 'invalid_parameter_value';
    end if;
    if octet_length(data::text) > 1048576 then
        raise exception 'crewcast: data has % bytes, more than 1 MiB', octet_length(data::text)
            using errcode = 'invalid_parameter_value';
    end if;
    -- Reading the keys also refuses what json stores but no reader could decode: \u0000 and lone surrogates.
    if exists (select from json_object_keys(data) name where name = 'meta') then
        raise exception 'crewcast: "meta" is added by crewcast, data must not have it'
            using errcode = 'invalid_parameter_value';
    end if;
    return crewcast.append(rooms, type, data, null, null);
end
$$;

-- Whoever may publish is the operator's to say: grant usage on the schema and execute on crewcast.publish.
revoke all on function crewcast.append(text[], text, json, bigint, text) from public;
revoke all on function crewcast.commit_durably() from public;
revoke all on function crewcast.publish(text[], text, json) from public;
