#!/usr/bin/env bash
# Follows a stream for ever with nothing but curl: $1 is its address, $2 a token.
# Prints a line for each event, its type and its data, and comes back with the last id. Whenever curl ends it prints
# `ended` and curl's exit code.
id=
while :; do
    event='' data='' next=$id
    while IFS= read -r line; do
        case $line in
            'event: '*) event=${line#event: } ;;
            'id: '*) next=${line#id: } ;;
            'data: '*) data=${line#data: } ;;
            '') # The event is whole: only now it has arrived, and its id with it.
                id=$next
                printf '%s %s\n' "$event" "$data" ;;
        esac
    done < <(curl -sfN "$1" -H "Authorization: Bearer $2" ${id:+-H "Last-Event-ID: $id"})
    wait $!
    printf 'ended %s\n' $?
    sleep 0.2
done
