# Whoever knows xl finds the same door: the same dry runs, trees and entries in libxl's configuration of the domain.
# needs xendev
. ./common.sh
. lib/door.sh
plan 191

FIRST=$LAB/first.img
SECOND=$LAB/second.img
image_of "$FIRST" "the-first"
image_of "$SECOND" "the-second"

check guest-started "see above" guest_start g /guest/initrd read-disks
BEFORE=$LAB/before.store
store_dump "$BEFORE"
DOMID=$(guest_domid g)
xenstore-write /tool/lab 1

### Dry runs.

for disk in \
    "$FIRST,raw,xvda,w" "$FIRST,,xvda" "$FIRST,raw,xvda,ro" "$FIRST,raw,xvda,w," "phy:/dev/vg/x,xvda,w" \
    "format=raw,vdev=xvda,access=rw,target=$FIRST" "vdev=xvda,target=/a,b=c" "raw:$FIRST,hda" "tap:aio:/d,xvda,r" \
    "qcow2:/d,hdb,w" "/i.iso,raw,hdc:cdrom" ",,hdc:cdrom" ",hdc:cdrom" "vdev=hdc,cdrom" "iscsi:iqn.2001-05.com.x,xvda" \
    "drbd:web01,xvdb" "script=block-x,vdev=xvdc,/foo" "/d,raw,51712" "/d,raw,xvda,backend=Domain-0" \
    "/d,raw,xvda,backend=nosuch" "/d,raw,xvda,backendtype=qdisk" "/d,raw,xvda,discard,direct-io-safe" \
    "/d,raw,xvda,specification=virtio" 'vdev=xvda,target=/a"b\c/é' "foo:/d,raw,xvda" "/d,raw" "/d,raw,xvda,x"; do
    dry_run block-attach g "$disk"
done
dry_run block-attach g "phy:$FIRST" xvdb w
dry_run block-attach 77 "$FIRST,raw,xvda,w"
dry_run block-attach nosuch "$FIRST,raw,xvda,w"
dry_run network-attach g
for nic in bridge=br1 mtu=1500 devid=0 backend=Domain-0 netdev=eth3 accel=x trusted untrusted rate=1MB/s@20ms rate=foo \
    type=vif type=ioemu type=bar foo=bar bridge= "ip=10.0.0.1 10.0.0.2" "script=/opt/x y" forwarddev=x mac=1; do
    dry_run network-attach g "$nic"
done
dry_run network-attach g mac=00:16:3E:01:02:03 model=e1000 vifname=foo script=vif-route rate=10Mb/s gatewaydev=eth9 devid=3
cp /etc/xen/xl.conf "$LAB/xl.conf"
printf 'vif.default.%s\n' 'bridge="brX"' "script='vif-route' # as written" 'gatewaydev="ethX";' 'backend = "Domain-0"' \
    > /etc/xen/xl.conf
dry_run network-attach g
dry_run network-attach g bridge=br1
cp "$LAB/xl.conf" /etc/xen/xl.conf
expect_exit 0 dry-run-as-json xendev -N --json block-attach g "$FIRST,raw,xvda,w"
artifact dry-run.json "$OUT"
xenstore-rm /tool/lab
expect_store "$BEFORE" dry-runs-change-nothing

### The trees of both tools.

same_tree disk block-attach "$FIRST,raw,xvda,w" block-detach xvda
same_tree prefix block-attach "phy:$FIRST,xvdb,r" block-detach xvdb
same_tree keys block-attach "discard,direct-io-safe,vdev=sda1,backend=Domain-0,target=$FIRST" block-detach sda1
same_tree cdrom block-attach "$FIRST,raw,hdc:cdrom" block-detach hdc
same_tree no-discard block-attach "no-discard,$FIRST,raw,hdb" block-detach hdb
same_tree number block-attach "$FIRST,raw,51760,ro" block-detach 51760
same_tree script block-attach "script=/etc/xen/scripts/block,vdev=xvdd,access=rw,target=$FIRST" block-detach xvdd
same_tree nic network-attach "mac=$MAC" network-detach 0
same_tree nic-all network-attach "mac=$MAC bridge=xenbr0 ip=10.0.0.1 vifname=lab0 rate=8Kb/s devid=5" network-detach 5
same_tree nic-mtu network-attach "mac=$MAC mtu=9000" network-detach 0
same_tree nic-model network-attach "mac=$MAC type=vif model=e1000 script=/etc/xen/scripts/vif-bridge" network-detach 0
same_tree nic-script network-attach "mac=$MAC script=vif-bridge untrusted" network-detach "$MAC"

### libxl's configuration of the domain. What xl leaves of its own devices goes with a removal by xendev.

for device in xvda xvdb sda1 hdc hdb 51760 xvdd; do
    xendev block-detach g "$device" > "$OUT" 2>&1
done
expect_exit 0 config-xl-disk xl block-attach g "$FIRST,raw,xvda,w"
expect_exit 0 config-xl-nic xl network-attach g "mac=$MAC" rate=1Mb/s
config_of g > "$LAB/xl.config"
artifact xl.config "$LAB/xl.config"
expect_exit 0 config-xl-disk-detached xendev block-detach g xvda
expect_exit 0 config-xl-nic-detached xendev network-detach g 0
config_of g > "$LAB/none.config"
check config-entries-gone "xl list -l still has them" test "$(grep -c 'pdev_path\|"devid"' "$LAB/none.config")" = 0
expect_exit 0 config-disk xendev block-attach g "$FIRST,raw,xvda,w"
expect_exit 0 config-nic xendev network-attach g "mac=$MAC" rate=1Mb/s
expect_config "$LAB/xl.config" config-as-after-xl
expect_exit 0 config-disk-detached xendev block-detach g xvda
expect_exit 0 config-nic-detached xendev network-detach g 0
expect_config "$LAB/none.config" config-after-the-detach
expect_exit 0 no-record xendev block-attach --no-record g "$FIRST,raw,xvda,w"
expect_config "$LAB/none.config" no-record-has-no-entry
expect_exit 0 no-record-detached xendev block-detach g xvda

### An entry that xl left of an earlier device does not survive, whatever its spelling.

expect_exit 0 stale-attached xl block-attach g "$SECOND,raw,51712,w"
expect_exit 0 stale-detached xl block-detach g 51712
expect_exit 0 stale-replaced xendev block-attach g "$FIRST,raw,xvda,w"
expect_config_names() { # WORDS NAME
    config_of g 2> "$LAB/config.err" | grep -o '"pdev_path": "[^"]*"' | sed 's/.*\/\(.*\)"/\1/' | sort | tr '\n' ' ' > "$LAB/names"
    check "$2" "the disks are $(cat "$LAB/names")" test "$(cat "$LAB/names")" = "${1:+$1 }"
}
expect_config_names first.img stale-is-gone

### What xl leaves of a device can be detached, and is never taken for a device that comes after it.

expect_exit 0 left-attached xl block-attach g "$SECOND,raw,xvdb,w"
expect_exit 0 left-detached xl block-detach g xvdb
expect_exit 0 left-struck xendev block-detach g xvdb
expect_stderr "only its entry" left-struck-is-told
expect_config_names first.img left-is-gone
expect_exit 0 left-attached-again xl block-attach g "$SECOND,raw,xvdd,w"
expect_exit 0 left-detached-again xl block-detach g xvdd
expect_exit 0 left-no-record xendev block-attach --no-record g "$SECOND,raw,xvdd,w"
expect_config_names first.img left-has-no-entry

### Two tools at once lose neither entry.

dd if=/dev/zero of="$LAB/third.img" bs=1M count=4 2> "$LAB/dd"
for round in 1 2 3; do
    xl block-attach g "$SECOND,raw,xvdb,w" > "$LAB/xl.at-once" 2>&1 &
    XL=$!
    expect_exit 0 "at-once-$round-xendev" xendev block-attach g "$LAB/third.img,raw,xvdc,w"
    wait "$XL"
    check "at-once-$round-xl" "$(cat "$LAB/xl.at-once")" test "$?" = 0
    expect_config_names "first.img second.img third.img" "at-once-$round-both-there"
    expect_exit 0 "at-once-$round-detached" xendev block-detach g xvdb
    expect_exit 0 "at-once-$round-detached-too" xendev block-detach g xvdc
done

### A guest that xl reboots, saves and restores keeps its disk.

guest_reads g xvda the-first reads-at-first
xl reboot -F g > "$OUT" 2> "$ERR"
rebooted() { [ -n "$(guest_domid g 2> "$LAB/domid.err")" ] && [ "$(guest_domid g)" != "$DOMID" ]; }
check rebooted "$(cat "$ERR")" wait_until 60 rebooted
guest_reads g xvda the-first reads-after-reboot
guest_lacks g blk xvdd no-record-is-gone-after-reboot
DOMID=$(guest_domid g)
expect_exit 0 saved xl save g "$LAB/g.save"
expect_exit 0 restored xl restore "$LAB/g.save"
guest_reads g xvda the-first reads-after-restore
expect_exit 0 detached-at-last xendev block-detach g xvda
expect_config_names "" nothing-left
