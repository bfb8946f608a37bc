# What is in an HVM guest's CD-ROM drive, changed by xendev beside xl, while the guest reads it and while it does not.
# needs xendev
# needs qemu
. ./common.sh
. lib/qemu.sh
. lib/cdrom.sh
plan 85

FIRST=$LAB/first.iso
SECOND=$LAB/second.iso
THIRD=$LAB/third.iso
image_of "$FIRST" first
image_of "$SECOND" second
image_of "$THIRD" third

guest_create hvm hvm read-cd << EOT
vga = "none"
vnc = 0
nographic = 1
disk = ['$DISK', 'format=raw,vdev=hdc,access=ro,devtype=cdrom,target=$FIRST']
EOT
expect_up hvm
DOMID=$(guest_domid hvm)
QEMU=$(node "/local/domain/$DOMID/image/device-model-pid")
CDROM=$(backend "$DOMID" qdisk "$CDROM_ID")
CONFIG=$(echo /var/lib/xen/userdata-d."$DOMID".*.libxl-json)
check disk-connected "not both ends are in state 4" wait_until 20 both_ends_connected "$DOMID" vbd "$DISK_ID"

params_are() { # VALUE: in both places
    node_is "$CDROM/params" "$1" && node_is "/libxl/$DOMID/device/vbd/$CDROM_ID/params" "$1"
}

expect_params() { # VALUE NAME
    check "$2" "they are '$(node "$CDROM/params")'" params_are "$1"
}

change() { # NAME STATUS COMMAND...: and what came of it, in $LAB/NAME.{store,drive,json}
    local name=$1 status=$2
    shift 2
    domain_dump "$DOMID" "$LAB/medium.domain"
    expect_timed "$status" "$name" "$@"
    cp "$ERR" "$LAB/$name.err"
    domain_changes "$DOMID" "$LAB/medium.domain" "$name.store"
    cp "$LAB/changes" "$LAB/$name.store"
    drives
    # A descriptor's number is QEMU's to choose.
    sed -E 's#/dev/fdset/[0-9]+#/dev/fdset/N#; s/ \(#block[0-9]+\)//' "$OUT" > "$LAB/$name.drive"
    # It ends in a NUL byte.
    tr -d '\0' < "$CONFIG" > "$LAB/$name.json"
}

expect_alike() { # XL XENDEV: both changes did the same to the store, to QEMU and to libxl's configuration
    local what
    for what in store drive json; do
        expect_same "$LAB/$1.$what" "$LAB/$2.$what" "$2-$what-as-xls"
    done
}

### The same as xl: in the store, in QEMU, and in libxl's configuration. They take turns with one drive.

change xl-ejected 0 xl cd-eject hvm hdc
indent < "$LAB/xl-ejected.store"
indent < "$LAB/xl-ejected.drive"
change xl-put-back 0 xl cd-insert hvm hdc "$FIRST"
change ejected 0 xendev cd-eject hvm hdc
expect_alike xl-ejected ejected
change xl-inserted 0 xl cd-insert hvm hdc "$SECOND"
change xl-ejected-again 0 xl cd-eject hvm hdc
change inserted 0 xendev cd-insert hvm hdc "$SECOND"
expect_alike xl-inserted inserted
indent < "$LAB/inserted.drive"
indent < "$LAB/inserted.json"
check inserted-open "QEMU does not have it" holds "$QEMU" "$SECOND"
change xl-swapped 0 xl cd-insert hvm hdc "$THIRD"
change swapped-back 0 xendev cd-insert hvm hdc "$SECOND"
check swapped-back-open "QEMU does not have it" holds "$QEMU" "$SECOND"
check swapped-back-third-closed "QEMU has it" wait_until 5 let_go "$QEMU" "$THIRD"
change swapped 0 xendev cd-insert hvm hdc "$THIRD"
expect_alike xl-swapped swapped
check swapped-open "QEMU does not have it" holds "$QEMU" "$THIRD"
check swapped-second-closed "QEMU has it" wait_until 5 let_go "$QEMU" "$SECOND"
expect_params "aio:$THIRD" swapped-params

for command in "cd-insert --json hvm hdc $SECOND" "cd-eject --json hvm hdc"; do
    # shellcheck disable=SC2086 # several words
    expect_exit 0 "dry-run-${command%% *}" xendev -N $command
    indent < "$OUT"
    expect_params "aio:$THIRD" "dry-run-${command%% *}-changes-nothing"
done

### Both at once: whoever is last, the store names what QEMU has.

agree() {
    local image other
    case $(node "$CDROM/params") in
        "aio:$SECOND") image=$SECOND other=$THIRD ;;
        "aio:$THIRD") image=$THIRD other=$SECOND ;;
        *) return 1 ;;
    esac
    params_are "aio:$image" && holds "$QEMU" "$image" && let_go "$QEMU" "$other"
}

for round in 1 2 3; do
    xl cd-insert hvm hdc "$SECOND" > "$LAB/xl.out" 2>&1 &
    by_xl=$!
    expect_exit 0 "at-once-$round-xendev" xendev cd-insert hvm hdc "$THIRD"
    wait "$by_xl"
    status=$?
    check "at-once-$round-xl" "$(cat "$LAB/xl.out")" test "$status" = 0
    check "at-once-$round-agree" "the store says $(node "$CDROM/params")" wait_until 5 agree
done

### What cannot be: nothing is changed, or what is so is told.

expect_exit 0 back-to-second xendev cd-insert hvm hdc "$SECOND"
change no-image 1 xendev cd-insert hvm hdc "$LAB/none.iso"
check no-image-reason "$(cat "$LAB/no-image.err")" grep -q "No such file" "$LAB/no-image.err"
check no-image-changes-nothing "see above" test ! -s "$LAB/no-image.store"
change no-drive 1 xendev cd-insert hvm xvda "$THIRD"
check no-drive-reason "$(cat "$LAB/no-drive.err")" grep -q "it is a disk" "$LAB/no-drive.err"
change bad-image 1 xendev cd-insert --format qcow2 hvm hdc "$THIRD"
check bad-image-reason "$(cat "$LAB/bad-image.err")" grep -q "not in qcow2 format" "$LAB/bad-image.err"
check bad-image-told "$(cat "$LAB/bad-image.err")" grep -q "the drive is empty" "$LAB/bad-image.err"
indent < "$LAB/bad-image.err"
expect_params "" bad-image-params
check bad-image-drive-empty "see below" drive_is "[not inserted]"
check bad-image-closed "QEMU has it" wait_until 5 let_go "$QEMU" "$THIRD"
expect_exit 0 xl-inserts-after-that xl cd-insert hvm hdc "$FIRST"

# A block device. xl gives QEMU a name by which that takes it for a file.
BLOCK=$(losetup -f)
losetup "$BLOCK" "$SECOND"
change block-device 0 xendev cd-insert hvm hdc "$BLOCK"
expect_params "aio:$BLOCK" block-device-params
check block-device-drive "see below" drive_is "/dev/fdset/"
indent < "$OUT"
expect_exit 0 block-device-ejected xendev cd-eject hvm hdc

# What xl makes of these.
xl_says() { # COMMAND...
    limited "$@"
    echo "    $* ends with $?, and leaves params '$(node "$CDROM/params")'"
    tail -n 3 "$ERR" | indent
}

xl_says xl cd-insert hvm hdc "$LAB/none.iso"
xl_says xl cd-insert hvm hdc "$LAB"
xl_says xl cd-eject hvm 5632
limited xl cd-insert hvm hdc "$FIRST"
xl_says xl -N cd-eject hvm hdc
xl_says xl cd-insert hvm hdc "$BLOCK"
limited xl cd-insert hvm hdc "$FIRST"
losetup -d "$BLOCK"

kill -STOP "$QEMU"
expect_timed 3 stopped xendev cd-eject --timeout 2 hvm hdc
kill -CONT "$QEMU"
indent < "$ERR"
expect_stderr "did not answer" stopped-reason
expect_params "aio:$FIRST" stopped-params
check stopped-drive "see above" drive_is "/dev/fdset/"

### While the guest reads. It is told so by the first word of its disk.

tell_guest() { printf '%s\0\0\0\0' "$1" | dd of="$IMAGE" conv=notrunc 2> "$LAB/dd"; } # WORD

guest_cd_says() { # SINCE WORDS
    tail -n "+$(($1 + 1))" "$(guest_log hvm)" | grep -aqF "GUEST-CD $2"
}

expect_guest_cd() { # WORDS NAME: from now on the guest says that of its CD, at the latest after 60 s
    local since
    since=$(wc -l < "$(guest_log hvm)")
    if wait_until 60 guest_cd_says "$since" "$1"; then
        ok "$2"
    else
        tail -n 3 "$(guest_log hvm)" | indent
        fail "$2" "after 60 s, the guest has not said $1"
    fi
}

tell_guest read
expect_guest_cd "[first]" guest-reads-first
change read-swapped 0 xendev -v cd-insert --timeout 60 hvm hdc "$SECOND"
indent < "$LAB/read-swapped.err"
expect_guest_cd "[second]" guest-reads-second
change read-forced 0 xendev -v cd-insert --force hvm hdc "$THIRD"
indent < "$LAB/read-forced.err"
expect_guest_cd "[third]" guest-reads-third
check read-forced-second-closed "QEMU has it" wait_until 5 let_go "$QEMU" "$SECOND"
change read-ejected 0 xendev cd-eject --force hvm hdc
expect_guest_cd none guest-reads-nothing
expect_params "" read-ejected-params
change read-inserted 0 xendev cd-insert --timeout 60 hvm hdc "$SECOND"
expect_guest_cd "[second]" guest-reads-second-again

# A guest that does not let go is told, and one that does is waited for.
tell_guest hold
expect_guest_cd held guest-holds
change held 3 xendev cd-eject --timeout 1 hvm hdc
indent < "$LAB/held.err"
xl_says xl cd-eject hvm hdc
check held-reason "$(cat "$LAB/held.err")" grep -q "is locked" "$LAB/held.err"
check held-changes-nothing "see above" test ! -s "$LAB/held.store"
expect_guest_cd held guest-holds-again
tell_guest idle
change awaited 0 xendev -v cd-eject --timeout 60 hvm hdc
check awaited-guest "$(cat "$LAB/awaited.err")" grep -q "waiting for the guest to open the tray" "$LAB/awaited.err"
expect_params "" awaited-params

### A QEMU that is gone.

kill -9 "$QEMU"
wait_until 10 model_is_gone
expect_timed 1 killed-refused xendev cd-insert hvm hdc "$FIRST"
expect_stderr "no device model that runs" killed-reason
expect_params "" killed-params
expect_timed 0 destroyed xl destroy hvm
expect_nothing_left "$DOMID" nothing-left
