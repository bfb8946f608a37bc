# Guests with a QEMU: what it holds open, what the store has of them, and how a device of theirs goes. The process is
# $QEMU, which the scenario sets.

qemu_before() { # MAJOR: the device models are of an earlier version
    local version
    version=$(/usr/libexec/xen-qemu-system-i386 --version | sed -n 's/^QEMU emulator version \([0-9]*\).*/\1/p')
    [ "$version" -lt "$1" ]
}

guest_config() { # NAME TYPE [EXTRA]: writes the configuration of a guest, with lines of it from standard input
    local kernel=/guest/vmlinuz
    [ "$2" != hvm ] || kernel=/guest/bzImage
    {
        cat << EOT
name = "$1"
type = "$2"
kernel = "$kernel"
ramdisk = "/guest/initrd"
extra = "console=hvc0 quiet${3:+ $3}"
memory = 320
vcpus = 1
EOT
        cat
    } > "$LAB/$1.cfg"
}

guest_create() { # NAME TYPE [EXTRA]: creates a guest
    guest_config "$@"
    expect_timed 0 "$1-created" xl create "$LAB/$1.cfg"
}

expect_up() { # GUEST: its first process has come up; tells how long that took
    local start=${EPOCHREALTIME/./} result=1
    # The kernel of an HVM guest unpacks itself under two layers of emulation. Silence for so long would end the run.
    for _ in 1 2 3 4; do
        wait_until 60 grep -q GUEST-UP "$(guest_log "$1")" && result=0 && break
        xl vcpu-list "$1"
    done
    check "$1-up" "its console says: $(tail -n 1 "$(guest_log "$1")")" test "$result" = 0
    echo "TIMING $(((${EPOCHREALTIME/./} - start) / 1000)) $1-up"
}

backend() { echo "/local/domain/0/backend/$2/$1/$3"; } # DOMID KIND DEVID

frontend() { echo "/local/domain/$1/device/$2/$3"; } # DOMID KIND DEVID

node() { xenstore-read "$1" 2> "$LAB/no-node" || echo absent; } # PATH: its value

node_is() { [ "$(node "$1")" = "$2" ]; } # PATH VALUE

# The store does not tell when QEMU has closed an image; the kernel does. No process is started for the question, so
# the answer is about this moment.
holds() { # PID FILE: the process has the file open
    local fd
    for fd in "/proc/$1/fd/"*; do
        [ "$fd" -ef "$2" ] && return 0
    done
    return 1
}

let_go() { ! holds "$1" "$2"; } # PID FILE

holders() { # FILE: the processes that have it open
    local process name
    for process in /proc/[0-9]*; do
        if holds "${process##*/}" "$1"; then
            read -r name < "$process/comm"
            echo "${process##*/} $name"
        fi
    done 2> "$LAB/gone" # processes that end while we look
}

tell_holders() { # FILE
    echo "    when xl is done, ${1##*/} is held by: $(holders "$1" | tr '\n' ' ')"
}

no_holder() { [ -z "$(holders "$1")" ]; } # FILE

model_is_gone() { [ ! -d "/proc/$QEMU" ]; }

expect_model_gone() { # NAME IMAGE...: QEMU has ended and nobody has the images; xl does not promise to wait for that
    local name=$1 image
    shift
    for image; do tell_holders "$image"; done
    check "$name-qemu-gone" "QEMU runs" wait_until 5 model_is_gone
    for image; do
        check "$name-${image##*/}-closed" "held by: $(holders "$image")" wait_until 5 no_holder "$image"
    done
}

domain_dump() { # DOMID FILE: all that the store has of the domain, sorted
    xenstore-ls -fp | grep -E "^/(local/domain/0/(backend/[^/]+|device-model)|local/domain|libxl)/$1(/| )" | sort > "$2"
}

domain_is() { # DOMID FILE
    domain_dump "$1" "$LAB/now.domain"
    cmp -s "$2" "$LAB/now.domain"
}

expect_domain() { # DOMID FILE NAME: the store has the same of the domain as in that dump
    wait_until 5 domain_is "$1" "$2"
    expect_same "$2" "$LAB/now.domain" "$3"
}

domain_changes() { # DOMID FILE ARTIFACT: sends out what is different from that dump
    domain_dump "$1" "$LAB/now.domain"
    diff -U 0 "$2" "$LAB/now.domain" | grep '^[-+]/' > "$LAB/changes"
    artifact "$3" "$LAB/changes"
}

expect_nothing_left() { # DOMID NAME: the store has nothing of a domain that is gone
    domain_dump "$1" "$LAB/left"
    indent < "$LAB/left"
    check "$2" "$(wc -l < "$LAB/left") nodes, see above" test ! -s "$LAB/left"
}

follow() { # DOMID DEVID PID IMAGE SECONDS: tells each step of a disk's end, until nothing is left or the time is over
    local start=${EPOCHREALTIME/./} last='' now image back online front
    local end=$((SECONDS + $5))
    while [ "$SECONDS" -lt "$end" ]; do
        image=open
        let_go "$3" "$4" && image=closed
        [ -d "/proc/$3" ] || image="no QEMU"
        back=$(node "$(backend "$1" qdisk "$2")/state")
        online=$(node "$(backend "$1" qdisk "$2")/online")
        front=$(node "$(frontend "$1" vbd "$2")/state")
        now="backend $back, online $online, frontend $front, image $image"
        [ "$now" = "$last" ] || echo "    after $(((${EPOCHREALTIME/./} - start) / 1000)) ms: $now"
        last=$now
        [ "$back $image" != "absent closed" ] || break
    done
}
