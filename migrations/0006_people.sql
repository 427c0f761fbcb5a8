-- The people who use the service, as their tokens name them, and how they want to be told of things. Employees are others:
-- those are planned, these look on. The rules are told in src/domain/people.rs and preferences.rs.

create table crewcast.people (
    sub        text        primary key,
    name       text,
    avatar_url text,
    -- What their last token said of them: whoever is away is judged by it.
    roles      text[]      not null,
    divisions  text[]      not null,
    topics     text[]      not null,
    first_seen timestamptz not null,
    last_seen  timestamptz not null
);

create table crewcast.preferences (
    sub     text   primary key,
    data    json   not null,
    version bigint not null default 1
);
