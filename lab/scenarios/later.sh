# What xl of later versions than 4.17 takes: needs a host of --debian 13. The same dry runs and trees.
# needs xendev
. ./common.sh
. lib/door.sh
plan 40

FIRST=$LAB/first.img
image_of "$FIRST" "the-first"
VERSION=$(cat /sys/hypervisor/version/minor)
check later-version "this is Xen 4.$VERSION: run it with --debian 13" test "$VERSION" -gt 17
check guest-started "see above" guest_start g
DOMID=$(guest_domid g)

### Dry runs.

for disk in untrusted trusted grant_usage=1 backendtype=tap backendtype=standalone,specification=virtio; do
    dry_run block-attach g "$FIRST,raw,xvda,w,$disk"
done
dry_run network-attach g vlan=7
dry_run network-attach g vlan=
ALL="mac=$MAC bridge=xenbr0 vlan=7 ip=10.0.0.1 vifname=lab0 rate=8Kb/s mtu=1400 devid=5 gatewaydev=eth9 untrusted"
# shellcheck disable=SC2086 # several words
dry_run network-attach g model=e1000 script=vif-bridge type=vif $ALL

### Trees.

same_tree untrusted block-attach "$FIRST,raw,xvda,w,untrusted" block-detach xvda
same_tree nic-all network-attach "$ALL" network-detach 5
expect_same_trees "$LAB/nic-all.xl" "$LAB/nic-all.xendev"

### Disks of blktap. This host has none: a script stands in for its own, and this for its backend.

hotplug_script block-tap << 'EOT'
#!/bin/sh
[ "$1" = add ] || exit 0
xenstore-write "$XENBUS_PATH/physical-device-path" /run/lab "$XENBUS_PATH/hotplug-status" connected
EOT

serve() { # KIND DOMID: moves the states of its backends
    local path backend
    path=/local/domain/0/backend/$1/$2
    while sleep 0.3; do
        for backend in $(xenstore-list "$path"); do
            case $(xenstore-read "$path/$backend/state") in
                1) xenstore-write "$path/$backend/state" 2 ;;
                5) xenstore-write "$path/$backend/state" 6 ;;
            esac
        done
    done 2> "$LAB/serve.err"
}

# blkfront goes so far when its backend is at 2.
initialised() { [ "$(xenstore-read "/local/domain/$DOMID/device/vbd/$DISK_ID/state" 2> "$ERR")" = 3 ]; }

same_tap() { # NAME SPEC
    local tool
    for tool in xl xendev; do
        expect_exit 0 "$1-$tool" "$tool" block-attach g "$2"
        check "$1-$tool-initialised" "the frontend is not at 3" wait_until 20 initialised
        sleep 1
        store_dump "$LAB/$1.$tool"
        expect_exit 0 "$1-$tool-detached" "$tool" block-detach g xvda
        without_copies < "$LAB/$1.$tool" | sed -E "$VALUES_THAT_VARY" > "$LAB/$1.$tool.tree"
    done
    expect_same "$LAB/$1.xl.tree" "$LAB/$1.xendev.tree" "$1-trees"
}

serve vbd3 "$DOMID" &
same_tap tap "$FIRST,raw,xvda,w,backendtype=tap"
same_tap tap-vhd "$FIRST,vhd,xvda,r,backendtype=tap"
kill $!
