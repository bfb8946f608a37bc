#!/bin/busybox sh
# First process of dom0: brings up what a Xen host needs before `xl` works, then runs the scenario. A driver domain
# boots from the same files and needs the same kernel modules, but no daemons; see scenarios/lib/driver-domain.sh.

export PATH=/usr/sbin:/usr/bin:$(echo /usr/lib/xen-*/bin) HOME=/root TERM=dumb
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /tmp
mkdir -p /run/lock /run/xen /run/xenstored

# The hotplug scripts take their lock through /dev/stdin and try for ever if it is not there.
ln -s /proc/self/fd /dev/fd
ln -s /proc/self/fd/0 /dev/stdin
ln -s /proc/self/fd/1 /dev/stdout
ln -s /proc/self/fd/2 /dev/stderr

# The kernel's messages would fall into the middle of the scenario's lines; they stay in dmesg.
dmesg -n 1

for module in xenfs xen-privcmd xen-evtchn xen-gntdev xen-gntalloc xen-blkback xen-netback loop bridge tun; do
    modprobe "$module"
done
mount -t xenfs xenfs /proc/xen
ip link set lo up
ip link add xenbr0 type bridge
ip link set xenbr0 up

grep -q control_d /proc/xen/capabilities || exec bash /lab/scenarios/lib/driver-domain-init.sh

xenstored --pid-file /run/xenstored.pid
until [ -S /run/xenstored/socket ]; do sleep 0.1; done
xen-init-dom0
xenconsoled --log=all --log-dir=/var/log/xen

echo "Xen $(cat /sys/hypervisor/version/major).$(cat /sys/hypervisor/version/minor), Linux $(uname -r)"

cd /lab/scenarios || poweroff -f
bash "$(cat /lab/scenario)" < /dev/null
# The lab reads a console without this line as a crash.
echo "SCENARIO END $?"
poweroff -f
