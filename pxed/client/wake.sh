# shellcheck shell=sh
# Asks for the events of those devices that an initramfs may have drivers for, and of cards and disks
# that are there already: what `udevadm trigger` does, without its start and its look at every device,
# which take half a second on a slow machine. Read by the script that has started udev (initramfs-tools),
# or run in place of systemd's coldplug (dracut).

for device in /sys/bus/*/devices/*; do
    case ${device#/sys/bus/} in
    # What Hyper-V's cards hang on.
    acpi/devices/VMB* | acpi/devices/MSFT1000*) ;;
    # No card is found behind these, and they are many.
    acpi/* | cpu/* | memory/* | event_source/* | clock*) continue ;;
    esac
    [ -e "$device/driver" ] || [ ! -e "$device/modalias" ] || echo add > "$device/uevent" || :
done
# systemd may wait for a TPM that the firmware has told of.
for device in /sys/class/net/* /sys/class/block/* /sys/class/tpmrm/*; do
    [ ! -e "$device/uevent" ] || echo add > "$device/uevent" || :
done
