-- What nodes tell each other. Whoever may connect may LISTEN and NOTIFY: a notification carries no more than that there is
-- something, and what it is stands here, where only the owner reads and writes. Gone after a minute, or with a crash: a
-- letter may be lost. How that works is told in src/bus/mod.rs.

create unlogged table crewcast.letters (
    id       bigint      generated always as identity primary key,
    sender   bigint      not null,
    -- One node; null is all others.
    receiver bigint,
    message  text        not null,
    sent_at  timestamptz not null default now()
);
create index letters_by_time on crewcast.letters (sent_at);
