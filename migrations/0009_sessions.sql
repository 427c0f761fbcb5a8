-- Sessions of browsers, which bring a cookie. What their life is, and who ends it, is told in src/auth/session/mod.rs.

create table crewcast.sessions (
    -- SHA-256 of the cookie's value, which is nowhere but with the client. Another one takes its place when they sign in again.
    digest  bytea       primary key check (octet_length(digest) = 32),
    -- Names the session for as long as it lasts.
    id      uuid        not null unique,
    sub     text        not null,
    -- Who it stands for, as the token said that it was made with.
    caller  jsonb       not null,
    -- When that token ends.
    ends_at timestamptz not null
);
create index sessions_by_end on crewcast.sessions (ends_at);
create index sessions_by_sub on crewcast.sessions (sub, ends_at);
