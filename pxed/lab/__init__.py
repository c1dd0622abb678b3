"""A virtual lab: network namespaces, a bridge and QEMU clients."""
