# The ends of whole domains: destroy-devices beside xl destroy, QEMUs and guests that die under an operation, a script that hangs.
# needs xendev
# needs qemu
. ./common.sh
. lib/qemu.sh
. lib/qemu-pv.sh
. lib/ends.sh
plan 300

median() { printf '%s\n' "$@" | sort -n | sed -n "$((($# + 1) / 2))p"; }

### How long it takes: the same devices in the same boot, by turns.

compare() { # NAME ROUNDS PREPARE: xl destroy beside destroy-devices
    local name=$1 rounds=$2 prepare=$3 by_xl='' by_xendev='' xl_waited='' xendev_waited='' round
    for round in $(seq "$rounds"); do
        "$prepare" "$name-xl-$round"
        ends "$name-xl-$round" xl destroy "$name-xl-$round"
        tell_holders "$ROOT"
        by_xl="$by_xl $MS" xl_waited="$xl_waited $WAITED"
        wait_until 5 model_is_gone
        "$prepare" "$name-xendev-$round"
        ends "$name-xendev-$round" xendev destroy-devices "$name-xendev-$round"
        expect_let_go "$name-xendev-$round" "$ROOT" "$QCOW2"
        by_xendev="$by_xendev $MS" xendev_waited="$xendev_waited $WAITED"
        expect_gone "$name-xendev-$round"
    done
    # shellcheck disable=SC2086 # several words
    by_xl=$(median $by_xl) by_xendev=$(median $by_xendev)
    # shellcheck disable=SC2086
    xl_waited=$(median $xl_waited) xendev_waited=$(median $xendev_waited)
    echo "TIMING $by_xl $name-xl-median"
    echo "TIMING $by_xendev $name-xendev-median"
    echo "    $name: xendev is $((by_xl - by_xendev)) ms sooner than xl, and waits $((xl_waited - xendev_waited)) ms less"
    # How long the work takes depends on what else the host does; how long is waited does not.
    check "$name-waits-for-nothing" "it waited $xendev_waited ms, xl $xl_waited ms" \
        test "$xendev_waited" -lt 500
}

one_disk() { start_guest "$1"; } # NAME: of QEMU's

of_qemu() { # NAME: two disks, a screen and a keyboard, all QEMU's
    start_guest "$1" "vfb = ['type=vnc,vncunused=1']"
    expect_exit 0 "$1-attached" xl block-attach "$1" "$QCOW2,qcow2,xvdb"
    wait_until 20 connected "$HOT_ID"
}

with_script() { # NAME: and a disk of the kernel's, for which the stock script runs
    of_qemu "$1"
    expect_exit 0 "$1-phy-attached" xl block-attach "$1" "format=raw,vdev=xvdc,access=rw,target=$IMAGE"
    wait_until 20 both_ends_connected "$DOMID" vbd 51744
}

compare one 5 one_disk
compare pv 5 of_qemu
compare pv-script 3 with_script
check compared-no-loop-device "losetup -a: $(losetup -a)" wait_until 3 no_loop_device

### A QEMU that is killed before, during and after, or that does not end when asked.

start_guest killed
expect_exit 0 killed-attached xendev block-attach --wait connected killed "$HOT_DISK"
xl pause killed
xendev block-detach --timeout 60 killed xvdb > "$OUT" 2> "$ERR" &
DETACH=$!
check killed-in-mid-detach "backend $(node "$BACKEND/state")" wait_until 10 node_is "$BACKEND/state" 5
kill -9 "$QEMU"
wait "$DETACH"
check killed-detached "xendev ended with $?: $(cat "$ERR")" test $? = 0
check killed-backend-gone "it is there" node_is "$BACKEND" absent
xl unpause killed
expect_timed 0 killed-before xendev destroy-devices --json killed
json_is killed-before-told '"ok":true' '"model":{"outcome":"not_there"}'
expect_gone killed-before

start_guest during
kill -STOP "$QEMU"
xendev destroy-devices --json --timeout 60 during > "$OUT" 2> "$ERR" &
DESTROY=$!
check during-is-told "backend $(node "$(backend "$DOMID" qdisk "$DISK_ID")/state")" \
    wait_until 10 node_is "$(backend "$DOMID" qdisk "$DISK_ID")/state" 5
kill -9 "$QEMU"
wait "$DESTROY"
check during-ended "xendev ended with $?: $(cat "$ERR")" test $? = 0
# It may be gone before it is asked to go.
json_is during-told '"ok":true' '"model":{"outcome":"\(ended","killed":false\|not_there"\)'
expect_let_go during "$ROOT"
expect_gone during

start_guest stuck
expect_exit 0 stuck-attached xendev block-attach --wait connected stuck "$HOT_DISK"
expect_exit 0 stuck-detached xendev block-detach stuck xvdb
kill -STOP "$QEMU"
expect_timed 0 stuck-ended xendev destroy-devices --json --timeout 3 stuck
json_is stuck-told '"ok":true' '"killed":true'
expect_let_go stuck "$ROOT" "$HOT"
expect_gone stuck

### Guests that go in mid-attach and in mid-detach.

hotplug_script block-slow << 'END'
#!/bin/sh
[ "$1" = add ] || exit 0
echo $$ > /tmp/lab/slow
sleep 7777
END
SLOW="format=raw,vdev=xvdc,access=rw,script=block-slow,target=$IMAGE"

begin_slow_attach() { # NAME
    rm -f "$LAB/slow"
    xendev block-attach "$DOMID" "$SLOW" > "$OUT" 2> "$ERR" &
    ATTACH=$!
    check "$1-in-mid-attach" "the script did not begin" wait_until 20 test -s "$LAB/slow"
}

start_guest dies
begin_slow_attach dies
timed "xl destroy beside a slow attach" xl destroy dies
wait "$ATTACH"
STATUS=$?
check dies-attach-failed "xendev ended with $STATUS" test "$STATUS" = 1
expect_nothing_left "$DOMID" dies-nothing-left
check dies-no-script "$(script_processes)" wait_until 5 no_script_process

start_guest leaves
expect_exit 0 leaves-attached xendev block-attach --wait connected leaves "$HOT_DISK"
xl pause leaves
xendev block-detach --timeout 60 leaves xvdb > "$LAB/leaves" 2>&1 &
DETACH=$!
check leaves-in-mid-detach "backend $(node "$BACKEND/state")" wait_until 10 node_is "$BACKEND/state" 5
timed "xl destroy beside a detach" xl destroy leaves
wait "$DETACH"
check leaves-detached "xendev ended with $?: $(cat "$LAB/leaves")" test $? = 0
expect_let_go leaves "$ROOT" "$HOT"
expect_nothing_left "$DOMID" leaves-nothing-left

start_guest crashes 'extra = "console=hvc0 quiet sysrq_always_enabled"
on_crash = "preserve"'
expect_exit 0 crashes-attached xendev block-attach --wait connected crashes "$HOT_DISK"
xl pause crashes
xendev block-detach --timeout 60 crashes xvdb > "$LAB/crashes" 2>&1 &
DETACH=$!
check crashes-in-mid-detach "backend $(node "$BACKEND/state")" wait_until 10 node_is "$BACKEND/state" 5
xl sysrq crashes c
xl unpause crashes
wait "$DETACH"
check crashes-detached "xendev ended with $?: $(cat "$LAB/crashes")" test $? = 0
check crashes-image-closed "held by: $(holders "$HOT")" no_holder "$HOT"
begin_slow_attach crashes
# A guest that has crashed keeps its devices until it is destroyed.
timed "xl destroy beside a slow attach" xl destroy crashes
wait "$ATTACH"
STATUS=$?
check crashes-attach-failed "xendev ended with $STATUS" test "$STATUS" = 1
expect_nothing_left "$DOMID" crashes-nothing-left
check crashes-no-script "$(script_processes)" wait_until 5 no_script_process

### Ten devices, one of whose scripts hangs: the deadline of the whole bounds it.

hotplug_script block-quick << 'END'
#!/bin/sh
[ "$1" = add ] || exit 0
target=$(xenstore-read "$XENBUS_PATH/params")
number=${target#/dev/loop}
xenstore-write "$XENBUS_PATH/physical-device" "7:$(printf %x "$number")" "$XENBUS_PATH/hotplug-status" connected
END
hotplug_script block-hang << 'END'
#!/bin/sh
[ "$1" = add ] && exec /etc/xen/scripts/block-quick add
trap '' TERM
sleep 7777
END
LOOP=$(losetup -f)
losetup "$LOOP" "$IMAGE"

start_guest ten "vfb = ['type=vnc,vncunused=1']"
expect_exit 0 ten-qemu xendev block-attach ten "$HOT_DISK"
for disk in c d e f; do
    expect_exit 0 "ten-xvd$disk" xendev block-attach ten "format=raw,vdev=xvd$disk,access=ro,script=block-quick,target=$LOOP"
done
expect_exit 0 ten-hanging xendev block-attach ten "format=raw,vdev=xvdg,access=ro,script=block-hang,target=$LOOP"
expect_exit 0 ten-nic xendev network-attach ten $NIC
check ten-devices "$(xenstore-ls -f "/libxl/$DOMID/device")" \
    test "$(xenstore-ls -f "/libxl/$DOMID/device" | grep -cE '/(vbd|vif|vfb|vkbd)/[0-9]+/backend = ')" = 10
expect_timed 3 ten-timed-out xendev destroy-devices --json --deadline 30 ten
artifact ten.json "$OUT"
expect_stderr 'xvdg' ten-hanging-named
json_is ten-told '"ok":false' '"timed_out":true' '"outcome":"failed"'
check ten-nine-are-done "$(cat "$OUT")" test "$(grep -o '"outcome":"done"' "$OUT" | wc -l)" = 9
expect_let_go ten "$ROOT" "$HOT"
check ten-script-killed "$(script_processes)" wait_until 5 no_script_process
check ten-one-left "$(xenstore-ls -f "/libxl/$DOMID/device")" \
    test "$(xenstore-ls -f "/libxl/$DOMID/device" | grep -oE '^/libxl/[0-9]+/device/(vbd|vif|vfb|vkbd)/[0-9]+/backend ')" = "/libxl/$DOMID/device/vbd/51808/backend "
# Once more, with less patience for the script: the device goes, and that its script did not is told.
expect_timed 0 ten-again xendev destroy-devices --json --script-timeout 2 ten
json_is ten-again-told '"ok":true' 'block-hang'
check ten-again-script-killed "$(script_processes)" wait_until 5 no_script_process
losetup -d "$LOOP"
expect_gone ten
check ten-no-loop-device "losetup -a: $(losetup -a)" wait_until 3 no_loop_device
check ten-no-bridge-port "ports of xenbr0: $(ls /sys/class/net/xenbr0/brif)" no_bridge_port
