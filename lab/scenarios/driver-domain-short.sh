# A driver domain with xendev's daemon: disks and interfaces come and go, scripts fail, the daemon is started again.
# needs xendev
. ./common.sh
. lib/driver-domain.sh
. lib/driver-domain-cases.sh
DAEMON=xendev
plan 42

host_with_driver_domain
daemon_starts "$DAEMON" devd-starts
dd_round xendev xendev ours
scripts_fail devd
attached_across_restart "$DAEMON"
many_cycles 5
