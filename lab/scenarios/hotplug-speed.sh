# How long devices take with xl, with the stock scripts, and with native handlers: one table, by turns in one boot.
# needs xendev
# limit 7200
. ./common.sh
plan 11
hotplug_programs

ROUNDS=5
check guest-started "see above" guest_start g
DOMID=$(guest_domid g)
for disk in b c d e f g; do image_of "$LAB/xvd$disk.img" "disk"; done

measure() { # TOOL WHAT COMMAND...: notes how long it took, in microseconds
    local tool=$1 what=$2 start
    shift 2
    start=${EPOCHREALTIME/./}
    if "$@" > "$OUT" 2> "$ERR"; then
        echo $((${EPOCHREALTIME/./} - start)) >> "$LAB/$what.$tool"
        echo "    $what $tool $(tail -n 1 "$LAB/$what.$tool") us"
    else
        show_output
        echo "  $tool failed at $what"
        FAILED=1
    fi
}

of_xvd() { echo "format=raw,vdev=xvd$1,access=rw,target=$LAB/xvd$1.img"; }

six() { # TOOL: six commands at once
    local disk pids='' status=0
    for disk in b c d e f g; do
        "$1" block-attach g "$(of_xvd "$disk")" &
        pids="$pids $!"
    done
    for pid in $pids; do wait "$pid" || status=1; done
    return "$status"
}

{
    echo "disk = ["
    for disk in b c d e f g; do echo "    '$(of_xvd "$disk")',"; done
    echo "]"
} > "$LAB/six.cfg"

six_at_once() { # as one command
    xendev --hotplug native attach-all g "$LAB/six.cfg"
}

six_gone() {
    for disk in b c d e f g; do native block-detach g "xvd$disk" > "$OUT" 2> "$ERR" || FAILED=1; done
}

FAILED=0
for round in $(seq "$ROUNDS"); do
    for tool in xl scripted native; do
        measure "$tool" block-attach "$tool" block-attach g "$DISK"
        wait_until 20 both_ends_connected "$DOMID" vbd "$DISK_ID" || FAILED=1
        measure "$tool" block-detach "$tool" block-detach g xvda
        # shellcheck disable=SC2086 # several words
        measure "$tool" network-attach "$tool" network-attach g $NIC
        wait_until 20 both_ends_connected "$DOMID" vif 0 || FAILED=1
        measure "$tool" network-detach "$tool" network-detach g 0
        sleep 1
    done
    for tool in xl native; do
        measure "$tool" six-disks six "$tool"
        sleep 2
        six_gone
    done
    measure attach-all six-disks six_at_once
    sleep 2
    six_gone
done
check nothing-failed "see above" test "$FAILED" = 0

median() { sort -n "$1" | sed -n "$((($(wc -l < "$1") + 1) / 2))p"; }

times() { # WHAT TOOL: how many tenths of it xl takes
    echo $(($(median "$LAB/$1.xl") * 10 / $(median "$LAB/$1.$2")))
}

echo "    medians of $ROUNDS, in ms:        xl   scripts    native  attach-all"
for what in block-attach block-detach network-attach network-detach six-disks; do
    line=$(printf '%-24s' "$what")
    for tool in xl scripted native attach-all; do
        if [ -e "$LAB/$what.$tool" ]; then
            line="$line$(printf '%10s' $(($(median "$LAB/$what.$tool") / 1000)))"
        else
            line="$line         -"
        fi
    done
    echo "    $line"
done

faster() { # WHAT TOOL TENTHS: xl takes so many tenths of it at least
    check "$1-$2" "xl takes $(times "$1" "$2") tenths of its time, not $3" test "$(times "$1" "$2")" -ge "$3"
}
faster block-attach native 60
faster network-attach native 60
faster block-detach native 30
faster network-detach native 30
faster six-disks attach-all 120
faster block-attach scripted 9
faster network-attach scripted 9
expect_no_leftovers speed
