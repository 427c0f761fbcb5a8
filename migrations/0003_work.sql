-- Phases of projects, the people who work on them, and in which weeks. Their rules are told in src/domain/phases.rs and
-- src/domain/capacity/.

create table crewcast.phases (
    id         uuid    primary key,
    project_id uuid    not null references crewcast.projects (id) on delete cascade,
    name       text    not null,
    status     text    not null check (status in ('planned', 'active', 'on_hold', 'done')),
    starts_on  date,
    ends_on    date,
    -- Where it stands among the project's phases; two may share a place.
    position   integer not null check (position >= 0),
    version    bigint  not null default 1,
    constraint phases_dates check (ends_on >= starts_on)
);
create index phases_by_position on crewcast.phases (project_id, position, id);

create table crewcast.employees (
    id           uuid          primary key,
    name         text          not null,
    division     text          not null constraint employees_division references crewcast.divisions (slug),
    weekly_hours numeric(5, 2) not null check (weekly_hours between 0 and 168),
    version      bigint        not null default 1
);
create index employees_by_division on crewcast.employees (division, id);

create table crewcast.assignments (
    id          uuid             primary key,
    employee_id uuid             not null references crewcast.employees (id),
    project_id  uuid             not null references crewcast.projects (id),
    -- ISO 8601, such as 2026-W48: as a text it sorts as the time goes.
    week        text collate "C" not null check (week ~ '^[0-9]{4}-W[0-9]{2}$'),
    hours       numeric(5, 2)    not null check (hours between 0 and 168),
    version     bigint           not null default 1,
    constraint assignments_once unique (employee_id, week, project_id)
);
create index assignments_by_project on crewcast.assignments (project_id, id);
create index assignments_by_week on crewcast.assignments (week, id);
