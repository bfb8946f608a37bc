# Everything of driver domains, about half an hour: both tools with both daemons, failures, deaths, a hundred cycles.
# needs xendev
# limit 7200
. ./common.sh
. lib/driver-domain.sh
. lib/driver-domain-cases.sh
DAEMON=xendev
plan 216

host_with_driver_domain

daemon_starts xl xl-devd-starts
for tools in "xl xl" "xendev xendev" "xl xendev" "xendev xl"; do
    # shellcheck disable=SC2086 # two words
    dd_round $tools "xl-devd, ${tools/ /, then }"
done
scripts_fail xl-devd
daemon_dies xl-devd-dies
no_daemon_attach xl-devd-dead

daemon_starts "$DAEMON" devd-starts
for tools in "xl xl" "xendev xendev" "xl xendev" "xendev xl"; do
    # shellcheck disable=SC2086 # two words
    dd_round $tools "devd, ${tools/ /, then }"
done
scripts_fail devd
no_daemon "$DAEMON"
attached_across_restart "$DAEMON"
killed_between_steps "$DAEMON"
many_cycles 100
domain_dies_under_load "$DAEMON"
