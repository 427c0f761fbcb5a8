-- Who is where, as each node says it of its own streams. Nothing here is worth its log: after a crash the tables are empty
-- and every node writes its part again. How that works is told in src/hub/presence/mod.rs.

create unlogged table crewcast.nodes (
    key     bigint      primary key,
    name    text        not null,
    -- Grows while the node lives.
    beat    bigint      not null,
    -- The last batch of its streams that was written.
    batch   bigint      not null,
    -- Whether it said good-bye: its streams have graces, and no lease is waited for.
    ended   boolean     not null,
    -- For the sweep, and for a node that starts: of one that it knows it sees by its beat whether it is dead.
    beat_at timestamptz not null default now()
);

create unlogged table crewcast.presence (
    stream        uuid   primary key,
    -- What a dead node wrote is swept with it: one that was only away finds that, and writes everything again.
    node          bigint not null references crewcast.nodes (key) on delete cascade,
    -- The batch in which the row was written last.
    batch         bigint not null,
    sub           text   not null,
    name          text,
    avatar_url    text,
    rooms         text[] not null,
    is_idle       boolean not null,
    -- What its client reported last, and its place among the reports of all streams; none when it has not.
    stamp         bigint,
    viewing       text,
    editing_room  text,
    editing_field text,
    -- Until when a stream counts that has closed.
    ends_at       timestamptz
);
create index presence_by_end on crewcast.presence (node, ends_at) where ends_at is not null;
create index presence_by_batch on crewcast.presence (node, batch);
