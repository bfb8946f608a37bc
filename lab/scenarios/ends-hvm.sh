# The end of an HVM guest, whose QEMU emulates its devices too: destroy-devices beside xl destroy.
# needs xendev
# needs qemu
. ./common.sh
. lib/qemu.sh
. lib/ends.sh
plan 21

hvm_guest() { # NAME: with a disk of the kernel's and a CD-ROM of QEMU's, which it emulates both, an emulated NIC and a keyboard
    image_of "$LAB/$1.img" disk
    image_of "$LAB/$1.iso" cdrom
    guest_create "$1" hvm << END
vga = "none"
vnc = 0
nographic = 1
disk = ['format=raw,vdev=xvda,access=rw,target=$LAB/$1.img', 'format=raw,vdev=hdc,access=ro,devtype=cdrom,target=$LAB/$1.iso']
vif = ['type=ioemu,bridge=xenbr0']
END
    expect_up "$1"
    DOMID=$(guest_domid "$1")
    QEMU=$(node "/local/domain/$DOMID/image/device-model-pid")
    check "$1-disk-connected" "not both ends are in state 4" wait_until 20 both_ends_connected "$DOMID" vbd "$DISK_ID"
    check "$1-nic-connected" "not both ends are in state 4" wait_until 20 both_ends_connected "$DOMID" vif 0
}

hvm_guest hvm-xl
ends hvm-xl-ended xl destroy hvm-xl
BY_XL=$MS
XL_WAITED=$WAITED
tell_holders "$LAB/hvm-xl.img"
tell_holders "$LAB/hvm-xl.iso"
wait_until 5 model_is_gone
hvm_guest hvm-xendev
ends hvm-xendev-ended xendev destroy-devices --json hvm-xendev
artifact hvm.json "$OUT"
expect_let_go hvm-xendev "$LAB/hvm-xendev.img" "$LAB/hvm-xendev.iso"
json_is hvm-xendev-told '"ok":true' '"model":{"outcome":"ended","killed":false'
echo "    hvm: xendev is $((BY_XL - MS)) ms sooner than xl, and waits $((XL_WAITED - WAITED)) ms less"
check hvm-two-seconds-sooner "xl took $BY_XL ms, xendev $MS ms" test $((BY_XL - MS)) -ge 2000
# Beside an HVM guest domain 0 may have work all the time, also while xl sleeps.
check hvm-waits-for-nothing "it waited $WAITED ms, xl $XL_WAITED ms" test "$WAITED" -lt 500
expect_gone hvm-xendev
check hvm-no-loop-device "losetup -a: $(losetup -a)" wait_until 3 no_loop_device
check hvm-no-bridge-port "ports of xenbr0: $(ls /sys/class/net/xenbr0/brif)" no_bridge_port
