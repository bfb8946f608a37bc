# Five hundred disks and a hundred interfaces come and go by native handlers: nothing is left, and nothing grows.
# needs xendev
# limit 7200
. ./common.sh
plan 15
hotplug_programs

CYCLES=500
check guest-started "see above" guest_start g
DOMID=$(guest_domid g)
image_of "$IMAGE" "disk"
BEFORE=$LAB/before.store

cycle() { # NOT-NIC: 0 for one with an interface
    native block-attach g "$DISK" > "$OUT" 2> "$ERR" || return 1
    wait_until 20 both_ends_connected "$DOMID" vbd "$DISK_ID" || return 1
    native block-detach g xvda > "$OUT" 2> "$ERR" || return 1
    [ "$1" = 0 ] || return 0
    # shellcheck disable=SC2086 # several words
    native network-attach g $NIC > "$OUT" 2> "$ERR" || return 1
    wait_until 20 both_ends_connected "$DOMID" vif 0 || return 1
    native network-detach g 0 > "$OUT" 2> "$ERR"
}

grown() { # what could grow: open files, xenstored's descriptors and memory in kB, the kernel's slabs in kB
    local daemon
    daemon=$(pidof xenstored)
    echo "$(cut -f 1 /proc/sys/fs/file-nr) $(ls "/proc/$daemon/fd" | wc -l)" \
        "$(awk '/VmRSS/ {print $2}' "/proc/$daemon/status") $(awk '/SUnreclaim/ {print $2}' /proc/meminfo)"
}

cycles() { # FROM TO
    local number
    for number in $(seq "$1" "$2"); do
        cycle $((number % 5)) || { echo "    cycle $number failed"; show_output; return 1; }
        [ $((number % 5)) -ne 0 ] || echo "    cycle $number: $(grown)"
    done
}

# What is made once is made by then.
check first-cycles "see above" cycles 1 20
store_dump "$BEFORE"
read -r FILES DESCRIPTORS MEMORY SLABS < <(grown)
check all-cycles "see above" cycles 21 "$CYCLES"
read -r FILES_NOW DESCRIPTORS_NOW MEMORY_NOW SLABS_NOW < <(grown)
expect_store_but_copies "$BEFORE" store-as-before
check open-files-flat "$FILES, then $FILES_NOW" test "$FILES_NOW" -le $((FILES + 64))
check xenstored-descriptors-flat "$DESCRIPTORS, then $DESCRIPTORS_NOW" test "$DESCRIPTORS_NOW" -eq "$DESCRIPTORS"
check xenstored-memory-flat "$MEMORY kB, then $MEMORY_NOW" test "$MEMORY_NOW" -le $((MEMORY + 1024))
check slabs-flat "$SLABS kB, then $SLABS_NOW" test "$SLABS_NOW" -le $((SLABS + 8192))
check no-locks "$(ls /run/xendev /var/run/xen-hotplug 2>&1)" \
    test -z "$(find /run/xendev /var/run/xen-hotplug -type f 2> "$LAB/find")"
check one-guest "$(xl list)" test "$(xl list | wc -l)" = 3

expect_exit 0 last-attached native block-attach g "$DISK"
check last-connected "it is not" wait_until 20 both_ends_connected "$DOMID" vbd "$DISK_ID"
expect_exit 0 last-detached native block-detach g xvda
expect_no_leftovers soak
