# The CD-ROM drive of an HVM guest named `hvm', as QEMU tells of it.

CDROM_ID=5632 # of hdc

# The first word of a line is the device; a second drive of the same image belongs to the disk's backend.
drives() { xl qemu-monitor-command hvm 'info block' > "$OUT" 2> "$ERR"; }

drive_is() { # WORDS: the CD-ROM drive that the guest's firmware sees
    drives && grep "^ide-$CDROM_ID" "$OUT" | grep -qF "$1"
}
