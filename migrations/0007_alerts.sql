-- Accounts, the rules that watch over them, alerts, and who has acknowledged which. Their rules are told in src/domain/alerts/.

create table crewcast.accounts (
    id             text           collate "C" primary key,
    name           text           not null,
    division       text           constraint accounts_division references crewcast.divisions (slug),
    balance        numeric(14, 2) not null default 0,
    version        bigint         not null default 1,
    field_versions jsonb          not null default '{}'
);

create table crewcast.alert_rules (
    id             uuid           primary key,
    account_id     text           not null constraint alert_rules_account references crewcast.accounts (id),
    below          numeric(14, 2) not null,
    severity       text           not null check (severity in ('info', 'warning', 'critical')),
    audience       text[]         not null,
    -- Whether the balance is at or above: only then can it fall below.
    armed          boolean        not null,
    version        bigint         not null default 1,
    field_versions jsonb          not null default '{}'
);
create index alert_rules_by_account on crewcast.alert_rules (account_id, id);

-- Holds no rows: it is there to be locked. Whoever raises an alert or acknowledges some takes it before and holds it to the
-- commit, each in a mode that only goes together with its own kind.
create table crewcast.alert_turns ();

create table crewcast.alerts (
    -- Drawn after the lock: what is raised after an acknowledgement has a higher one than all that it could see.
    number     bigint           generated always as identity primary key,
    id         uuid             not null unique,
    kind       text             not null,
    severity   text             not null check (severity in ('info', 'warning', 'critical')),
    title      text             not null,
    body       text             not null,
    -- What it tells of, by name: an alert outlives all of them.
    project_id uuid,
    division   text,
    account_id text,
    value      double precision,
    threshold  double precision,
    created_at timestamptz      not null default clock_timestamp()
);
create index alerts_by_age on crewcast.alerts (created_at);

-- The alerts of each room of their audience, and under * of everybody who may join every room but other people's.
create table crewcast.alert_rooms (
    room   text   collate "C" not null,
    number bigint not null references crewcast.alerts on delete cascade,
    primary key (room, number)
);
create index alert_rooms_by_number on crewcast.alert_rooms (number);

create table crewcast.acknowledgements (
    sub    text   not null,
    number bigint not null,
    primary key (sub, number)
);
create index acknowledgements_by_number on crewcast.acknowledgements (number);

-- An inbox holds what was raised after its person was first seen.
create table crewcast.inboxes (
    sub   text   primary key,
    -- The alert that was the last one then.
    after bigint not null
);

-- Up to where each room of a person was sorted: what was not acknowledged of that stands in unread, by the same room. So to
-- count costs what is unread, and not what was ever raised.
create table crewcast.sorted (
    sub  text   not null,
    room text   collate "C" not null,
    upto bigint not null,
    primary key (sub, room)
);
create index sorted_by_upto on crewcast.sorted (upto);

create table crewcast.unread (
    sub    text   not null,
    room   text   collate "C" not null,
    number bigint not null,
    primary key (sub, room, number)
);
create index unread_by_number on crewcast.unread (number);

-- Opens the inbox of somebody who is new. Nobody raises an alert meanwhile, so all that was raised before is visible, and
-- what comes has a higher number, whatever the clocks say.
create function crewcast.open_inbox()
    returns trigger
    language plpgsql
    set search_path = pg_catalog, pg_temp
as $$
begin
    lock table crewcast.alert_turns in share mode;
    insert into crewcast.inboxes
        select new.sub, coalesce((select number from crewcast.alerts where created_at < new.first_seen
                                  order by created_at desc limit 1), 0)
        on conflict do nothing;
    return null;
end
$$;
create trigger open_inbox
    after insert on crewcast.people
    for each row execute function crewcast.open_inbox();

insert into crewcast.inboxes select sub, 0 from crewcast.people;
