# All devices of a configuration file at once: the trees and entries that xl makes of the same lines, and no half of it.
# needs xendev
. ./common.sh
plan 43

FIRST=$LAB/first.img
SECOND=$LAB/second.img
THIRD=$LAB/third.img
image_of "$FIRST" "the-first"
image_of "$SECOND" "the-second"
image_of "$THIRD" "the-third"
DISKS=("$FIRST,raw,xvda,w" "phy:$SECOND,xvdb,r" "format=raw,vdev=xvdc,access=rw,target=$THIRD")
NICS=("mac=00:16:3e:00:00:01" "mac=00:16:3e:00:00:02,bridge=xenbr0,rate=1Mb/s")

cat > "$LAB/set.cfg" << EOT
# As of xl create: what is no device is not for attach-all.
name = "set"; type = 'pv'
kernel = "/guest/vmlinuz"
memory = 256

vif = [ '${NICS[0]}',   # the first
        "${NICS[1]}" ]
disk = [
    '${DISKS[0]}',
    "${DISKS[1]}",

    '${DISKS[2]}', # and a comma at the end
]
EOT
expect_exit 0 xl-reads-the-file xl create -n "$LAB/set.cfg"

check guest-started "see above" guest_start g /guest/initrd read-disks
DOMID=$(guest_domid g)
BEFORE=$LAB/before.store
store_dump "$BEFORE"

### A dry run prints what xl prints of each.

: > "$LAB/dry.xl"
for disk in "${DISKS[@]}"; do xl -N block-attach g "$disk" >> "$LAB/dry.xl"; done
xl -N network-attach g "${NICS[0]}" devid=0 >> "$LAB/dry.xl"
xl -N network-attach g mac=00:16:3e:00:00:02 bridge=xenbr0 rate=1Mb/s devid=1 >> "$LAB/dry.xl"
expect_exit 0 dry-run xendev -N attach-all g "$LAB/set.cfg"
expect_same "$LAB/dry.xl" "$OUT" dry-run-as-xl
expect_store "$BEFORE" dry-run-changes-nothing

### Devices of the host are taken for what xl takes them for. This host has none of them.

cat > "$LAB/host.cfg" << EOT
name = "host"; type = 'pv'; memory = 256
kernel = "/guest/vmlinuz"
usbctrl = [ 'type=qusb,version=1,ports=3' ]
usbdev = [ 'type=hostdev,hostbus=10,hostaddr=0x1a,controller=0,port=2', 'type=hostdev,hostbus=1,hostaddr=3' ]
pci = [ '03:00.0@5', '0001:04:1f.1,permissive=0,msitranslate=1,rdm_policy=relaxed', 'vslot=6,bdf=05:00.0,seize=0' ]
pci_permissive = 1
EOT
xl create -n "$LAB/host.cfg" > "$LAB/host.xl" 2> "$ERR"
expect_exit 1 host-refused xendev -N attach-all g "$LAB/host.cfg"
expect_stderr "host.cfg:5: pci\[0\]: .*needs hypercalls" host-pci-refused
cp "$OUT" "$LAB/host.xendev"
for list in usbctrl usbdev pci; do
    entries=${list/%pci/pcidev}s
    sed -n "/^    \"$entries\": \[/,/^    \]/p" "$LAB/host.xl" | sed '1d;$d;s/^ *//;s/,$//' > "$LAB/$list.xl"
    sed -n "/^$list: {/,/^}/p" "$LAB/host.xendev" | sed "s/^$list: //;s/^ *//;s/,\$//" > "$LAB/$list.xendev"
    expect_same "$LAB/$list.xl" "$LAB/$list.xendev" "host-$list-as-xl"
done

### The trees and the entries in libxl's configuration, by xl one by one and by xendev at once.

all_connected() {
    both_ends_connected "$DOMID" vbd 51712 && both_ends_connected "$DOMID" vbd 51728 &&
        both_ends_connected "$DOMID" vbd 51744 && both_ends_connected "$DOMID" vif 0 &&
        both_ends_connected "$DOMID" vif 1
}

# Which loop device a disk gets is decided by whose script is first.
LOOP_DEVICES='s#^(.*/backend/vbd/.*/(node|physical-device|physical-device-path) = )"[^"]*"#\1"*"#'

note() { # TOOL: its trees and entries, once the guest is connected to all, in an order that does not count
    check "$1-connected" "not all ends are in state 4" wait_until 30 all_connected
    sleep 1
    store_dump "$LAB/$1.store"
    without_copies < "$LAB/$1.store" | sed -E "$VALUES_THAT_VARY" | sed -E "$LOOP_DEVICES" | sort > "$LAB/$1.sorted"
    xl list -l g | sed 's/,$//' | sort > "$LAB/$1.config"
}

for index in 0 1 2; do
    expect_exit 0 "xl-attached-disk-$index" xl block-attach g "${DISKS[index]}"
done
expect_exit 0 xl-attached-vif-0 xl network-attach g "${NICS[0]}"
expect_exit 0 xl-attached-vif-1 xl network-attach g mac=00:16:3e:00:00:02 bridge=xenbr0 rate=1Mb/s
note xl
expect_exit 1 there-already xendev attach-all g "$LAB/set.cfg"
expect_stderr "set.cfg:9: disk\[0\]: " there-already-is-told-by-its-line
for device in xvda xvdb xvdc; do expect_exit 0 "detached-$device" xendev block-detach g "$device"; done
for device in 0 1; do expect_exit 0 "detached-vif-$device" xendev network-detach g "$device"; done
expect_store "$BEFORE" detached-store-as-before

expect_timed 0 attached xendev attach-all g "$LAB/set.cfg"
note xendev
expect_same "$LAB/xl.sorted" "$LAB/xendev.sorted" trees-as-xls
expect_same "$LAB/xl.config" "$LAB/xendev.config" entries-as-xls
guest_reads g xvda the-first guest-reads-the-first
guest_reads g xvdc the-third guest-reads-the-third
guest_sees g net eth1 guest-sees-the-second-interface

### One listing of them.

expect_exit 0 listed xendev list g
artifact list.txt "$OUT"
check listed-all "$(cat "$OUT")" test "$(grep -c '4 (Connected) *4 (Connected)' "$OUT")" = 5
expect_exit 0 listed-as-json xendev list --json g
artifact list.json "$OUT"

### All of them go.

expect_timed 0 destroyed xendev destroy-devices g
expect_exit 0 none-listed xendev list g
check none-left "$(cat "$OUT")" test "$(wc -l < "$OUT")" = 1

### One that fails takes the others with it.

expect_exit 0 guest-destroyed xl destroy g
check second-guest-started "see above" guest_start h
store_dump "$BEFORE"
hotplug_script block-fails << 'EOT'
#!/bin/sh
[ "$1" = remove ] || exit 9
EOT
{
    cat "$LAB/set.cfg"
    echo "disk += [ 'script=block-fails,vdev=xvdd,access=rw,target=$IMAGE' ]"
} > "$LAB/fails.cfg"
expect_exit 1 failed xendev attach-all h "$LAB/fails.cfg"
expect_store "$BEFORE" failed-store-as-before
expect_no_leftovers failed
