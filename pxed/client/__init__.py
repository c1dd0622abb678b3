"""What runs on the booted machine: the initramfs and what it needs."""
