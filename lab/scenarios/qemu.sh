# Disks that QEMU serves to PV guests, as xl makes and removes them: the store, the images, and QEMUs that die.
# needs qemu
. ./common.sh
. lib/qemu.sh
. lib/qemu-pv.sh
plan 89

attach_hot() { # NAME: by xl, until both ends are connected
    expect_exit 0 "$1-attached" xl block-attach "$DOMID" "$HOT_DISK"
    check "$1-connected" "not both ends are in state 4" wait_until 20 connected "$HOT_ID"
}

# xl's order: `online' first.
ask_to_close() { xenstore-write "$BACKEND/online" 0 "$BACKEND/state" 5; }

is_gone() { ! xenstore-exists "$BACKEND" && ! xenstore-exists "$FRONTEND"; }

### A guest with a QEMU.

start_guest p
BEFORE=$LAB/before.domain
domain_dump "$DOMID" "$BEFORE"
artifact pv-qdisk.store "$BEFORE"
MODEL=/local/domain/0/device-model/$DOMID
check model-is-running "$MODEL/state is $(node "$MODEL/state")" node_is "$MODEL/state" running
check model-is-qemu "process $QEMU is no QEMU" grep -q '^xen-qemu-system' "/proc/$QEMU/comm"
check model-is-root "see above" grep -qE '^Uid:\s+0\s+0\s' "/proc/$QEMU/status"
check model-has-socket "no socket" test -S "/var/run/xen/qmp-libxl-$DOMID"
check image-is-qemus "held by: $(holders "$ROOT")" test "$(holders "$ROOT" | cut -d ' ' -f 1)" = "$QEMU"

### A disk comes and goes while the guest runs.

hot_disk() { # NAME SPEC IMAGE PARAMS
    expect_timed 0 "$1-attached" xl block-attach p "$2"
    check "$1-connected" "not both ends are in state 4" wait_until 20 connected "$HOT_ID"
    guest_sees p blk xvdb "$1-guest-sees-disk"
    domain_changes "$DOMID" "$BEFORE" "$1.store"
    check "$1-params" "$(node "$BACKEND/params")" node_is "$BACKEND/params" "$4"
    # Written by QEMU; xl has no script for this disk.
    check "$1-hotplug-status" "$(node "$BACKEND/hotplug-status")" node_is "$BACKEND/hotplug-status" connected
    check "$1-image-open" "QEMU does not have it" holds "$QEMU" "$3"
    expect_timed 0 "$1-detached" xl block-detach p xvdb
    # xl does not wait for this.
    check "$1-image-closed" "still open" wait_until 5 let_go "$QEMU" "$3"
    guest_lacks p blk xvdb "$1-guest-lacks-disk"
    expect_domain "$DOMID" "$BEFORE" "$1-store-as-before"
}

hot_disk hot-raw "$HOT_DISK" "$HOT" "aio:$HOT"
hot_disk hot-qcow2 "$QCOW2,qcow2,xvdb" "$QCOW2" "qcow2:$QCOW2"

### The removal step by step: QEMU removes both ends of a disk itself, and closes the image after that.

attach_hot by-hand
ask_to_close
follow "$DOMID" "$HOT_ID" "$QEMU" "$HOT" 10
check by-hand-ends-gone "an end is there" is_gone
check by-hand-image-closed "still open" let_go "$QEMU" "$HOT"
expect_exit 0 by-hand-detached xl block-detach p xvdb
expect_domain "$DOMID" "$BEFORE" by-hand-store-as-before

# A guest that does not answer keeps it, until its end is removed for it.
attach_hot paused
xl pause p
ask_to_close
follow "$DOMID" "$HOT_ID" "$QEMU" "$HOT" 3
check paused-nothing-moves "backend $(node "$BACKEND/state"), frontend $(node "$FRONTEND/state")" \
    test "$(node "$BACKEND/state") $(node "$FRONTEND/state")" = "5 4"
check paused-image-open "QEMU has closed it" holds "$QEMU" "$HOT"
xenstore-rm "$FRONTEND"
follow "$DOMID" "$HOT_ID" "$QEMU" "$HOT" 10
check paused-ends-gone "an end is there" is_gone
check paused-image-closed "still open" let_go "$QEMU" "$HOT"
xl unpause p
guest_lacks p blk xvdb paused-guest-lacks-disk
expect_exit 0 paused-detached xl block-detach p xvdb
expect_domain "$DOMID" "$BEFORE" paused-store-as-before

# xl takes a paused guest's QEMU for one that is about to end: it waits 2 s and removes both ends, with the image open.
attach_hot xl-paused
xl pause p
expect_timed 0 xl-paused-detached xl block-detach p xvdb
tell_holders "$HOT"
follow "$DOMID" "$HOT_ID" "$QEMU" "$HOT" 10
check xl-paused-image-closed "still open" let_go "$QEMU" "$HOT"
xl unpause p
expect_domain "$DOMID" "$BEFORE" xl-paused-store-as-before

### An image that QEMU cannot open: xl says that all is well.

expect_timed 0 bad-image-attached xl block-attach p "$HOT,qcow2,xvdb"
sleep 2
domain_changes "$DOMID" "$BEFORE" bad-image.store
check bad-image-backend-waits "backend $(node "$BACKEND/state")" node_is "$BACKEND/state" 1
check bad-image-is-in-the-log "see /var/log/xen/qemu-dm-p.log" \
    grep -q "failed to create 'qdisk' device '$HOT_ID'.*not in qcow2 format" /var/log/xen/qemu-dm-p.log
expect_timed 1 bad-image-detach-fails xl block-detach p xvdb
# The wait fails, the removal does not.
expect_timed 1 bad-image-detached-by-force xl block-detach -f p xvdb
expect_domain "$DOMID" "$BEFORE" bad-image-store-as-before

### A QEMU that is told to end takes its disks along, and xl does not notice that it is gone.

attach_hot hangup
domain_dump "$DOMID" "$LAB/hot.domain"
kill -HUP "$QEMU"
follow "$DOMID" "$HOT_ID" "$QEMU" "$HOT" 10
check hangup-ended "QEMU runs" wait_until 10 model_is_gone
check hangup-ends-gone "an end is there" is_gone
domain_changes "$DOMID" "$LAB/hot.domain" hangup.store
check hangup-model-as-before "$(node "$MODEL/state")" node_is "$MODEL/state" running
check hangup-no-socket "the socket is there" test ! -e "/var/run/xen/qmp-libxl-$DOMID"
guest_lacks p blk xvdb hangup-guest-lacks-disk
guest_lacks p blk xvda hangup-guest-lacks-first-disk
expect_exit 0 hangup-attached xl block-attach p "format=raw,vdev=xvdc,access=rw,backendtype=qdisk,target=$IMAGE"
sleep 2
check hangup-backend-waits "backend moved" node_is "$(backend "$DOMID" qdisk 51744)/state" 1
expect_timed 0 hangup-destroyed xl destroy p
expect_nothing_left "$DOMID" hangup-nothing-left

### A QEMU that is killed leaves all as it was.

start_guest k
attach_hot killed
domain_dump "$DOMID" "$LAB/killed.domain"
kill -9 "$QEMU"
check killed-ended "QEMU runs" wait_until 10 model_is_gone
expect_domain "$DOMID" "$LAB/killed.domain" killed-store-as-before
check killed-socket-is-left "no socket" test -S "/var/run/xen/qmp-libxl-$DOMID"
expect_timed 1 killed-detach-fails xl block-detach k xvdb
domain_changes "$DOMID" "$LAB/killed.domain" killed.store
expect_timed 0 killed-destroyed xl destroy k
expect_nothing_left "$DOMID" killed-nothing-left

### A guest with a screen and a keyboard, and its end.

start_guest v "vfb = ['type=vnc,vncunused=1']"
for kind in vfb vkbd; do
    check "$kind-connected" "backend $(node "$(backend "$DOMID" $kind 0)/state")" \
        wait_until 20 node_is "$(backend "$DOMID" $kind 0)/state" 4
done
domain_dump "$DOMID" "$LAB/vfb.domain"
artifact pv-vfb.store "$LAB/vfb.domain"
attach_hot screen
expect_timed 0 screen-destroyed xl destroy v
expect_model_gone screen "$ROOT" "$HOT"
expect_nothing_left "$DOMID" screen-nothing-left
