-- Tickets for streams. What their life is, and who moves it on, is told in src/auth/ticket/mod.rs.

create table crewcast.tickets (
    -- SHA-256 of the ticket: itself it is nowhere but with the client.
    digest     bytea       primary key check (octet_length(digest) = 32),
    sub        text        not null,
    -- Who it stands for, as the token said that it was made with.
    caller     jsonb       not null,
    good_until timestamptz not null,
    -- When that token ends.
    ends_at    timestamptz not null,
    constraint tickets_end check (good_until <= ends_at)
);
create index tickets_by_end on crewcast.tickets (good_until);
create index tickets_by_sub on crewcast.tickets (sub, good_until);
