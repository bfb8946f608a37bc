# Disks that QEMU serves, as xendev makes and removes them, beside xl; a QEMU that dies; and the end of a whole domain.
# needs xendev
# needs qemu
. ./common.sh
. lib/qemu.sh
. lib/qemu-pv.sh
plan 72

begin() { # NAME [LINE]: starts a guest, and notes what the store has of it
    start_guest "$@"
    BEFORE=$LAB/$1.before
    domain_dump "$DOMID" "$BEFORE"
}

tree_of() { # FILE: what an attach has added, but for what the ends find out anew
    domain_changes "$DOMID" "$BEFORE" "${1##*/}.store"
    sed -E 's/(event-channel|ring-ref) = "[0-9]+"/\1 = "some"/' "$LAB/changes" > "$1"
}

### The same tree as xl's, key by key, and what the one attached the other detaches.

begin p
expect_timed 0 xl-attached xl block-attach p "$HOT_DISK"
wait_until 20 connected "$HOT_ID"
tree_of "$LAB/by-xl"
expect_timed 0 xendev-detached xendev block-detach p xvdb
check xendev-detached-image-closed "held by: $(holders "$HOT")" let_go "$QEMU" "$HOT"
expect_domain "$DOMID" "$BEFORE" xendev-detached-store-as-before
expect_timed 0 xendev-attached xendev block-attach p "$HOT_DISK"
wait_until 20 connected "$HOT_ID"
tree_of "$LAB/by-xendev"
expect_same "$LAB/by-xl" "$LAB/by-xendev" tree-as-xls
guest_sees p blk xvdb xendev-guest-sees-disk
limited xl block-list p
cp "$OUT" "$LAB/list.xl"
limited xendev block-list p
expect_same "$LAB/list.xl" "$OUT" lists-as-xl
expect_timed 0 xl-detached xl block-detach p xvdb
expect_domain "$DOMID" "$BEFORE" xl-detached-store-as-before

### Every format, and again at once: nothing of the first is in the way of the second.

for round in 1 2 3; do
    expect_timed 0 "qcow2-$round-attached" xendev block-attach --wait connected p "$QCOW2,qcow2,xvdb"
    check "qcow2-$round-open" "QEMU does not have it" holds "$QEMU" "$QCOW2"
    expect_timed 0 "qcow2-$round-detached" xendev block-detach p xvdb
    check "qcow2-$round-closed" "held by: $(holders "$QCOW2")" let_go "$QEMU" "$QCOW2"
done
expect_domain "$DOMID" "$BEFORE" qcow2-store-as-before

### What QEMU cannot open fails the attach, with QEMU's own reason (B-11).

expect_timed 1 bad-image-refused xendev block-attach p "$HOT,qcow2,xvdd"
expect_stderr "not in qcow2 format" bad-image-reason
expect_domain "$DOMID" "$BEFORE" bad-image-store-as-before
# From version 10 on QEMU takes up no other device of that number as long as it runs.
again=0
qemu_before 10 || again=3
expect_timed "$again" bad-image-number-again xendev block-attach --wait connected p "$QCOW2,qcow2,xvdd"
xendev block-detach p xvdd > "$OUT" 2>&1
expect_domain "$DOMID" "$BEFORE" bad-image-again-store-as-before
expect_exit 1 no-image-refused xendev block-attach p "$LAB/nothing.img,qcow2,xvdb"
expect_stderr "No such file" no-image-reason
expect_domain "$DOMID" "$BEFORE" no-image-store-as-before

### A guest that is paused has a living QEMU (B-6): it is asked, and then done without, and the image is closed.

expect_exit 0 paused-attached xendev block-attach --wait connected p "$HOT_DISK"
xl pause p
expect_timed 3 paused-not-forced xendev block-detach --timeout 2 p xvdb
check paused-image-open "QEMU has closed it" holds "$QEMU" "$HOT"
check paused-backend-waits "backend $(node "$BACKEND/state")" node_is "$BACKEND/state" 5
expect_timed 0 paused-forced xendev block-detach --force p xvdb
check paused-image-closed "held by: $(holders "$HOT")" let_go "$QEMU" "$HOT"
xl unpause p
guest_lacks p blk xvdb paused-guest-lacks-disk
expect_domain "$DOMID" "$BEFORE" paused-store-as-before

### A QEMU that was killed is not waited for, and gets no more disks.

expect_exit 0 killed-attached xendev block-attach --wait connected p "$HOT_DISK"
kill -9 "$QEMU"
wait_until 10 model_is_gone
expect_timed 0 killed-detached xendev block-detach p xvdb
check killed-backend-gone "it is there" test "$(node "$BACKEND")" = absent
expect_timed 1 killed-attach-refused xendev block-attach p "$HOT_DISK"
expect_stderr "no device model that runs" killed-attach-reason
expect_timed 0 killed-destroyed xl destroy p
expect_nothing_left "$DOMID" killed-nothing-left

### The end of a domain, by xl and by xendev in the same boot: when success is told, nobody has an image open.

end_of() { # NAME COMMAND...
    local name=$1
    shift
    begin "$name" "vfb = ['type=vnc,vncunused=1']"
    expect_exit 0 "$name-attached" xendev block-attach --wait connected "$name" "$QCOW2,qcow2,xvdb"
    expect_exit 0 "$name-phy-attached" xendev block-attach --wait connected "$name" "format=raw,vdev=xvdc,access=rw,target=$IMAGE"
    expect_timed 0 "$name-ended" "$@"
    cp "$OUT" "$LAB/$name.json"
    check "$name-qemu-gone" "QEMU runs" model_is_gone
    for image in "$ROOT" "$QCOW2"; do
        check "$name-${image##*/}-closed" "held by: $(holders "$image")" no_holder "$image"
    done
}

end_of byxl xl destroy byxl
end_of byxendev xendev destroy-devices --json byxendev
artifact destroyed.json "$LAB/byxendev.json"
check byxendev-model-ended "$(cat "$LAB/byxendev.json")" grep -q '"model":{"outcome":"ended","killed":false' "$LAB/byxendev.json"
xenstore-ls -f "/libxl/$DOMID/device" | indent
check byxendev-devices-gone "see above" test -z "$(xenstore-ls -f "/libxl/$DOMID/device" | grep -E 'device/(vbd|vfb|vkbd)/')"
check byxendev-no-loop-device "losetup -a: $(losetup -a)" wait_until 3 no_loop_device
expect_timed 0 byxendev-destroyed xl destroy byxendev
expect_nothing_left "$DOMID" byxendev-nothing-left
