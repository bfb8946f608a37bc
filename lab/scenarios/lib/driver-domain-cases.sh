# What is shown of xendev and driver domains, a section a function. Each says how many verdicts it gives.

begin() { # COMMAND...: in the background, with its output in files named after BEGUN
    BEGUN=$LAB/begun
    "$@" > "$BEGUN.out" 2> "$BEGUN.err" &
    BEGUN_PID=$!
}

has_ended() { ! kill -0 "$1" 2> "$LAB/kill"; } # PID

expect_begun() { # STATUS NAME: what was begun ends with this status, long before its own deadlines
    local got
    wait_until "$COMMAND_LIMIT" has_ended "$BEGUN_PID" || kill -9 "$BEGUN_PID"
    wait "$BEGUN_PID" 2> "$LAB/wait"
    got=$?
    cp "$BEGUN.out" "$OUT"
    cp "$BEGUN.err" "$ERR"
    [ "$got" = "$1" ] || show_output
    check "$2" "it ended with $got instead of $1" test "$got" = "$1"
}

# The stock script's slow brother: it tells that it has begun, and goes on when a file is there.
SLOW_SCRIPT='#!/bin/bash
echo "$1" >> /tmp/slow.ran
until [ -e /tmp/slow.go ]; do sleep 0.5; done
exec /etc/xen/scripts/block "$1"
'

slow_script() { # NAME: 1 verdict
    expect_in_dd "$1" "cat > /etc/xen/scripts/block-slow << 'EOT'
${SLOW_SCRIPT}EOT
chmod 755 /etc/xen/scripts/block-slow; rm -f /tmp/slow.*"
}

slow_disk() { # [VDEV]
    echo "script=block-slow,$(dd_disk /srv/dd.img "${1:-xvda}")"
}

slow_has_run() { in_dd "grep -q '^$1\$' /tmp/slow.ran"; } # add|remove

slow_runs() { # add|remove NAME
    check "$2" "it did not within 60 s" wait_until 60 slow_has_run "$1"
}

scripts_fail() { # NAME: 10 verdicts. The command fails, says why, and leaves nothing
    dd_attach xendev disk "$1-no-image" /srv/none.img 1
    expect_stderr "driver domain $DD reported" "$1-no-image-is-told"
    expect_stderr '^  hint: ' "$1-no-image-hint"
    expect_dd_clean "$1-no-image"
    dd_attach xendev nic "$1-no-bridge" nobr 1
    # In the words of the stock script, or of its native handler.
    expect_stderr "driver domain $DD reported.*bridge.* nobr" "$1-no-bridge-is-told"
    expect_stderr '^  hint: ' "$1-no-bridge-hint"
    expect_dd_clean "$1-no-bridge"
}

no_daemon_attach() { # NAME: 4 verdicts
    dd_attach xendev disk "$1-attach" /srv/dd.img 3 --script-timeout 5
    expect_stderr devd "$1-attach-names-the-daemon"
    expect_dd_clean "$1-attach"
}

no_daemon() { # DAEMON: 15 verdicts. Without the daemon: an attach leaves nothing, and a detach can be resumed
    daemon_dies no-daemon-dies
    no_daemon_attach no-daemon
    daemon_starts "$1" no-daemon-starts
    dd_attach xendev disk no-daemon-attached
    daemon_dies no-daemon-dies-again
    dd_detach xendev disk no-daemon-detach 3 --script-timeout 5
    expect_stderr devd no-daemon-detach-names-the-daemon
    check no-daemon-detach-is-there "the device is not in the store" \
        xenstore-exists "/libxl/$DOMID/device/vbd/$DISK_ID"
    daemon_starts "$1" no-daemon-starts-again
    dd_detach xendev disk no-daemon-detach-resumed
    expect_dd_clean no-daemon-detach
}

attached_across_restart() { # DAEMON: 11 verdicts. Nothing is detached by it
    expect_in_dd restart-image "image /srv/dd.img restart"
    dd_attach xendev disk restart-disk-attached
    dd_attach xendev nic restart-nic-attached
    daemon_dies restart-dies
    daemon_starts "$1" restart-starts
    guest_reads g xvda restart restart-guest-reads
    guest_pings restart-guest-pings
    dd_detach xendev disk restart-disk-detached
    dd_detach xendev nic restart-nic-detached
    expect_dd_clean restart
}

killed_between_steps() { # DAEMON: 17 verdicts. It is killed while its script runs, and started again
    slow_script killed-script
    begin xendev block-attach --script-timeout 120 g "$(slow_disk)"
    slow_runs add killed-add-runs
    daemon_dies killed-add-dies
    expect_in_dd killed-add-forgotten "touch /tmp/slow.go"
    daemon_starts "$1" killed-add-starts
    expect_begun 0 killed-add-attached
    check killed-add-connected "no" wait_until 120 dd_connected vbd "$DISK_ID"
    expect_in_dd killed-add-one-loop-device "[ \$(losetup -a | wc -l) = 1 ]"
    expect_in_dd killed-remove-prepared "rm /tmp/slow.*"
    begin xendev block-detach --script-timeout 120 g xvda
    slow_runs remove killed-remove-runs
    daemon_dies killed-remove-dies
    expect_in_dd killed-remove-forgotten "touch /tmp/slow.go"
    daemon_starts "$1" killed-remove-starts
    expect_begun 0 killed-remove-detached
    guest_lacks g blk xvda killed-remove-guest-lacks-disk
    expect_dd_clean killed
}

nothing_of_devices() { # in the store, whatever else has gone
    [ -z "$(xenstore-ls -f | grep -E "^(/libxl/$DOMID/device/v[bi][df]|/local/domain/$DOMID/device/v[bi][df]|/local/domain/$DD)[/ ]" |
        tee "$LAB/left")" ]
}

domain_dies_under_load() { # DAEMON: 14 verdicts, and those of a round with a new driver domain (14)
    slow_script destroyed-script
    expect_in_dd destroyed-image "image /srv/dd.img destroyed; cp /srv/dd.img /srv/other.img"
    dd_attach xendev disk destroyed-attached
    guest_reads g xvda destroyed destroyed-guest-reads
    begin xendev block-attach --script-timeout 600 g "script=block-slow,$(dd_disk /srv/other.img xvdb)"
    slow_runs add destroyed-add-runs
    expect_exit 0 destroyed xl destroy "$DD_NAME"
    expect_begun 1 destroyed-attach-ends
    expect_stderr "driver domain" destroyed-attach-says-why
    dd_detach xendev disk destroyed-detached
    wait_until 20 nothing_of_devices || indent < "$LAB/left"
    check destroyed-nothing-left "see above" test ! -s "$LAB/left"
    # A read that nobody answers any more is kept by Linux's blkfront for ever, and so are its reader and the disk.
    expect_exit 0 destroyed-guest xl destroy g
    guest_of_driver_domain destroyed-guest-again
    check destroyed-new-one "see above" driver_domain_start "${DD_NAME}2"
    dd_store "$BEFORE"
    daemon_starts "$1" destroyed-new-daemon
    dd_round xendev xendev new-domain
}

cycle() {
    local words
    read -ra words <<< "$(dd_nic)"
    limited xendev block-attach g "$(dd_disk)" && limited xendev network-attach g "${words[@]}" &&
        limited xendev block-detach g xvda && limited xendev network-detach g 0
}

cycles() { # NUMBER
    local number
    for number in $(seq "$1"); do
        cycle || { echo "    cycle $number failed"; show_output; return 1; }
        echo "    cycle $number"
    done
}

node_count() { xenstore-ls -f | grep -cv '/data/command = '; }

many_cycles() { # NUMBER: 4 verdicts
    local nodes
    nodes=$(node_count)
    check cycles "see above" cycles "$1"
    # A copy goes with its device, so not even these are more.
    check cycles-nodes "$nodes, then $(node_count)" test "$(node_count)" = "$nodes"
    expect_dd_clean cycles
}
