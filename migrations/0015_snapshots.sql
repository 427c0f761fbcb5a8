-- Sets of transactions that are too long for an id: kept here, and named in the ids. How is told in src/log/named.rs.

-- One more than the highest id of a set, from its text: the number that the text begins with. A digit has five bits of
-- it, lowest first, and one that says whether another digit follows.
create function crewcast.snapshot_xmax(snapshot text)
    returns bigint
    language plpgsql
    immutable strict parallel safe
    set search_path = pg_catalog, pg_temp
as $$
declare
    digits constant text := 'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_';
    xmax   bigint := 0;
    digit  bigint;
begin
    for nth in 0..12 loop
        digit := strpos(digits, substr(snapshot, nth + 1, 1)) - 1;
        xmax := xmax | ((digit & 31) << (5 * nth));
        exit when digit < 32;
    end loop;
    return xmax;
end
$$;

create table crewcast.snapshots (
    -- Made of the text, so that every node gives the same set the same name.
    name     text        primary key,
    snapshot text        not null,
    end_id   bigint      not null generated always as (crewcast.snapshot_xmax(snapshot)) stored,
    kept_at  timestamptz not null default now()
);
create index snapshots_by_end on crewcast.snapshots (end_id);
