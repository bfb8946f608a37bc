#!/bin/sh
# The hotplug script of `cargo lab ends`. `add` makes a device that is there outside of the store too,
# `remove` reads which one it was and deletes it. A file in closed/ stops it at the point of that name.
#
# It keeps to what a script can be asked for: told to end before it has reported, it deletes what it
# made; what it has reported is for `remove` to delete.
action=$1
here=${0%/*}
image=$here/image
kind=$(cat "$here/kind")
reported=

log() {
    echo "$*" >>"$here/log"
}

gate() {
    [ -e "$here/closed/$action-$1" ] || return 0
    : >"$here/reached/$action-$1"
    while [ -e "$here/closed/$action-$1" ]; do
        sleep 0.05
    done
}

devices() {
    if [ "$kind" = loop ]; then
        losetup --associated "$image" --noheadings --output NAME
    else
        ls -d "$here"/devices/* 2>/dev/null
    fi
}

make() {
    if [ "$kind" = loop ]; then
        losetup --find --show "$image"
    else
        : >"$here/devices/$$" && echo "$here/devices/$$"
    fi
}

number() {
    if [ "$kind" = loop ]; then stat -c %t:%T "$1"; else echo 7:0; fi
}

# Deletes a device if it is still the one of this image: its name may be another's by now.
delete() {
    devices | grep -qxF "$1" || return 0
    if [ "$kind" = loop ]; then losetup --detach "$1"; else rm -f "$1"; fi
}

end() {
    log "end $action $$"
    rm -f "$here/running/$$"
    exit "$1"
}

undo() {
    if [ "$action" = add ] && [ -z "$reported" ]; then
        for device in $(devices); do delete "$device"; done
    fi
    end "$1"
}

: >"$here/running/$$"
log "begin $action $$"
if [ -e "$here/stubborn" ]; then
    trap '' HUP INT TERM
else
    trap 'log "told to end: $action $$"; undo 143' HUP INT TERM
fi
# One that has died has no command line, also as long as nobody has reaped it.
for file in "$here"/running/*; do
    pid=${file##*/}
    [ "$pid" = $$ ] || ! grep -qaF "$here/script" "/proc/$pid/cmdline" 2>/dev/null ||
        log "beside: $action $$ runs while $pid does"
done

gate begun
case $action in
add)
    node=$(make) || undo 1
    gate midway
    xenstore-write "$XENBUS_PATH/node" "$node" \
        "$XENBUS_PATH/physical-device" "$(number "$node")" \
        "$XENBUS_PATH/physical-device-path" "$node" \
        "$XENBUS_PATH/hotplug-status" connected || undo 1
    reported=yes
    gate reported
    ;;
remove)
    if node=$(xenstore-read "$XENBUS_PATH/node"); then
        delete "$node" || undo 1
    else
        # Nothing was reported, unless it cannot be read.
        xenstore-exists "$XENBUS_PATH" || undo 1
    fi
    gate midway
    ;;
esac
end 0
