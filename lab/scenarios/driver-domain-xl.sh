# A driver domain in the hands of xl and `xl devd`: what works, and what each failure leaves. The ground truth.
. ./common.sh
. lib/driver-domain.sh
plan 68

host_with_driver_domain
DISK_BACKEND=$(dd_backend vbd "$DISK_ID")
NIC_BACKEND=$(dd_backend vif 0)
DISK_FRONTEND=/local/domain/$DOMID/device/vbd/$DISK_ID
daemon_starts xl daemon-started

for round in first second; do dd_round xl xl "$round"; done

### A script that fails: xl tells nothing of it.

dd_attach xl disk no-image-attached /srv/none.img
expect_node "$DISK_BACKEND/hotplug-status" connected no-image-status
check no-image-state "$(node "$DISK_BACKEND/state")" node_is "$DISK_BACKEND/state" 2
check no-image-error "$(node "$DISK_BACKEND/hotplug-error")" node_is "$DISK_BACKEND/hotplug-error" absent
expect_in_dd no-image-is-in-the-log "grep 'block add.*exited with error status 1' /var/log/xen/devd.log"
dd_detach xl disk no-image-detached
expect_dd_clean no-image

dd_attach xl nic no-bridge-attached nobr
expect_node "$NIC_BACKEND/hotplug-status" error no-bridge-status
expect_node "$NIC_BACKEND/hotplug-error" "Could not find bridge device nobr" no-bridge-error
expect_node "/local/domain/$DOMID/device/vif/0/state" 4 no-bridge-frontend-connected
dd_detach xl nic no-bridge-detached
expect_dd_clean no-bridge

### No daemon: an attach succeeds all the same, and a device that is closed meanwhile is nobody's.

daemon_dies daemon-dies
dd_attach xl disk no-daemon-attached
check no-daemon-state "$(node "$DISK_BACKEND/state")" node_is "$DISK_BACKEND/state" 2
daemon_starts xl daemon-started-again
expect_node "$DISK_BACKEND/state" 4 waiting-device-is-taken-up
guest_sees g blk xvda waiting-device-is-seen
daemon_dies daemon-dies-again
dd_detach xl disk no-daemon-not-detached 1
expect_stderr "timed out while waiting for $DISK_BACKEND to be removed" no-daemon-detach-says
check no-daemon-detach-leaves "$(node "$DISK_BACKEND/state")" node_is "$DISK_BACKEND/state" 6
daemon_starts xl daemon-started-at-last
dd_detach xl disk closed-device-is-ignored 1
dd_detach xl disk forced-says-it-failed 1 --force
expect_dd_store forced-store-as-before
in_dd losetup -a
check forced-leaves-loop-device "$(cat "$OUT")" grep -q /srv/dd.img "$OUT"
in_dd losetup -D

### The driver domain goes.

dd_attach xl disk destroyed-disk-attached
check destroyed-disk-connected "no" wait_until 120 dd_connected vbd "$DISK_ID"
expect_exit 0 destroyed xl destroy dd
check destroyed-frontend "$(node "$DISK_FRONTEND/state")" node_is "$DISK_FRONTEND/state" 4
dd_detach xl disk destroyed-disk-detached
check destroyed-nothing-left "$(xenstore-ls -f "/libxl/$DOMID/device")" \
    test -z "$(xenstore-ls -f "/libxl/$DOMID/device" | grep /vbd)"
guest_lacks g blk xvda destroyed-guest-lacks-disk
