# Several actors on one device, and actors that die: nothing of the device is left, and no script runs beside another.
# needs xendev
. ./common.sh
plan 115

# Scripts are stopped here at calls that a native handler does not make; a script that is not Debian's is run.
echo "# of the lab" >> /etc/xen/scripts/block

expect_clean() { # NAME: the device has left nothing
    local left
    expect_store "$BEFORE" "$1-store-as-before"
    # A guard ends a moment after its script.
    wait_until 3 no_script_process
    left=$(losetup -a; script_processes)
    [ -z "$left" ] || indent <<< "$left"
    check "$1-nothing-else-left" "loop devices and processes: see above" test -z "$left"
    { [ -z "$left" ] && cmp -s "$BEFORE" "$LAB/now.store"; } || tidy
}

tidy() { # so that one failure does not make all later checks fail
    local pid loop
    rm -f "$LAB/stop"
    {
        script_processes | while read -r pid _; do kill -9 "$pid"; done
        xl block-detach -f g xvda
        xenstore-rm /tool/xendev
        for loop in $(losetup -a | cut -d : -f 1); do losetup -d "$loop"; done
    } > "$OUT" 2>&1
}

begin() { # COMMAND...: in the background, with its output kept
    "$@" > "$LAB/begun.out" 2> "$LAB/begun.err" &
    BEGUN=$!
}

expect_begun() { # STATUS NAME: what was begun ends with this status
    local got
    wait "$BEGUN" 2> "$LAB/wait"
    got=$?
    cp "$LAB/begun.out" "$OUT"
    cp "$LAB/begun.err" "$ERR"
    [ "$got" = "$1" ] || show_output
    check "$2" "it ended with $got instead of $1" test "$got" = "$1"
}

begin_attach_until() { # PATTERN NAME: begins an attach whose script stops there
    stop_at "$1"
    # A busy machine takes its time to get there.
    begin xendev block-attach --script-timeout 120 g "$DISK"
    check "$2-stopped" "the script did not stop $1" wait_until 90 has_stopped
}

record() { xenstore-read "/libxl/$DOMID/device/vbd/$DISK_ID/op" 2> "$LAB/no-record"; }

is_closing() { [[ $(record) == "remove:"*" stage=closing "* ]]; }

is_owned_by() { [[ $(record) == *" pid=$1 "* ]]; } # PID

ran() { grep -q "$1" "$LAB/ran" 2> "$LAB/grep"; }

expect_in_turn() { # NAME: each run of block-slow ended before the next one began
    printf '%s\n' 'begin add' 'end add' 'begin remove' 'end remove' > "$LAB/in-turn"
    expect_same "$LAB/in-turn" "$LAB/ran" "$1-scripts-in-turn"
}

begin_slow_attach() { # NAME
    rm -f "$LAB/ran"
    begin xendev block-attach "$DOMID" "script=block-slow,$DISK"
    check "$1-script-runs" "the script did not begin" wait_until 30 ran 'begin add'
}

# The stock script's slow brother.
hotplug_script block-slow << EOT
#!/bin/bash
echo "begin \$1" >> $LAB/ran
[ "\$1" != add ] || sleep 5
/etc/xen/scripts/block "\$1"
status=\$?
echo "end \$1" >> $LAB/ran
exit \$status
EOT
check guest-started "see above" guest_start g
BEFORE=$LAB/before.store
store_dump "$BEFORE"
DOMID=$(guest_domid g)

### How long both tools take, each with a device of the other.

timed "xendev block-attach" xendev block-attach g "$DISK"
timed "xl block-detach" xl block-detach g xvda
timed "xl block-attach" xl block-attach g "$DISK"
timed "xendev block-detach" xendev block-detach g xvda
expect_clean both-tools

### A removal beside a slow add.

begin_slow_attach beside
timed "xendev block-detach beside a slow attach" xendev block-detach g xvda
check beside-detached "see above" test $? = 0
expect_begun 0 beside-attached
expect_in_turn beside
expect_clean beside

### An add that is asked to give way.

begin_slow_attach taken-over
expect_exit 0 taken-over-detached xendev block-detach --take-over g xvda
expect_begun 4 taken-over-attach-ended
expect_stderr "asked for the device" taken-over-attach-says-so
expect_clean taken-over

### An add that is killed before a driver has taken the device up.

rmmod xen-blkback
begin xendev block-attach --backend-timeout 60 g "$DISK"
check killed-early-begun "the device is not in the store" \
    wait_until 20 xenstore-exists "/libxl/$DOMID/device/vbd/$DISK_ID"
kill -9 "$BEGUN"
expect_begun 137 killed-early-killed
expect_exit 0 killed-early-detached xendev block-detach g xvda
modprobe xen-blkback
expect_clean killed-early

### An add that is killed, at each place where the stock script has done one thing more.

stoppable losetup
stoppable xenstore-write

killed_at() { # NAME PATTERN
    begin_attach_until "$2" "$1"
    kill -9 "$BEGUN"
    expect_begun 137 "$1-killed"
    expect_exit 0 "$1-detached" xendev block-detach g xvda
    expect_clean "$1"
}
killed_at killed-before-losetup 'before losetup /dev/loop*'
killed_at killed-after-losetup 'after losetup /dev/loop*'
killed_at killed-after-node 'after xenstore-write */node *'
killed_at killed-after-device 'after xenstore-write */physical-device *'

# The next add removes what is left, too.
begin_attach_until 'after losetup /dev/loop*' killed-then-attach
kill -9 "$BEGUN"
expect_begun 137 killed-then-attach-killed
expect_exit 0 killed-then-attach-attached xendev block-attach g "$DISK"
check killed-then-attach-one-loop-device "losetup -a: $(losetup -a)" test "$(losetup -a | wc -l)" = 1
expect_exit 0 killed-then-attach-detached xendev block-detach g xvda
expect_clean killed-then-attach

### An add that is told to end.

begin_attach_until 'after losetup /dev/loop*' hangup
kill -HUP "$BEGUN"
expect_begun 4 hangup-ended
expect_clean hangup

begin_attach_until 'after xenstore-write */physical-device *' hangup-late
kill -HUP "$BEGUN"
expect_begun 4 hangup-late-ended
expect_clean hangup-late

# Without job control, what is begun in the background takes no notice of this signal.
set -m
begin_attach_until 'after losetup /dev/loop*' interrupt
set +m
kill -INT "$BEGUN"
expect_begun 4 interrupt-ended
expect_clean interrupt

### A removal that is killed.

expect_exit 0 killed-detach-prepared xendev block-attach --wait connected g "$DISK"
stop_at 'before losetup -d *'
begin xendev block-detach g xvda
check killed-detach-stopped "the script did not stop" wait_until 30 has_stopped
kill -9 "$BEGUN"
expect_begun 137 killed-detach-killed
expect_exit 0 killed-detach-detached xendev block-detach g xvda
expect_clean killed-detach

# The backend's nodes go while the script runs, which then writes some of them anew.
begin_attach_until 'before losetup /dev/loop*' no-backend-midway
xenstore-rm "/local/domain/0/backend/vbd/$DOMID/$DISK_ID"
go_on
expect_begun 1 no-backend-midway-attach-failed
limited xendev block-detach g xvda
expect_clean no-backend-midway

# xl takes the device away, and its script waits for the lock that ours has.
begin_attach_until 'after losetup /dev/loop*' xl-waits
timed "xl block-detach -f beside a script that hangs" xl block-detach -f g xvda
expect_begun 1 xl-waits-attach-failed
expect_clean xl-waits

unstoppable losetup
unstoppable xenstore-write

# While the guest does not answer, one takes over from another and is killed.
expect_exit 0 killed-waiting-prepared xendev block-attach --wait connected g "$DISK"
xl pause g
begin xendev block-detach --timeout 60 g xvda
FIRST=$BEGUN
wait_until 20 is_closing
begin xendev block-detach --timeout 60 --take-over g xvda
wait "$FIRST"
check killed-waiting-gave-way "it ended with another status than 4" test $? = 4
wait_until 20 is_owned_by "$BEGUN"
kill -9 "$BEGUN"
expect_begun 137 killed-waiting-killed
xl unpause g
expect_exit 0 killed-waiting-detached xendev block-detach g xvda
guest_lacks g blk xvda killed-waiting-guest-lacks-disk
expect_clean killed-waiting

### Two removals at once.

expect_exit 0 two-prepared xendev block-attach --wait connected g "$DISK"
begin xendev block-detach g xvda
expect_exit 0 two-one-detached xendev block-detach g xvda
expect_begun 0 two-other-detached
expect_clean two

### What the script needs to undo its work is not where it was.

expect_exit 0 no-image-prepared xendev block-attach --wait connected g "$DISK"
cp "$IMAGE" "$LAB/copy.img"
rm "$IMAGE"
expect_exit 0 no-image-detached xendev block-detach g xvda
expect_clean no-image
mv "$LAB/copy.img" "$IMAGE"

expect_exit 0 no-backend-prepared xendev block-attach --wait connected g "$DISK"
xenstore-rm "/local/domain/0/backend/vbd/$DOMID/$DISK_ID"
expect_exit 0 no-backend-detached xendev block-detach g xvda
guest_lacks g blk xvda no-backend-guest-lacks-disk
expect_clean no-backend

### xl takes the device away.

begin_slow_attach xl-detach
timed "xl block-detach -f beside a slow attach" xl block-detach -f g xvda
expect_begun 1 xl-detach-attach-failed
expect_stderr "the device was removed by another toolstack" xl-detach-attach-says-so
expect_clean xl-detach

### Six at once.

many() { # NAME COMMAND...: runs the command for six devices at once
    local name=$1 jobs=() bad=0 letter
    shift
    for letter in b c d e f g; do
        "$@" "$letter" > "$LAB/many-$letter" 2>&1 &
        jobs+=($!)
    done
    for job in "${jobs[@]}"; do wait "$job" || bad=$((bad + 1)); done
    [ "$bad" = 0 ] || tail -n +1 "$LAB"/many-* | indent
    check "$name" "$bad failed" test "$bad" = 0
}
attach_letter() {
    cp "$IMAGE" "$LAB/disk-$1.img"
    xendev block-attach --script-timeout 80 g "format=raw,vdev=xvd$1,access=rw,target=$LAB/disk-$1.img"
}
detach_letter() { xendev block-detach --timeout 40 --script-timeout 80 g "xvd$1"; }
timed "six xendev block-attach" many six-attached attach_letter
cat "$OUT"
check six-loop-devices "losetup -a: $(losetup -a)" test "$(losetup -a | wc -l)" = 6
timed "six xendev block-detach" many six-detached detach_letter
cat "$OUT"
expect_clean six

### The guest goes away.

# One device is attached, one add was killed, one is under way.
disk() { echo "format=raw,vdev=xvd$1,access=rw,target=$LAB/disk-$1.img"; }
stoppable losetup
stop_at 'after losetup /dev/loop*'
begin xendev block-attach g "$(disk b)"
check destroyed-other-stopped "the script did not stop" wait_until 30 has_stopped
kill -9 "$BEGUN"
expect_begun 137 destroyed-other-killed
unstoppable losetup
expect_exit 0 destroyed-prepared xendev block-attach g "$(disk c)"
begin_slow_attach destroyed
timed "xl destroy beside a slow attach" xl destroy g
expect_begun 1 destroyed-attach-failed
# xl removes a domain's devices before the domain, so either may be seen.
expect_stderr 'the device \(is gone with its domain\|was removed by another toolstack\)' destroyed-attach-says-so
expect_exit 1 destroyed-detach xendev block-detach "$DOMID" xvda
expect_stderr "knows no domain" destroyed-detach-says-so
for letter in b c; do limited xendev block-detach "$DOMID" "xvd$letter"; done
xenstore-ls -f | grep -E "/(backend/[a-z]+|domain|libxl)/$DOMID(/| )|xendev" > "$LAB/left"
indent < "$LAB/left"
check destroyed-nothing-in-store "$(wc -l < "$LAB/left") nodes, see above" test ! -s "$LAB/left"
check destroyed-no-loop-device "losetup -a: $(losetup -a)" no_loop_device
check destroyed-no-process "a process of a script is there" wait_until 3 no_script_process
