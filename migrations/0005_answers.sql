-- What makes writes safe to repeat and to merge. The rules are told in src/web/mutation.rs and src/web/etag.rs.

-- The first answer to each request that its client named, so that a repeat gets it again.
create table crewcast.answers (
    sub         text        not null,
    key         text        not null,
    -- SHA-256 of method, address and body.
    fingerprint bytea       not null,
    status      smallint    not null,
    location    text,
    version     bigint,
    body        bytea       not null,
    made_at     timestamptz not null default now(),
    primary key (sub, key)
);
create index answers_by_age on crewcast.answers (made_at);

-- Makes this transaction the only one under way for a request, and says whether it is. Another one is waited for a moment:
-- one that was given up may not be rolled back yet.
create function crewcast.claim_request(sub text, key text)
    returns boolean
    language plpgsql
    set search_path = pg_catalog, pg_temp
as $$
declare
    patience constant text := current_setting('lock_timeout');
begin
    perform set_config('lock_timeout', '100ms', true);
    perform pg_advisory_xact_lock(hashtextextended(sub || ' ' || key, 0));
    perform set_config('lock_timeout', patience, true);
    return true;
exception when lock_not_available then
    return false;
end
$$;

-- The version at which each field last changed. A field that is not named has been as it is from the beginning; of rows
-- that were changed before this was noted, every field counts as changed with the last version.
alter table crewcast.projects add field_versions jsonb not null default '{}';
alter table crewcast.phases add field_versions jsonb not null default '{}';
alter table crewcast.employees add field_versions jsonb not null default '{}';
alter table crewcast.assignments add field_versions jsonb not null default '{}';
update crewcast.projects set field_versions = jsonb_build_object('name', version, 'division', version, 'status', version,
    'startsOn', version, 'endsOn', version, 'notes', version) where version > 1;
update crewcast.phases set field_versions = jsonb_build_object('name', version, 'status', version, 'startsOn', version,
    'endsOn', version, 'position', version) where version > 1;
update crewcast.employees set field_versions = jsonb_build_object('name', version, 'division', version,
    'weeklyHours', version) where version > 1;
update crewcast.assignments set field_versions = jsonb_build_object('employeeId', version, 'projectId', version,
    'week', version, 'hours', version) where version > 1;
