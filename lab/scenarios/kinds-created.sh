# File systems, channels and USB controllers: what xendev writes for them is what xl writes, key by key and in its order.
# needs xendev
# needs qemu
. ./common.sh
. lib/qemu.sh

# From version 10 on QEMU ends when it is to serve a file system or a USB controller for a PV guest: it "does not support
# hotplugging" of them. Then there is nothing of xl's to compare with, but how xendev refuses it.
if qemu_before 10; then plan 55; else plan 39; fi

SHARE=$LAB/share
mkdir -p "$SHARE"

# Of drivers and scripts: the state, and what QEMU and the guest write beside it.
OF_DRIVERS='node|physical-device|physical-device-path|state|hotplug-status|versions|max-rings|max-ring-page-order|event-channel|ring-ref|tty'

tree_of() { # DOMID BACKEND-KIND KIND DEVID FILE: a device's nodes in the order of creation, without its numbers
    local be fe lx
    be=$(backend "$1" "$2" "$4")
    fe=$(frontend "$1" "$3" "$4")
    lx=/libxl/$1/device/$3/$4
    xenstore-ls -fp > "$LAB/all"
    for node in "$be" "$fe" "$lx"; do
        grep -E "^$node(/| )" "$LAB/all"
    done | sed -E "s#$be#BE#g; s#$fe#FE#g; s#$lx#LX#g; s#(/frontend-id = )\"$1\"#\1\"N\"#; s#([(,][nrwb])$1\b#\1N#g; s#libxl-channel[0-9]#libxl-channelN#" \
        | grep -vE "^(BE|FE)/($OF_DRIVERS) =|^FE/port =" > "$5"
    [ "$(wc -l < "$5")" -gt 10 ]
}

expect_tree() { # NAME BACKEND-KIND KIND XL-DOMID XL-DEVID XENDEV-DOMID XENDEV-DEVID
    check "$1-xls-is-there" "fewer nodes than a device has" tree_of "$4" "$2" "$3" "$5" "$LAB/$1.xl"
    check "$1-is-there" "fewer nodes than a device has" tree_of "$6" "$2" "$3" "$7" "$LAB/$1.xendev"
    artifact "$1.xl" "$LAB/$1.xl"
    expect_same "$LAB/$1.xl" "$LAB/$1.xendev" "$1-as-xls"
}

expect_table() { # WORDS...: xl and xendev print the same
    local name="$*"
    limited xl "$@"
    cp "$OUT" "$LAB/table.xl"
    limited xendev "$@"
    cp "$OUT" "$LAB/table.xendev"
    check "$name-is-there" "nothing was printed" test -s "$LAB/table.xl"
    expect_same "$LAB/table.xl" "$LAB/table.xendev" "$name-as-xls"
}

### Made with the domain: by xl, and by xendev for a domain that has no device model yet.

guest_config shares pv << EOT
p9 = ['tag=share,security_model=none,path=$SHARE']
EOT
expect_timed 0 shares-created xl create -p "$LAB/shares.cfg"
SHARES=$(guest_domid shares)
guest_config byxl pv << EOT
channel = ['connection=pty,name=org.x.first', 'connection=socket,path=$LAB/socket,name=org.x.second']
EOT
expect_timed 0 byxl-created xl create "$LAB/byxl.cfg"
BYXL=$(guest_domid byxl)
# libxl 4.17 numbers channels from 0, which is the console's number, and 4.20 from 1.
SECOND=$(xenstore-ls -f "/libxl/$BYXL/device/console" | sed -n 's#.*/\([0-9]*\)/name = "org.x.second"#\1#p')
guest_config bare pv < /dev/null
expect_timed 0 bare-created xl create -p "$LAB/bare.cfg"
BARE=$(guest_domid bare)
domain_dump "$BARE" "$LAB/bare.before"
expect_exit 0 p9-attached xendev p9-attach --wait tree bare "tag=share,security_model=none,path=$SHARE"
expect_exit 0 channel-attached xendev channel-attach --wait tree bare connection=socket "path=$LAB/socket" name=org.x.second
expect_tree p9 9pfs 9pfs "$SHARES" 0 "$BARE" 0
expect_tree channel console console "$BYXL" "$SECOND" "$BARE" 1
expect_exit 0 p9-detached xendev p9-detach bare 0
expect_exit 0 channel-detached xendev channel-detach bare 0
expect_domain "$BARE" "$LAB/bare.before" bare-as-before
# CD-ROM drives of a PV guest: one without a medium, which QEMU is to serve, and one with.
ISO=$LAB/cd.iso
image_of "$ISO" cdrom
expect_exit 0 shares-destroyed xl destroy shares
guest_config drives pv << EOT
disk = ['format=empty,vdev=xvdc,access=ro,devtype=cdrom', '$ISO,raw,xvdd:cdrom']
EOT
expect_timed 0 drives-created xl create -p "$LAB/drives.cfg"
DRIVES=$(guest_domid drives)
expect_exit 0 drive-attached xendev block-attach --wait tree bare ,,xvdc:cdrom
expect_exit 0 cdrom-attached xendev block-attach bare "$ISO,raw,xvdd:cdrom"
if qemu_before 10; then
    expect_tree drive qdisk vbd "$DRIVES" 51744 "$BARE" 51744
else
    # libxl 4.20 has blkback serve an empty file in place of the medium.
    check drive-of-later-xl "see the store" \
        node_is "/libxl/$DRIVES/device/vbd/51744/params" "/var/run/xen/empty-cdrom.$DRIVES"
fi
expect_tree cdrom vbd vbd "$DRIVES" 51760 "$BARE" 51760
# The guest is paused, and is not asked.
expect_exit 0 drive-detached xendev block-detach -f bare xvdc
expect_exit 0 cdrom-detached xendev block-detach -f bare xvdd
expect_domain "$BARE" "$LAB/bare.before" drives-bare-as-before
expect_exit 0 drives-destroyed xl destroy drives

expect_exit 1 channel-refused xendev channel-attach byxl connection=pty name=late
expect_stderr "needs a character device" channel-refused-reason
expect_up byxl
expect_table channel-list byxl
domain_dump "$BYXL" "$LAB/byxl.before"
expect_timed 3 usbctrl-pv-times-out xendev usbctrl-attach byxl type=pv
expect_domain "$BYXL" "$LAB/byxl.before" usbctrl-pv-leaves-nothing

### Added to a guest that runs, whose QEMU is there for the channels.

if qemu_before 10; then
    # A drive without a medium, which this QEMU does not open: xl does not ask whether it has.
    expect_timed 0 drive-of-xl xl block-attach byxl ,,xvdf:cdrom
    expect_timed 1 drive-refused xendev block-attach byxl ,,xvdg:cdrom
    expect_stderr "Could not stat file ''" drive-refused-reason
    check drive-of-xl-not-served "QEMU has taken it up" node_is "$(backend "$BYXL" qdisk 51792)/state" 1
    expect_exit 0 drive-of-xl-detached xendev block-detach -f byxl xvdf
    expect_domain "$BYXL" "$LAB/byxl.before" drives-leave-nothing
    expect_timed 0 usbctrl-xl xl usbctrl-attach byxl type=qusb version=2 ports=3
    expect_timed 0 usbctrl-attached xendev usbctrl-attach byxl type=qusb version=2 ports=3
    expect_tree usbctrl qusb vusb "$BYXL" 0 "$BYXL" 1
    expect_table usb-list byxl
    indent < "$OUT"
    xl list -l byxl | sed -n '/"usbctrls"/,/\]/p' | indent
    check usbctrls-entered "see above" test "$(xl list -l byxl | grep -c '"type": "qusb"')" = 2
    expect_timed 0 usbctrl-detached xendev usbctrl-detach byxl 1
    domain_dump "$BYXL" "$LAB/byxl.before"
    expect_timed 0 p9-hot xendev p9-attach byxl tag=hot "path=$SHARE"
    expect_exit 0 p9-list xendev p9-list byxl
    indent < "$OUT"
    expect_timed 0 p9-hot-detached xendev p9-detach byxl 0
    expect_domain "$BYXL" "$LAB/byxl.before" p9-hot-leaves-nothing
    expect_timed 0 usbctrl-of-xl-detached xendev usbctrl-detach byxl 0
else
    QEMU=$(node "/local/domain/$BYXL/image/device-model-pid")
    expect_timed 1 usbctrl-refused xendev usbctrl-attach byxl type=qusb version=2 ports=3
    expect_stderr "needs QEMU 9 or older" usbctrl-refused-reason
    check usbctrl-qemu-lives "QEMU has ended" test -d "/proc/$QEMU"
    expect_timed 1 p9-refused xendev p9-attach byxl tag=hot "path=$SHARE"
    expect_stderr "needs QEMU 9 or older" p9-refused-reason
    expect_domain "$BYXL" "$LAB/byxl.before" refused-leaves-nothing
fi
