-- Comments on projects. Their rules are told in src/domain/comments.rs.

create table crewcast.comments (
    id             uuid        primary key,
    project_id     uuid        not null references crewcast.projects (id) on delete cascade,
    author_id      text        not null,
    body           text        not null,
    mentions       text[]      not null,
    version        bigint      not null default 1,
    field_versions jsonb       not null default '{}',
    created_at     timestamptz not null default now(),
    updated_at     timestamptz not null default now()
);
create index comments_by_project on crewcast.comments (project_id, id);
