-- Divisions, projects and who works on them. Their rules are told in src/domain/projects.rs and divisions.rs.

create table crewcast.divisions (
    slug    text   primary key,
    name    text   not null,
    version bigint not null default 1
);

create table crewcast.projects (
    id         uuid        primary key,
    name       text        not null,
    division   text        not null constraint projects_division references crewcast.divisions (slug),
    status     text        not null check (status in ('planned', 'active', 'on_hold', 'done')),
    starts_on  date,
    ends_on    date,
    notes      text        not null,
    version    bigint      not null default 1,
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now(),
    -- A deleted project keeps its row: its room stays readable until `retention` has passed.
    deleted_at timestamptz,
    constraint projects_dates check (ends_on >= starts_on)
);
create index projects_by_division on crewcast.projects (division, id);

create table crewcast.members (
    project_id uuid not null references crewcast.projects (id) on delete cascade,
    sub        text not null,
    role       text not null check (role in ('viewer', 'editor')),
    primary key (project_id, sub)
);
create index members_by_sub on crewcast.members (sub, project_id);
