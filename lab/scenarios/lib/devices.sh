# The disk and the network interface that scenarios attach, and what attaching them leaves in the store.

MAC=00:16:3e:11:22:33
IMAGE=$LAB/disk.img
DISK="format=raw,vdev=xvda,access=rw,target=$IMAGE"
DISK_ID=51712 # of xvda
NIC="mac=$MAC bridge=xenbr0 script=vif-bridge"

dd if=/dev/zero of="$IMAGE" bs=1M count=16 2> "$LAB/dd" || cat "$LAB/dd"

image_of() { # FILE WORD: a disk that begins with the word
    dd if=/dev/zero of="$1" bs=1M count=4 2> "$LAB/dd"
    printf '%s' "$2" | dd of="$1" conv=notrunc 2> "$LAB/dd"
}

both_ends_connected() { # DOMID KIND DEVID [BACKEND-DOMID]
    local end
    for end in "/local/domain/${4:-0}/backend/$2/$1/$3" "/local/domain/$1/device/$2/$3"; do
        [ "$(xenstore-read "$end/state" 2> "$ERR")" = 4 ] || return 1
    done
}

attach_both() { # TOOL GUEST NAME: attaches the disk and the interface and waits until the guest is connected to both
    local domid
    domid=$(guest_domid "$2")
    expect_exit 0 "$3-disk-attached" "$1" block-attach "$2" "$DISK"
    # shellcheck disable=SC2086 # several words
    expect_exit 0 "$3-nic-attached" "$1" network-attach "$2" $NIC
    check "$3-connected" "not both ends of both devices are in state 4" \
        wait_until 20 both_connected "$domid"
}

both_connected() { # DOMID
    both_ends_connected "$1" vbd "$DISK_ID" && both_ends_connected "$1" vif 0
}

detach_both() { # TOOL GUEST NAME
    expect_exit 0 "$3-disk-detached" "$1" block-detach "$2" xvda
    expect_exit 0 "$3-nic-detached" "$1" network-detach "$2" 0
}

no_loop_device() { [ -z "$(losetup -a)" ]; }

no_bridge_port() { [ -z "$(ls /sys/class/net/xenbr0/brif)" ]; }

expect_no_leftovers() { # NAME: the hotplug scripts' work outside the store is undone too
    check "$1-no-loop-device" "losetup -a: $(losetup -a)" no_loop_device
    check "$1-no-bridge-port" "ports of xenbr0: $(ls /sys/class/net/xenbr0/brif)" no_bridge_port
}

# Comparing what two tools leave for the same devices. These are all the differences that are allowed, each a sed(1)
# command. Numbers that the frontend draws at each connection:
VALUES_THAT_VARY='
s#^(/local/domain/[0-9]+/device/v[bi][df]/[0-9]+/ring-ref = )"[0-9]+"#\1"*"#
s#^(/local/domain/[0-9]+/device/v[bi][df]/[0-9]+/event-channel(-[tr]x)? = )"[0-9]+"#\1"*"#
s#^(/local/domain/[0-9]+/device/v[bi][df]/[0-9]+/[tr]x-ring-ref = )"[0-9]+"#\1"*"#
'
# Nodes that a hotplug script writes while a driver writes others beside them, so that either can come first; they are
# left out where the order is compared. blkback begins to connect as soon as `block` has written physical-device, and
# does not wait for what `block` writes next. netfront connects while `vif-bridge` is about to tell it the MTU.
ORDER_THAT_VARIES='
\#/backend/vbd/[0-9]+/[0-9]+/(physical-device-path|hotplug-status) = #d
\#/device/vif/[0-9]+/mtu = #d
'

expect_same_trees() { # A B: verdicts trees-same-keys and trees-same-order from two dumps
    local file
    for file in "$1" "$2"; do
        without_copies < "$file" | sed -E "$VALUES_THAT_VARY" > "$file.masked"
        sort "$file.masked" > "$file.sorted"
        sed -E "$ORDER_THAT_VARIES" "$file.masked" > "$file.ordered"
    done
    expect_same "$1.sorted" "$2.sorted" trees-same-keys
    expect_same "$1.ordered" "$2.ordered" trees-same-order
}
