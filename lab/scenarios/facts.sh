# What the hypervisor tells of a guest that is paused, shut down or destroyed, and how a detach from it ends.
# needs xendev
. ./common.sh
plan 53

attach() { # NAME: a disk that the guest uses
    expect_exit 0 "$1-attached" xendev block-attach "$DOMID" "$DISK"
    check "$1-connected" "both ends are not in state 4" wait_until 20 both_ends_connected "$DOMID" vbd "$DISK_ID"
}

detach() { # STATUS NAME [OPTION...]: detaches the disk; MS is how long it took
    local status=$1 name=$2 start=${EPOCHREALTIME/./}
    shift 2
    expect_exit "$status" "$name" xendev block-detach -v "$@" "$DOMID" xvda
    MS=$(((${EPOCHREALTIME/./} - start) / 1000))
    echo "TIMING $MS $name"
    show_output
}

xl_shows() { # PATTERN: the column State of xl list is like that
    xl list "$DOMID" 2> "$LAB/xl.err" | awk 'NR == 2 { print $(NF - 1) }' | grep -q "^$1\$"
}

frontend_is_there() { xenstore-exists "/local/domain/$DOMID/device/vbd/$DISK_ID"; }

nothing_is_left() { # NAME
    check "$1-nodes-gone" "LX is there" eval "! xenstore-exists /libxl/$DOMID/device/vbd/$DISK_ID"
    check "$1-backend-gone" "BE is there" eval "! xenstore-exists /local/domain/0/backend/vbd/$DOMID/$DISK_ID"
    check "$1-no-loop-device" "losetup -a: $(losetup -a)" no_loop_device
}

# A guest that is over has no 10 s to answer in.
at_once() { check "$1-at-once" "it took $MS ms" test "$MS" -lt 9000; }

is_closing() { [ "$(xenstore-read "/local/domain/0/backend/vbd/$DOMID/$DISK_ID/state" 2> "$ERR")" = 5 ]; }

PRESERVED='on_poweroff = "preserve"
on_crash = "preserve"'

xl info | grep '^xen_\(version\|major\|minor\)\|^release' | indent
check guest-started "see above" guest_start g /guest/initrd sysrq_always_enabled "$PRESERVED"
DOMID=$(guest_domid g)

### Paused: it is asked, and the report says why it did not answer.

attach paused
xl pause "$DOMID"
check paused-in-xl "xl list: $(xl list)" xl_shows '..p...'
detach 3 paused-detach-timed-out
expect_stderr 'the hypervisor tells of domains (interface version 0x1' paused-by-hypercalls
expect_stderr 'the guest is paused' paused-told
expect_stderr "xl unpause $DOMID" paused-hint
check paused-had-its-time "it took $MS ms" test "$MS" -ge 10000
check b6-paused-keeps-its-frontend "FE is gone" frontend_is_there
xl unpause "$DOMID"
detach 0 unpaused-detached
nothing_is_left unpaused

### Without hypercalls it is not known, and not said.

attach unknown
xl pause "$DOMID"
mv /dev/xen/privcmd /dev/xen/privcmd.away
detach 3 unknown-detach-timed-out --timeout 1
mv /dev/xen/privcmd.away /dev/xen/privcmd
expect_stderr 'the store tells of domains' unknown-by-the-store
check unknown-is-not-said "it says so" eval '! grep -q "guest is paused" "$ERR"'
xl unpause "$DOMID"
detach 0 unknown-detached

### Crashed, and still there: its frontend stands at 4 for ever. (One that is switched off closes its devices first.)

attach crashed
xl sysrq "$DOMID" c
check crashed-in-xl "xl list: $(xl list)" wait_until 30 xl_shows '...sc.'
check crashed-is-introduced "the store does not know it" xenstore-exists "/local/domain/$DOMID/name"
detach 0 crashed-detached
at_once crashed
expect_stderr 'without the guest' crashed-told
nothing_is_left crashed
xl destroy "$DOMID"

### Switched off, and still there.

check second-started "see above" guest_start g /guest/initrd "" "$PRESERVED"
DOMID=$(guest_domid g)
attach off
xl shutdown "$DOMID"
check off-in-xl "xl list: $(xl list)" wait_until 30 xl_shows '...s-.'
detach 0 off-detached
at_once off
nothing_is_left off
xl destroy "$DOMID"

### Destroyed while it is waited for.

check third-started "see above" guest_start g
DOMID=$(guest_domid g)
attach destroyed
xl pause "$DOMID"
xendev block-detach -v --timeout 60 "$DOMID" xvda > "$LAB/destroyed.out" 2>&1 &
DETACH=$!
check destroyed-is-asked "the backend is not told to close" wait_until 20 is_closing
xl destroy "$DOMID"
SECONDS=0
wait "$DETACH"
check destroyed-detached "xendev ended with another status than 0" test $? = 0
indent < "$LAB/destroyed.out"
check destroyed-at-once "it took $SECONDS s" test "$SECONDS" -lt 9
nothing_is_left destroyed

### B-39: what a toolstack that died left of a domain that is gone. libxl cannot remove it.

BACKEND=/local/domain/0/backend/vbd/$DOMID/$DISK_ID
FRONTEND=/local/domain/$DOMID/device/vbd/$DISK_ID
xenstore-write "$BACKEND/frontend" "$FRONTEND" "$BACKEND/frontend-id" "$DOMID" "$BACKEND/online" 1 "$BACKEND/state" 1 \
    "$BACKEND/params" "$IMAGE" "$BACKEND/script" /etc/xen/scripts/block "$BACKEND/mode" w \
    "$FRONTEND/backend" "$BACKEND" "$FRONTEND/backend-id" 0 "$FRONTEND/state" 4 \
    "/libxl/$DOMID/device/vbd/$DISK_ID/backend" "$BACKEND" "/libxl/$DOMID/device/vbd/$DISK_ID/frontend" "$FRONTEND" \
    "/libxl/$DOMID/device/vbd/$DISK_ID/script" /etc/xen/scripts/block \
    "/libxl/$DOMID/device/vbd/$DISK_ID/params" "$IMAGE"
sleep 2
xenstore-ls -f "/local/domain/0/backend/vbd" | indent
detach 0 b39-detached
at_once b39
nothing_is_left b39
