# xendev attaches, lists and detaches real devices, leaves the same trees as xl, and fails cleanly.
# needs xendev
. ./common.sh
plan 95

expect_explained() { # NAME: the last error message has its three parts, each at the beginning of a line
    local part missing=
    for part in 'error: ' '  observed: ' '  hint: '; do
        grep -q "^$part" "$ERR" || missing="$missing $part"
    done
    [ -z "$missing" ] || show_output
    check "$1-explained" "parts missing on standard error:$missing" test -z "$missing"
}

expect_failure() { # STATUS NAME COMMAND...: fails with that status and a full message, and leaves no trace
    local status=$1 name=$2
    shift 2
    expect_exit "$status" "$name" "$@"
    expect_explained "$name"
    expect_store "$BEFORE" "$name-store-as-before"
    tidy
}

same_list() { # COMMAND: xendev's list is byte for byte that of xl
    limited xl "$1" g
    mv "$OUT" "$LAB/$1.xl"
    limited xendev "$1" g
    expect_same "$LAB/$1.xl" "$OUT" "$1-as-xl"
}

json_list() { # COMMAND WORD: the list as JSON contains the word (the lab checks the syntax)
    limited xendev "$1" --json g
    artifact "$1.json" "$OUT"
    check "$1-json" "no $2 in the JSON" grep -q "$2" "$OUT"
}

tidy() { # so that one failure does not make all later checks fail
    store_is "$BEFORE" || { xl block-detach -f g xvda; xl network-detach g 0; } > "$OUT" 2>&1
}

no_process() { # ARGUMENTS: none runs with this command line
    local file words
    for file in /proc/[0-9]*/cmdline; do
        mapfile -d '' words < "$file"
        [ "${words[*]}" != "$1" ] || return 1
    done 2> "$LAB/gone" # processes that end while we look
}

### Attach, list, detach.

check guest-started "see above" guest_start g
BEFORE=$LAB/before.store
store_dump "$BEFORE"
DOMID=$(guest_domid g)

attach_both xendev g main
guest_sees g blk xvda main-guest-sees-disk
guest_sees g net eth0 main-guest-sees-nic
check main-nic-on-bridge "vif$DOMID.0 is no port of xenbr0" test -e "/sys/class/net/xenbr0/brif/vif$DOMID.0"
same_list block-list
same_list network-list
json_list block-list "$DISK_ID"
json_list network-list "$MAC"
detach_both xendev g main
guest_lacks g blk xvda main-guest-lacks-disk
guest_lacks g net eth0 main-guest-lacks-nic
expect_store "$BEFORE" main-store-as-before
expect_no_leftovers main

### Devices of one tool in the hands of the other.

attach_both xl g xl-then-xendev
expect_exit 0 xl-then-xendev-disk-detached xendev block-detach "$DOMID" xvda
expect_exit 0 xl-then-xendev-nic-detached xendev network-detach "$DOMID" "$MAC"
expect_store "$BEFORE" xl-then-xendev-store-as-before
expect_no_leftovers xl-then-xendev

attach_both xendev "$DOMID" xendev-then-xl
detach_both xl g xendev-then-xl
expect_store_but_copies "$BEFORE" xendev-then-xl-store-as-before
expect_no_leftovers xendev-then-xl

### The trees of both tools.

for tool in xl xendev; do
    attach_both "$tool" g "trees-$tool"
    sleep 1
    store_dump "$LAB/trees-$tool.store"
    artifact "trees-$tool.store" "$LAB/trees-$tool.store"
    detach_both "$tool" g "trees-$tool"
done
expect_same_trees "$LAB/trees-xl.store" "$LAB/trees-xendev.store"
expect_store "$BEFORE" trees-store-as-before

### Hotplug scripts that fail.

hotplug_script block-fail << 'EOT'
#!/bin/bash
[ "$1" = add ] || exit 0
xenstore-write "$XENBUS_PATH/hotplug-error" "the lab refuses this disk"
exit 1
EOT
expect_failure 1 script-fails xendev block-attach g "script=block-fail,$DISK"
expect_stderr "the lab refuses this disk" script-fails-is-quoted

hotplug_script block-hang << 'EOT'
#!/bin/bash
[ "$1" = add ] || exit 0
sleep 600 &
touch /tmp/lab/block-hang.started
sleep 600
EOT
expect_failure 3 script-hangs xendev block-attach --script-timeout 3 g "script=block-hang,$DISK"
check script-hangs-started "the script did not start its child" test -e "$LAB/block-hang.started"
check script-hangs-no-process "a process of the script is still there" no_process "sleep 600"

### A backend that is not there.

rmmod xen-blkback
expect_failure 3 no-backend xendev block-attach --backend-timeout 4 g "$DISK"
expect_stderr blkback no-backend-is-named
modprobe xen-blkback

### A guest that does not answer.

xl pause g
expect_failure 3 paused-attach xendev block-attach --wait connected --connect-timeout 4 g "$DISK"
xl unpause g
guest_lacks g blk xvda paused-attach-guest-lacks-disk
expect_no_leftovers paused-attach

expect_exit 0 paused-detach-prepared xendev block-attach --wait connected g "$DISK"
xl pause g
expect_exit 3 paused-detach xendev block-detach --timeout 4 g xvda
expect_explained paused-detach
xl unpause g
expect_exit 0 paused-detach-later xendev block-detach g xvda
expect_store "$BEFORE" paused-detach-store-as-before
guest_lacks g blk xvda paused-detach-guest-lacks-disk
expect_no_leftovers paused-detach

expect_exit 0 forced-detach-prepared xendev block-attach --wait connected g "$DISK"
xl pause g
expect_exit 0 forced-detach xendev block-detach -f --timeout 4 g xvda
expect_store "$BEFORE" forced-detach-store-as-before
xl unpause g
guest_lacks g blk xvda forced-detach-guest-lacks-disk
expect_no_leftovers forced-detach

### Requests that cannot be met.

expect_failure 1 no-such-domain xendev block-attach 77 "$DISK"
expect_failure 2 bad-disk-spec xendev block-attach g "format=bogus,vdev=xvda,access=rw,target=$IMAGE"
expect_failure 1 no-such-disk xendev block-detach g xvda
expect_failure 1 no-such-nic xendev network-detach g 0
expect_exit 2 usage xendev block-attach g

### How long it takes. The tools take turns, so that a change of the host's load hits both.

all_worked=true
both() { # TOOL
    timed "$1 block-attach" "$1" block-attach g "$DISK" || all_worked=false
    # shellcheck disable=SC2086 # several words
    timed "$1 network-attach" "$1" network-attach g $NIC || all_worked=false
    wait_until 20 both_connected "$DOMID" || all_worked=false
    timed "$1 block-detach" "$1" block-detach g xvda || all_worked=false
    timed "$1 network-detach" "$1" network-detach g 0 || all_worked=false
}
for _ in 1 2 3; do
    both xl
    both xendev
done
check timed-commands-worked "see above" "$all_worked"
expect_store "$BEFORE" timed-commands-store-as-before
