#!/bin/sh
# First process of a guest: loads the frontends, then tells once a second which devices it has.
# Its console is the only way to look into the guest; see scenarios/lib/guest.sh for the reader's side.

# A shell as the first process takes no signal unless it says so; these are busybox's for reboot and poweroff.
trap 'reboot -f' TERM
trap 'poweroff -f' USR2

mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
modprobe xen-blkfront
modprobe xen-netfront
echo GUEST-UP

arguments=" $(cat /proc/cmdline) "
has() { # WORD: of the kernel's arguments
    case $arguments in
        *" $1 "*) ;;
        *) return 1 ;;
    esac
}

names() { # names of the folder's entries that match the pattern, each between spaces
    list=" "
    for entry in $1; do
        [ -e "$entry" ] && list="$list${entry##*/} "
    done
}

# Reads the emulated CD, or keeps it open, as the first word of the disk says: the one way to tell the guest something.
read_cd() {
    while sleep 0.3; do
        case "$(dd if=/dev/xvda bs=512 count=1 iflag=direct 2> /dev/null | tr -d '\0')" in
            read)
                {
                    echo "GUEST-CD [$(dd bs=2048 count=1 | tr -d '\0')]"
                    dd of=/dev/null bs=64k
                } 2> /dev/null < /dev/sr0 || echo "GUEST-CD none"
                ;;
            hold)
                {
                    echo "GUEST-CD held"
                    sleep 10
                } 2> /dev/null < /dev/sr0
                ;;
            *) echo "GUEST-CD idle" ;;
        esac
    done
}

if has read-cd; then
    modprobe ata_piix
    modprobe sr_mod
    read_cd &
fi

while sleep 1; do
    names '/sys/block/xvd*'
    blk=$list
    names '/sys/class/net/*'
    echo "GUEST-SEES blk=[$blk] net=[$list]"
    # Only where a scenario asks for it, since a disk that is read is in use.
    if has read-disks; then
        for disk in $blk; do
            echo "GUEST-READS $disk=[$(dd if="/dev/$disk" bs=16 count=1 iflag=direct 2> /dev/null | tr -d '\0')]"
        done
    fi
    # Likewise: the second sector of each disk, and the host at the other end of eth0.
    if has use-devices; then
        for disk in $blk; do
            said="the guest wrote to $disk"
            # Once: a disk that is written to while it goes would keep the guest waiting. By a node of its own: where the
            # kernel's has just gone, dd would make a file of that name, and the disk that comes next could have none.
            [ "$(dd if="/dev/$disk" bs=512 skip=1 count=1 iflag=direct 2> /dev/null | tr -d '\0')" = "$said" ] ||
                {
                    rm -f /disk
                    # shellcheck disable=SC2046 # two words
                    mknod /disk b $(tr : ' ' < "/sys/block/$disk/dev") &&
                        printf '%s' "$said" | dd of=/disk bs=512 seek=1 conv=sync,fsync
                } 2> /dev/null
        done
        ifconfig eth0 192.168.77.2 2> /dev/null && ping -c 1 -W 1 192.168.77.1 > /dev/null 2>&1 && echo GUEST-PINGS
    fi
done
