# A driver domain: a PV guest made of dom0's own files, whose kernel serves disks and interfaces to other guests and
# whose daemon runs the hotplug scripts there. The guest `g` is the one that it serves.

DD_MEMORY=320
DD_REQUESTS=0

driver_domain_files() { # FILE: the initramfs of a driver domain, which has all that dom0 has now
    (cd / && find . -xdev \( -path ./guest -o -path './var/log/xen/*' \) -prune -o -print | cpio -o -H newc) > "$1"
}

driver_domain_start() { # NAME: sets DD_NAME and its domid DD
    DD_NAME=$1
    [ -e "$LAB/dd.cpio" ] || driver_domain_files "$LAB/dd.cpio"
    guest_start "$1" "$LAB/dd.cpio" "" "driver_domain = 1" "$DD_MEMORY" || return 1
    DD=$(guest_domid "$1")
}

dd_answered() { # sets DD_SAID to the lines of its console
    mapfile -t DD_SAID < "$(guest_log "$DD_NAME")"
    # The last line may be half written.
    [[ "${DD_SAID[*]: -1}" == "DD-DONE $DD_REQUESTS "*$'\r' ]]
}

in_dd() { # COMMAND LINE: runs it in bash in the driver domain, with what it prints in $OUT; the status is its own
    local line words status=99 # no answer
    DD_REQUESTS=$((DD_REQUESTS + 1))
    xenstore-write -R "/local/domain/$DD/data/command" "$DD_REQUESTS $*"
    wait_until "$COMMAND_LIMIT" dd_answered
    for line in "${DD_SAID[@]}"; do
        line=${line%$'\r'}
        case $line in
            "DD-SAYS $DD_REQUESTS "*) echo "${line#DD-SAYS * }" ;;
            "DD-DONE $DD_REQUESTS "*) status=${line##* } ;;
        esac
    done > "$OUT"
    : > "$ERR"
    return "$status"
}

expect_in_dd() { # NAME COMMAND LINE: it ends with 0
    local name=$1 status
    shift
    in_dd "$@"
    status=$?
    [ "$status" = 0 ] || indent < "$OUT"
    check "$name" "in $DD_NAME, \`$*' ended with $status" test "$status" = 0
}

daemon_starts() { # PROGRAM NAME
    expect_in_dd "$2" daemon "$1"
}

daemon_dies() { # NAME
    expect_in_dd "$1" daemon_dies
}

### Devices that the driver domain serves.

dd_disk() { # [IMAGE [VDEV]]: its specification; what follows `target=' belongs to the target
    echo "format=raw,vdev=${2:-xvda},access=rw,backend=$DD_NAME,target=${1:-/srv/dd.img}"
}

dd_nic() { # [BRIDGE]
    echo "mac=$MAC bridge=${1:-xenbr0} script=vif-bridge backend=$DD_NAME"
}

dd_backend() { echo "/local/domain/$DD/backend/$1/$DOMID/$2"; } # KIND DEVID

node() { xenstore-read "$1" 2> "$LAB/no-node" || echo absent; } # PATH: its value

node_is() { [ "$(node "$1")" = "$2" ]; } # PATH VALUE

expect_node() { # PATH VALUE NAME: at the latest after a while, since the daemon works on by itself
    wait_until 60 node_is "$1" "$2"
    check "$3" "$1 is $(node "$1")" node_is "$1" "$2"
}

dd_connected() { # KIND DEVID
    both_ends_connected "$DOMID" "$1" "$2" "$DD"
}

# libxl gives a driver domain 10 s to remove a backend, which is not always enough under emulation. What it has left
# then goes at a later call.
cat > /usr/bin/at-last << 'EOT'
#!/bin/bash
for _ in 1 2 3 4; do
    "$@" && exit
    sleep 4
done
exit 1
EOT
chmod 755 /usr/bin/at-last

dd_attach() { # TOOL disk|nic NAME [IMAGE|BRIDGE [STATUS [OPTION...]]]
    local command=block-attach words
    if [ "$2" = disk ]; then
        words=("$(dd_disk ${4:+"$4"})")
    else
        command=network-attach
        read -ra words <<< "$(dd_nic ${4:+"$4"})"
    fi
    expect_timed "${5:-0}" "$3" "$1" "$command" "${@:6}" g "${words[@]}"
}

dd_detach() { # TOOL disk|nic NAME [STATUS [OPTION...]]
    local device=xvda command=block-detach
    [ "$2" = disk ] || { device=0 command=network-detach; }
    if [ "$1 ${4:-0}" = "xl 0" ]; then
        expect_timed 0 "$3" at-last xl "$command" "${@:5}" g "$device"
    else
        expect_timed "${4:-0}" "$3" "$1" "$command" "${@:5}" g "$device"
    fi
}

nothing_in_dd() { in_dd leftovers && [ ! -s "$OUT" ]; }

expect_nothing_in_dd() { # NAME: of no device, outside of the store
    wait_until 20 nothing_in_dd
    check "$1" "$(tr '\n' ';' < "$OUT")" test ! -s "$OUT"
}

dd_store() { # FILE: a dump without what the lab itself writes, xendev's copies, the name of the daemon's process, and
    # what a guest says of itself when it has come up
    xenstore-ls -fp | without_copies |
        grep -v '/data/command = \|/libxl/xendev-devd = \|/control/feature-' > "$1"
}

dd_store_is_as_before() {
    dd_store "$LAB/now.store"
    cmp -s "$BEFORE" "$LAB/now.store"
}

expect_dd_store() { # NAME: it is as before
    wait_until 20 dd_store_is_as_before
    expect_same "$BEFORE" "$LAB/now.store" "$1"
}

expect_dd_clean() { # NAME: neither the store nor the driver domain has anything of a device
    expect_dd_store "$1-store-as-before"
    expect_nothing_in_dd "$1-nothing-in-dd"
    { [ ! -s "$OUT" ] && cmp -s "$BEFORE" "$LAB/now.store"; } || dd_tidy
}

dd_tidy() { # so that one failure does not make all later checks fail
    in_dd "tail -n 30 /var/log/xen/devd.log; tail -n 5 /var/log/xen/xen-hotplug.log; ps | grep -v '\['" && indent < "$OUT"
    {
        xl block-detach --force g xvda
        xl network-detach g 0
        in_dd "losetup -D"
    } > "$LAB/tidy" 2>&1
}

guest_has_said() { tail -n "+$(($1 + 1))" "$(guest_log g)" | grep -aq "$2"; } # SINCE PATTERN

guest_pings() { # NAME: the address of the driver domain's bridge
    local since
    since=$(wc -l < "$(guest_log g)")
    check "$1" "no answer in 60 s" wait_until 60 guest_has_said "$since" GUEST-PINGS
}

guest_has_written() { # to the image in the driver domain
    in_dd "dd if=/srv/dd.img bs=512 skip=1 count=1 2> /dev/null | tr -d '\0'" && [ "$(cat "$OUT")" = "the guest wrote to xvda" ]
}

guest_uses_both() { # WORD NAME: the guest works with its disk, which begins with the word, and its interface
    guest_reads g xvda "$1" "$2-guest-reads"
    check "$2-guest-writes" "the image has: $(cat "$OUT")" wait_until 60 guest_has_written
    guest_pings "$2-guest-pings"
}

# On a busy host `xl devd` gives up a device that is late, and xl, which has not waited, says nothing.
xl_devd_attaches() { # disk|nic KIND DEVID: again what xl has attached, if it came to nothing
    local device=xvda command=block words
    words=("$(dd_disk)")
    [ "$1" = disk ] || { device=0 command=network; read -ra words <<< "$(dd_nic)"; }
    for _ in 1 2 3; do
        wait_until 60 dd_connected "$2" "$3" && break
        echo "    xl's $1 has not come up; again"
        at-last xl "$command-detach" g "$device"
        xl "$command-attach" g "${words[@]}"
    done > "$LAB/again" 2>&1
    indent < "$LAB/again"
}

DD_ROUNDS=0

dd_round() { # ATTACHING-TOOL DETACHING-TOOL NAME: 14 verdicts
    local word
    DD_ROUNDS=$((DD_ROUNDS + 1))
    word=round-$DD_ROUNDS
    expect_in_dd "$3-image" "image /srv/dd.img $word"
    dd_attach "$1" disk "$3-disk-attached"
    dd_attach "$1" nic "$3-nic-attached"
    if [[ "$1 $3" = "xl xl-devd"* ]]; then
        xl_devd_attaches disk vbd "$DISK_ID"
        xl_devd_attaches nic vif 0
    fi
    check "$3-disk-connected" "no" wait_until 120 dd_connected vbd "$DISK_ID"
    check "$3-nic-connected" "no" wait_until 120 dd_connected vif 0
    guest_uses_both "$word" "$3"
    dd_detach "$2" disk "$3-disk-detached"
    dd_detach "$2" nic "$3-nic-detached"
    guest_lacks g blk xvda "$3-guest-lacks-disk"
    guest_lacks g net eth0 "$3-guest-lacks-nic"
    expect_dd_clean "$3"
}

guest_of_driver_domain() { # VERDICT-NAME: sets DOMID
    # It is busy all the time: the two domains that it waits for come first.
    check "$1" "see above" guest_start g /guest/initrd "read-disks use-devices" "cpu_weight = 32"
    DOMID=$(guest_domid g)
}

host_with_driver_domain() { # sets DD, DOMID and BEFORE: 2 verdicts
    check driver-domain-started "see above" driver_domain_start dd
    guest_of_driver_domain guest-started
    BEFORE=$LAB/before.store
    dd_store "$BEFORE"
}
