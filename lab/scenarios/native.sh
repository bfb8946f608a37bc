# Native handlers in the place of the stock scripts: the trees and the devices that xl leaves, and what a guest does with them.
# needs xendev
. ./common.sh
plan 70
hotplug_programs

check guest-started "see above" guest_start g /guest/initrd "read-disks use-devices"
DOMID=$(guest_domid g)
BEFORE=$LAB/before.store
store_dump "$BEFORE"
ifconfig xenbr0 192.168.77.1

image_of "$IMAGE" "dom0-wrote-this"
dom0_reads() { [ "$(dd if="$IMAGE" bs=512 skip=1 count=1 2> "$LAB/dd" | tr -d '\0')" = "the guest wrote to xvda" ]; }
has_pinged() { tail -n "+$(($1 + 1))" "$(guest_log g)" | grep -q GUEST-PINGS; }

state_of_host() { # FILE: what the scripts have made
    losetup -a > "$1"
    cat /sys/block/loop0/ro /sys/block/loop0/size /sys/block/loop0/loop/* >> "$1"
    ls /sys/class/net/xenbr0/brif >> "$1"
    local interface=/sys/class/net/vif$DOMID.0
    for key in address mtu flags operstate brport/state brport/learning brport/path_cost; do
        echo "$key $(cat "$interface/$key")" >> "$1"
    done
}

### What each of them leaves, and that it works.

for tool in xl scripted native; do
    image_of "$IMAGE" "dom0-wrote-this"
    since=$(wc -l < "$(guest_log g)")
    attach_both "$tool" g "$tool"
    guest_reads g xvda dom0-wrote-this "$tool-guest-reads-what-dom0-wrote"
    check "$tool-dom0-reads-what-the-guest-wrote" "it reads $(dd if="$IMAGE" bs=512 skip=1 count=1 2>&1)" \
        wait_until 20 dom0_reads
    check "$tool-guest-pings-dom0" "it does not" wait_until 20 has_pinged "$since"
    store_dump "$LAB/$tool.store"
    artifact "$tool.store" "$LAB/$tool.store"
    state_of_host "$LAB/$tool.host"
    detach_both "$tool" g "$tool"
    expect_store_but_copies "$BEFORE" "$tool-store-as-before"
    expect_no_leftovers "$tool"
done
expect_same_trees "$LAB/xl.store" "$LAB/native.store"
expect_same "$LAB/xl.host" "$LAB/native.host" host-as-xls

### Devices of one in the hands of the other.

attach_both native g native-then-xl
detach_both xl g native-then-xl
expect_no_leftovers native-then-xl
attach_both xl g xl-then-native
detach_both native g xl-then-native
expect_no_leftovers xl-then-native
expect_store_but_copies "$BEFORE" hands-store-as-before

### Failures.

expect_exit 1 missing native block-attach g "format=raw,vdev=xvdb,access=rw,target=$LAB/none.img"
check other-started "see above" guest_start other
without_copies < <(xenstore-ls -fp) > "$BEFORE"
expect_exit 0 first native block-attach other "$DISK"
expect_exit 1 in-use native block-attach g "format=raw,vdev=xvdb,access=rw,target=$IMAGE"
expect_stderr "the disk xvda of the guest $(guest_domid other) (other)" in-use-names-the-disk
expect_exit 0 first-detached native block-detach other xvda
expect_exit 1 no-bridge native network-attach g bridge=none
expect_stderr "the bridges here: xenbr0" no-bridge-names-those-there
expect_no_leftovers failures
expect_store_but_copies "$BEFORE" failures-store-as-before

### Killed in the middle: another attach cleans up.

for moment in 0.05 0.1 0.15 0.2 0.3; do
    native block-attach g "$DISK" > "$OUT" 2> "$ERR" &
    killed=$!
    sleep "$moment"
    kill -9 "$killed" 2> "$LAB/kill" || true
    wait "$killed"
    limited native block-detach --force g xvda
done
expect_no_leftovers killed
expect_store_but_copies "$BEFORE" killed-store-as-before

### By itself.

# Without what the scripts need.
stoppable losetup
rm /usr/bin/losetup
expect_exit 1 script-attached scripted block-attach g "$DISK"
expect_exit 0 auto-attached xendev block-attach g "$DISK"
expect_exit 0 auto-detached xendev block-detach g xvda
echo "# as an administrator has changed it" >> /etc/xen/scripts/block
expect_exit 1 changed-is-run xendev block-attach g "$DISK"
