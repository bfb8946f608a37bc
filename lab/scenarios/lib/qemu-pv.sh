# PV guests whose first disk QEMU serves, and what more of its disks are made of.

ROOT=$LAB/root.img
HOT=$LAB/hot.img
HOT_ID=51728 # of xvdb
HOT_DISK="format=raw,vdev=xvdb,access=rw,backendtype=qdisk,target=$HOT"
QCOW2=$LAB/hot.qcow2
image_of "$ROOT" root
image_of "$HOT" hot
qemu-img create -q -f qcow2 "$QCOW2" 8M

start_guest() { # NAME [LINE]: a PV guest with a disk of QEMU, without which there would be none; sets DOMID and QEMU
    guest_create "$1" pv << EOT
disk = ['format=raw,vdev=xvda,access=rw,backendtype=qdisk,target=$ROOT']
${2:-}
EOT
    expect_up "$1"
    DOMID=$(guest_domid "$1")
    QEMU=$(node "/local/domain/$DOMID/image/device-model-pid")
    BACKEND=$(backend "$DOMID" qdisk "$HOT_ID")
    FRONTEND=$(frontend "$DOMID" vbd "$HOT_ID")
    check "$1-first-disk-connected" "not both ends are in state 4" wait_until 20 connected "$DISK_ID"
}

connected() { # DEVID
    node_is "$(backend "$DOMID" qdisk "$1")/state" 4 && node_is "$(frontend "$DOMID" vbd "$1")/state" 4
}
