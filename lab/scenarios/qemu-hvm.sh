# A PVH and an HVM guest as xl makes them: the devices of the HVM guest's QEMU, and changing what is in its CD drive.
# needs xendev
# needs qemu
. ./common.sh
. lib/qemu.sh
. lib/cdrom.sh
plan 46

FIRST=$LAB/first.iso
SECOND=$LAB/second.iso
HOT=$LAB/hot.img
HOT_ID=51728 # of xvdb
image_of "$FIRST" first
image_of "$SECOND" second
image_of "$HOT" hot

### PVH: no QEMU at all.

guest_create pvh pvh << EOT
disk = ['$DISK']
EOT
expect_up pvh
DOMID=$(guest_domid pvh)
check pvh-disk-connected "not both ends are in state 4" wait_until 20 both_ends_connected "$DOMID" vbd "$DISK_ID"
domain_dump "$DOMID" "$LAB/pvh.domain"
artifact pvh.store "$LAB/pvh.domain"
check pvh-no-model "it has one" node_is "/local/domain/$DOMID/image/device-model-pid" absent
expect_timed 0 pvh-attached xendev block-attach --wait connected pvh "format=raw,vdev=xvdb,access=rw,target=$HOT"
guest_sees pvh blk xvdb pvh-guest-sees-disk
expect_timed 0 pvh-detached xendev block-detach pvh xvdb
expect_domain "$DOMID" "$LAB/pvh.domain" pvh-store-as-before
expect_timed 0 pvh-devices-destroyed xendev destroy-devices pvh
check pvh-devices-gone "$(xenstore-ls -f "/libxl/$DOMID/device")" test -z "$(xenstore-ls -f "/libxl/$DOMID/device" | grep vbd/)"
expect_timed 0 pvh-destroyed xl destroy pvh
expect_nothing_left "$DOMID" pvh-nothing-left
check pvh-no-loop-device "losetup -a: $(losetup -a)" wait_until 3 no_loop_device

### HVM.

guest_create hvm hvm << EOT
vga = "none"
vnc = 0
nographic = 1
disk = ['$DISK', 'format=raw,vdev=hdc,access=ro,devtype=cdrom,target=$FIRST']
vif = ['type=ioemu,mac=$MAC,bridge=xenbr0']
EOT
expect_up hvm
DOMID=$(guest_domid hvm)
QEMU=$(node "/local/domain/$DOMID/image/device-model-pid")
CDROM=$(backend "$DOMID" qdisk "$CDROM_ID")

states() { # the backends' states, and what the frontends make of them
    xenstore-ls -f "/local/domain/0/backend" | grep -E "/$DOMID/[0-9]+/state = " | indent
    xenstore-ls -f "/local/domain/$DOMID/device" | grep -E '/state = ' | indent
}

check hvm-disk-connected "not both ends are in state 4" wait_until 20 both_ends_connected "$DOMID" vbd "$DISK_ID"
check hvm-nic-connected "not both ends are in state 4" wait_until 20 both_ends_connected "$DOMID" vif 0
check hvm-keyboard-connected "not both ends are in state 4" wait_until 20 both_ends_connected "$DOMID" vkbd 0
states
tr '\0' '\n' < "/proc/$QEMU/cmdline" > "$LAB/words"
artifact hvm-command-line "$LAB/words"
# Linux takes the CD-ROM drive from the IDE bus, not from here.
check hvm-cdrom-waits "backend $(node "$CDROM/state")" node_is "$CDROM/state" 2
check hvm-nic-on-bridge "no port of xenbr0" test -e "/sys/class/net/xenbr0/brif/vif$DOMID.0"
BEFORE=$LAB/hvm.domain
domain_dump "$DOMID" "$BEFORE"
artifact hvm.store "$BEFORE"
check hvm-cdrom-inserted "see above" drive_is "$FIRST"
indent < "$OUT"

### The medium. xl's words to QEMU are told by strace.

said() { # FILE: what xl wrote to QEMU's socket; the `{' before `add-fd' went with the descriptor
    grep -o 'execute.*' "$1" | sed -E 's/\\r\\n".*//; s/\\"/"/g; s/,"id":[0-9]+//; s/^/{"/'
}

change_medium() { # NAME COMMAND...
    local name=$1
    shift
    domain_dump "$DOMID" "$LAB/medium.domain"
    expect_timed 0 "$name" strace -f -s 4000 -e trace=write -o "$LAB/$name.strace" "$@"
    said "$LAB/$name.strace" | indent
    domain_changes "$DOMID" "$LAB/medium.domain" "$name.store"
    indent < "$LAB/changes"
}

change_medium cd-ejected xl cd-eject hvm hdc
check cd-ejected-by-eject "see above" grep -qF "eject" <(said "$LAB/cd-ejected.strace")
check cd-ejected-params "$(node "$CDROM/params")" node_is "$CDROM/params" ""
check cd-ejected-drive-empty "see below" drive_is "[not inserted]"
indent < "$OUT"
# Only the drive lets go: the disk's backend reads `params' once.
check cd-ejected-image-open "QEMU has closed it" holds "$QEMU" "$FIRST"

change_medium cd-inserted xl cd-insert hvm hdc "$SECOND"
check cd-inserted-by-descriptor "see above" grep -qF "blockdev-change-medium" <(said "$LAB/cd-inserted.strace")
check cd-inserted-params "$(node "$CDROM/params")" node_is "$CDROM/params" "aio:$SECOND"
check cd-inserted-drive "see below" drive_is "/dev/fdset/"
indent < "$OUT"
check cd-inserted-image-open "QEMU does not have it" holds "$QEMU" "$SECOND"

change_medium cd-swapped xl cd-insert hvm hdc "$FIRST"
check cd-swapped-image-closed "QEMU has the other one" let_go "$QEMU" "$SECOND"

### A hot disk of QEMU.

domain_dump "$DOMID" "$BEFORE"
expect_timed 0 hvm-hot-attached xl block-attach hvm "format=raw,vdev=xvdb,access=rw,backendtype=qdisk,target=$HOT"
check hvm-hot-connected "backend $(node "$(backend "$DOMID" qdisk "$HOT_ID")/state")" \
    wait_until 20 node_is "$(backend "$DOMID" qdisk "$HOT_ID")/state" 4
guest_sees hvm blk xvdb hvm-hot-guest-sees-disk
domain_changes "$DOMID" "$BEFORE" hvm-hot.store
expect_timed 0 hvm-hot-detached xl block-detach hvm xvdb
check hvm-hot-image-closed "still open" wait_until 5 let_go "$QEMU" "$HOT"
expect_domain "$DOMID" "$BEFORE" hvm-hot-store-as-before

### The end.

expect_timed 0 hvm-destroyed xl destroy hvm
expect_model_gone hvm "$IMAGE" "$FIRST"
expect_nothing_left "$DOMID" hvm-nothing-left
check hvm-no-loop-device "losetup -a: $(losetup -a)" wait_until 3 no_loop_device
check hvm-no-bridge-port "ports of xenbr0: $(ls /sys/class/net/xenbr0/brif)" no_bridge_port
