-- Where the log is at home. A copy of it must be noticed, whoever made it and however, before anything is published to it:
-- its positions end where it was made, and what came after that is gone or somebody else's.
alter table crewcast.cluster
    -- A copy that Postgres makes file by file (`create database .. template`) is another database.
    add column database oid not null default 0,
    -- The transaction that wrote this row. A copy that was restored from a dump was written by another one.
    add column written xid not null default '0';

-- A log that is older may be such a copy already: then whoever starts next adopts it.
update crewcast.cluster
    set database = (select oid from pg_database where datname = current_database()), written = pg_current_xact_id()::xid
    where not exists (select from crewcast.commits);

-- The epochs of before, newest first, and those that nodes had gone on to when the log was set back to before them: a
-- node that comes with one of these has been told of already.
alter table crewcast.log
    add column former text[] not null default '{}';

create or replace function crewcast.append(rooms text[], type text, data json, version bigint, mutation_id text)
    returns bigint
    language plpgsql
    security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    home record;
    xact bigint;
    seq  bigint;
begin
    select sysid, ofs, database, written, xmin as writer into strict home from crewcast.cluster;
    -- A restored log must not be appended to before it was adopted: its cluster may count from far below, and its epoch is
    -- that of another log. Asking the cluster who it is costs a tenth of an insert, so a session asks once and remembers;
    -- who wrote the row is known with it.
    if home.writer <> home.written
            or current_setting('crewcast.home', true) is distinct from home.sysid || '/' || home.database then
        if home.writer <> home.written
                or home.database <> (select oid from pg_database where datname = current_database())
                or home.sysid <> (select system_identifier from pg_control_system()) then
            raise exception 'crewcast: this event log was written by another Postgres cluster, or is a copy'
                using errcode = 'object_not_in_prerequisite_state',
                      hint = 'Start crewcast on this database, or run "crewcast epoch new": either adopts the log.';
        end if;
        perform set_config('crewcast.home', home.sysid || '/' || home.database, false);
    end if;
    -- A reader waits for the disk before it shows anything; it waits for less when the commit has.
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
