# Devices of QEMU that are there before it runs, as while a domain is created; and an interface's emulated half.
# needs xendev
# needs lab
# needs qemu
. ./common.sh
. lib/qemu.sh
. lib/qemu-pv.sh
plan 34

SECOND_DISK="format=qcow2,vdev=xvdb,access=rw,backendtype=qdisk,target=$QCOW2"
ROOT_DISK="format=raw,vdev=xvda,access=rw,backendtype=qdisk,target=$ROOT"

paused_guest() { # NAME TYPE: creates a guest that does not run yet, with lines of its configuration from standard input
    guest_config "$1" "$2"
    expect_timed 0 "$1-created" xl create -p "$LAB/$1.cfg"
    DOMID=$(guest_domid "$1")
}

backends_ready() {
    node_is "$(backend "$DOMID" qdisk "$DISK_ID")/state" 2 && node_is "$(backend "$DOMID" qdisk "$HOT_ID")/state" 2 \
        && node_is "$(backend "$DOMID" vfb 0)/hotplug-status" connected \
        && node_is "$(backend "$DOMID" vkbd 0)/hotplug-status" connected
}

devices() { # FILE [WITHOUT]: what the store has of the domain's devices, without its number
    domain_dump "$DOMID" "$LAB/all"
    grep -E "^/(libxl/$DOMID/device|local/domain/$DOMID/device|local/domain/0/backend|local/domain/0/device-model)/" "$LAB/all" \
        | grep -vE "${2:-^$}" \
        | sed -E "s#/$DOMID(/| =)#/N\1#g; s#(/frontend-id = )\"$DOMID\"#\1\"N\"#; s#([(,][nrwb])$DOMID\b#\1N#g" | sort > "$1"
}

### Created by xl: the guest waits, and QEMU has taken its devices up.

paused_guest byxl pv << EOT
disk = ['$ROOT_DISK', '$SECOND_DISK']
vfb = ['type=vnc,vncunused=1']
EOT
check byxl-backends-ready "QEMU has not taken all up" wait_until 20 backends_ready
devices "$LAB/devices.xl"
artifact devices.xl "$LAB/devices.xl"
QEMU=$(node "/local/domain/$DOMID/image/device-model-pid")
tr '\0' '\n' < "/proc/$QEMU/cmdline" > "$LAB/words"
FIRST=$DOMID
expect_exit 0 byxl-destroyed xl destroy byxl
check byxl-qemu-gone "QEMU runs" wait_until 5 model_is_gone

### The same by the library: the devices first, and then QEMU.

paused_guest bare pv < /dev/null
check bare-no-model "it has one" node_is "/local/domain/$DOMID/image/device-model-pid" absent
expect_exit 1 refused-without-model xendev block-attach bare "$HOT_DISK"
expect_stderr "no device model that runs" refused-reason
domain_dump "$DOMID" "$LAB/bare.before"
expect_timed 0 tree-attached xendev block-attach --wait tree bare "$HOT_DISK"
expect_exit 0 tree-detached xendev block-detach bare xvdb
expect_domain "$DOMID" "$LAB/bare.before" tree-store-as-before
expect_timed 0 devices-added lab creation "$DOMID" --disk "$ROOT_DISK" --disk "$SECOND_DISK" --vfb
indent < "$OUT"
check devices-wait "backend $(node "$(backend "$DOMID" qdisk "$HOT_ID")/state")" \
    node_is "$(backend "$DOMID" qdisk "$HOT_ID")/state" 1

# What xl does before it starts QEMU, and the same QEMU for another guest.
xenstore-write "/local/domain/0/device-model/$DOMID" ""
sed -E "s/^$FIRST\$/$DOMID/; s/libx(l|enstat)-$FIRST,/libx\1-$DOMID,/; s/^byxl\$/bare/" "$LAB/words" > "$LAB/words.bare"
mapfile -t COMMAND < "$LAB/words.bare"
"${COMMAND[@]}" < /dev/null > /var/log/xen/qemu-dm-bare.log 2>&1 &
QEMU=$!
xenstore-write "/local/domain/$DOMID/image/device-model-pid" "$QEMU"
check model-takes-them-up "QEMU has not taken all up: $(tail -n 3 /var/log/xen/qemu-dm-bare.log)" wait_until 20 backends_ready
devices "$LAB/devices.xendev"
expect_same "$LAB/devices.xl" "$LAB/devices.xendev" devices-as-xls
xl unpause bare
expect_up bare
check guest-connected "disk $(node "$(backend "$DOMID" qdisk "$DISK_ID")/state")" wait_until 20 connected "$DISK_ID"
check guest-connected-to-second "disk $(node "$(backend "$DOMID" qdisk "$HOT_ID")/state")" wait_until 20 connected "$HOT_ID"
guest_sees bare blk xvdb guest-sees-second
expect_timed 0 devices-destroyed xendev destroy-devices bare
check devices-destroyed-model-gone "QEMU runs" model_is_gone
check devices-destroyed-closed "held by: $(holders "$QCOW2")" no_holder "$QCOW2"
expect_exit 0 bare-destroyed xl destroy bare
expect_nothing_left "$DOMID" bare-nothing-left

### The emulated half of an interface, which the QEMU of an HVM guest makes at its start.

paused_guest hvm hvm << EOT
vga = "none"
vnc = 0
nographic = 1
disk = ['$DISK']
vif = ['type=ioemu,mac=$MAC,bridge=xenbr0']
EOT
ports() { ls /sys/class/net/xenbr0/brif | tr '\n' ' '; }
check nic-two-ports "ports of xenbr0: $(ports)" test "$(ports)" = "vif$DOMID.0 vif$DOMID.0-emu "
devices "$LAB/nic.xl" "/(vbd|vkbd)/"
artifact nic.xl "$LAB/nic.xl"
expect_exit 0 nic-detached xendev network-detach hvm 0
check nic-no-port "ports of xenbr0: $(ports)" wait_until 3 no_bridge_port
check nic-emulated-half-stays "it is gone" test -e "/sys/class/net/vif$DOMID.0-emu"
expect_timed 0 nic-attached xendev network-attach hvm type=ioemu devid=0 "mac=$MAC" bridge=xenbr0
check nic-two-ports-again "ports of xenbr0: $(ports)" test "$(ports)" = "vif$DOMID.0 vif$DOMID.0-emu "
devices "$LAB/nic.xendev" "/(vbd|vkbd)/"
expect_same "$LAB/nic.xl" "$LAB/nic.xendev" nic-as-xls
expect_exit 0 hvm-destroyed xl destroy hvm
expect_nothing_left "$DOMID" hvm-nothing-left
