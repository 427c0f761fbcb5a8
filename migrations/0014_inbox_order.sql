-- An inbox opens behind the last alert there is: the turn, which its person's first row takes as an acknowledgement does, puts
-- the two in order, and no clock does.
create or replace function crewcast.open_inbox()
    returns trigger
    language plpgsql
    set search_path = pg_catalog, pg_temp
as $$
begin
    lock table crewcast.alert_turns in share mode;
    insert into crewcast.inboxes
        select new.sub, coalesce((select max(number) from crewcast.alerts), 0)
        on conflict do nothing;
    return null;
end
$$;
