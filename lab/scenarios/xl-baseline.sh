# Debian's own xl attaches and detaches a disk and a NIC: the ground truth, and a check of the lab itself.
. ./common.sh
plan 22

check guest-started "see above" guest_start g
store_dump "$LAB/before.store"

for round in first second; do
    attach_both xl g "$round"
    sleep 1
    store_dump "$LAB/$round.store"
    artifact "$round.store" "$LAB/$round.store"
    guest_sees g blk xvda "$round-guest-sees-disk"
    guest_sees g net eth0 "$round-guest-sees-nic"
    detach_both xl g "$round"
    guest_lacks g blk xvda "$round-guest-lacks-disk"
done
expect_store "$LAB/before.store" store-as-before
expect_no_leftovers xl
expect_same_trees "$LAB/first.store" "$LAB/second.store"
