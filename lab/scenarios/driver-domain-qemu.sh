# A driver domain whose daemon starts QEMU: its disks come and go, an image is missing, the daemon and QEMU are killed.
# needs xendev
# needs qemu
. ./common.sh
. lib/driver-domain.sh
. lib/driver-domain-cases.sh
DAEMON=xendev
# It has QEMU too, twice as it boots.
DD_MEMORY=768
plan 39

host_with_driver_domain
daemon_starts "$DAEMON" devd-starts
qemu_disks "$DAEMON"
