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

### Disks of a QEMU that the driver domain's daemon starts.

qemu_disk() { # [IMAGE [VDEV]]
    echo "backendtype=qdisk,$(dd_disk "$@")"
}

qemu_count() { # sets COUNT to the number of QEMUs in the driver domain
    in_dd "grep -lae '[-]xen-attach' /proc/[0-9]*/cmdline | wc -l"
    COUNT=$(cat "$OUT")
}

qemu_count_is() { qemu_count && [ "$COUNT" = "$1" ]; } # NUMBER

expect_qemus() { # NUMBER NAME: so many run, at the latest after a while
    wait_until 30 qemu_count_is "$1"
    check "$2" "$COUNT run" test "$COUNT" = "$1"
}

kill_qemu() { # NAME
    expect_in_dd "$1" "kill -9 \$(xenstore-read libxl/$DOMID/qdisk-backend-pid)"
}

qemu_attach() { # NAME [IMAGE [VDEV [STATUS [OPTION...]]]]
    expect_timed "${4:-0}" "$1" xendev block-attach "${@:5}" g "$(qemu_disk "${2:-/srv/dd.img}" "${3:-xvda}")"
}

qemu_connected() { node_is "$(dd_backend qdisk "$1")/state" 4; } # DEVID

expect_qemu_connected() { # DEVID NAME
    check "$2" "$(dd_backend qdisk "$1")/state is $(node "$(dd_backend qdisk "$1")/state")" \
        wait_until 60 qemu_connected "$1"
}

qemu_disks() { # DAEMON: 36 verdicts. Disks come and go, an image is missing, daemon and QEMU are killed
    expect_in_dd qemu-images "image /srv/dd.img qemu-one; image /srv/other.img qemu-two"
    qemu_attach qemu-first
    expect_qemu_connected "$DISK_ID" qemu-first-connected
    guest_reads g xvda qemu-one qemu-first-guest-reads
    qemu_attach qemu-second /srv/other.img xvdb
    expect_qemu_connected 51728 qemu-second-connected
    guest_reads g xvdb qemu-two qemu-second-guest-reads
    expect_qemus 1 qemu-one-for-both
    expect_in_dd qemu-status "xendev devd --status"
    indent < "$OUT"

    # An image that is not there is told of in QEMU's words, and hurts nobody.
    qemu_attach qemu-no-image /srv/none.img xvdc 1
    expect_stderr "driver domain $DD reported.*No such file or directory" qemu-no-image-is-told
    guest_reads g xvda qemu-one qemu-no-image-others-go-on

    # The daemon is killed; what it has started goes on, and is ended after the last disk.
    daemon_dies qemu-daemon-dies
    daemon_starts "$1" qemu-daemon-starts
    expect_timed 0 qemu-second-detached xendev block-detach g xvdb
    expect_qemus 1 qemu-stays-for-first
    guest_reads g xvda qemu-one qemu-first-goes-on
    expect_timed 0 qemu-first-detached xendev block-detach g xvda
    expect_qemus 0 qemu-ends-with-last
    guest_lacks g blk xvda qemu-guest-lacks-disk
    expect_dd_clean qemu

    # QEMU is killed: told at once, and the next attach starts another.
    qemu_attach qemu-killed-attached
    expect_qemu_connected "$DISK_ID" qemu-killed-connected
    kill_qemu qemu-killed
    expect_node "$(dd_backend qdisk "$DISK_ID")/hotplug-status" error qemu-killed-is-told
    expect_timed 0 qemu-killed-detached xendev block-detach --force g xvda
    # A read that nobody answers any more is kept by Linux's blkfront for ever; see below.
    expect_exit 0 qemu-killed-guest xl destroy g
    guest_of_driver_domain qemu-killed-guest-again
    dd_store "$BEFORE"
    qemu_attach qemu-anew-attached
    expect_qemu_connected "$DISK_ID" qemu-anew-connected
    guest_reads g xvda qemu-one qemu-anew-guest-reads
    expect_timed 0 qemu-anew-detached xl block-detach g xvda
    expect_qemus 0 qemu-anew-ends
    expect_dd_clean qemu-anew
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
